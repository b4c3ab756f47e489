"""Configuration of timm's Mixup and CutMix."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

from timm.data import Mixup
from torch import Tensor

from mobilemamba.errors import ConfigError


@dataclass
class Mixing:
    """Settings of Mixup (Zhang et al., 2018) and CutMix (Yun et al., 2019); the defaults are the ImageNet recipe's.

    Attributes:
        mixup_alpha: Alpha of Mixup's Beta distribution; 0 for no Mixup.
        cutmix_alpha: Alpha of CutMix's Beta distribution; 0 for no CutMix.
        prob: Probability that a batch (or pair or picture, see ``mode``) is mixed at all.
        switch_prob: Probability of CutMix rather than Mixup if both are on.
        mode: Draw random numbers once per ``batch``, per ``pair`` of pictures, or per picture (``elem``).

    Raises:
        ConfigError: If a value is out of range.
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    mode: Literal["batch", "pair", "elem"] = "batch"

    def __post_init__(self) -> None:
        alphas = (self.mixup_alpha, self.cutmix_alpha)
        if not all(0 <= alpha < math.inf for alpha in alphas) or not any(alphas):
            raise ConfigError(
                f"mixing.mixup_alpha={self.mixup_alpha}, mixing.cutmix_alpha={self.cutmix_alpha}: expected 0 or more "
                "and one of them above 0; set model.mixing to null for no mixing"
            )
        for name in ("prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"mixing.{name}={getattr(self, name)}: a probability is 0 to 1")

    def build(self, num_classes: int) -> MixBatch:
        """Returns the function that mixes batches."""
        # The loss does the label smoothing, for soft targets too.
        return MixBatch(Mixup(**asdict(self), label_smoothing=0.0, num_classes=num_classes))


class MixBatch:
    """Mixes pictures (B, C, H, W) and class indices (B,) into pictures and soft targets (B, num_classes).

    A batch is mixed with itself in reverse order, so its size must be even: the last picture of an odd batch is
    dropped. The pictures are changed in place. Draws from numpy's global generator.
    """

    def __init__(self, mixup: Mixup) -> None:
        self.mixup = mixup

    def __call__(self, pictures: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        even = len(pictures) - len(pictures) % 2
        return self.mixup(pictures[:even], target[:even])
