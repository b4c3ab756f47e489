"""MobileMamba: the three-stage lightweight visual Mamba network, with all experiments of its paper.

Importing the package registers ``mobilemamba_{t2,t4,s6,b1,b2,b4}`` and, for comparison, ``emo_{1m,2m,5m,6m}`` with
timm, and does nothing else.
"""

from mobilemamba.allocator import keep_freed_memory
from mobilemamba.dense import create_detector, create_segmenter
from mobilemamba.export import export_network
from mobilemamba.models import (
    MobileMamba,
    MobileMambaConfig,
    fuse_norms,
    load_network,
    load_weights,
    optimize_for_inference,
)
from mobilemamba.version import __version__

__all__ = [
    "MobileMamba",
    "MobileMambaConfig",
    "__version__",
    "create_detector",
    "create_segmenter",
    "export_network",
    "fuse_norms",
    "keep_freed_memory",
    "load_network",
    "load_weights",
    "optimize_for_inference",
]
