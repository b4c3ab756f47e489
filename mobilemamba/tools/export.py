"""The ``export`` command: networks for other runtimes than PyTorch."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from mobilemamba.errors import ConfigError
from mobilemamba.export import Exported, Options
from mobilemamba.export import export_network as write
from mobilemamba.export.calibration import SURE, Agreement
from mobilemamba.export.web import check_page, check_shown, write_page
from mobilemamba.models import load_network
from mobilemamba.models.runtime import RuntimeNetwork
from mobilemamba.text import printable


def export_network(
    weights: Path,
    out: Path | None = None,
    *,
    web: Path | None = None,
    size: str | None = None,
    batch: str | None = None,
    dtype: str = "float32",
    calibration: Path | None = None,
    softmax: bool = False,
    nms: bool = False,
    verify: bool = True,
    opset: int | None = None,
    model: str | None = None,
) -> None:
    """Export a network for another runtime, such as ONNX Runtime on a server or a phone, and verify its outputs.

    Args:
        weights: The network's weights (.safetensors, .ckpt, .pth); to write only a web page, an exported .onnx file.
        out: The file to write, whose extension determines the format: .onnx, .xml (OpenVINO), .tflite (LiteRT), .pte
            (ExecuTorch), .mlpackage (Core ML) or .param (ncnn).
        web: A folder, new or with an earlier page, for a web page that runs the .onnx file in the browser.
        size: Side of the pictures in pixels, or height and width as 192x256, or dynamic; by default as in training.
        batch: Batch size, or dynamic; by default dynamic if the format supports it, else 1.
        dtype: float32, float16, bfloat16 or int8, for weights and arithmetic.
        calibration: A folder of pictures to calibrate int8; if it has folders of classes, the accuracy is shown too.
        softmax: Output probabilities instead of logits.
        nms: Include non-maximum suppression in a detector's .onnx or .xml file, which then also outputs objects.
        verify: Compare the outputs with the original's, and write nothing if they differ.
        opset: Version of ONNX's operator set, 18 to 24.
        model: timm's name of the network, for weights that do not contain it.

    Raises:
        ConfigError: If an option is invalid, or a package is missing.
        DataError: If the calibration pictures cannot be read.
        WeightsError: If the weights cannot be read, or the file cannot be written or is not exact.
    """
    if out is None:
        settings = (size, batch, calibration, opset, model, dtype != "float32", softmax, nms, not verify)
        _page_alone(weights, web, any(setting not in (None, False) for setting in settings))
        return
    if web is not None:
        if out.suffix != ".onnx":
            raise ConfigError(f"--web {printable(web)}: a page runs .onnx files; write one, not {printable(out)}")
        if size == "dynamic":
            raise ConfigError(f"--size dynamic with --web {printable(web)}: a page takes one size; give it in pixels")
        check_page(web)
    sides = None if size in (None, "dynamic") else _sides(size)
    number = None if batch in (None, "dynamic") else _batch(batch)
    network, card = load_network(weights, model, verbose=False)
    if isinstance(network, RuntimeNetwork):
        raise ConfigError(f"{printable(weights)} is an exported network itself; give the weights that it was made of")
    if web is not None:
        check_shown(card, weights)
    if sides is not None:
        card = replace(card, preprocessing=replace(card.preprocessing, img_size=sides))
    options = Options(
        any_size=size == "dynamic",
        batch=number,
        any_batch=None if batch is None else batch == "dynamic",
        dtype=dtype,
        opset=opset,
        calibration=calibration,
        softmax=softmax,
        nms=nms,
        verify=verify,
    )
    written = write(network, card, out, options)
    for line in describe(written):
        print(line)
    if web is not None:
        _page(out, web)


def _page_alone(exported: Path, folder: Path | None, has_options: bool) -> None:
    """Writes only the web page of a network that was exported before."""
    if folder is None or exported.suffix != ".onnx":
        written = f"the file to write, e.g. {exported.with_suffix('.onnx').name}"
        missing = "--web FOLDER for a page of it" if exported.suffix == ".onnx" else printable(written)
        raise ConfigError(f"export {printable(exported)} to what? Add {missing}")
    if has_options:
        raise ConfigError("a page alone has no other options: name the weights and a new .onnx file to have them used")
    _page(exported, folder)


def _page(exported: Path, folder: Path) -> None:
    written = write_page(exported, folder)
    shown = printable(folder)
    print(f"wrote {shown}: a page, {written / 1e6:.1f} MB; to see it: python -m http.server --directory {shown}")


def describe(written: Exported) -> list[str]:
    """Describes the written file and its exactness, in lines."""
    lines = []
    if (found := written.check) is not None:
        if found.error is None:
            lines.append(f"not verified: {found.runtime}")
        else:
            tried = ", ".join(map(str, found.batches))
            held = "verified" if found.limit is not None else "runs, and no limit holds in 8 bits"
            lines.append(f"{held}: {found.runtime} is off by {found.error:.1e} of {found.unit}, on batches of {tried}")
        if found.agreement is not None:
            lines.append(_agreement(found.agreement))
    size = "any size" if written.size is None else "{}x{} px".format(*written.size)
    pictures = "any number of pictures" if written.batch is None else f"{written.batch} at a time"
    lines.append(f"wrote {printable(written.path)}: {size}, {pictures}, {written.bytes / 1e6:.1f} MB")
    return lines


def _agreement(found: Agreement) -> str:
    line = f"on {found.pictures:,} pictures of the calibration: "
    if found.off is not None:
        mean, largest = found.off
        sure = "" if math.isnan(mean) else f", those of {SURE} or more by {mean:.3f} on average"
        return f"{line}probabilities are off by {largest:.3f} at most{sure}"
    line += f"{found.same:.1f} % {'of the pixels ' if found.pixels else ''}answered as by the original"
    if found.top1 is None:
        return line
    return f"{line}; top-1 {found.top1[0]:.2f} % before, {found.top1[1]:.2f} % after"


def _sides(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:[x,](\d+))?", text)
    if found is None or not int(found[1]) or not int(found[2] or 1):
        raise ConfigError(f"--size {printable(text)}: expected pixels as 224, height and width as 192x256, or dynamic")
    return int(found[1]), int(found[2] or found[1])


def _batch(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"--batch {printable(text)}: expected a number of pictures from 1 on, or dynamic")
    return int(text)
