"""The format of the store's files, and the checksum by which a changed result is noticed.

A result is one JSON object whose last key is ``sha256``, the digest of all bytes before that key; it is a
suffix of fixed length. Results of format 1 have no checksum and can still be read. Any fault of a file raises
`Damaged`, a `UserError`. Reading a file executes no code.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

from hiddenweights.errors import UserError, shown
from hiddenweights.flat import flatten, from_dict
from hiddenweights.identity import cell_id

Json = dict[str, Any]

STORE_FORMAT = 1
RESULT_FORMAT = 2
CELL = re.compile("[0-9a-f]{16}")
_SEAL = re.compile(rb', "sha256": "([0-9a-f]{64})"}\n', re.DOTALL)
_SEAL_BYTES = len(b', "sha256": "' + bytes(64) + b'"}\n')
SCALARS = {str, int, float, bool, type(None)}


class Damaged(UserError):
    """A file of the store does not have the required content."""


def read_json(content: bytes, source: str) -> Json:
    """The JSON object in `content`. Messages call it `source`. NaN and Infinity are accepted."""
    data = read_value(content, source)
    if not isinstance(data, dict):
        raise Damaged(f"{source} holds no JSON object")
    return data


def read_value(content: bytes | str, source: str) -> Any:
    """Any JSON value in `content`, as `read_json` reads it."""
    try:
        try:
            return orjson.loads(content)  # five times as fast as `json`
        except ValueError:
            data = json.loads(content, parse_int=_integer)  # it writes and reads NaN
            json.dumps(data, ensure_ascii=False).encode()  # a lone surrogate is not valid text
            return data
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{source} is not valid JSON: {shown(error)}") from None


def seal(result: Mapping[str, Any]) -> bytes:
    """The content of the file of a result, with its checksum."""
    body = json.dumps(dict(result)).encode()[:-1]
    if not result:
        raise ValueError("a result is not empty")
    return body + f', "sha256": "{hashlib.sha256(body).hexdigest()}"}}\n'.encode()


def open_result(content: bytes, source: str, cell: str) -> Json:
    """The result in a file of `cell`, without its checksum. Raises `Damaged` that names `source`."""
    body, suffix = content[:-_SEAL_BYTES], content[-_SEAL_BYTES:]
    found = _SEAL.fullmatch(suffix)
    if found and hashlib.sha256(body).hexdigest().encode() != found[1]:
        raise Damaged(f"{source} is damaged: its checksum does not match")
    result = read_json(content, source)
    if not found and result.get("format") != 1:
        raise Damaged(f"{source} is damaged: it has no checksum")
    if found and (type(result.get("format")) is not int or result["format"] > RESULT_FORMAT):
        raise Damaged(f"{source} has format {shown(repr(result.get('format')))}; this version reads 1 and 2")
    result.pop("sha256", None)
    try:
        _check_result(result, cell)
    except UserError as error:
        raise Damaged(f"{source} is damaged: {shown(error)}") from None
    return result


def open_plan(content: bytes, source: str) -> Json:
    """The plan of a sweep in a file. Raises `Damaged` that names `source`."""
    plan = read_json(content, source)
    try:
        for cell in _typed(plan, "cells", list):
            if not (isinstance(cell, str) and CELL.fullmatch(cell)):
                raise UserError(f"cells: {shown(repr(cell), 60)} is not a cell's id (16 hex digits)")
        axes = _typed(plan, "axes", dict, {})
        known = flatten(from_dict({}))
        for field, values in axes.items():
            listed = isinstance(values, list) and all(type(value) in SCALARS for value in values)
            if field not in known or not (listed or isinstance(values, str)):
                raise UserError(f"axes: {shown(repr(field), 60)} is no field with its values")
        for field, inner in _typed(plan, "winners", dict, {}).items():
            if not isinstance(inner, dict) or not {*map(type, inner.values())} <= SCALARS:
                raise UserError(f"winners: {shown(repr(field), 60)} has no values of fields")
        _typed(plan, "overrides", dict, {})
        for name in ("name", "launched"):
            _text(_typed(plan, name, str, ""), name)
    except UserError as error:
        raise Damaged(f"{source} is damaged: {shown(error)}") from None
    return plan


def open_failure(content: bytes, source: str) -> Json:
    """The failure in a file, with every key. If it cannot be read, it says so and counts as transient."""
    whole = {"error": "", "message": "", "traceback": "", "epoch": 0, "attempt": 1, "transient": False}
    try:
        found = read_json(content, source)
        for name, default in whole.items():
            _typed(found, name, type(default), default)
    except UserError as error:
        return whole | {"error": "Damaged", "message": shown(error), "transient": True}
    return whole | found | {name: shown(found.get(name, ""), 2000) for name in ("error", "message")}


def _check_result(result: Json, cell: str) -> None:
    config = from_dict(_typed(result, "config", dict))
    for name, value in flatten(config).items():
        if isinstance(value, str):
            _text(value, name)
    if (own := cell_id(config)) != cell:
        raise UserError(f"its config is that of cell {own}")
    if _typed(result, "cell", str, cell) != cell:
        raise UserError(f"cell: {shown(repr(result['cell']), 60)}")
    history = _typed(result, "history", list)
    summary = _typed(result, "summary", dict)
    if not history:
        raise UserError("history: has no record")
    for record in (*history, summary):
        if not isinstance(record, dict) or not {*map(type, record.values())} <= SCALARS:
            raise UserError("history, summary: a record is no object of plain values")
    for record in history:
        if type(record.get("epoch")) is not int:
            raise UserError("history: a record has no whole number as its epoch")
    if not all(map(str.isprintable, {name for record in (*history, summary) for name in record})):
        raise UserError("history: the name of a value is not printable")
    for name, value in summary.items():
        if isinstance(value, str):
            _text(value, name)
    for name in ("name", "device", "started", "finished", "initial_weights_checksum", "data_digest"):
        _text(_typed(result, name, str, ""), name)
    for numbers, name in ((summary, "test_accuracy"), (result, "seconds")):
        if type(numbers.get(name)) not in (int, float):
            raise UserError(f"{name}: is not a number")
    for name in ("versions", "processor"):
        for key, value in _typed(result, name, dict, {}).items():
            if type(value) not in SCALARS:
                raise UserError(f"{name}: is no object of plain values")
            _text(f"{key} {value}", name)
    for name in ("attempts", "gpu_memory"):
        if type(result.get(name)) not in (int, float, type(None)):
            raise UserError(f"{name}: is not a number")


def _typed(data: Mapping[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value = data.get(name, default)
    if type(value) is not kind:
        raise UserError(f"{name}: is missing or not of type {kind.__name__}")
    return value


def _text(value: str, name: str) -> None:
    if not value.isprintable():
        raise UserError(f"{name}: {shown(repr(value), 60)} is not printable text")


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError("a whole number is too large")
    return int(digits)
