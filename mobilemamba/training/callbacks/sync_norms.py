"""Batch norms that share their statistics among the processes of a training."""

from __future__ import annotations

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncNorms(TorchSyncBatchNorm):
    """What ``sync_batchnorm`` does, also to timm's norms with an activation, as in EfficientNet or MobileNetV3.

    PyTorch's own conversion drops their activations. After the training each norm is again of its own class, so that it
    can be folded.
    """

    def __init__(self) -> None:
        self._own: dict[str, _BatchNorm] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        modules = model.named_modules(remove_duplicate=False)
        self._own = {name: norm for name, norm in modules if isinstance(norm, _BatchNorm)}
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        for name, norm in self._own.items():
            shared = model.get_submodule(name)
            for tensor, value in (*shared.named_parameters(recurse=False), *shared.named_buffers(recurse=False)):
                setattr(norm, tensor, value)  # a move to another device makes new buffers
            norm.training = shared.training
            model.set_submodule(name, norm)
        return model
