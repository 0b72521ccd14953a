"""What Ray, the store and W&B cost: `python -m benchmarks.sweep [EPOCHS]`, some minutes on two cores.

The wall time of launching 216 real small trials (the quickstart's on nine seeds), start of Ray and import
of torch in every worker included, over their pure training time divided by the slots.
"""

import os
import subprocess
import sys
import tempfile
import time

from benchmarks.measure import Row, readable, report
from hiddenweights.store import Store

SEEDS = range(9)


def run(epochs: int = 30) -> Row:
    seeds = ",".join(map(str, SEEDS))
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sweeps", "launch", "quickstart", "--store", folder]
        started = time.perf_counter()
        subprocess.run(
            [*command, "--axis", f"seed={seeds}", "--set", f"train.epochs={epochs}"],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"WANDB_MODE": "offline"},
        )
        wall = time.perf_counter() - started
        store = Store(folder)
        plan = store.plan("quickstart")
        assert plan is not None
        results = dict(store.results(plan["cells"]))
        training = sum(result["seconds"] for result in results.values())
    slots = os.cpu_count() or 1
    row = Row(
        what=f"{len(results)} trials of {epochs} epochs on Ray: wall / ideal",
        ratio=round(wall / (training / slots), 3),
        goal="<= 1.10, aim 1.05",
        baseline=f"training alone: {readable(training)} on {slots} slots",
        ours=f"wall: {readable(wall)}",
        rounds=1,
    )
    report("sweep", [row])
    return row


if __name__ == "__main__":
    run(*map(int, sys.argv[1:2]))
