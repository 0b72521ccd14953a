"""The framing of W&B's offline log, a `.wandb` file. Needs no wandb.

The format is private to wandb (checked with 0.31): a header of 7 bytes, then blocks of 32 KiB with records
in the format of LevelDB's log (crc32, length, type). A record may be split over blocks.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from hiddenweights.cells.format import Damaged

BLOCK = 32 * 1024
_HEADER = b":W&B\xe1\xbe\x00"
_KINDS = _FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[bytes]:
    """The bytes of each record in order, up to the end or to an incomplete record of a killed process.

    Each is a `wandb.proto` message. Raises `Damaged` if the bytes have changed since they were written.
    """
    data = path.read_bytes()
    if not data.startswith(_HEADER):
        if _HEADER.startswith(data):
            return
        raise Damaged(f"{path} is damaged: it does not start like a W&B file")
    position, parts, begun = len(_HEADER), bytearray(), False
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:  # no record header fits: the rest of the block is padding
            position += BLOCK - position % BLOCK
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        body = data[position + 7 : position + 7 + length]
        crosses = position % BLOCK + 7 + length > BLOCK  # no piece does
        zeros = not any(data[position : position + 7]) and not any(data[position:])
        if (len(body) < length and not crosses) or zeros:
            return  # incomplete; a power cut leaves zeros
        whole = zlib.crc32(body, zlib.crc32(bytes([kind]))) == checksum
        if crosses or not whole or kind not in _KINDS or begun != (kind in (_MIDDLE, _LAST)):
            raise Damaged(f"{path} is damaged at byte {position}: its checksum or its order is wrong")
        position += 7 + length
        if not begun:
            parts.clear()
        parts += body
        begun = kind in (_FIRST, _MIDDLE)
        if not begun:
            yield bytes(parts)
