"""The networks that ours are compared with, and the published accuracies of all of them."""

from __future__ import annotations

from dataclasses import dataclass

from mobilemamba.models import VARIANTS


@dataclass(frozen=True)
class Published:
    """Published ImageNet-1k top-1 in % at one picture size."""

    size: int  # side of the pictures in pixels
    plain: float | None  # by a training of about 300 epochs without a teacher
    best: float | None = None  # by the best recipe, with a teacher or longer; None if that is the plain one

    def top1(self, *, best: bool) -> float | None:
        return (self.best or self.plain) if best else self.plain


#: Networks of the paper's comparison in Table 7 that timm has: EfficientViT (Liu et al., CVPR 2023; accuracies from its
#: authors' model zoo) and EMO (Zhang et al., ICCV 2023).
PEERS = {
    "efficientvit_m0": Published(224, 63.2),
    "efficientvit_m1": Published(224, 68.4),
    "efficientvit_m2": Published(224, 70.8),
    "efficientvit_m3": Published(224, 73.4),
    "efficientvit_m4": Published(224, 74.3),
    "efficientvit_m5": Published(224, 77.1),
    "emo_1m": Published(224, 71.5),
    "emo_2m": Published(224, 75.1),
    "emo_5m": Published(224, 78.4),
    "emo_6m": Published(224, 79.0),
}
#: timm's fastest networks on a CPU at their accuracy, according to their own papers and timm's tables of results.
FRONT = {
    "lcnet_100": Published(224, 72.1),
    "mobilenetv4_conv_small": Published(224, None, 73.8),
    "mobilenetv3_large_100": Published(224, 75.8, 77.2),
    "cpubone_nano": Published(224, 72.7),
    "cpubone_t0": Published(224, 74.9),
    "cpubone_s0": Published(224, 75.9),
    "cpubone_b0_bfrobust": Published(224, 77.6),
    "cpubone_b1_bfrobust": Published(224, 78.7),
    "cpubone_b2_bfrobust": Published(256, 80.3),
    "shvit_s2": Published(224, 75.2),
    "shvit_s3": Published(224, 77.4, 78.3),
    "shvit_s4": Published(256, 79.4, 80.2),
    "starnet_s2": Published(224, 74.8),
    "starnet_s3": Published(224, 77.4),
    "starnet_s4": Published(224, 78.8),
    "levit_128s": Published(224, None, 76.5),
    "levit_128": Published(224, None, 78.5),
    "levit_192": Published(224, None, 79.9),
    "efficientvit_b1": Published(224, 79.3),
    "repvit_m0_9": Published(224, None, 79.1),
}
#: Top-1 of our models with a teacher and 1,000 epochs (the paper's Table 3).
_DISTILLED = {
    "mobilemamba_t2": 76.9,
    "mobilemamba_t4": 78.9,
    "mobilemamba_s6": 80.7,
    "mobilemamba_b1": 82.2,
    "mobilemamba_b2": 83.3,
    "mobilemamba_b4": 83.6,
}
_OURS = {name: Published(own.img_size, own.paper_top1, _DISTILLED[name]) for name, own in VARIANTS.items()}
#: The networks of Table 7 that can be measured.
TABLE7 = ("efficientvit_m2", "efficientvit_m4", "efficientvit_m5", "emo_1m", "emo_2m", "emo_6m", *VARIANTS)
#: Families of Mamba networks in the paper's comparison that timm does not have.
NOT_IN_TIMM = ("LocalVim", "EfficientVMamba")
#: Prefix of the EfficientViT of Cai et al., ICCV 2023; another family has the same name.
_NAMESAKE = "efficientvit_b"


def published_top1(model: str, size: int, *, best: bool = False) -> float | None:
    """Returns the published ImageNet-1k top-1 in % at a picture size, or None.

    Args:
        model: timm's name of the network.
        size: Side of square pictures in pixels.
        best: Whether by the best recipe, rather than by a training without a teacher.
    """
    published = (PEERS | FRONT | _OURS).get(model)
    return published.top1(best=best) if published and published.size == size else None


def family(model: str) -> str:
    """Returns the part of a timm name before its size, which the networks of a line in the plot share."""
    return _NAMESAKE if model.startswith(_NAMESAKE) else model.partition(".")[0].partition("_")[0]
