
from hiddenweights.sweeps.grid import arm


def settling():
    base = {"model.arch": "fc", "model.width": 0.3, "train.epochs": 10}
    return [arm(base, {"model.k": (0.1, 0.3, 0.5), "seed": (0, 1, 2)})]
