"""A row of the table -> the command that trains that cell again."""

import shlex
from typing import Any

import pandas as pd

from hiddenweights.config import CellConfig
from hiddenweights.flat import flatten

_DEFAULTS = flatten(CellConfig())
# Where a cell ran is the reader's own affair.
_RUNTIME = ("data.root", "train.device", "train.threads")
# Whole numbers that may be unset: a column of the table holds them as floats.
_WHOLE = (
    "data.subset", "data.image_size", "optim.batch_size", "optim.warmup_epochs",
    "seeds.weights", "seeds.scores", "seeds.data",
)  # fmt: skip


def command(row: "pd.Series[Any]") -> str:
    """``hiddenweights train --model.k 0.3 ...`` for a row with the resolved config's columns."""
    words = ["hiddenweights", "train"]
    for name, default in _DEFAULTS.items():
        value: Any = row.get(name)
        if name in _RUNTIME or pd.isna(value) or value == default:
            continue
        words.append("--" + name.replace("_", "-"))
        if not isinstance(default, bool):  # a flag stands alone
            words.append(str(int(value) if name in _WHOLE else value))
    return shlex.join(words)
