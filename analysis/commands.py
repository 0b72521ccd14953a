"""``python -m analysis``: figures and numbers from a W&B project, offline W&B runs, or the result store."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from hiddenweights.analysis import aggregate, claims, specs, summary
from hiddenweights.analysis.cache import default_folder
from hiddenweights.analysis.fetch import fetch
from hiddenweights.analysis.paper import published
from hiddenweights.analysis.table import Table, combine
from hiddenweights.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0, or 2 with one line on stderr for bad input."""
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _figure(options: argparse.Namespace) -> None:
    spec = specs.find_spec(options.name)
    table = _table(options)
    points = specs.points(table, spec)
    ours = aggregate.curves(points, mixed=options.mixed)
    drawn = pd.concat([ours, published(spec.name, points)], ignore_index=True)
    from hiddenweights.analysis import figures  # here, because numbers alone need no matplotlib

    csv = options.out / f"{spec.name}.csv"
    with _writing(options.out):
        paths = figures.save(figures.render(drawn, spec, summary.note(points, drawn)), options.out, spec.name)
        drawn.to_csv(csv, index=False)
    print(*summary.lines(points, ours, table, spec), sep="\n")
    if left_out := summary.left_out(table, spec.name):
        print(f"left out: {left_out}")
    print(f"figure: {paths[0]}  {paths[1]}  data: {csv}")


def _report(options: argparse.Namespace) -> None:
    table = _table(options)
    from hiddenweights.analysis import figures, report  # here, because numbers alone need no matplotlib

    found = report.collect(table, ", ".join(_sources(options)), mixed=options.mixed)
    with _writing(options.out):
        for drawing in found.drawings:
            drawn, spec = drawing.drawn, drawing.spec
            figures.save(figures.render(drawn, spec, drawing.note), options.out, spec.name)
            drawn.to_csv(options.out / f"{spec.name}.csv", index=False)
        found.verdicts.to_csv(options.out / "claims.csv", index=False)
        table.cells.to_csv(options.out / "cells.csv", index=False)
        (options.out / "report.md").write_text(report.as_markdown(found))
        (options.out / "report.html").write_text(report.as_html(found))
    print(found.lead)
    for name, reason in found.skipped.items():
        print(f"not drawn: {name}: {reason.removeprefix(f'figure {name}: ')}")
    if options.wandb:
        from hiddenweights.analysis.wandb_report import publish

        print(f"W&B report: {publish(found, options.wandb)}")
    print(f"report: {options.out / 'report.html'}  {options.out / 'report.md'}")


def _table(options: argparse.Namespace) -> Table:
    """The source's table, with a bar where somebody watches and runs are many."""
    folder = None if options.no_cache else default_folder()
    columns, console = (*Progress.get_default_columns(), MofNCompleteColumn()), Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("reading runs", total=None, visible=False)

        def report(message: str, done: int, total: int) -> None:
            if message:
                print(message, file=sys.stderr)
            progress.update(bar, completed=done, total=total, visible=total > 50)

        tables = [fetch(source, folder, report) for source in _sources(options)]
        return summary.where(combine(tables), options.where)


def _sources(options: argparse.Namespace) -> list[str]:
    return options.source or [os.environ.get("HIDDENWEIGHTS_STORE", "runs")]


def _claims(options: argparse.Namespace) -> None:
    table = _table(options)
    found = claims.verdicts(table)
    path = options.out / "claims.csv"
    with _writing(options.out):
        found.to_csv(path, index=False)
    print(*summary.claim_lines(found), sep="\n")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in found["verdict"].value_counts().items())
    print(f"{counts}; rules and cells: {path}")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Make the folder; an error of the system's becomes one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"--out: {str(folder)!r} cannot be written ({error.strerror})") from error


def parser() -> argparse.ArgumentParser:
    """The command line's parser; the parsed namespace's `run` is the command."""
    whole = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--from",
        dest="source",
        metavar="SOURCE",
        action="append",
        help="wandb:entity/project, a folder of offline W&B runs, or a store; several are put together "
        "(default: $HIDDENWEIGHTS_STORE, else runs)",
    )
    common.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="only cells with this value of a config field; may be repeated",
    )
    common.add_argument("--no-cache", action="store_true", help="read every run from the source")
    common.add_argument(
        "--out", type=Path, default=Path("figures"), metavar="DIR", help="(default: %(default)s)"
    )

    drawing = argparse.ArgumentParser(add_help=False)
    drawing.add_argument(
        "--mixed", action="store_true", help="let cells of different epochs or protocols share a curve"
    )
    figure = commands.add_parser(
        "figure", parents=[common, drawing], help="draw a figure: PNG, PDF and its data as CSV"
    )
    figure.add_argument("name", metavar="NAME", help=", ".join(specs.FIGURES))
    figure.set_defaults(run=_figure)

    claim = commands.add_parser("claims", parents=[common], help="a verdict on each claim of the paper")
    claim.set_defaults(run=_claims)

    page = commands.add_parser(
        "report", parents=[common, drawing], help="figures, claims and cells as one HTML page and as Markdown"
    )
    page.add_argument("--wandb", metavar="ENTITY/PROJECT", help="also save it as a draft of a W&B Report")
    page.set_defaults(run=_report)
    return whole
