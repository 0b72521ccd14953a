"""What the benchmarks share: interleaved timing, a table, a JSON file beside the others."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison: `ratio` is baseline / ours, so above 1 is a gain, unless `what` says otherwise."""

    what: str
    ratio: float
    goal: str
    baseline: str
    ours: str
    rounds: int


def race(
    contestants: dict[str, Callable[[], object]], *, rounds: int, repeats: int = 1, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of every contestant in every round, after one round that does not count.

    On a GPU a round is `repeats` runs, for which the CPU waits once.

    They take turns, so that a busy minute of the machine affects all of them. On the CPU these are seconds of
    processor time, because a scheduler takes the core away from short work that follows long work.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_number in range(rounds + 1):
        for name, run in contestants.items():
            _wait(device)
            started = clock()
            for _ in range(repeats):
                run()
            _wait(device)
            if round_number:
                times[name].append((clock() - started) / repeats)
    return times


def compare(what: str, times: dict[str, list[float]], baseline: str, ours: str, goal: str) -> Row:
    """The median over rounds of the ratio within a round, and the median times."""
    ratios = [b / o for b, o in zip(times[baseline], times[ours], strict=True)]
    median_baseline, median_ours = (statistics.median(times[name]) for name in (baseline, ours))
    return Row(
        what=what,
        ratio=round(statistics.median(ratios), 3),
        goal=goal,
        baseline=f"{baseline}: {readable(median_baseline)}",
        ours=f"{ours}: {readable(median_ours)}",
        rounds=len(ratios),
    )


def difference(what: str, plain: tuple[str, list[float]], ours: tuple[str, list[float]]) -> Row:
    """`ratio`: the mean over seeds of ours - plain, in points; the goal has its standard error."""
    differences = [100 * (b - a) for a, b in zip(plain[1], ours[1], strict=True)]
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return Row(
        what=what,
        ratio=round(statistics.mean(differences), 3),
        goal=f"0 (+-{error:.2f})",
        baseline=_spread(*plain),
        ours=_spread(*ours),
        rounds=len(differences),
    )


def _spread(name: str, values: list[float]) -> str:
    return f"{name}: {100 * statistics.mean(values):.2f}% (sd {100 * statistics.stdev(values):.2f})"


def show(title: str, rows: list[Row]) -> None:
    """Print the rows as a table."""
    print(f"\n{title}")
    print(f"{'':60}{'ratio':>8}  {'goal':14}  baseline; ours")
    for row in rows:
        print(f"{row.what:60}{row.ratio:8.2f}  {row.goal:14}  {row.baseline}; {row.ours}", flush=True)


def report(name: str, rows: list[Row], device: str = "cpu") -> None:
    """Print the rows as a table and write them, with a description of the machine, to results/NAME.json."""
    show(f"{name} ({machine(device)['device']}, {torch.get_num_threads()} CPU thread(s))", rows)
    RESULTS.mkdir(exist_ok=True)
    content = {"benchmark": name, "machine": machine(device), "rows": [asdict(row) for row in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def machine(device: str = "cpu") -> dict[str, str | int]:
    """What determines a timing, without the name of the host."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def readable(seconds: float) -> str:
    """A time with its unit."""
    unit, scale = ("s", 1.0) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
    return f"{seconds * scale:.3g} {unit}"
