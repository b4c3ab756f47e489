"""Exports a network to a file of another program, and checks it before it is saved under its name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mobilemamba.dense.candidates import RULES_KEY, Candidates, as_candidates, input_size
from mobilemamba.dense.suppression import Suppressing
from mobilemamba.errors import ConfigError, MobileMambaError, WeightsError, is_out_of_memory
from mobilemamba.export.calibration import read_calibration
from mobilemamba.export.format import OUTPUTS_KEY, Format, Source
from mobilemamba.export.formats import format_of
from mobilemamba.export.lowering import exportable
from mobilemamba.export.options import Options
from mobilemamba.export.quiet import quiet
from mobilemamba.export.staging import staged
from mobilemamba.export.verification import Check, check, check_objects
from mobilemamba.files import check_writable
from mobilemamba.models.card import CARD_KEY, ModelCard
from mobilemamba.models.runtime import PRECISION_KEY
from mobilemamba.text import printable
from mobilemamba.version import __version__

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: Bytes that do not fit on a disk that a library has filled: it may have left room for less than a buffer.
_ROOM = 2**20


@dataclass(frozen=True)
class Exported:
    """The file that was written."""

    path: Path
    bytes: int  # of all its files
    size: tuple[int, int] | None  # height and width of the pictures; None for any
    batch: int | None  # pictures at a time; None for any
    check: Check | None  # None if not verified


def export_network(
    network: nn.Module,
    card: ModelCard,
    target: str | Path,
    options: Options | None = None,
) -> Exported:
    """Writes a network for another runtime, together with its card.

    Args:
        network: The network, in float32 on the CPU.
        card: Its card, which says how its pictures are prepared.
        target: The file to write, replaced as a whole; its suffix chooses the format.
        options: Options; by default float32, verified.

    Raises:
        ConfigError: If an option cannot work, or a package is missing.
        DataError: If the pictures for the calibration cannot be read.
        WeightsError: If the file cannot be written, or its outputs differ from the network's.
    """
    target, options = Path(target), options or Options()
    form = format_of(target)
    form.need((*form.writes, *(form.reads if options.verify else ())))
    options.check(form, network)
    _check_target(target)
    size, batch = input_size(network, card.preprocessing), options.batch_size(form)
    _check_pixels(batch or 1, *size)
    original, network = network, as_candidates(network.eval())
    rules = network.rules(size, card.in_chans) if isinstance(network, Candidates) else None
    by_functions = options.uses_onnx_functions(network)
    answer = "probabilities" if options.softmax else "candidates" if rules else "logits"
    arithmetic = _DTYPES.get(options.dtype if form.casts else "", torch.float32)
    graph = _adapted(exportable(network, any_size=by_functions), arithmetic, softmax=options.softmax)
    source = Source(
        Suppressing(graph, rules).eval() if rules and options.nms else graph,
        card.in_chans,
        None if options.any_size else size,
        batch,
        options.dtype,
        options.opset,
        options.softmax,
        answers=(answer, "objects") if options.nms else (answer,),
        onnx_functions=by_functions,
    )
    with _in_memory(source):
        _try(network, source)
        pictures = options.calibration
        if isinstance(pictures, Path):
            pictures = read_calibration(pictures, card, original)
        source = replace(source, calibration=pictures)
        metadata = {
            CARD_KEY: json.dumps(card.as_dict()),
            OUTPUTS_KEY: answer,
            PRECISION_KEY: options.dtype,
            "producer": f"mobilemamba {__version__}",
        }
        if rules is not None:
            metadata[RULES_KEY] = json.dumps(asdict(rules))
        with staged(target) as path:
            _write(form, source, metadata, path)
            found = check(network, form, path, source) if options.verify else None
            if found is not None and rules is not None and options.nms:
                check_objects(form, path, source, rules)
            written = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
    return Exported(target, written, source.size, source.batch, found)


def _write(form: Format, source: Source, metadata: Mapping[str, str], path: Path) -> None:
    """Lets a format write, and reports a failure in one line."""
    try:
        with quiet():
            form.write(source, metadata, path)
    except (MobileMambaError, OSError):
        raise
    except Exception as error:  # libraries raise their own kinds, even for a full disk
        (path.parent / "more").write_bytes(bytes(_ROOM))  # a full disk raises the system's error here
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"cannot write {printable(path.name)} for {form.name}: {reason}") from error


class _Adapted(nn.Module):
    """Computes in another dtype than that of its input and output, or answers with probabilities, or both."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, *, softmax: bool) -> None:
        super().__init__()
        self.network, self.dtype, self.softmax = network, dtype, softmax

    def forward(self, x: Tensor) -> Tensor:
        answer = self.network(x.to(self.dtype)).float()
        return answer.softmax(1) if self.softmax else answer


def _adapted(network: nn.Module, dtype: torch.dtype, *, softmax: bool) -> nn.Module:
    if dtype == torch.float32 and not softmax:
        return network
    return _Adapted(network.to(dtype), dtype, softmax=softmax).eval()


def _try(network: nn.Module, source: Source) -> None:
    """Refuses pictures that the network does not take, with the network's own message."""
    try:
        with torch.no_grad():
            answer = network(source.example[:1])
    except MobileMambaError:
        raise
    except Exception as error:  # networks may raise anything
        height, width = source.sizes[0]
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the network does not take pictures of {source.channels} channels and {height}x{width} pixels: {reason}"
        ) from None
    if not isinstance(answer, Tensor):
        raise ConfigError(f"the network answers with a {type(answer).__name__}; expected one tensor")
    if not math.isfinite(float(answer.abs().max())):
        height, width = source.sizes[0]  # a size unlike the training's may be the reason
        raise ConfigError(
            f"the network answers pictures of {height}x{width} pixels with NaN or infinity; give weights from before "
            "it did, or the --size of its training"
        )


def _check_target(target: Path) -> None:
    """Refuses a target that cannot be written, before any work is done for it."""
    if not (target.is_dir() and target.suffix == ".mlpackage"):
        check_writable(target, "the target")
    for suffix, other in ((".xml", ".param"), (".param", ".xml")):  # both have their weights in .bin
        if target.suffix == suffix and target.with_suffix(other).exists():
            named, weights = printable(target.with_suffix(other)), target.with_suffix(".bin").name
            raise ConfigError(f"{printable(target)}: {weights} beside it has the weights of {named}; take another name")


def _check_pixels(batch: int, height: int, width: int) -> None:
    """Refuses sizes whose activations no machine can hold: the system may kill a process that tries."""
    from mobilemamba.data.pictures import MAX_PIXELS  # slow to import

    if batch * height * width > MAX_PIXELS:
        raise ConfigError(
            f"--size {height}x{width}, {batch:,} at a time: expected {MAX_PIXELS:,} pixels at most; give a smaller "
            "--size or --batch"
        )


@contextmanager
def _in_memory(source: Source) -> Iterator[None]:
    """Context that reports the size of the pictures if memory runs out."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        height, width = source.sizes[0]
        raise ConfigError(
            f"out of memory with pictures of {height}x{width} pixels, {source.batch or 1:,} at a time; give a smaller "
            "--size or --batch"
        ) from None
