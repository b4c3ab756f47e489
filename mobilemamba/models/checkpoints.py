"""Loading and converting weights: our format, the authors' release, fused or not, with a report of every tensor."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models.config import VARIANTS
from mobilemamba.models.fuse import unfuse_state
from mobilemamba.models.release_names import StateDict, is_fused, is_release, release_to_ours

_CONTAINER_KEYS = ("net", "state_dict", "model", "state_dict_ema", "model_ema", "ema")
_ANCHOR = "patch_embed.0."  # the first layer's name in both formats


@dataclass
class LoadReport:
    """What became of each tensor, by our names.

    Attributes:
        format: The kind of checkpoint that was recognised, e.g. ``"release, norms fused"``.
        loaded: Tensors that were copied into the model.
        missing: Tensors of the model that the checkpoint lacks; they keep their values.
        unexpected: Tensors of the checkpoint that the model lacks.
        wrong_shape: Tensors of both that differ in shape, with both shapes.
    """

    format: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every tensor found its place."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        lines = [f"{self.format}: {len(self.loaded)} tensors loaded"]
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("wrong shape", self.wrong_shape),
        ):
            if names:
                shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
                lines.append(f"{len(names)} {title} ({shown})")
        return "; ".join(lines)


def load_weights(
    model: nn.Module, source: str | Path | Mapping[str, Any], *, partial: bool = False, verbose: bool = True
) -> LoadReport:
    """Loads a checkpoint into a MobileMamba, fused or not, and reports what became of each tensor.

    Args:
        model: The network; a checkpoint with fused norms fits a fused network and an un-fused one, whose norms then
            become neutral (outputs equal up to rounding).
        source: A ``.safetensors`` or ``.pth`` file, or a state dict; of ours or of the release; possibly inside
            ``net``, ``state_dict`` and the like; possibly under a prefix such as ``module.`` or ``ema.``. Files are
            read with ``weights_only=True``.
        partial: Accept missing, unexpected and wrongly shaped tensors.
        verbose: Print the report.

    Returns:
        The report.

    Raises:
        WeightsError: If the file cannot be read or holds no such network, or some tensor has no match and ``partial``
            is false; the model is untouched then.
    """
    state, format_name = read_weights(source, getattr(getattr(model, "config", None), "directions", 2))
    if is_fused(state) and not is_fused(model.state_dict()):
        state = unfuse_state(model, state)
    own = model.state_dict()
    report = LoadReport(format_name)
    fitting = {}
    for name, tensor in state.items():
        if name not in own:
            report.unexpected.append(name)
        elif tensor.shape != own[name].shape:
            report.wrong_shape.append(f"{name} {tuple(tensor.shape)}, the model has {tuple(own[name].shape)}")
        else:
            fitting[name] = tensor
            report.loaded.append(name)
    # A counter that only matters for norms with cumulative averages, and that some exports drop.
    report.missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    if not report.loaded or not (partial or report.complete):
        raise WeightsError(f"{report}; use the model these weights are of, or partial=True to load what fits")
    model.load_state_dict(fitting, strict=False)
    if verbose:
        print(report)
    return report


def save_weights(model: nn.Module, path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Writes the model's tensors in our format.

    Args:
        model: The network.
        path: A ``.safetensors`` file, replaced as a whole.
        metadata: Strings stored in the file's header.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.part")
    try:
        save_file(state, unfinished, metadata={"format": "pt", **(metadata or {})})
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot write {path}: {error}; choose a folder that exists and has room") from None
    finally:
        unfinished.unlink(missing_ok=True)


def read_weights(source: str | Path | Mapping[str, Any], directions: int = 2) -> tuple[StateDict, str]:
    """A checkpoint's tensors by our names, and the format they came in.

    Args:
        source: As for ``load_weights``.
        directions: Scan directions of the network, which the release's shapes do not tell.

    Raises:
        WeightsError: If it cannot be read or holds no MobileMamba.
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    content = source if isinstance(source, Mapping) else _read_file(Path(source))
    state = _find_tensors(content, where)
    release = is_release(state)
    format_name = "release" if release else "mobilemamba"
    if is_fused(state):
        format_name += ", norms fused"
    return release_to_ours(state, directions) if release else state, format_name


def _read_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: expected a .safetensors or .pth file")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"cannot read {path}: {reason}; expected a .safetensors file or a .pth state dict of plain tensors"
        ) from None
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}; expected a state dict")
    return content


def _find_tensors(content: Mapping[str, Any], where: str) -> StateDict:
    """The network's tensors in a checkpoint, their prefix taken off."""
    candidates = [content, *(content[k] for k in _CONTAINER_KEYS if isinstance(content.get(k), Mapping))]
    for candidate in candidates:
        prefixes = sorted({k.split(_ANCHOR)[0] for k in candidate if isinstance(k, str) and _ANCHOR in k}, key=len)
        if len(prefixes) > 1:
            raise WeightsError(f"{where} holds several networks ({prefixes}); pass the state dict of one of them")
        if prefixes:
            prefix = prefixes[0]
            return {k[len(prefix) :]: v for k, v in candidate.items() if k.startswith(prefix) and isinstance(v, Tensor)}
    raise WeightsError(
        f"{where} holds no MobileMamba: no tensor is named '{_ANCHOR}...', its keys begin {list(content)[:3]}"
    )


def convert(source: str | Path, target: str | Path, model_name: str) -> LoadReport:
    """Writes a checkpoint in our format, after a complete load into the model it is of.

    Args:
        source: Checkpoint of either format, with any number of classes.
        target: ``.safetensors`` file to write.
        model_name: The model, e.g. ``"mobilemamba_s6"``; stored in the file.

    Raises:
        ConfigError: If ``model_name`` is none of the six.
        WeightsError: As ``load_weights``; or if ``target`` does not end in ``.safetensors``.
    """
    if Path(target).suffix != ".safetensors":
        raise WeightsError(f"cannot write {target}: expected a name that ends in .safetensors")
    if model_name not in VARIANTS:
        raise ConfigError(f"unknown model {model_name!r}; expected one of: {', '.join(VARIANTS)}")
    state, _ = read_weights(source, VARIANTS[model_name].config.directions)
    classifier = state.get("head.linear.weight", state.get("head.weight"))
    model = timm.create_model(model_name, num_classes=0 if classifier is None else len(classifier))
    report = load_weights(model, source)
    save_weights(model, target, {"model": model_name})
    return report
