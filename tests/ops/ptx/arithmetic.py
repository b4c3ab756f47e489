"""What PTX's instructions compute, from typed arrays of all threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.ops.ptx.memory import Array

_KINDS = {"b": "uint", "u": "uint", "s": "int", "f": "float"}
#: Types without a dtype of NumPy's are what they are made of.
_OTHERS = {"pred": "bool", "bf16": "uint16", "f16x2": "uint32", "bf16x2": "uint32", "tf32": "uint32"}


def dtype_of(kind: str) -> np.dtype[Any]:
    return np.dtype(_OTHERS.get(kind) or _KINDS[kind[0]] + kind[1:])


def flushed(x: Array) -> Array:
    return np.where(np.abs(x) < np.finfo(x.dtype).tiny, x.dtype.type(0), x) if x.dtype.kind == "f" else x


def _quotient(a: Array, b: Array) -> Array:
    """As in C: towards zero."""
    if a.dtype.kind == "f":
        return a / b
    b = np.where(b == 0, 1, b)  # of threads that do not compute
    return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)) if a.dtype.kind == "i" else a // b


def wide(x: Array) -> Array:
    return x.astype(f"{x.dtype.kind}{2 * x.dtype.itemsize}")


def _shifted(shift: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    def function(x: Array, by: Array) -> Array:
        bits = 8 * x.dtype.itemsize
        inside = shift(x, np.minimum(by, bits - 1).astype(x.dtype))
        all_out = inside if x.dtype.kind == "i" else x.dtype.type(0)
        return np.where(by < bits, inside, all_out)

    return function


def _field(x: Array, first: Array, width: Array) -> Array:
    bits = 8 * x.dtype.itemsize
    left = (bits - width - first).astype(x.dtype)
    return (x << left) >> (bits - width).astype(x.dtype)


def _bytes_chosen(a: Array, b: Array, choice: Array) -> Array:
    """``prmt``: four bytes of the eight of a and b, each by four bits of the choice."""
    both = b.astype(np.uint64) << 32 | a
    chosen = [(both >> (choice >> 4 * i & 7).astype(np.uint64) * 8 & 255) << 8 * i for i in range(4)]
    assert not (choice & 0x8888).any()  # which would spread a sign
    return sum(chosen).astype(np.uint32)


COMPUTED: dict[str, Callable[..., Array]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": _quotient, "rem": np.fmod,
    "min": np.fmin, "max": np.fmax, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "not": np.invert, "neg": np.negative, "abs": np.abs, "mov": lambda a: a, "mad": lambda a, b, c: a * b + c,
    "shl": _shifted(np.left_shift), "shr": _shifted(np.right_shift), "bfe": _field, "prmt": _bytes_chosen,
    "ex2": np.exp2, "lg2": np.log2, "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a), "rcp": lambda a: 1 / a, "selp": lambda a, b, which: np.where(which, a, b),
    # In double precision: the product is exact, and the sum is rounded once more.
    "fma": lambda a, b, c: (a.astype(np.float64) * b + c).astype(a.dtype),
}  # fmt: skip
_COMPARED: dict[str, Callable[[Array, Array], Array]] = {"eq": np.equal, "ne": np.not_equal}
_COMPARED |= {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
#: What may follow an operation's name, beside the shapes of matrices and vectors.
KNOWN = {
    *("b16", "b32", "b64", "u16", "u32", "u64", "s8", "s16", "s32", "s64", "f16", "f32", "bf16", "f16x2", "bf16x2"),
    *("pred", "eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan", "and", "or"),
    *("tf32", "rn", "rna", "approx", "full", "ftz", "NaN", "lo", "hi", "wide", "global", "shared", "param", "v2", "v4"),
    *("sync", "warp", "aligned", "bfly", "idx", "m8n8", "x1", "x2", "x4", "trans", "m16n8k8", "m16n8k16", "row", "col"),
}
#: Types of operands that are not an instruction's own.
OPERANDS = {"selp": {2: "pred"}, "shl": {1: "u32"}, "shr": {1: "u32"}, "bfe": {1: "u32", 2: "u32"}}


def compared(how: str, a: Array, b: Array) -> Array:
    """``setp``: false for a NaN, and true for it if a ``u`` follows the comparison's name."""
    has_nan = (a != a) | (b != b)
    if how in ("nan", "num"):
        return has_nan == (how == "nan")
    return _COMPARED[how](a, b) & ~has_nan if how in _COMPARED else _COMPARED[how.removesuffix("u")](a, b) | has_nan


def to_bf16(x: Array) -> Array:
    bits = x.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def from_bf16(x: Array) -> Array:
    return (x.astype(np.uint32) << 16).view(np.float32)


def rounded(x: Array, kind: str) -> Array:
    """A number in single precision as bits of a shorter type."""
    if kind.startswith("bf16"):
        return to_bf16(x)
    if kind == "tf32":
        return (x.view(np.uint32) + 0x1000) & np.uint32(0xFFFFE000)
    return x.astype(np.float16).view(np.uint16)


def factors(x: Array, kind: str) -> Array:
    """A register of a matrix product's factor as its numbers, (..., 1 or 2)."""
    if kind == "tf32":
        return (x & np.uint32(0xFFFFE000)).view(np.float32)[..., None]
    halves = x[..., None].view(np.uint16)
    return from_bf16(halves) if kind == "bf16" else halves.view(np.float16).astype(np.float32)
