"""Arguments shared by several commands on sweeps: the sweep, its changes, and the console."""

from dataclasses import replace
from typing import Annotated

import tyro
from rich.console import Console

from hiddenweights.sweeps import experiments
from hiddenweights.sweeps.grid import Cells, Sweep, parse_axes, parse_settings

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
Names = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CLAIM")]
Sets = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")]
Axes = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE,VALUE")]


def chosen(
    name: str, settings: tuple[str, ...], axes: tuple[str, ...], samples: int = 16
) -> tuple[Sweep, Cells]:
    """The sweep `name` with the `settings` and `axes` of a command line, and its cells."""
    sweep = experiments.sweep(name).override(parse_settings(settings), parse_axes(axes))
    sweep = replace(sweep, arms=tuple(replace(arm, samples=samples) for arm in sweep.arms))
    return sweep, sweep.cells()


def console_for_people() -> Console:
    """A console on standard output. Without a terminal, lines have 120 characters."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120  # a log file has no width
    return console


def repeated(cells: Cells) -> str:
    """The number of cells that the axes name more than once, as text."""
    return f" ({cells.repeated} more that the axes name twice, kept once)" if cells.repeated else ""
