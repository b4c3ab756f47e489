"""A network into a file of another program, checked before it takes its name."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mobilemamba.dense import Detector
from mobilemamba.dense.candidates import KEPT_KEY, Candidates, as_candidates, canvas
from mobilemamba.errors import ConfigError, MobileMambaError, WeightsError
from mobilemamba.export.calibration import Calibration, read_calibration
from mobilemamba.export.form import exportable
from mobilemamba.export.format import OUTPUTS_KEY, Source
from mobilemamba.export.formats import format_of
from mobilemamba.export.quiet import quiet
from mobilemamba.export.verification import Check, check
from mobilemamba.files import check_writable
from mobilemamba.layers.ss2d import SS2D
from mobilemamba.models.card import CARD_KEY, ModelCard
from mobilemamba.models.mobilemamba import MobileMamba
from mobilemamba.models.runtime import PRECISION_KEY
from mobilemamba.text import printable
from mobilemamba.version import __version__

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    bytes: int  # of all its files
    size: tuple[int, int] | None  # height and width of the pictures; None for any
    batch: int | None  # pictures at a time; None for any
    check: Check | None  # None if it was not asked for


def export_network(
    network: nn.Module,
    card: ModelCard,
    target: str | Path,
    *,
    any_size: bool = False,
    batch: int | None = None,
    any_batch: bool | None = None,
    dtype: str = "float32",
    opset: int | None = None,
    calibration: Calibration | Path | None = None,
    softmax: bool = False,
    verify: bool = True,
) -> Exported:
    """Writes a network for another program, its card with it.

    Args:
        network: In float32 on the CPU.
        card: What it is of, and how its pictures are prepared.
        target: Its ending chooses the format; replaced as a whole.
        any_size: Take pictures of any size, not the card's alone, where the format and the network can.
        batch: Pictures at a time; by default any number where the format can, else 1.
        any_batch: Take any number; without it as the format can.
        dtype: float32, float16, bfloat16 or int8.
        opset: ONNX's.
        calibration: Pictures by whose activations int8 is scaled; and which are answered by both, to compare. Or a
            folder, see ``read_calibration``.
        softmax: Answer with probabilities instead of logits.
        verify: Compare the file's answers to the network's, and refuse it if they differ.

    Raises:
        ConfigError: If an option cannot work, or a package is missing.
        DataError: If the pictures for the calibration cannot be read.
        WeightsError: If the file cannot be written, or does not answer as the network does.
    """
    target = Path(target)
    form = format_of(target)
    form.need((*form.writes, *(form.reads if verify else ())))
    if dtype not in form.dtypes:
        raise ConfigError(f"--dtype {dtype}: {form.suffix} files take {' or '.join(form.dtypes)}")
    if opset is not None and opset not in form.opsets:
        known = f"expected {form.opsets[0]} to {form.opsets[-1]}" if form.opsets else "only .onnx files have one"
        raise ConfigError(f"--opset {opset}: {known}; leave it out for the usual one")
    if (any_size and not form.any_size) or (any_batch and not form.any_batch):
        raise ConfigError(f"{form.suffix} files take no dynamic {'size' if any_size else 'batch'}; give a number")
    if form.one_picture and batch not in (None, 1):
        raise ConfigError(f"--batch {batch}: {form.suffix} files take one picture at a time; leave it out")
    if dtype == "int8" and form.calibrates and calibration is None:
        raise ConfigError(
            f"--dtype int8: {form.suffix} files are fitted by pictures; give a folder of some hundred by --calibration"
        )
    if calibration is not None and not (dtype == "int8" and form.calibrates) and not (verify and form.reads):
        shown = f" {printable(calibration)}" if isinstance(calibration, Path) else ""
        raise ConfigError(f"--calibration{shown}: no scales are fitted here, and no answers compared; leave it out")
    free = any_size and isinstance(network, MobileMamba)
    if any_size and not free and any(isinstance(module, SS2D) for module in network.modules()):
        raise ConfigError(
            "--size dynamic: what stands on the network's scans is laid out for one size of pictures; give it in pixels"
        )
    if free and batch is not None and not form.fixes_loops:
        raise ConfigError(
            f"--batch {batch} with --size dynamic: {form.suffix} files take any number of pictures then; leave one out"
        )
    if isinstance(network, Detector) and (any_size or softmax):
        reasons = {
            "--size dynamic": "a detector's boxes are laid out for one size of pictures; give it in pixels",
            "--softmax": "not for detectors, which answer with probabilities; leave it out",
        }
        option = "--size dynamic" if any_size else "--softmax"
        raise ConfigError(f"{option}: {reasons[option]}")
    _check_target(target)
    any_batch = form.any_batch and batch is None if any_batch is None else any_batch
    size = canvas(network, card.preprocessing.img_size, fits=card.preprocessing.resize == "fit")
    original, network = network, as_candidates(network.eval())
    answer = "probabilities" if softmax else "candidates" if isinstance(network, Candidates) else "logits"
    source = Source(
        _in_types(
            exportable(network, any_size=free), _DTYPES.get(dtype if form.casts else "", torch.float32), softmax=softmax
        ),
        card.in_chans,
        None if any_size else size,
        None if any_batch else batch or 1,
        dtype,
        opset,
        softmax,
        answer=answer,
        free=free,
    )
    _try(network, source)
    if isinstance(calibration, Path):
        calibration = read_calibration(calibration, card, original)
    source = replace(source, calibration=calibration)
    metadata = {
        CARD_KEY: json.dumps(card.as_dict()),
        OUTPUTS_KEY: answer,
        PRECISION_KEY: dtype,
        "producer": f"mobilemamba {__version__}",
    }
    if isinstance(network, Candidates):
        metadata[KEPT_KEY] = json.dumps(asdict(network.kept(size, card.in_chans)))
    with _staged(target) as staged:
        try:
            with quiet():
                form.write(source, metadata, staged)
        except (MobileMambaError, OSError):
            raise
        except Exception as error:  # of the libraries' own kinds, for a full disk as for what they cannot convert
            reason = " ".join(str(error).split())[:300]
            raise WeightsError(f"cannot write {printable(target)} for {form.name}: {reason}") from error
        found = check(network, form, staged, source) if verify else None
        written = sum(file.stat().st_size for file in staged.parent.rglob("*") if file.is_file())
    return Exported(target, written, source.size, source.batch, found)


class _InTypes(nn.Module):
    """Computes in another type than its pictures and answers have."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, *, softmax: bool) -> None:
        super().__init__()
        self.network, self.dtype, self.softmax = network, dtype, softmax

    def forward(self, x: Tensor) -> Tensor:
        answer = self.network(x.to(self.dtype)).float()
        return answer.softmax(1) if self.softmax else answer


def _in_types(network: nn.Module, dtype: torch.dtype, *, softmax: bool) -> nn.Module:
    if dtype == torch.float32 and not softmax:
        return network
    return _InTypes(network.to(dtype), dtype, softmax=softmax).eval()


def _try(network: nn.Module, source: Source) -> None:
    """Refuses pictures that the network does not take, in its own words."""
    try:
        with torch.no_grad():
            answer = network(source.example[:1])
    except MobileMambaError:
        raise
    except Exception as error:  # whatever a network may raise
        height, width = source.sizes[0]
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"the network does not take pictures of {source.channels} channels and {height}x{width} pixels: {reason}"
        ) from None
    if not isinstance(answer, Tensor):
        raise ConfigError(f"the network answers with a {type(answer).__name__}; expected one tensor")
    if not math.isfinite(float(answer.abs().max())):
        raise ConfigError("the network answers with NaN or infinity; give weights from before that")


def _check_target(target: Path) -> None:
    """Refuses what could not be written, before the work for it is done."""
    if not (target.is_dir() and target.suffix == ".mlpackage"):
        check_writable(target, "the target")
    for suffix, other in ((".xml", ".param"), (".param", ".xml")):  # the weights of both stand in .bin
        if target.suffix == suffix and target.with_suffix(other).exists():
            named, weights = printable(target.with_suffix(other)), target.with_suffix(".bin").name
            raise ConfigError(f"{printable(target)}: {weights} beside it has the weights of {named}; take another name")


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A path of the target's name in a folder beside it, from which all files move to their places at the end.

    The one that is named comes last, and is away while the others change: under its name stands the old or the new
    export, or none, but never a part.

    Raises:
        WeightsError: If they cannot be written.
    """
    folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        folder.mkdir()
        staged = folder / target.name
        yield staged
        others = [file for file in folder.iterdir() if file != staged]
        for file in folder.rglob("*"):
            if file.is_file():
                _reach_disk(file)
        if others or staged.is_dir():
            _remove(target)
        for file in (*others, staged):
            os.replace(file, target.with_name(file.name))  # noqa: PTH105
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        hint = "make room on the disk" if error.errno == errno.ENOSPC else "choose a folder that exists and has room"
        raise WeightsError(f"cannot write {printable(target)}: {reason}; {hint}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reach_disk(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _remove(target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
