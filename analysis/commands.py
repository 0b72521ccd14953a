"""``hiddenweights analysis figure | table | claims | report``, from W&B projects, offline runs, or stores."""

import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import tyro
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from hiddenweights import cli, own
from hiddenweights.analysis import aggregate, claims, experiments, planning, specs, summary
from hiddenweights.analysis.cache import default_folder
from hiddenweights.analysis.fetch import fetch
from hiddenweights.analysis.layout import file_name, layout
from hiddenweights.analysis.published import published
from hiddenweights.analysis.table import FINISHED, METRIC, Table, combine
from hiddenweights.atomic import replacing
from hiddenweights.cells.store import default_store
from hiddenweights.claims import registry
from hiddenweights.config import CellConfig
from hiddenweights.errors import UserError, choices_error
from hiddenweights.fields import check
from hiddenweights.flat import flatten

if TYPE_CHECKING:
    from hiddenweights.analysis.report import Report


@dataclass(frozen=True, kw_only=True)
class Source:
    """The runs to read, and the folder to write to."""

    from_: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(name="from", metavar="SOURCE")
    ] = ()
    """A store, a folder of offline W&B runs, or wandb:entity/project. Repeat it to combine sources.
    If not given: $HIDDENWEIGHTS_STORE, else runs."""
    where: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE,VALUE")
    ] = ()
    """Use only cells with this value (or one of these) of a config field."""
    no_cache: bool = False
    """Read every run again, instead of only those that are new or changed since the last call."""
    out: Path = Path("figures")
    """Folder for the files that are written."""

    def names(self) -> list[str]:
        """The sources, or the default one."""
        return [*self.from_] or [default_store()]


Options = Annotated[Source, tyro.conf.arg(name="")]
Claims = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE.py:NAME")]
Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
SweepName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[SWEEP]")]


def figure(
    name: Name,
    source: Options = Source(),
    mixed: bool = False,
    x: str | None = None,
    y: str | None = None,
    curve: str | None = None,
    panel: str | None = None,
) -> None:
    """Draw a figure: PNG, PDF, and the numbers as CSV.

    With other axes than its own it gets other files, such as NAME_by_epoch.png.

    Args:
        name: The sweep that is drawn; it must have a finished cell. Many of this project's have a figure of
            their own; of others, the axes are chosen from the fields that vary. For your own sweep:
            FILE.py:FUNCTION, as for its launch.
        mixed: Average over cells that differ in more than their seeds, and draw different data or epochs as
            one curve.
        x: Field on the x axis, or epoch for training curves. If not given: from the figure's description, or
            the first number that varies.
        y: Logged number on the y axis, such as churn, train_loss, or kept/NAME of a layer: after each epoch
            with --x epoch, else after the last one. If not given: the test accuracy.
        curve: Field with one curve per value. If not given: as described, or all remaining fields that vary.
        panel: Field with one panel per value. If not given: as described, or the network.
    """
    name = own.slug(name)
    table = _table(source)
    declared = experiments.FIGURES.get(name)
    if declared and (any((x, curve, panel)) or y not in (None, declared.y)):
        declared = None
    spec = declared or layout(name, table, x, curve, panel, y or METRIC)
    points = specs.points(table, spec)
    ours = aggregate.curves(points, mixed=mixed)
    drawn = pd.concat([ours, published(name, points)], ignore_index=True) if declared else ours
    from hiddenweights.analysis import figures  # here, because numbers alone need no matplotlib

    file = name if declared else file_name(name, x, curve, panel, y)
    csv = source.out / f"{file}.csv"
    with _writing(source.out):
        paths = figures.save(figures.render(drawn, spec, summary.note(points, drawn, spec)), source.out, file)
        drawn.to_csv(csv, index=False)
    if spec.y == METRIC:
        print(*summary.lines(points, ours, table, spec), sep="\n")
    if left_out := summary.left_out(table, spec.name):
        print(f"left out: {left_out}")
    print(f"figure: {paths[0]}  {paths[1]}  data: {csv}")


def table_(name: SweepName = "", source: Options = Source()) -> None:
    """Write all cells and all epochs as CSV.

    This is the table behind all figures: one file with a row per cell, and one with a row per epoch.

    Args:
        name: Only the cells of this sweep. If not given, all cells.
    """
    table = _table(source)
    cells = table.cells
    if name:
        cells = cells[cells["sweeps"].map(lambda sweeps: own.slug(name) in sweeps.split())]
    if cells.empty:
        known = {sweep for sweeps in table.cells["sweeps"] for sweep in sweeps.split()}
        raise choices_error("sweep", name, known)
    epochs = table.epochs[table.epochs["cell"].isin(cells["cell"])]
    for what, rows in {"cells": cells.drop(columns=["key", "version"]), "epochs": epochs}.items():
        path = source.out / (f"{own.slug(name)}_{what}.csv" if name else f"{what}.csv")
        rows = _with_integers(_in_order(rows.dropna(axis="columns", how="all")))
        with _writing(source.out):  # six digits are nearly those of float32, and half the size
            rows.to_csv(path, index=False, float_format="%.6g")
        print(f"{len(rows)} {what}: {path}")


def _in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """The columns in an order that does not depend on which cell was read first: the layers' come last."""
    first = ["cell", "name", "state", "sweeps", "source", "started", *flatten(CellConfig()), specs.EPOCH]
    place = {name: number for number, name in enumerate(first)}

    def key(name: str) -> tuple[Any, ...]:
        return place.get(name, len(first)), "/" in name, specs.by_number(name)

    names: list[str] = sorted(map(str, rows.columns), key=key)
    return rows[names]


def _with_integers(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with whole numbers as integers, which keep all their digits (seeds, numbers of weights)."""
    numbers = rows.select_dtypes("float")
    whole = [
        name
        for name in numbers
        if (numbers[name].dropna() % 1 == 0).all() and numbers[name].abs().max() < 2**53
    ]
    return rows.astype(dict.fromkeys(whole, "Int64"))


def claims_(source: Options = Source(), plan: bool = False, claim: Claims = ()) -> None:
    """Give a verdict on each claim of the paper.

    Args:
        claim: Also judge a claim of your own: FILE.py:NAME or module:NAME.
        plan: For each open claim, show the next cells to train, their probability to decide it, and the cost.
    """
    table = _table(source)
    measured = claims.measure(table, [*registry.registered(), *map(registry.find, claim)])
    found, finished = claims.rows(measured), table.cells[table.cells["state"] == FINISHED]
    path = source.out / "claims.csv"
    with _writing(source.out):
        found.to_csv(path, index=False)
    print(*summary.claim_lines(found), *summary.mixed_data(finished), sep="\n")
    print(f"{summary.verdict_counts(found)}; rules and cells: {path}")
    if plan:
        planned, taken = [*planning.plans(table, measured)], planning.seconds(table)
        path = source.out / "plan.csv"
        with _writing(source.out):
            planning.as_frame(planned, taken).to_csv(path, index=False)
        advice = "train them with `hiddenweights sweeps settle`, whose rule allows for looking again"
        print(*planning.lines(planned, taken), f"all cells: {path}; {advice}", sep="\n")


def report_(
    source: Options = Source(),
    mixed: bool = False,
    wandb: str | None = None,
    price: float | None = None,
    watch: bool = False,
    port: int = 0,
) -> None:
    """Write figures, claims and cells as one HTML page and as Markdown.

    Args:
        mixed: Average over cells that differ in more than their seeds, and draw different data or epochs as
            one curve.
        price: Dollars per hour of training, to show the cost.
        wandb: Also save a draft of a W&B Report and a view in this W&B project (ENTITY/PROJECT).
        watch: Keep the page current while cells finish, and serve it on this machine until interrupted.
        port: The port of the server. 0: any free port.
    """
    check(price is None or 0 <= price < math.inf, "--price", price, "must be at least 0")
    check(0 <= port < 2**16, "--port", port, "must lie in [0, 65535]")
    check(not (watch and wandb), "--wandb", wandb, "cannot be used with --watch")
    if wandb:
        from hiddenweights.analysis import wandb_report

        wandb_report.place(wandb)
    if watch:
        _keep_current(source, mixed, price, port)
        return
    found = _write_report(source, mixed, price)
    print(found.lead)
    for line in found.not_drawn():
        print(f"not drawn: {line}")
    if wandb:
        address, view = wandb_report.publish(found, wandb)
        print(f"W&B report: {address}\nW&B view: {view}")
    print(f"report: {source.out / 'report.html'}  {source.out / 'report.md'}")


def _write_report(source: Source, mixed: bool, price: float | None) -> "Report":
    """Collect the content of the report and write its files."""
    table = _table(source)
    # Here, because numbers alone need no matplotlib.
    from hiddenweights.analysis import figures, forest, report
    from hiddenweights.analysis.page import write

    found = report.collect(table, ", ".join(source.names()), mixed=mixed, price=price)
    out = source.out
    with _writing(out):
        for drawing in found.drawings:
            drawn, spec = drawing.drawn, drawing.spec
            figures.save(figures.render(drawn, spec, drawing.note), out, spec.file)
            drawn.to_csv(out / f"{spec.file}.csv", index=False)
        if forest.drawable(found.measured):
            figures.save(forest.forest(found.measured), out, "claims")
        found.verdicts.to_csv(out / "claims.csv", index=False)
        table.cells.to_csv(out / "cells.csv", index=False)
        (out / "report.md").write_text(report.as_markdown(found))
        with replacing(out / "report.html") as page:  # a browser may be reading it
            page.write_text(write.as_html(found))
    return found


def _keep_current(source: Source, mixed: bool, price: float | None, port: int) -> None:
    """Serve the report, and keep writing it again while cells finish.

    It ends with its parent if that is the process named in the environment, as `sweeps launch --page` does.
    """
    from hiddenweights.analysis.page import live, write

    parent = os.environ.get(cli.PARENT)
    try:
        server = live.PageServer(port)
    except OSError as error:
        raise UserError(f"--port: {port} cannot be used: {error.strerror}") from None
    page = ""

    def look() -> str:
        nonlocal page
        try:
            page = write.as_html(_write_report(source, mixed, price))
        except UserError as error:  # no cell is finished yet, or the source cannot be read now
            return page or write.waiting(str(error))
        return page

    stopped = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    how = "" if parent else "; Ctrl-C ends it"
    print(f"the page: {server.url} (also {source.out / 'report.html'}){how}", flush=True)
    try:
        live.keep_current(
            look, server, lambda: stopped.is_set() or (parent is not None and str(os.getppid()) != parent)
        )
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        server.close()


COMMANDS: dict[str, cli.Command] = {
    "figure": figure,
    "table": table_,
    "claims": claims_,
    "report": report_,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    return cli.run(COMMANDS, "hiddenweights analysis", arguments)


def _table(source: Source) -> Table:
    """The table of the sources. Shows a progress bar on a terminal if there are many runs."""
    folder = None if source.no_cache else default_folder()
    columns, console = (*Progress.get_default_columns(), MofNCompleteColumn()), Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("reading runs", total=None, visible=False)

        def show(message: str, done: int, total: int) -> None:
            if message:
                print(message, file=sys.stderr)
            progress.update(bar, completed=done, total=total, visible=total > 50)

        tables = [fetch(name, folder, show) for name in source.names()]
        return summary.where(combine(tables), source.where)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Create the folder. An error of the operating system becomes one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"--out: {str(folder)!r} cannot be written ({error.strerror})") from error
