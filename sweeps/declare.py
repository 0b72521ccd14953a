"""Declare a sweep: a function that returns its arms, with claim, cost and expectation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hiddenweights.sweeps.grid import Arm, Sweep


@dataclass(frozen=True)
class Declared:
    """A declared sweep. Calling it returns its arms."""

    arms: Callable[..., list[Arm]]
    claim: str
    expect: str
    gpu_hours: float | None
    beyond: str
    options: str

    def __call__(self, *args: Any, **kwargs: Any) -> list[Arm]:
        return self.arms(*args, **kwargs)


def declare(
    *, claim: str, expect: str, gpu_hours: float | None = None, beyond: str = "", options: str = ""
) -> Callable[[Callable[..., list[Arm]]], Declared]:
    """Declare the decorated function as a sweep; the first line of its docstring is the title.

    Args:
        claim: the statement or question of the sweep.
        expect: the expected numbers.
        gpu_hours: estimated hours of one GPU, without the cells of `beyond`.
        beyond: name of the sweep whose cells are not part of `gpu_hours`.
        options: further options of the command, for example ``--gpus 8``.
    """

    def decorate(arms: Callable[..., list[Arm]]) -> Declared:
        return Declared(arms, claim, expect, gpu_hours, beyond, options)

    return decorate


def as_sweep(name: str, function: Callable[..., list[Arm]]) -> Sweep:
    """The sweep that `function` declares. A plain function only has a title and arms."""
    if not isinstance(function, Declared):
        return Sweep(name=name, title=_title(function), arms=tuple(function()))
    return Sweep(
        name=name,
        title=_title(function.arms),
        claim=function.claim,
        expect=function.expect,
        gpu_hours=function.gpu_hours,
        beyond=function.beyond,
        options=function.options,
        arms=tuple(function()),
    )


def _title(function: Callable[..., list[Arm]]) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0]
