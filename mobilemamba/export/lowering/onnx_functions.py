"""Functions of ONNX for networks that take pictures of any size: loops, and shapes that are read at run time.

A tracer would have to follow unknown sizes through every layer, for minutes. So it sees one size, and the layers have
no operator that depends on it; where one is needed, it is a function in ONNX's text format, which is put into the file.

Shape letters: B batch, K scan directions, H and W sides, h and w half of them, X what advances together, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Domain of the functions.
DOMAIN = "mobilemamba"

_JOIN = """
join (phases, like) => (joined) {
  squares = DepthToSpace<blocksize = 2, mode = "DCR">(phases)
  start = Constant<value_ints = [0, 0]>()
  sides = Shape<start = 2, end = 4>(like)
  axes = Constant<value_ints = [2, 3]>()
  joined = Slice(squares, start, sides, axes)
}
"""


def join(phases_BFhw: Tensor, like_BCHW: Tensor) -> Tensor:
    """Joins the four pixels of each square, which follow each other in F = 4C channels, to the map (B, C, H, W)."""
    shape = (phases_BFhw.shape[0], phases_BFhw.shape[1] // 4, *like_BCHW.shape[2:])
    return _call("join", (phases_BFhw, like_BCHW), shape)


def recurrence(decay_BKHWX: Tensor, drive_BKHWX: Tensor) -> Tensor:
    """Computes ``h_t = decay_t h_{t-1} + drive_t`` from ``h = 0`` along each direction; X may be several dimensions."""
    name = f"recurrence{drive_BKHWX.shape[1]}_{drive_BKHWX.ndim}"
    return _call(name, (decay_BKHWX, drive_BKHWX), drive_BKHWX.shape)


def _call(name: str, inputs: tuple[Tensor, ...], shape: Any) -> Tensor:
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{name}", inputs, dtype=inputs[0].dtype, shape=shape, version=1)


def with_functions(model: Any, opset: int) -> Any:
    """Returns an ONNX model in which the calls of the functions are replaced by their operators."""
    from onnx.inliner import inline_local_functions
    from onnx.parser import parse_function

    for name in {node.op_type for node in model.graph.node if node.domain == DOMAIN}:
        text = _JOIN if name == "join" else _recurrence(name, *map(int, name.removeprefix("recurrence").split("_")))
        model.functions.append(parse_function(f'<domain: "{DOMAIN}", opset_import: ["": {opset}]> {text}'))
    model = inline_local_functions(model)
    versions = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(versions)
    return model


def _recurrence(name: str, directions: int, rank: int) -> str:
    """Returns the function's text: all directions in one loop, which runs backwards along the later half of them."""
    each = range(directions)
    backwards = [int(direction >= directions / 2 > 0.5) for direction in each]
    columns = [directions == 4 and direction % 2 == 1 for direction in each]
    turn = f"Transpose<perm = {[0, 1, 3, 2, *range(4, rank)]}>"

    def names(*kinds: str) -> str:
        return ", ".join(f"{kind}{direction}" for direction in each for kind in kinds)

    lines = [
        "batch = Shape<start = 0, end = 1>(drive)",
        "inside = Shape<start = 4>(drive)",
        "steps = Constant<value_ints = [-1]>()",
        "sequence = Concat<axis = 0>(batch, steps, inside)",
        "state = Concat<axis = 0>(batch, inside)",
        "zero = ConstantOfShape(state)",
    ]
    for kind in ("decay", "drive"):
        lines.append(f"{names(f'{kind}_map')} = Split<axis = 1, num_outputs = {directions}>({kind})")
        for k in each:
            order = turn if columns[k] else "Identity"
            lines += [f"{kind}_rows{k} = {order}({kind}_map{k})", f"{kind}{k} = Reshape({kind}_rows{k}, sequence)"]
    takes = [f"float[] before{k}" for k in each] + [f"float[] decay{k}, float[] drive{k}" for k in each]
    gives = [f"float[] after{k}" for k in each] + [f"float[] state{k}" for k in each]
    steps = [
        f"kept{k} = Mul(decay{k}, before{k}) after{k} = Add(kept{k}, drive{k}) state{k} = Identity(after{k})"
        for k in each
    ]
    attributes = {
        "num_scan_inputs": 2 * directions,
        "scan_input_axes": [1] * 2 * directions,
        "scan_input_directions": [flag for flag in backwards for _ in range(2)],
        "scan_output_axes": [1] * directions,
        "scan_output_directions": backwards,
        "body": f"step ({', '.join(takes)}) => ({', '.join(gives)}) {{ {' '.join(steps)} }}",
    }
    how = ", ".join(f"{key} = {value}" for key, value in attributes.items())
    zeros = ", ".join(["zero"] * directions)
    lines.append(f"{names('last')}, {names('h')} = Scan<{how}>({zeros}, {names('decay', 'drive')})")
    for k in each:
        lines += [f"sides{k} = Shape(drive_rows{k})", f"h_rows{k} = Reshape(h{k}, sides{k})"]
        lines.append(f"h_map{k} = {turn if columns[k] else 'Identity'}(h_rows{k})")
    lines.append(f"states = Concat<axis = 1>({names('h_map')})")
    return f"{name} (decay, drive) => (states) {{ {' '.join(lines)} }}"
