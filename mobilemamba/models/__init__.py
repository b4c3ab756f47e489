"""MobileMamba, its variants and its checkpoints; importing it registers the six sizes, and EMO, with timm."""

from mobilemamba.models.card import ModelCard, Preprocessing, read_card
from mobilemamba.models.checkpoints import LoadReport, convert, load_network, load_weights, save_weights
from mobilemamba.models.config import VARIANTS, ArchOverrides, MobileMambaConfig, split_channels
from mobilemamba.models.create import create_model
from mobilemamba.models.emo import EMO, emo_1m, emo_2m, emo_5m, emo_6m
from mobilemamba.models.fuse import fuse_norms
from mobilemamba.models.inference import for_inference, optimize_for_inference
from mobilemamba.models.matching import head_names
from mobilemamba.models.mobilemamba import MobileMamba
from mobilemamba.models.sizes import (
    mobilemamba_b1,
    mobilemamba_b2,
    mobilemamba_b4,
    mobilemamba_s6,
    mobilemamba_t2,
    mobilemamba_t4,
)

__all__ = [
    "EMO",
    "VARIANTS",
    "ArchOverrides",
    "LoadReport",
    "MobileMamba",
    "MobileMambaConfig",
    "ModelCard",
    "Preprocessing",
    "convert",
    "create_model",
    "emo_1m",
    "emo_2m",
    "emo_5m",
    "emo_6m",
    "for_inference",
    "fuse_norms",
    "head_names",
    "load_network",
    "load_weights",
    "mobilemamba_b1",
    "mobilemamba_b2",
    "mobilemamba_b4",
    "mobilemamba_s6",
    "mobilemamba_t2",
    "mobilemamba_t4",
    "optimize_for_inference",
    "read_card",
    "save_weights",
    "split_channels",
]
