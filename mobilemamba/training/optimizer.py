"""What the optimiser is given: parameter groups and the learning rate for the batch size at hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from torch.optim import Optimizer

from mobilemamba.models.matching import head_names

DecayRule = Literal["release", "downstream", "clean"]


def parameter_groups(
    model: nn.Module, weight_decay: float, rule: DecayRule = "release", layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Sorts the trainable parameters into those that decay and those that do not, and by depth if asked for.

    By the release's rule all but vectors (norms, biases, skip terms) decay, in MobileMamba also the scan's ``A_log``
    and ``dt_bias`` and the learned scales. The clean rule spares also what the model names in ``no_weight_decay()``:
    matrices that are biases, scales or logarithms in substance. By the rule of the release's detectors and segmenters
    all decays but LayerNorms, batch norms and biases too. Frozen parameters are in no group.

    Args:
        model: The network itself, not a wrapper: the names of ``no_weight_decay()`` are relative to it.
        weight_decay: For the weights that decay.
        rule: See above.
        layer_decay: Factor from one layer to the layer before it, by timm's ``group_matcher``, for fine-tuning.

    Returns:
        Groups for a torch optimiser, each trainable parameter in exactly one; with ``layer_decay`` a group's
        ``lr_scale`` is what its learning rate is to be multiplied by.
    """
    exempt = _named_by_model(model) if rule == "clean" else _flat_in_release(model)
    if layer_decay is None:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=exempt)
    else:
        groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay)
    return _all_but_layer_norms(model, groups, weight_decay) if rule == "downstream" else groups


def set_learning_rates(groups: list[dict[str, Any]], lr: float) -> None:
    """Gives each group its learning rate: ``lr`` times its ``lr_scale``."""
    for group in groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def rate_to_show(optimizers: Iterable[Optimizer]) -> float | None:
    """The learning rate of the schedule, as of a group that is neither slowed by its depth nor sped up as a head.

    Args:
        optimizers: Of a training; where several of their groups have no factor, the largest rate counts.
    """
    groups = (group for optimizer in optimizers for group in optimizer.param_groups if "lr" in group)
    scaled = [(group.get("lr_scale", 1.0), group["lr"]) for group in groups]
    learning = [(abs(scale - 1), -rate / scale) for scale, rate in scaled if scale]
    return -min(learning)[1] if learning else None


def scale_lr(lr: float, batch_size: int, reference_batch_size: int) -> float:
    """The learning rate for a batch size, in proportion to the one that ``lr`` was chosen for.

    Args:
        lr: Peak learning rate at ``reference_batch_size``; the release's is 3e-3 at 1024 pictures a step.
        batch_size: Pictures an optimiser step sees, over all devices and accumulated batches.
        reference_batch_size: See ``lr``.
    """
    return lr * batch_size / reference_batch_size


def freeze_backbone(model: nn.Module) -> None:
    """Leaves only the classifier trainable: the parameters outside ``get_classifier()`` and its norm get no gradient.

    Args:
        model: A timm model.
    """
    trained = {id(parameter) for module in classifier_modules(model) for parameter in module.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)


def classifier_modules(model: nn.Module) -> list[nn.Module]:
    """The modules that map pooled features to logits: timm's classifiers, each of a MobileMamba with its norm."""
    return [model.get_submodule(name) for name in head_names(model)]


def _flat_in_release(model: nn.Module) -> set[str]:
    # The skip weights are (K, D) here and flat in the release, where vectors do not decay.
    return {name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "D"}


def _named_by_model(model: nn.Module) -> set[str]:
    names = getattr(model, "no_weight_decay", None)
    return set(names()) if callable(names) else set()


def _all_but_layer_norms(model: nn.Module, groups: list[dict[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    """The same groups by their ``lr_scale``, in which timm's choice of what decays is put aside."""
    norms = (module for module in model.modules() if isinstance(module, nn.LayerNorm))
    spared = {id(parameter) for norm in norms for parameter in norm.parameters()}
    sorted_anew: dict[tuple[float, float], list[nn.Parameter]] = {}
    for group in groups:
        for parameter in group["params"]:
            decay = 0.0 if id(parameter) in spared else weight_decay
            sorted_anew.setdefault((group.get("lr_scale", 1.0), decay), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (scale, decay), parameters in sorted_anew.items()
    ]


def can_be_fused(device: torch.device, precision: str, clips: bool) -> bool:
    """Whether AdamW may do all tensors in one kernel.

    Else PyTorch goes through them one by one on a CPU, and on a GPU the host has to wait to know whether gradients are
    finite. Lightning refuses it with AMP and clipping.

    Args:
        device: Of the weights.
        precision: The trainer's.
        clips: Whether it clips gradients.
    """
    on_gpu = device.type == "cuda"
    return (precision == "32-true" and (on_gpu or device.type == "cpu")) or (
        precision == "bf16-mixed" and on_gpu and not clips
    )
