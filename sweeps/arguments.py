"""Arguments shared by several commands on sweeps: the sweep, its changes, and the console."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import tyro
from rich.console import Console

from hiddenweights.config import Scalar
from hiddenweights.errors import UserError
from hiddenweights.identity import check_has, has
from hiddenweights.sweeps import experiments
from hiddenweights.sweeps.grid import Axis, Cells, SearchedAxis, Sweep, parse_axes, parse_settings

Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
Names = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CLAIM", help_behavior_hint="")
]
Sets = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE")]
Axes = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FIELD=VALUE,VALUE")]


def chosen(
    name: str, settings: tuple[str, ...], axes: tuple[str, ...], samples: int | None = None
) -> tuple[Sweep, Cells]:
    """The sweep `name` with the `settings` and `axes` of a command line, and its cells.

    Raises `UserError` if one of these values has no effect on any cell, for a sweep without cells, and for a
    search without validation.
    """
    fixed, varied = parse_settings(settings), parse_axes(axes)
    sweep = experiments.sweep(name).override(fixed, varied)
    if samples is not None:
        if not sweep.searched():
            raise UserError("--samples: has no effect, because no axis is searched; see --axis")
        sweep = replace(sweep, arms=tuple(replace(arm, samples=samples) for arm in sweep.arms))
    cells = sweep.cells()
    if not cells:
        raise UserError(f"sweep: {name} has no cells: it has no arm, or an axis without values")
    if sweep.searched() and any(config.data.protocol == "paper" for config in cells.values()):
        raise UserError(
            "data.protocol: a search chooses by validation accuracy and needs the protocol validation"
        )
    _check_effect(cells, fixed, varied)
    return sweep, cells


def _check_effect(cells: Cells, settings: Mapping[str, Scalar], axes: Mapping[str, Axis]) -> None:
    lists = {field: axis for field, axis in axes.items() if not isinstance(axis, SearchedAxis)}
    lists |= {field: (value,) for field, value in settings.items()}
    missing = {(field, value) for field, values in lists.items() for value in values}
    for config in cells.values():
        if not missing:
            return
        missing = {(field, value) for field, value in missing if not has(config, field, value)}
    for field, value in sorted(missing, key=str):
        check_has(config, field, value)


def console_for_people() -> Console:
    """A console on standard output. Without a terminal, lines have 120 characters."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120  # a log file has no width
    return console


def repeated(cells: Cells) -> str:
    """The number of cells that the axes name more than once, as text."""
    return f" ({cells.repeated} more that the axes name twice, kept once)" if cells.repeated else ""
