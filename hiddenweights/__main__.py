"""``hiddenweights COMMAND``, or ``python -m hiddenweights COMMAND``: all commands of the project."""

import sys
from collections.abc import Sequence

from hiddenweights import cli
from hiddenweights.cli import Lazy

_TICKETS = "hiddenweights.commands.tickets"
_SWEEPS = "hiddenweights.sweeps.commands"
_ANALYSIS = "hiddenweights.analysis.commands"

COMMANDS: dict[str, Lazy] = {
    "train": Lazy(
        "hiddenweights.commands.train:train",
        "Train one cell, or resume it. A finished cell is reported and not trained again.",
    ),
    "info": Lazy(f"{_TICKETS}:info", "Show the content of a ticket: layers, size, accuracy, origin."),
    "evaluate": Lazy(f"{_TICKETS}:evaluate", "Measure the accuracy of a ticket's network."),
    "export": Lazy(
        f"{_TICKETS}:export",
        "Write a ticket's network as a plain dense model that does not need this package.",
    ),
    "diff": Lazy(
        f"{_TICKETS}:diff",
        "Compare two masks layer by layer: how many weights both keep, and how many two random masks would.",
    ),
    "sweeps list": Lazy(
        f"{_SWEEPS}:list_", "List all sweeps with their numbers of cells, and how many of these are shared."
    ),
    "sweeps show": Lazy(f"{_SWEEPS}:show", "Show the claim, the cost and the axes of a sweep."),
    "sweeps launch": Lazy(
        "hiddenweights.sweeps.launching:launch_",
        "Train the cells of a sweep that the store does not have. Run it again to resume or to extend it.",
    ),
    "sweeps settle": Lazy(
        "hiddenweights.sweeps.launching:settle_",
        "Train cells seed by seed until they decide the claims. Run it again to resume.",
    ),
    "sweeps status": Lazy(
        "hiddenweights.sweeps.status:status",
        "Show the progress of a sweep, from its store. Exit status 0 if every cell is finished, else 1.",
    ),
    "sweeps doctor": Lazy(
        "hiddenweights.sweeps.doctor:doctor",
        "Check this machine, or each node of a cluster, for a sweep: a table and a list of problems.",
    ),
    "sweeps sync": Lazy(
        f"{_SWEEPS}:sync", "Upload the offline W&B runs of a store that were not uploaded before."
    ),
    "analysis figure": Lazy(f"{_ANALYSIS}:figure", "Draw a figure: PNG, PDF, and the numbers as CSV."),
    "analysis table": Lazy(f"{_ANALYSIS}:table_", "Write all cells and all epochs as CSV."),
    "analysis claims": Lazy(f"{_ANALYSIS}:claims_", "Give a verdict on each claim of the paper."),
    "analysis report": Lazy(
        f"{_ANALYSIS}:report_", "Write figures, claims and cells as one HTML page and as Markdown."
    ),
}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args` (default: the process's own) and return its exit status."""
    args = sys.argv[1:] if args is None else [*args]
    if args == ["--version"]:
        from hiddenweights.versions import versions

        sys.stdout.write(f"hiddenweights {versions('hiddenweights').get('hiddenweights', 'unknown')}\n")
        return 0
    return cli.run(COMMANDS, "hiddenweights", args)


if __name__ == "__main__":
    sys.exit(main())
