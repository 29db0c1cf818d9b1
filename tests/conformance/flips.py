"""One bit of a positive vector flipped, where it matters: in an input or in the output."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pfl_lm.conformance.vectors import Vector

# For each kind an input on which the output depends at every bit, and the bit that is flipped. A
# number is a bit from the lowest; of floats it is bit 30, the highest of the exponent.
INPUTS: Mapping[str, tuple[tuple[str | int, ...], int]] = {
    "context": (("config", "model"), 77),
    "hkdf": (("info",), 5),
    "public_key": (("secret",), 77),  # not a bit that X25519 clamps
    "agree": (("public",), 77),
    "pair_mask_seed": (("context",), 0),
    "self_mask_seed": (("secret",), 255),
    "commit": (("value",), 9),
    "noise_chain": (("first",), 100),
    "mask": (("plus", 0), 100),
    "unpack": (("packed",), 0),
    "share": (("secret",), 0),
    "graph": (("seed",), 3),
    "frame": (("body",), 1),
    "unframe": (("frame",), 64),
    "read_records": (("body",), 36),
    "write_bitmap": (("members", 0), 0),
    "read_bitmap": (("bitmap",), 1),
    "seal": (("content",), 7),
    "open": (("box",), 7),
    "sign": (("content",), 7),
    "check_signature": (("signature",), 7),
    "certify": (("authority_secret",), 7),
    "check_certificate": (("certificate",), 140),
    "noise_plan": (("cohort",), 0),
    "noise_components": (("first",), 7),
    "rotate": (("row",), 30),
    "indicate": (("update",), 30),
    "grid": (("dim",), 0),
    "read_message": (("frame",), 500),
    "superfluous": (("opened", "1"), 7),
    "write_records": (("records", "0"), 7),
}


def flipped_input(vector: Vector) -> Vector:
    """Return the vector with one bit of its inputs flipped."""
    path, bit = _place(vector)
    inputs = copy.deepcopy(dict(vector.inputs))
    _flip(inputs, path, bit)
    return replace(vector, inputs=inputs)


def _place(vector: Vector) -> tuple[tuple[str | int, ...], int]:
    inputs = vector.inputs
    if vector.kind == "skellam":
        return (("seed",), 7) if inputs["variance"] else (("dim",), 0)
    if (
        vector.kind == "encode"
    ):  # of the sixth number: the nan, or the largest, of rows that have one
        return ("update",), 32 * min(5, inputs["dim"] - 1) + 30
    if vector.kind == "recover":
        return ("shares", next(iter(inputs["shares"]))), 0
    if vector.kind == "device":
        return (("calls", 0, "message"), 500) if inputs["calls"] else (("entropy",), 77)
    return INPUTS[vector.kind]


def flipped_output(vector: Vector) -> Vector:
    """Return the vector with the lowest bit of its output's first value flipped."""
    output: Any = copy.deepcopy(dict(vector.output or {}))
    path: list[str | int] = []
    value = output
    while isinstance(value, dict | list):
        path.append(next(iter(value)) if isinstance(value, dict) else 0)
        value = value[path[-1]]
    _flip(output, tuple(path), 0)
    return replace(vector, output=output)


def _flip(tree: Any, path: tuple[str | int, ...], bit: int) -> None:
    *way, last = path
    for step in way:
        tree = tree[step]
    value = tree[last]
    if isinstance(value, int):
        tree[last] = value ^ (1 << bit)
    elif value.lstrip("-").isdigit() and len(value) < 16:
        tree[last] = str(int(value) ^ (1 << bit))
    else:
        changed = bytearray.fromhex(value)
        changed[bit // 8] ^= 1 << bit % 8
        tree[last] = changed.hex()
