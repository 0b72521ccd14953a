"""Subnetworks of randomly weighted networks: the method of Ramanujan et al. (CVPR 2020).

`supermask` turns any `torch.nn.Module` into a frozen random network with learnable masks.
Names are imported on first use, so that ``import hiddenweights`` does no work.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hiddenweights.config import CellConfig as CellConfig
    from hiddenweights.errors import UserError as UserError
    from hiddenweights.masking.masks import Mask as Mask
    from hiddenweights.masking.supermask import current_masks as current_masks
    from hiddenweights.masking.supermask import supermask as supermask
    from hiddenweights.tickets.ticket import load_ticket as load_ticket
    from hiddenweights.tickets.ticket import read_ticket as read_ticket
    from hiddenweights.training.train import Trainer as Trainer

_HOME = {
    "CellConfig": "config",
    "UserError": "errors",
    "Mask": "masking.masks",
    "current_masks": "masking.supermask",
    "supermask": "masking.supermask",
    "load_ticket": "tickets.ticket",
    "read_ticket": "tickets.ticket",
    "Trainer": "training.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
