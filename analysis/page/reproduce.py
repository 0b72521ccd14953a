"""From a row of the table to the command that trains this cell again."""

import shlex
from typing import Any

import pandas as pd

from hiddenweights.flat import field_of
from hiddenweights.identity import defaults

# Optional integer fields: a column of the table stores them as floats.
_WHOLE = (
    "data.subset", "data.image_size", "optim.batch_size", "optim.warmup_epochs",
    "seeds.weights", "seeds.scores", "seeds.data",
)  # fmt: skip


def command(row: "pd.Series[Any]") -> str:
    """``hiddenweights train --model.k 0.3 ...`` for a row with the columns of the resolved config.

    Where the cell ran, and from which folder it read the data, is left to the reader.
    """
    words = ["hiddenweights", "train"]
    for name, default in defaults().items():
        value: Any = row.get(name)
        if not field_of(name).identity or pd.isna(value) or value == default:
            continue
        words.append("--" + name.replace("_", "-"))
        if not isinstance(default, bool):  # a flag has no value
            words.append(str(int(value) if name in _WHOLE else value))
    return shlex.join(words)
