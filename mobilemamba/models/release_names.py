"""Two-way table between the authors' checkpoint names and ours.

The release numbers its stages ``blocks1..3``; in the later two, entries 0 to 2 are the downsampling, and blocks begin
at 3. It also flattens the direction axis of two parameters: (K * D, N) where ours are (K, D, N).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor, nn

StateDict = dict[str, Tensor]

_DOWNSAMPLE = (  # (release, ours) within a stage
    ("0.0", "downsample.dw0"),
    ("0.1", "downsample.ffn0"),
    ("1", "downsample.merge"),
    ("2.0", "downsample.dw1"),
    ("2.1", "downsample.ffn1"),
)
_FRAGMENTS = (  # (release, ours) within a block, more specific ones first
    ("mixer.m.attn.global_op.global_atten.x_proj_weight", "mixer.branch.global_mixer.ss2d.x_proj_weight"),
    ("mixer.m.attn.global_op.global_atten.dt_projs_weight", "mixer.branch.global_mixer.ss2d.dt_proj_weight"),
    ("mixer.m.attn.global_op.global_atten.dt_projs_bias", "mixer.branch.global_mixer.ss2d.dt_bias"),
    ("mixer.m.attn.global_op.global_atten.A_logs", "mixer.branch.global_mixer.ss2d.A_log"),
    ("mixer.m.attn.global_op.global_atten.Ds", "mixer.branch.global_mixer.ss2d.D"),
    ("mixer.m.attn.global_op.global_atten.conv2d.", "mixer.branch.global_mixer.ss2d.conv."),
    ("mixer.m.attn.global_op.global_atten.", "mixer.branch.global_mixer.ss2d."),
    ("mixer.m.attn.global_op.base_scale.weight", "mixer.branch.global_mixer.scale"),
    ("mixer.m.attn.global_op.wt_filter", "mixer.branch.global_mixer.wavelet_conv.dwt_filters"),
    ("mixer.m.attn.global_op.iwt_filter", "mixer.branch.global_mixer.wavelet_conv.idwt_filters"),
    ("mixer.m.attn.global_op.wavelet_convs.0.", "mixer.branch.global_mixer.wavelet_conv.conv."),
    ("mixer.m.attn.global_op.wavelet_scale.0.weight", "mixer.branch.global_mixer.wavelet_conv.scale"),
    ("mixer.m.attn.local_op.dwconv3x3.", "mixer.branch.local_mixer.parts.0.0.conv."),
    ("mixer.m.attn.local_op.bn1.", "mixer.branch.local_mixer.parts.0.0.norm."),
    ("mixer.m.attn.local_op.dwconv1x1.", "mixer.branch.local_mixer.parts.0.2.conv."),
    ("mixer.m.attn.local_op.bn2.", "mixer.branch.local_mixer.parts.0.2.norm."),
    ("mixer.m.attn.proj.1.", "mixer.branch.proj."),
    ("dw0.m.", "dw0.branch."),
    ("dw1.m.", "dw1.branch."),
    ("ffn0.m.", "ffn0.branch."),
    ("ffn1.m.", "ffn1.branch."),
    ("merge.conv1.", "merge.expand."),
    ("merge.conv2.", "merge.dw."),
    ("merge.conv3.", "merge.project."),
    ("head.l.", "head.linear."),
    ("head_dist.l.", "head_dist.linear."),
    (".c.", ".conv."),
    (".bn.", ".norm."),
)
_DIRECTION_AXIS = ("ss2d.A_log", "ss2d.D")


class Released(nn.Module):
    """A network for which the authors' release has checkpoints."""

    def from_release(self, state: StateDict) -> StateDict:
        """Renames the release's tensors, norms folded or not, to the network's names; unknown names stay."""
        raise NotImplementedError

    def to_release(self, state: StateDict) -> StateDict:
        """Inverts ``from_release`` for a state dict whose norms are not folded."""
        raise NotImplementedError


def is_release(names: Iterable[str]) -> bool:
    """Returns whether these are the authors' names, of a classifier or of a network on such a backbone."""
    return any(re.match(r"(backbone\.)?blocks\d\.\d", name) for name in names)


def is_fused(names: Iterable[str]) -> bool:
    """Returns whether these names are of a network whose BatchNorms were folded."""
    return not any(name.endswith("running_mean") for name in names)


def release_to_ours(state: StateDict, directions: int) -> StateDict:
    """Renames and reshapes the release's tensors, norms folded or not; names that the table lacks show as unexpected.

    Args:
        state: The release's state dict.
        directions: Scan directions K of the network.
    """
    folded = is_fused(state)
    ours = {}
    for release_name, tensor in state.items():
        name = _our_name(release_name)
        if folded:  # folded local convolutions keep their names in the release
            name = re.sub(r"(parts\.\d+\.\d+)\.conv\.", r"\1.", name)
        if name.endswith(_DIRECTION_AXIS) and tensor.shape[0] % directions == 0:
            tensor = tensor.unflatten(0, (directions, -1))
        ours[name] = tensor
    return ours


def ours_to_release(state: StateDict) -> StateDict:
    """Inverts ``release_to_ours`` for a state dict whose norms are not folded."""
    return {
        _release_name(name): tensor.flatten(0, 1) if name.endswith(_DIRECTION_AXIS) else tensor
        for name, tensor in state.items()
    }


def _our_name(name: str) -> str:
    if match := re.match(r"blocks(\d)\.(.+)", name):
        stage, rest = int(match[1]) - 1, match[2]
        downsample = [(theirs, ours) for theirs, ours in _DOWNSAMPLE if stage and rest.startswith(theirs + ".")]
        if downsample:
            theirs, ours = downsample[0]
            name = f"stages.{stage}.{ours}{rest[len(theirs) :]}"
        else:
            block, _, rest = rest.partition(".")
            name = f"stages.{stage}.blocks.{int(block) - (3 if stage else 0)}.branch.{rest}"
    for theirs, ours in _FRAGMENTS:
        name = name.replace(theirs, ours)
    return name


def _release_name(name: str) -> str:
    for theirs, ours in _FRAGMENTS:
        name = name.replace(ours, theirs)
    if match := re.match(r"stages\.(\d)\.blocks\.(\d+)\.branch\.(.+)", name):
        stage, block = int(match[1]), int(match[2])
        return f"blocks{stage + 1}.{block + (3 if stage else 0)}.{match[3]}"
    if match := re.match(r"stages\.(\d)\.(downsample\.\w+)(.+)", name):
        theirs = next(theirs for theirs, ours in _DOWNSAMPLE if ours == match[2])
        return f"blocks{int(match[1]) + 1}.{theirs}{match[3]}"
    return name
