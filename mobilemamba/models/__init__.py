"""MobileMamba, its variants and its checkpoints; importing it registers the six sizes with timm."""

from mobilemamba.models.checkpoints import LoadReport, convert, load_weights, save_weights
from mobilemamba.models.config import VARIANTS, ArchOverrides, MobileMambaConfig, split_channels
from mobilemamba.models.fuse import fuse_norms
from mobilemamba.models.mobilemamba import MobileMamba

__all__ = [
    "VARIANTS",
    "ArchOverrides",
    "LoadReport",
    "MobileMamba",
    "MobileMambaConfig",
    "convert",
    "fuse_norms",
    "load_weights",
    "save_weights",
    "split_channels",
]
