"""MobileMamba, its variants and its checkpoints; importing it registers the six sizes with timm."""

from mobilemamba.models.config import VARIANTS, ArchOverrides, MobileMambaConfig, split_channels
from mobilemamba.models.mobilemamba import MobileMamba

__all__ = ["VARIANTS", "ArchOverrides", "MobileMamba", "MobileMambaConfig", "split_channels"]
