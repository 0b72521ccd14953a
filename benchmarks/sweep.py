"""The cost of a sweep besides training: `python -m benchmarks.sweep [ratio] [scale] [tracking]`.

It takes 15 minutes on two cores.

`ratio`: the wall time of a launch of 216 real cells of two to three seconds (the quickstart with nine seeds)
over their training time divided by the number of slots. The start of Ray and the import of torch in every
worker count.

`scale`: 1,008 real cells of half a second each. Does a cell take longer, or the driver more memory, at the
end than at the beginning, and what part of one core does the driver take? The driver is the process of
`hiddenweights sweeps launch` from its start to its end, without Ray's own processes and the workers.

`tracking`: the time that offline W&B adds to a cell of 30 epochs, besides 20 s of training.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from statistics import mean, median
from typing import Any

import psutil

from benchmarks.measure import Row, readable, report
from hiddenweights.cells.cell import TrackerFactory, run_cell
from hiddenweights.cells.store import Store
from hiddenweights.flat import unflatten
from hiddenweights.sweeps.tracking import WandbTracker

SLOTS = os.cpu_count() or 1


def launch(store: str, *args: str) -> tuple[float, float, list[tuple[float, int]]]:
    """Launch the quickstart. Returns seconds of wall time and of the driver's processor time, and its memory.

    The memory is a list of (time, bytes), one per second.
    """
    command = [sys.executable, "-m", "sweeps", "launch", "quickstart", "--store", store, *args]
    started, spent, memory = time.time(), 0.0, []
    with psutil.Popen(
        command, stdout=subprocess.DEVNULL, env=os.environ | {"WANDB_MODE": "offline"}
    ) as driver:
        while driver.poll() is None:
            try:
                times, taken = driver.cpu_times(), driver.memory_info().rss
            except psutil.Error:
                break
            spent = times.user + times.system
            memory.append((time.time(), taken))
            time.sleep(1.0)
    assert driver.wait() == 0
    return time.time() - started, spent, memory


def results_of(folder: str) -> list[dict[str, Any]]:
    """The results, in the order in which they were finished."""
    store = Store(folder)
    return sorted((result for _, result in store.results(store.finished())), key=finished)


def finished(result: dict[str, Any]) -> float:
    """The time in seconds at which the cell was finished."""
    return datetime.fromisoformat(result["finished"]).timestamp()


def ratio(seeds: int = 9) -> list[Row]:
    """Wall time over the training time per slot."""
    with tempfile.TemporaryDirectory() as folder:
        wall, _, _ = launch(folder, "--axis", f"seed={','.join(map(str, range(seeds)))}")
        results = results_of(folder)
    training = sum(result["seconds"] for result in results)
    each = training / len(results)
    return [
        Row(
            what=f"{len(results)} trials of {readable(each)} on Ray: wall / ideal",
            ratio=round(wall / (training / SLOTS), 3),
            goal="<= 1.10, aim 1.05",
            baseline=f"training alone: {readable(training)} on {SLOTS} slots",
            ours=f"wall: {readable(wall)}",
            rounds=1,
        )
    ]


def scale(seeds: int = 84, epochs: int = 6) -> list[Row]:
    """The first fifth of a long sweep of short cells against its last, and the driver's share of a core."""
    with tempfile.TemporaryDirectory() as folder:
        fields = ("--set", "model.arch=fc", "--set", f"train.epochs={epochs}")
        wall, spent, memory = launch(folder, *fields, "--axis", f"seed={','.join(map(str, range(seeds)))}")
        results = results_of(folder)
    ends = [finished(result) for result in results]
    fifth = len(ends) // 5
    # Without the first cells, which wait until the workers have started.
    fifths = [slice(SLOTS, fifth), slice(len(ends) - fifth, len(ends))]
    per_cell = [(ends[part][-1] - ends[part][0]) / (len(ends[part]) - 1) for part in fifths]
    # The overhead alone: the speed of the machine, which varies, also changes the training itself.
    over_ideal = [
        wall_each * SLOTS / mean(result["seconds"] for result in results[part])
        for wall_each, part in zip(per_cell, fifths, strict=True)
    ]
    taken = [
        mean(taken for at, taken in memory if low <= at <= high)
        for low, high in ((ends[0], ends[fifth]), (ends[-fifth], ends[-1]))
    ]
    growth = [
        (f"{name}, last fifth / first", after / before, "about 1", show(before), show(after))
        for name, (before, after), show in (
            ("wall time a cell", per_cell, readable),
            ("the same over its training's", over_ideal, "{:.2f}".format),
            ("memory of the driver", taken, megabytes),
        )
    ]
    shares = [
        (
            "processor time of the driver / wall time",
            spent / wall,
            "< 0.10",
            f"wall: {readable(wall)}",
            f"driver: {readable(spent)}",
        )
    ]
    return [
        Row(
            what=f"{len(results)} cells: {what}",
            ratio=round(value, 3),
            goal=goal,
            baseline=baseline,
            ours=ours,
            rounds=1,
        )
        for what, value, goal, baseline, ours in itertools.chain(growth, shares)
    ]


def tracking(rounds: int = 8) -> list[Row]:
    """Cells with and without W&B in turn: the time that each took besides its epochs."""
    os.environ["WANDB_MODE"] = "offline"
    followers: dict[str, list[TrackerFactory]] = {"without": [], "with": [WandbTracker]}
    besides: dict[str, list[float]] = {name: [] for name in followers}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.prepare()
        for seed, (name, trackers) in itertools.product(range(rounds + 1), followers.items()):
            own = (
                seed if name == "with" else seed + 1000
            )  # else the second of the two would be finished already
            config = unflatten({"model.arch": "fc", "train.epochs": 30, "seed": own})
            started = time.perf_counter()
            result = run_cell(config, store, trackers=trackers)
            if seed:  # the first one starts W&B's service, once per worker
                besides[name].append(time.perf_counter() - started - result["seconds"])
    added = median(w - o for w, o in zip(besides["with"], besides["without"], strict=True))
    return [
        Row(
            what="W&B, offline: part of a trial of 20 s",
            ratio=round(added / 20, 4),
            goal="< 0.05",
            baseline=f"besides training: {readable(median(besides['without']))}",
            ours=f"with W&B: {readable(median(besides['with']))}",
            rounds=rounds,
        )
    ]


def megabytes(n: float) -> str:
    """The bytes as text."""
    return f"{n / 1e6:.0f} MB"


def main(names: Sequence[str]) -> None:
    """Run the named measurements, or all of them."""
    parts = {"ratio": ratio, "scale": scale, "tracking": tracking}
    for name in names or parts:
        report(f"sweep_{name}", parts[name]())


if __name__ == "__main__":
    main(sys.argv[1:])
