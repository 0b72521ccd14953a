"""Plan the cells that would decide a claim, with the probability that they do. Pure numbers.

The looks of an anytime verdict depend only on the existing results in the order of their seeds. A plan is
therefore a function of the finished cells, and is the same if it is made again after a kill.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from hiddenweights.claims.contrasts import PARENT, Cell, Claim, Contrast
from hiddenweights.claims.verdict import (
    HERE,
    MIN_PAIRS,
    OPEN,
    Array,
    Flags,
    Judgement,
    judge,
    outcomes,
    padded,
)
from hiddenweights.flat import unflatten

MOST_SEEDS = 20  # seeds per comparison; one that is still open then stays open
FURTHER = 5  # seeds: how far a plan looks beyond the next step
MOST_LINES = 8  # conditions that are named in messages
DRAWS = 400  # simulated futures, so that a probability is known to 5 points
FUTILE = 0.05  # a probability below which a claim is given up


@dataclass(frozen=True, slots=True)
class Plan:
    """The next step for one claim in one setting."""

    claim: Claim
    lacks: tuple[str, ...]
    contrasts: tuple[Contrast, ...]
    judgement: Judgement
    cells: tuple[Cell, ...]
    """The cells to train next, in the order of their seeds. Empty if the claim is decided."""
    chance: float | None
    """The probability that they decide the claim, from the spread so far; None: no spread is known yet."""
    later: float | None
    """The same with `FURTHER` more seeds for every open comparison."""

    @property
    def open(self) -> bool:
        """Whether the claim is undecided."""
        return self.judgement.verdict == OPEN

    @property
    def verdict(self) -> str:
        """The verdict so far: on the paper, or *here* if the cells are not like the paper's."""
        return HERE[self.judgement.verdict] if self.lacks else self.judgement.verdict


def plans(claim: Claim, cells: Sequence[Cell], *, anytime: bool) -> list[Plan]:
    """The next steps for the claim: one plan for the cells like the paper's, and one per other kind.

    `cells` are of one setting: finished ones, and candidates for training.
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
    """The number of pairs that each comparison should have after the next step.

    First, every comparison gets one pair. Then comparisons whose mean is below the margin come first, because
    one of them can decide the claim. If there are none, all open comparisons are extended, because each of
    them must be shown to be above its margin.
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
    """The cells that `contrast` needs for `goal` finished pairs."""
    lacking = [pair for pair in contrast.pairs if pair.difference is None]
    for pair in lacking[: max(0, goal - len(contrast.values))]:
        yield from (cell for cell in pair.cells if cell.accuracy is None)


def hope(
    values: Sequence[Sequence[float]],
    margins: Sequence[float],
    judged: Judgement,
    goals_of: Callable[[Sequence[int]], Sequence[int]],
) -> float | None:
    """A bound on the probability that a claim is decided if all that is left is spent on it; None: unknown.

    `goals_of` says how many pairs each comparison then has, if only those with the given indices get further
    ones. Either all open comparisons get them, or only those whose mean is below the margin; the larger bound
    counts. A claim is supported at most as often as the average open comparison is above its margin. `chance`
    takes all comparisons together, which would be far too small here: three seeds tell little of each, and
    the worst of many looks worse than it is.
    """
    left = [i for i, is_open in enumerate(judged.open) if is_open]
    below = [i for i in left if values[i] and fmean(values[i]) < margins[i]]
    bounds = []
    for group in (left, below) if 0 < len(below) < len(left) else (left,):
        ends = _futures(values, margins, goals_of(group), anytime=True)
        if ends is None:
            return None
        bounds.append(float(ends[0][:, left].mean() + ends[1].any(-1).mean()))
    return max(bounds)


def hope_within(plan: Plan, budget: float, seconds: Callable[[Cell], float | None]) -> float | None:
    """`hope` if `budget` (seconds) is left for the claim; None also if no cell of some kind was measured.

    `seconds` returns the time of a cell of this kind; None: not measured.
    """
    counts = [len(contrast.values) for contrast in plan.contrasts]
    most = [len(contrast.pairs) for contrast in plan.contrasts]
    unknown = False

    def goals_of(group: Sequence[int]) -> list[int]:
        nonlocal unknown
        goals = counts
        for further in range(1, MOST_SEEDS + 1):
            wanted = [min(most[i], n + further) if i in group else n for i, n in enumerate(counts)]
            cells = {
                cell.id: cell
                for contrast, goal in zip(plan.contrasts, wanted, strict=True)
                for cell in _missing(contrast, goal)
            }
            taken = [seconds(cell) for cell in cells.values()]
            unknown |= None in taken
            if sum(one or 0.0 for one in taken) > budget:
                break
            goals = wanted
        return goals

    values, margins = [one.values for one in plan.contrasts], [one.margin for one in plan.contrasts]
    found = hope(values, margins, plan.judgement, goals_of)
    return None if unknown else found


def chance(
    values: Sequence[Sequence[float]], margins: Sequence[float], goals: Sequence[int], *, anytime: bool
) -> float | None:
    """The probability that the claim is decided when each comparison has as many pairs as `goals` says.

    The mean and variance of each comparison are drawn from their posterior under the flat prior of a t test,
    and new values from the resulting normal distribution. A comparison with a single value uses the spread of
    the others. Comparisons are drawn independently. None if no spread is known, or if a comparison that needs
    more values has none.
    """
    ends = _futures(values, margins, goals, anytime=anytime)
    if ends is None:
        return None
    above, below = ends
    return float((below.any(-1) | above.all(-1)).mean())


def _futures(
    values: Sequence[Sequence[float]], margins: Sequence[float], goals: Sequence[int], *, anytime: bool
) -> tuple[Flags, Flags] | None:
    """`outcomes` of the simulated futures that `chance` describes, each of shape (DRAWS, m)."""
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
    return outcomes(future, anytime=anytime)


def _drawn(mean: float, variance: float, freedom: int, n: int, more: int, rng: np.random.Generator) -> Array:
    """`DRAWS` simulated futures of `more` values each, shape (DRAWS, more)."""
    sd = np.sqrt(variance * freedom / rng.chisquare(freedom, size=(DRAWS, 1)))
    centre = mean + sd / np.sqrt(n) * rng.normal(size=(DRAWS, 1))
    drawn: Array = centre + sd * rng.normal(size=(DRAWS, more))
    return drawn


def with_seeds(cells: Iterable[Cell], seeds: Iterable[int]) -> list[Cell]:
    """The cells, and the cells of the same conditions with each of `seeds`.

    Conditions with separate seeds are not extended, nor those that fine-tune the mask of a cell, because
    another seed has another parent.
    """
    found = {cell.id: cell for cell in cells}
    conditions = {cell.condition: cell for cell in found.values() if _plain(cell)}
    seeds = [*seeds]
    for cell in conditions.values():
        for seed in seeds:
            other = Cell.of(unflatten({**cell.flat, "seed": seed}))
            found.setdefault(other.id, other)
    return [*found.values()]


def _plain(cell: Cell) -> bool:
    own = (PARENT, *(f"seeds.{purpose}" for purpose in ("weights", "scores", "data")))
    return all(cell[name] is None for name in own)


def words(plan: Plan, seconds: Callable[[Cell], float | None]) -> list[str]:
    """The plan as text: the cells, their cost, and the probability that they decide the claim.

    `seconds` returns the time of a cell of this kind; None: not measured.
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
    """A duration as text."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
