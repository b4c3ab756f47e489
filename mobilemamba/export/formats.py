"""All formats of exported networks."""

from __future__ import annotations

import difflib
from pathlib import Path

from mobilemamba.errors import ConfigError
from mobilemamba.export.coreml import CoreMl
from mobilemamba.export.executorch import ExecuTorch
from mobilemamba.export.format import Format
from mobilemamba.export.litert import LiteRt
from mobilemamba.export.ncnn import Ncnn
from mobilemamba.export.onnx import Onnx
from mobilemamba.export.openvino import OpenVino
from mobilemamba.text import printable

#: Formats by the suffix of their files.
FORMATS: dict[str, Format] = {
    form.suffix: form for form in (Onnx(), OpenVino(), LiteRt(), ExecuTorch(), CoreMl(), Ncnn())
}


def format_of(target: Path) -> Format:
    """Returns the format of a file to write, by its suffix.

    Raises:
        ConfigError: If no format has this suffix.
    """
    form = FORMATS.get(target.suffix)
    if form is None:
        near = difflib.get_close_matches(target.suffix, FORMATS, n=1)
        hint = f"; did you mean {target.stem}{near[0]}?" if near else ""
        raise ConfigError(f"{printable(target)}: expected a name that ends in {' or '.join(FORMATS)}{hint}")
    return form
