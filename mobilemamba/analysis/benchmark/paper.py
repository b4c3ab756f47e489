"""The paper's comparison of speeds (Table 7) as far as timm has its networks, and the published accuracies."""

from __future__ import annotations

from mobilemamba.models import VARIANTS

PEERS_SIZE = 224
#: ImageNet-1k top-1 in %, 300 epochs at 224 px: EfficientViT's (Liu et al., CVPR 2023; its authors' model zoo), and
#: EMO's (Zhang et al., ICCV 2023).
PEERS_TOP1 = {
    "efficientvit_m0": 63.2,
    "efficientvit_m1": 68.4,
    "efficientvit_m2": 70.8,
    "efficientvit_m3": 73.4,
    "efficientvit_m4": 74.3,
    "efficientvit_m5": 77.1,
    "emo_1m": 71.5,
    "emo_2m": 75.1,
    "emo_5m": 78.4,
    "emo_6m": 79.0,
}
#: The networks of Table 7 that can be measured.
TABLE7 = ("efficientvit_m2", "efficientvit_m4", "efficientvit_m5", "emo_1m", "emo_2m", "emo_6m", *VARIANTS)
#: The families of Mamba networks that the paper compares with and timm does not have.
NOT_IN_TIMM = ("LocalVim", "EfficientVMamba")


def published_top1(model: str, size: int) -> float | None:
    """ImageNet-1k top-1 in % of a training without a teacher, published for this side, or None."""
    if model in VARIANTS:
        return VARIANTS[model].paper_top1 if size == VARIANTS[model].img_size else None
    return PEERS_TOP1.get(model) if size == PEERS_SIZE else None


def family(model: str) -> str:
    """The part of a timm name before its size: networks that a line joins."""
    return model.partition(".")[0].rpartition("_")[0] or model
