"""Triton's interpreter, made faster and mended where our kernels need it; it must be on before this is imported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from triton.runtime.interpreter import InterpretedFunction, ScanOps, interpreter_builder


def scan_by_rows(ops: Any, inputs: tuple[Any, ...]) -> list[Any]:
    """Triton's interpreter combines number by number; this does all of a step at once, in a tenth of the time."""
    rows = [np.moveaxis(x.handle.data, ops.axis, 0) for x in inputs]
    found: list[list[np.ndarray]] = [[row[0]] for row in rows]
    for i in range(1, len(rows[0])):
        both = [
            ops.to_tensor(row, x.dtype)
            for which in ([y[-1] for y in found], [y[i] for y in rows])
            for row, x in zip(which, inputs, strict=True)
        ]
        for y, new in zip(found, ops.combine_fn.fn(*both), strict=True):
            y.append(new.handle.data)
    return [ops.to_tensor(np.stack(y, ops.axis), x.dtype) for y, x in zip(found, inputs, strict=True)]


def call_from_a_kernel(function: InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
    """Triton's interpreter puts its own in the language's place for each call; for our functions the kernel's has."""
    if "tl" in function.fn.__globals__:
        return function.rewrite()(*args, **kwargs)
    return call_of_triton(function, *args, **kwargs)


ScanOps.generic_scan = scan_by_rows
call_of_triton, InterpretedFunction.__call__ = InterpretedFunction.__call__, call_from_a_kernel
# Sums of integers are computed once more to see whether they overflow; what is found goes nowhere without `debug`.
interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=False)
