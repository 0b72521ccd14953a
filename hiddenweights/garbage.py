"""How often a process of ours looks for garbage."""

import gc

THRESHOLD = 10_000  # new objects; Python's default is 700


def collect_rarely() -> None:
    """Look for garbage once per `THRESHOLD` new objects.

    Torch, Ray and W&B create 500,000 objects that stay. To look through them again and again takes an eighth
    of the start of a worker (0.4 of 2.9 s).
    """
    gc.set_threshold(THRESHOLD)
