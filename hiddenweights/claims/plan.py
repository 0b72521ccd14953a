"""Which cells would decide a claim: what to train next, and how likely that settles it. Pure numbers.

The looks of an anytime verdict depend on nothing but the results that are there, in the order of their seeds.
So a plan is a function of the finished cells: made again after a kill, it is the same plan.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from hiddenweights.claims.contrasts import Cell, Claim, Contrast
from hiddenweights.claims.verdict import HERE, MIN_PAIRS, OPEN, Array, Judgement, judge, outcomes, padded
from hiddenweights.flat import unflatten

MOST_SEEDS = 20  # of a comparison; one that is still open then is left open
FURTHER = 5  # seeds: how far ahead a plan looks besides the next step
MOST_LINES = 8  # of conditions that are named to people
DRAWS = 400  # of the future, for a chance that is known to 5 points


@dataclass(frozen=True, slots=True)
class Plan:
    """The next step for one claim in one setting."""

    claim: Claim
    lacks: tuple[str, ...]
    contrasts: tuple[Contrast, ...]
    judgement: Judgement
    cells: tuple[Cell, ...]
    """The cells to train next, those of the first seeds first; none if the claim is decided."""
    chance: float | None
    """The probability that they settle the claim, by the spread seen so far; None: no spread is known yet."""
    later: float | None
    """The same for `FURTHER` more seeds of every comparison that is open."""

    @property
    def open(self) -> bool:
        """Whether the claim is undecided."""
        return self.judgement.verdict == OPEN

    @property
    def verdict(self) -> str:
        """The verdict so far: on the paper, or here where the cells are not like the paper's."""
        return HERE[self.judgement.verdict] if self.lacks else self.judgement.verdict


def plans(claim: Claim, cells: Sequence[Cell], *, anytime: bool) -> list[Plan]:
    """The claim's next steps: one plan for the cells like the paper's, one for each other kind.

    `cells` are of one setting: the finished ones, and those that might be trained.
    """
    return [_plan(claim, lacks, contrasts, anytime) for lacks, contrasts in claim.groups(cells)]


def _plan(claim: Claim, lacks: tuple[str, ...], contrasts: Sequence[Contrast], anytime: bool) -> Plan:
    values, margins = [one.values for one in contrasts], [one.margin for one in contrasts]
    judged = judge(values, margins, anytime=anytime)
    plan = Plan(claim, lacks, tuple(contrasts), judged, (), None, None)
    if not plan.open:
        return plan
    goals = targets(values, margins, judged)
    further = [
        len(own) + (FURTHER if is_open else 0) for own, is_open in zip(values, judged.open, strict=True)
    ]
    wanted = [
        cell for contrast, goal in zip(contrasts, goals, strict=True) for cell in _missing(contrast, goal)
    ]
    wanted.sort(key=lambda cell: cell.seed)
    return replace(
        plan,
        cells=tuple({cell.id: cell for cell in wanted}.values()),
        chance=chance(values, margins, goals, anytime=anytime),
        later=chance(values, margins, further, anytime=anytime),
    )


def targets(values: Sequence[Sequence[float]], margins: Sequence[float], judged: Judgement) -> list[int]:
    """How many pairs each comparison should have after the next step.

    First one pair of each. Then comparisons whose mean lies below the margin go first, because one of them
    can end the matter; without any, all that are open: each must be shown to lie above.
    """
    counts = [len(own) for own in values]
    left = [i for i, is_open in enumerate(judged.open) if is_open]
    if len(values) > 1 and any(counts[i] == 0 for i in left):
        return [max(count, 1) for count in counts]
    below = [i for i in left if counts[i] and fmean(values[i]) < margins[i]]
    for i in below or left:
        counts[i] = max(MIN_PAIRS, counts[i] + 1)
    return counts


def _missing(contrast: Contrast, goal: int) -> Iterable[Cell]:
    """The cells that `contrast` lacks to have `goal` finished pairs."""
    lacking = [pair for pair in contrast.pairs if pair.difference is None]
    for pair in lacking[: max(0, goal - len(contrast.values))]:
        yield from (cell for cell in pair.cells if cell.accuracy is None)


def chance(
    values: Sequence[Sequence[float]], margins: Sequence[float], goals: Sequence[int], *, anytime: bool
) -> float | None:
    """The probability that the claim is decided once each comparison has as many pairs as `goals` says.

    Each comparison's mean and variance are drawn from their posterior under the flat prior of a t test, new
    values from the normal distribution these give. A comparison with a single value has the spread of the
    others. Comparisons are drawn independently of each other. None if no spread is known, or a comparison
    that is to have further values has none.
    """
    spreads = [float(np.var(own, ddof=1)) for own in values if len(own) > 1]
    if not spreads or any(not own and goal for own, goal in zip(values, goals, strict=True)):
        return None
    rng = np.random.default_rng(0)
    now = padded(values, margins)
    future = np.full((DRAWS, len(values), max(*goals, now.shape[-1])), np.nan)
    future[..., : now.shape[-1]] = now
    for row, own, margin, goal in zip(future.swapaxes(0, 1), values, margins, goals, strict=True):
        if goal > len(own):
            alone = len(own) == 1
            variance = fmean(spreads) if alone else float(np.var(own, ddof=1))
            freedom = 1 if alone else len(own) - 1
            drawn = _drawn(fmean(own) - margin, variance, freedom, len(own), goal - len(own), rng)
            row[:, len(own) : goal] = drawn
    above, below = outcomes(future, anytime=anytime)
    return float((below.any(-1) | above.all(-1)).mean())


def _drawn(mean: float, variance: float, freedom: int, n: int, more: int, rng: np.random.Generator) -> Array:
    """`DRAWS` futures of `more` values, shape (DRAWS, more)."""
    sd = np.sqrt(variance * freedom / rng.chisquare(freedom, size=(DRAWS, 1)))
    centre = mean + sd / np.sqrt(n) * rng.normal(size=(DRAWS, 1))
    drawn: Array = centre + sd * rng.normal(size=(DRAWS, more))
    return drawn


def with_seeds(cells: Iterable[Cell], seeds: Iterable[int]) -> list[Cell]:
    """The cells, and those of the same conditions with each of `seeds`. Conditions with seeds for single
    purposes are left as they are."""
    found = {cell.id: cell for cell in cells}
    conditions = {cell.condition: cell for cell in found.values() if _plain(cell)}
    seeds = [*seeds]
    for cell in conditions.values():
        for seed in seeds:
            other = Cell.of(unflatten({**cell.flat, "seed": seed}))
            found.setdefault(other.id, other)
    return [*found.values()]


def _plain(cell: Cell) -> bool:
    return all(cell[f"seeds.{purpose}"] is None for purpose in ("weights", "scores", "data"))


def words(plan: Plan, seconds: Callable[[Cell], float | None]) -> list[str]:
    """The plan for people: what it trains, at which cost, and how likely that settles the claim.

    `seconds` says what a cell of this kind took; None: none was measured.
    """
    open_ = sum(plan.judgement.open)
    head = f"{plan.claim.name}: {open_} of {len(plan.contrasts)} comparisons open"
    if not plan.cells:
        return [f"{head} after {MOST_SEEDS} seeds, which is as far as a plan goes"]
    taken = [seconds(cell) for cell in plan.cells]
    known = [found for found in taken if found is not None]
    cost = f"about {hours(sum(known))} of training" if known else "at a cost not measured yet"
    if known and len(known) < len(taken):
        cost += f" and {len(taken) - len(known)} cells of a kind not measured yet"
    likely = "how likely they settle it is unknown: no spread was seen yet"
    if plan.chance is not None:
        likely = f"they settle it with a probability of {plan.chance:.0%}"
    if plan.later is not None:
        likely += f", {FURTHER} more seeds of all that is open with {plan.later:.0%}"
    seeds: dict[str, list[str]] = {}
    for cell in plan.cells:
        seeds.setdefault(cell.name, []).append(str(cell["seed"]))
    lines = [f"  {name}: seed {', '.join(own)}" for name, own in seeds.items()]
    if len(lines) > MOST_LINES:
        lines[MOST_LINES - 1 :] = [f"  and {len(lines) - MOST_LINES + 1} conditions more"]
    return [f"{head}; next {len(plan.cells)} cells, {cost}; {likely}", *lines]


def hours(seconds: float) -> str:
    """A time for people."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
