"""Names of the authors' segmentation checkpoints, which are mmsegmentation's, and ours: one two-way table."""

from __future__ import annotations

from collections.abc import Callable

from mobilemamba.models.release_names import StateDict
from mobilemamba.models.release_names import ours_to_release as backbone_to_release
from mobilemamba.models.release_names import release_to_ours as backbone_to_ours

_BACKBONE = ("backbone.", "backbone.model.")  # (release, ours), here and below
_PARTS = (  # what names begin with
    ("neck.lateral_convs.", "neck.inner_blocks."),
    ("neck.fpn_convs.", "neck.layer_blocks."),
    ("decode_head.", "head."),
    ("auxiliary_head.convs.0.", "auxiliary_head.conv."),
)
_NECK_FRAGMENTS = ((".conv.weight", ".0.weight"), (".conv.bias", ".0.bias"))
_HEAD_FRAGMENTS = (
    (".psp_modules.", ".pools."),
    (".aspp_modules.", ".aspp."),
    (".scale_heads.", ".levels."),
    (".conv_seg.", ".classifier.1."),
    (".bn.", ".norm."),
)
_RELEASE, _OURS = 0, 1


def release_to_ours(state: StateDict, directions: int) -> StateDict:
    """Renames and reshapes the release's tensors; a name the table lacks will show as unexpected.

    Args:
        state: The release's state dict.
        directions: Scan directions K of the backbone.
    """
    return _rename(state, _RELEASE, _OURS, lambda backbone: backbone_to_ours(backbone, directions))


def ours_to_release(state: StateDict) -> StateDict:
    """The inverse of ``release_to_ours`` for an un-fused state dict."""
    return _rename(state, _OURS, _RELEASE, backbone_to_release)


def _rename(state: StateDict, here: int, there: int, rename: Callable[[StateDict], StateDict]) -> StateDict:
    prefix = _BACKBONE[here]
    backbone = rename({name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)})
    renamed = {_BACKBONE[there] + name: x for name, x in backbone.items()}
    for name, x in state.items():
        if not name.startswith(prefix):
            renamed[_rename_head(name, here, there)] = x
    return renamed


def _rename_head(name: str, here: int, there: int) -> str:
    for part in _PARTS:
        if name.startswith(part[here]):
            name = part[there] + name.removeprefix(part[here])
            break
    for fragment in _NECK_FRAGMENTS if name.startswith("neck.") else _HEAD_FRAGMENTS:
        name = name.replace(fragment[here], fragment[there])
    return name
