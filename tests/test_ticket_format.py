"""docs/ticket.md is enough to read a ticket: a reader that uses nothing of this package, nor numpy."""

import hashlib
import json
import math
import struct
from pathlib import Path

import pytest
import torch

from hiddenweights.tickets.ticket import load_ticket

PATH = Path(__file__).with_name("linear.ticket")
M = 2**64 - 1


def philox(counter: int, key: tuple[int, int]) -> list[int]:
    c, (k0, k1) = [counter, 0, 0, 0], key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(second >> 64) ^ c[1] ^ k0, second & M, (first >> 64) ^ c[3] ^ k1, first & M]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & M, (k1 + 0xBB67AE8584CAA73B) & M
    return c


def signs(seed: int, name: str, n: int) -> list[int]:
    key = struct.unpack("<2Q", hashlib.sha256(f"{seed}/weights/{name}".encode()).digest()[:16])
    words = [word for block in range(1, n // 256 + 2) for word in philox(block, key)]
    return [-1 if words[i // 64] >> (i % 64) & 1 else 1 for i in range(n)]


def mask(code: bytes, n: int, kept: int, r: int) -> list[int]:
    bits = [byte >> (7 - i) & 1 for byte in code for i in range(8)]
    coded, rarer = (kept, 1) if 2 * kept <= n else (n - kept, 0)
    low = [int("".join(map(str, bits[i * r : i * r + r])) or "0", 2) for i in range(coded)]
    result, at, unary = [1 - rarer] * n, -1, iter(bits[coded * r :])
    for rest in low:
        quotient = 0
        while next(unary) == 0:
            quotient += 1
        at += (quotient << r | rest) + 1
        result[at] = rarer
    return result


def read(content: bytes) -> tuple[dict, dict[str, bytes]]:
    assert content[:8] == b"\x93ticket\n"
    assert content[8:40] == hashlib.sha256(content[40:]).digest()
    (length,) = struct.unpack_from("<Q", content, 40)
    header = json.loads(content[48 : 48 + length])
    ticket = json.loads(header.pop("__metadata__")["ticket"])
    data = content[48 + length :]
    return ticket, {name: data[slice(*entry["data_offsets"])] for name, entry in header.items()}


def test_the_specification_is_enough_to_rebuild_the_network():
    ticket, tensors = read(PATH.read_bytes())
    (name, layer), *others = ticket["layers"].items()
    assert (name, others, set(tensors)) == ("1.weight", [], {"mask/1.weight"})
    config, (outputs, inputs) = ticket["config"], layer["shape"]
    seed = config["seed"] if config["seeds"]["weights"] is None else config["seeds"]["weights"]
    assert config["model"]["distribution"] == "signed_constant"

    n = outputs * inputs
    (scale,) = struct.unpack("<f", struct.pack("<f", math.sqrt(2 / inputs)))
    weights = [scale * sign for sign in signs(seed, name, n)]
    digest = hashlib.blake2b(name.encode() + b"\0" + struct.pack(f"<{n}f", *weights), digest_size=16)
    assert digest.hexdigest() == ticket["weights_checksum"]

    kept = mask(tensors[f"mask/{name}"], n, layer["kept"], layer["rice"])
    assert sum(kept) == layer["kept"]
    effective = [w if bit else 0.0 for w, bit in zip(weights, kept, strict=True)]
    expected = load_ticket(PATH).get_parameter(name)
    assert torch.equal(torch.tensor(effective).view(outputs, inputs), expected)


@pytest.mark.parametrize("gaps", [[0], [5, 0, 2], [7] * 9])
def test_both_readers_agree_on_the_masks_code(gaps):
    from hiddenweights.tickets.rice import encode_mask

    bits = torch.tensor([bit for gap in gaps for bit in [False] * gap + [True]] + [False] * 20)
    for flipped in (bits, ~bits):
        code, r = encode_mask(flipped.numpy())
        assert mask(code, len(bits), int(flipped.sum()), r) == flipped.int().tolist()
