"""Mutants of JSON data by its structure, the same in every run: what a crafted file may hold."""

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

HUGE = 10**400
ESCAPE = "\x1b]0;owned\x07\x1b[2J\r\n\u202e"
DEEP = "a deep list"  # which `as_json` writes: as an object it would be too deep to copy
# Every type that JSON has, at its edges.
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, 2**64, 10**15, HUGE, -HUGE, 0.5, -0.0, 1e-320, 1e308,
    float("nan"), float("inf"), "", "x", ESCAPE, "\ud800", "é" * 40, "0" * 16, "0" * 32, "[/red]", "1e999",
    "../../etc", "bomb:go", "conv2", "fc", "torchvision/vgg19", "cifar10", "sampled", "biprop", "dense",
    "kaiming_normal", "bfloat16", "9" * 5000, "[" * 3000, [], [[]], {}, {"": {}}, [None] * 50, [0, -1],
    [2**70], {"a/b": 1, "\n": 2}, {"update": "\x00"}, DEEP,
]  # fmt: skip


def mutants(data: Any, count: int, seed: int = 0) -> Iterator[Any]:
    """`count` copies of `data`, each changed in one to three places. None of them need be valid.

    They may hold what JSON has not: NaN, halves of surrogate pairs, whole numbers of any length.
    """
    draw = random.Random(seed)
    for _ in range(count):
        changed = copy.deepcopy(data)
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            changed = _changed(changed, draw)
        yield changed


def as_json(data: Any) -> bytes:
    """What `mutants` gives, as bytes: a surrogate as its escape, NaN as Python writes it."""
    return json.dumps(data).replace(f'"{DEEP}"', "[" * 900 + "]" * 900).encode()


def _changed(data: Any, draw: random.Random) -> Any:
    places = [*_places(data)]
    if not places or draw.random() < 0.03:
        return copy.deepcopy(draw.choice(VALUES))
    parent, key = draw.choice(places)
    match draw.randrange(8):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):  # the same under another name
            parent[draw.choice(["", "epoch", "x" * 300, ESCAPE, "a.b", "model", *map(str, parent)])] = parent[
                key
            ]
        case 1:
            parent.insert(0, parent[key])
        case 2:  # something from elsewhere in the file
            other, name = draw.choice(places)
            parent[key] = copy.deepcopy(other[name])
        case 3:
            parent[key] = [parent[key]]
        case 4:
            parent[key] = {"a": parent[key]}
        case _:
            parent[key] = copy.deepcopy(draw.choice(VALUES))
    return data


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield data, key
            yield from _places(value)
