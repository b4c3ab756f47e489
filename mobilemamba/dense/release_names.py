"""Two-way tables between the names of the authors' segmenters and detectors and ours.

Theirs are mmsegmentation's and mmdetection's. Each table pairs the beginnings of names, and fragments of the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mobilemamba.models.release_names import StateDict
from mobilemamba.models.release_names import ours_to_release as backbone_to_release
from mobilemamba.models.release_names import release_to_ours as backbone_to_ours

_Pairs = Sequence[tuple[str, str]]  # (release, ours), here and below
Names = Sequence[tuple[tuple[str, str], _Pairs]]

_BACKBONE = ("backbone.", "backbone.model.")
_NORM = ((".bn.", ".norm."),)
_BARE = (("conv.weight", "weight"), ("conv.bias", "bias"))
_IN_A_ROW = (("conv.weight", "0.weight"), ("conv.bias", "0.bias"))

_FPN: Names = (
    (("neck.lateral_convs.", "neck.inner_blocks."), _IN_A_ROW),
    (("neck.fpn_convs.3.", "neck.coarser_blocks.0."), _BARE),  # with three maps
    (("neck.fpn_convs.", "neck.layer_blocks."), _IN_A_ROW),
    (("neck.extra_trans_convs.", "neck.doubling_blocks."), _BARE),
    (("neck.extra_fpn_convs.", "neck.finer_blocks."), _BARE),
)
SEGMENTER: Names = (
    *_FPN,
    (
        ("decode_head.", "head."),
        (
            ("psp_modules.", "pools."),
            ("aspp_modules.", "aspp."),
            ("scale_heads.", "levels."),
            ("conv_seg.", "classifier.1."),
            *_NORM,
        ),
    ),
    (("auxiliary_head.convs.0.", "auxiliary_head.conv."), (("bn.", "norm."),)),
    (("auxiliary_head.", "auxiliary_head."), (("conv_seg.", "classifier.1."),)),
)
RETINANET: Names = (
    *_FPN,
    (("bbox_head.cls_convs.", "head.classification_head.conv."), _IN_A_ROW),
    (("bbox_head.reg_convs.", "head.regression_head.conv."), _IN_A_ROW),
    (("bbox_head.retina_cls.", "head.classification_head.cls_logits."), ()),
    (("bbox_head.retina_reg.", "head.regression_head.bbox_reg."), ()),
)
SSDLITE: Names = (
    (
        ("neck.extra_layers.", "neck.extras."),
        ((".1.depthwise_conv.", ".2."), (".1.pointwise_conv.", ".4."), *_NORM),
    ),
    (("bbox_head.cls_convs.", "head.classes."), ((".1.", ".2."), *_NORM)),
    (("bbox_head.reg_convs.", "head.codes."), ((".1.", ".2."), *_NORM)),
)
MASK_RCNN: Names = (
    *_FPN,
    (("rpn_head.rpn_conv.", "rpn.conv.0.0."), ()),
    (("rpn_head.rpn_cls.", "rpn.cls_logits."), ()),
    (("rpn_head.rpn_reg.", "rpn.bbox_pred."), ()),
    (("roi_head.bbox_head.shared_fcs.0.", "box_head.shared.fc6."), ()),
    (("roi_head.bbox_head.shared_fcs.1.", "box_head.shared.fc7."), ()),
    (("roi_head.bbox_head.fc_cls.", "box_head.classes."), ()),
    (("roi_head.bbox_head.fc_reg.", "box_head.codes."), ()),
    (("roi_head.mask_head.convs.", "mask_head."), _IN_A_ROW),
    (("roi_head.mask_head.upsample.", "mask_predictor.conv5_mask."), ()),
    (("roi_head.mask_head.conv_logits.", "mask_predictor.mask_fcn_logits."), ()),
)
_RELEASE, _OURS = 0, 1


def release_to_ours(state: StateDict, directions: int, names: Names = SEGMENTER) -> StateDict:
    """Renames and reshapes the release's tensors; names that the table lacks will show as unexpected.

    Args:
        state: The release's state dict.
        directions: Scan directions K of the backbone.
        names: One of the tables.
    """
    return _rename(state, names, _RELEASE, _OURS, lambda backbone: backbone_to_ours(backbone, directions))


def ours_to_release(state: StateDict, names: Names = SEGMENTER) -> StateDict:
    """Inverts ``release_to_ours`` for a state dict whose norms are not folded."""
    return _rename(state, names, _OURS, _RELEASE, backbone_to_release)


def _rename(
    state: StateDict, names: Names, here: int, there: int, rename: Callable[[StateDict], StateDict]
) -> StateDict:
    prefix = _BACKBONE[here]
    backbone = rename({name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)})
    renamed = {_BACKBONE[there] + name: x for name, x in backbone.items()}
    for name, x in state.items():
        if not name.startswith(prefix):
            renamed[_rename_head(name, names, here, there)] = x
    return renamed


def _rename_head(name: str, names: Names, here: int, there: int) -> str:
    for part, fragments in names:
        if name.startswith(part[here]):
            rest = name.removeprefix(part[here])
            for fragment in fragments:
                rest = rest.replace(fragment[here], fragment[there])
            return part[there] + rest
    return name
