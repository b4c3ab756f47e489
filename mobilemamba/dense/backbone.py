"""Backbones for necks and heads: the part of a timm model that returns feature maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from mobilemamba.dense.efficientformer import take_any_size
from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models.checkpoints import load_network
from mobilemamba.models.config import ArchOverrides
from mobilemamba.models.create import create_model
from mobilemamba.text import printable


def create_backbone(
    name: str,
    arch: ArchOverrides | None = None,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    output_stride: int | None = None,
) -> nn.Module:
    """Builds timm's feature extractor of a model, without pretrained weights.

    It maps pictures to a list of maps (B, C, h, w), finest first. The model itself is its ``model``, with its own
    names; ``feature_info`` has the channels and strides of the maps.

    Args:
        name: Any timm model that returns feature maps.
        arch: Architecture choices; for a mobilemamba model only.
        in_chans: Channels of a picture.
        drop_path_rate: Stochastic depth.
        output_stride: Stride of the coarsest map, for models whose last stages can be dilated instead.

    Raises:
        ConfigError: If there is no such model, or it returns no feature maps, or it does not accept an option.
    """
    options: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
    try:
        backbone: Any = create_model(
            name, arch, 1, in_chans, drop_path_rate, features_only=True, feature_cls="getter", **options
        )
    except (AssertionError, AttributeError, RuntimeError, TypeError) as error:
        asked = "feature maps for a head" if output_stride is None else f"maps with output_stride={output_stride}"
        raise ConfigError(f"model {name!r} gives no {asked}; choose another") from error
    take_any_size(backbone.model)
    given = backbone.feature_info.reduction()[-1]
    if output_stride not in (None, given):
        raise ConfigError(f"output_stride={output_stride}: the last map of {name} has stride {given}; leave it out")
    return backbone


def load_backbone(backbone: nn.Module, path: str | Path, name: str, *, verbose: bool = True) -> None:
    """Loads the weights of a classifier into the backbone that is a part of it.

    Args:
        backbone: A backbone of :func:`create_backbone`.
        path: A classifier's file, with any number of classes, as :func:`~mobilemamba.models.load_network` takes it.
        name: timm's name of the backbone.
        verbose: Whether to print the report.

    Raises:
        ConfigError: If the file is of another model.
        WeightsError: If the file cannot be read, or the tensors of the classifier and the backbone differ.
    """
    classifier, _ = load_network(path, name, verbose=verbose, option="the backbone's name")
    theirs, ours = classifier.state_dict(), backbone.get_submodule("model").state_dict()
    wrong = [key for key in ours if key not in theirs or theirs[key].shape != ours[key].shape]
    if wrong:
        raise WeightsError(
            f"{printable(path)} is of another {name}: {len(wrong)} tensors differ, {wrong[0]} for one; build the "
            "backbone with the same arch"
        )
    backbone.get_submodule("model").load_state_dict({key: theirs[key] for key in ours})
