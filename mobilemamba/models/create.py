"""Building any timm model by name, with errors for users rather than for programmers."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from torch import nn

from mobilemamba.errors import ConfigError
from mobilemamba.models.config import VARIANTS, ArchOverrides


def create_model(
    name: str,
    arch: ArchOverrides | None = None,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_path_rate: float = 0.0,
    distilled: bool = False,
    **options: Any,
) -> nn.Module:
    """Builds a timm model without pretrained weights.

    Args:
        name: Name of any timm model.
        arch: Architecture choices; for mobilemamba models only.
        num_classes: Number of outputs.
        in_chans: Channels of a picture.
        drop_path_rate: Stochastic depth; 0 leaves it to the model, because not every timm model has this option.
        distilled: Whether to add a second classifier for a teacher's labels; for mobilemamba models only.
        options: Further options of the model, or of timm's ``create_model``.

    Raises:
        ConfigError: If there is no such model, or it does not accept an option.
    """
    check_model_name(name)
    overrides: dict[str, Any] = arch.given() if arch is not None else {}
    chosen = [f"arch.{choice}" for choice in overrides] + ["distilled"] * distilled
    if chosen and name not in VARIANTS:
        raise ConfigError(
            f"{', '.join(chosen)}: only the mobilemamba models have such choices, and the model is {name!r}; "
            "leave them out or choose a mobilemamba model"
        )
    options |= overrides
    if distilled:
        options["distilled"] = True
    if drop_path_rate:
        options["drop_path_rate"] = drop_path_rate
    try:
        return timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **options)
    except TypeError as error:
        for option, remedy in (("drop_path_rate", "set it to 0"), ("output_stride", "leave it out")):
            if option in options and option in str(error):
                raise ConfigError(f"{option}={options[option]}: {name} has no such option; {remedy}") from error
        raise


def check_model_name(name: str) -> None:
    """Refuses a name that is no timm model or has no such pretrained weights (``resnet50.a1_in1k`` names both).

    Raises:
        ConfigError: If it is refused; the message suggests similar names.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names them all"
        raise ConfigError(f"model name {name!r}: expected one of: {', '.join(VARIANTS)}, or another timm model; {hint}")
    model, _, tag = name.partition(".")
    if tag and name not in (known := timm.list_pretrained(f"{model}.*")):
        tags = [weights.partition(".")[2] for weights in known]
        expected = f"expected one of: {', '.join(tags)}" if tags else "there are none, leave it out"
        raise ConfigError(f"model name {name!r}: timm has no weights {tag!r} of a {model}; {expected}")
