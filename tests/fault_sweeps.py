"""Sweeps for the tests of faults. Imports neither torch nor pytest, because their launches import it."""

from pathlib import Path

from hiddenweights.sweeps.grid import Arm, SearchedAxis, arm

HERE = Path(__file__).parent
EPOCHS = 12
# A checkpoint takes 300 KB.
FIELDS = {"model.arch": "fc", "train.epochs": EPOCHS}


def fragile() -> list[Arm]:
    """Four cells that take seconds and little of the processor."""
    return [arm(FIELDS, {"model.k": (0.3, 0.5), "seed": (0, 1)})]


def uneven() -> list[Arm]:
    """A short one and one of that kind, which one worker trains: another costs 6 s of a processor."""
    return [arm({**FIELDS, "train.epochs": 1}, {}), arm(FIELDS, {})]


def watched() -> list[Arm]:
    """Three cells that fail, each in its own way, and two that take seconds, for a kill in the middle."""
    healthy = {"train.epochs": 40, "model.arch": "unhurried:network"}
    faulty = [f"faulty:{name}" for name in ("greedy", "raises", "hangs")]
    return [arm({"train.epochs": 1}, {"model.arch": faulty}), arm(healthy, {"model.k": (0.3, 0.5)})]


def search() -> list[Arm]:
    """A rate at which training works, and one at which it diverges."""
    rates = SearchedAxis("choice", (0.1, 1e30))
    return [arm({**FIELDS, "train.epochs": 1, "optim.momentum": 0.0}, {"optim.lr": rates})]


SWEEPS = {"search": search, "fragile": fragile, "uneven": uneven, "watched": watched}
# `hiddenweights sweeps` with these sweeps, as a program.
DRIVER = f"""
import sys
if __name__ == "__main__":  # the process that runs Ray imports this, too
    sys.path.insert(0, {str(HERE)!r})
    from hiddenweights import cli
    from hiddenweights.sweeps import commands as main, experiments
    import fault_sweeps
    experiments.SWEEPS = {{**experiments.SWEEPS, **fault_sweeps.SWEEPS}}
    sys.exit(cli.run(main.COMMANDS, "sweeps", sys.argv[1:]))
"""
