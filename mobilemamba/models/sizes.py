"""The six sizes of the paper as timm models: ``timm.create_model("mobilemamba_s6")``."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from mobilemamba.models.backbone import timm_cfg
from mobilemamba.models.config import VARIANTS, MobileMambaConfig
from mobilemamba.models.mobilemamba import MobileMamba

__all__ = ["mobilemamba_b1", "mobilemamba_b2", "mobilemamba_b4", "mobilemamba_s6", "mobilemamba_t2", "mobilemamba_t4"]

default_cfgs = generate_default_cfgs(
    {
        name: timm_cfg(
            variant.img_size,
            64,
            first_conv="patch_embed.0.conv",
            classifier="head.linear",
            license="mit",
            paper_name="MobileMamba: Lightweight Multi-Receptive Visual Mamba Network",
            paper_ids="arXiv:2411.15941",
        )
        for name, variant in VARIANTS.items()
    }
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> MobileMamba:
    choices = {name: kwargs.pop(name) for name in list(kwargs) if name in MobileMambaConfig.__dataclass_fields__}
    config = VARIANTS[variant].config.override(**choices)
    feature_cfg = {"out_indices": tuple(range(len(config.depths))), "flatten_sequential": True}
    return build_model_with_cfg(MobileMamba, variant, pretrained, feature_cfg=feature_cfg, config=config, **kwargs)


@register_model
def mobilemamba_t2(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-T2: 192 px, 73.6 % top-1 in the paper. Keywords as for ``MobileMambaConfig`` and ``MobileMamba``."""
    return _create("mobilemamba_t2", pretrained, **kwargs)


@register_model
def mobilemamba_t4(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-T4: 192 px, 76.1 % top-1 in the paper. Keywords as for ``MobileMambaConfig`` and ``MobileMamba``."""
    return _create("mobilemamba_t4", pretrained, **kwargs)


@register_model
def mobilemamba_s6(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-S6: 224 px, 78.0 % top-1 in the paper. Keywords as for ``MobileMambaConfig`` and ``MobileMamba``."""
    return _create("mobilemamba_s6", pretrained, **kwargs)


@register_model
def mobilemamba_b1(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-B1: 256 px, 79.9 % top-1 in the paper. Keywords as for ``MobileMambaConfig`` and ``MobileMamba``."""
    return _create("mobilemamba_b1", pretrained, **kwargs)


@register_model
def mobilemamba_b2(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-B2: 384 px, 81.6 % top-1 in the paper. Keywords as for ``MobileMambaConfig`` and ``MobileMamba``."""
    return _create("mobilemamba_b2", pretrained, **kwargs)


@register_model
def mobilemamba_b4(pretrained: bool = False, **kwargs: Any) -> MobileMamba:
    """MobileMamba-B4: 512 px, 82.5 % top-1 in the paper. Keywords as for ``MobileMambaConfig`` and ``MobileMamba``."""
    return _create("mobilemamba_b4", pretrained, **kwargs)
