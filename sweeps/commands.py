"""``hiddenweights sweeps list | show | launch | settle | status | doctor | sync``."""

from collections import Counter

from hiddenweights import cli
from hiddenweights.cells.store import Store, default_store
from hiddenweights.identity import resolve
from hiddenweights.sweeps import experiments
from hiddenweights.sweeps.arguments import Axes, Name, Sets, chosen, console_for_people, repeated
from hiddenweights.sweeps.doctor import doctor
from hiddenweights.sweeps.grid import Arm, Axis, SearchedAxis, Sweep
from hiddenweights.sweeps.launching import launch_, settle_
from hiddenweights.sweeps.status import status


def list_() -> None:
    """List all sweeps with their numbers of cells, and how many of these are shared."""
    console = console_for_people()
    members = experiments.memberships()
    total = 0
    for name in experiments.registered():
        sweep = experiments.sweep(name)
        cells = sweep.cells()
        shared = sum(len(members[cell]) > 1 for cell in cells)
        total += len(cells)
        console.print(f"{name:<16} {len(cells):>4} cells, {shared:>3} shared   {sweep.title}")
    console.print(f"together {len(members)} cells, not {total}: a cell that two sweeps share is trained once")


def show(name: Name, set: Sets = (), axis: Axes = ()) -> None:
    """Show the claim, the cost and the axes of a sweep.

    Args:
        name: The sweep. For your own sweep: FILE.py:FUNCTION or module:FUNCTION.
        set: Set a field in all cells. It replaces an axis over this field.
        axis: Replace the values of an axis, or add an axis.
    """
    console = console_for_people()
    sweep, cells = chosen(name, set, axis)
    console.print(sweep.title + "\n")
    facts = {
        "Claim": sweep.claim,
        "Expect": sweep.expect,
        "Cost": _estimate(sweep),
        "Run": sweep.command(name),
    }
    for label, fact in facts.items():
        if fact:
            console.print(f"{label + ':':<8}{fact}")
    for arm in sweep.arms:
        console.print(_arm(arm))
    methods = Counter[str](config.model.method for config in cells.values())
    console.print(f"{len(cells)} cells ({_counts(methods)}){repeated(cells)}")
    members = experiments.memberships()
    others = Counter(other for cell in cells for other in members.get(cell, ()) if other != sweep.name)
    if others:
        console.print(f"shared with other sweeps: {_counts(others)}")


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {name}" for name, n in counts.most_common())


def _estimate(sweep: Sweep) -> str:
    if not sweep.gpu_hours:
        return ""
    beyond = f" for the cells beyond those of {sweep.beyond}" if sweep.beyond else ""
    return f"about {sweep.gpu_hours:,g} GPU-hours{beyond} (estimated)"


def _arm(arm: Arm) -> str:
    axes = "  ".join(_axis(*axis) for axis in arm.axes.items())
    if arm.found_by:
        return f"finetune: {axes}  of what is found by {_arm(arm.found_by)}"
    base = resolve(arm.base)
    named = base.model.method == "dense" and "optim.optimizer" not in arm.axes
    optimizer = f" ({base.optim.optimizer})" if named else ""
    return f"{base.model.method}{optimizer}: {axes}"


def _axis(field: str, axis: Axis) -> str:
    return f"{field}={axis if isinstance(axis, SearchedAxis) else ','.join(map(str, axis))}"


def sync(store: str | None = None) -> int:
    """Upload the offline W&B runs of a store that were not uploaded before.

    Args:
        store: Folder of the results. If not given: $HIDDENWEIGHTS_STORE, else runs.
    """
    from hiddenweights.sweeps import tracking

    return tracking.sync(Store(store or default_store()), console_for_people())


COMMANDS: dict[str, cli.Command] = {
    "list": list_,
    "show": show,
    "launch": launch_,
    "settle": settle_,
    "status": status,
    "doctor": doctor,
    "sync": sync,
}
