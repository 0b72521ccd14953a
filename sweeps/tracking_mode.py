"""How W&B is used: online, offline, or not at all. Imports W&B only if it has to be asked."""

import os
import socket
import sys
from functools import cache
from urllib.parse import urlsplit

from hiddenweights.errors import UserError, choices_error

MODES = ("", "online", "offline", "disabled", "dryrun", "run", "shared")  # of W&B, "" for its choice


@cache
def tracking_mode() -> str:
    """``online``, ``offline`` or ``disabled``: from $WANDB_MODE, else online if possible."""
    return choose_mode()[0]


def announce(address: str | None) -> str:
    """Choose the mode for this launch and its workers. Returns a line that explains it.

    On the cluster at `address` each worker chooses by its own key, unless $WANDB_MODE is set here.
    """
    asked = os.environ.get("WANDB_MODE")
    mode, reason = choose_mode()
    if address and not asked:
        return f"as each worker can; on this machine {mode} ({reason})"
    os.environ["WANDB_MODE"] = mode
    if "wandb" in sys.modules:  # it has read its environment
        sys.modules["wandb"].teardown()
    return f"{mode} ({reason})"


def choose_mode() -> tuple[str, str]:
    """The mode of W&B and the reason for it."""
    asked = os.environ.get("WANDB_MODE", "")
    if asked not in MODES:
        raise choices_error("WANDB_MODE", asked, MODES[1:])
    if not asked:
        os.environ.pop("WANDB_MODE", None)  # W&B rejects an empty one
    if asked in ("offline", "disabled", "dryrun"):
        return ("offline" if asked == "dryrun" else asked), f"WANDB_MODE={asked}"
    import wandb  # the import takes half a second

    settings = wandb.setup(wandb.Settings(silent=True)).settings
    try:
        logged_in = wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        raise UserError(f"W&B: {error}") from None
    if not logged_in:
        return (
            "offline",
            "there is no key; `wandb login` makes one, `hiddenweights sweeps sync` uploads later",
        )
    address = urlsplit(settings.base_url)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname or "", port), timeout=5).close()
    except OSError as error:
        return (
            "offline",
            f"{address.hostname} does not answer ({error}); `hiddenweights sweeps sync` uploads later",
        )
    return "online", f"to {address.hostname}"
