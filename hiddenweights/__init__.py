"""Subnetworks of randomly weighted networks: the method of Ramanujan et al. (CVPR 2020).

`supermask` turns any `torch.nn.Module` into a frozen random network with learnable masks.
Names are imported on first use, so that ``import hiddenweights`` does no work.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hiddenweights.config import TrialConfig as TrialConfig
    from hiddenweights.errors import UserError as UserError
    from hiddenweights.masks import Mask as Mask
    from hiddenweights.subnetwork import current_masks as current_masks
    from hiddenweights.subnetwork import supermask as supermask
    from hiddenweights.ticket import load_ticket as load_ticket
    from hiddenweights.ticket import read_ticket as read_ticket
    from hiddenweights.ticket import save_ticket as save_ticket
    from hiddenweights.train import Trainer as Trainer

_HOME = {
    "TrialConfig": "config",
    "UserError": "errors",
    "Mask": "masks",
    "current_masks": "subnetwork",
    "supermask": "subnetwork",
    "load_ticket": "ticket",
    "read_ticket": "ticket",
    "save_ticket": "ticket",
    "Trainer": "train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
