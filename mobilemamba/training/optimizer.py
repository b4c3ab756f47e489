"""Arguments of the optimiser: its parameter groups, and what of the network is frozen."""

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
    """Groups the trainable parameters by whether they decay, and by depth if ``layer_decay`` is given.

    With ``release``, all but vectors (norms, biases, skip terms) decay; in MobileMamba, the scan's ``A_log`` and
    ``dt_bias`` and the learned scales decay too. ``clean`` also exempts the parameters that the model names in
    ``no_weight_decay()``: biases, scales and logarithms that are stored as matrices. With ``downstream``, the rule of
    the release's detectors and segmenters, all but LayerNorms decay, even batch norms and biases. Frozen parameters
    are in no group.

    Args:
        model: The network itself, not a wrapper: the names of ``no_weight_decay()`` are relative to it.
        weight_decay: Weight decay of the parameters that decay.
        rule: Which parameters decay, see above.
        layer_decay: Factor on the learning rate from each layer to the one before it, by timm's ``group_matcher``; for
            fine-tuning.

    Returns:
        Groups for a torch optimiser, each trainable parameter in exactly one; with ``layer_decay``, a group's
        ``lr_scale`` is the factor on its learning rate.
    """
    if rule == "clean":
        exempt = set(getattr(model, "no_weight_decay", set)())
    else:  # the skip weights have the shape (K, D) here but are vectors in the release, where vectors do not decay
        exempt = {name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "D"}
    if layer_decay is None:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=exempt)
    else:
        groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=exempt, layer_decay=layer_decay)
    return _all_but_layer_norms(model, groups, weight_decay) if rule == "downstream" else groups


def rate_to_show(optimizers: Iterable[Optimizer]) -> float | None:
    """Returns the learning rate of the schedule: that of a group without a factor for its depth or for a head.

    Args:
        optimizers: The optimisers of a training; if several of their groups have no factor, the largest rate counts.
    """
    groups = (group for optimizer in optimizers for group in optimizer.param_groups if "lr" in group)
    scaled = [(group.get("lr_scale", 1.0), group["lr"]) for group in groups]
    learning = [(abs(scale - 1), -rate / scale) for scale, rate in scaled if scale]
    return -min(learning)[1] if learning else None


def freeze_backbone(model: nn.Module) -> None:
    """Makes only the classifier and its norm trainable: all other parameters get no gradient.

    Args:
        model: A timm model.
    """
    trained = {id(parameter) for module in classifier_modules(model) for parameter in module.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)


def classifier_modules(model: nn.Module) -> list[nn.Module]:
    """Returns the modules that map pooled features to logits: timm's classifiers, for MobileMamba with their norms."""
    return [model.get_submodule(name) for name in head_names(model)]


def _all_but_layer_norms(model: nn.Module, groups: list[dict[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    """Regroups parameters, keeping their ``lr_scale``, so that all but LayerNorms decay."""
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


def can_be_fused(device: torch.device, precision: str) -> bool:
    """Whether AdamW can use its fused implementation, one kernel for all tensors.

    Without it, PyTorch updates the tensors one by one on a CPU, and on a GPU the host has to wait to know whether
    gradients are finite. With a loss scaler it has to in any case.

    Args:
        device: Device of the weights.
        precision: The trainer's precision.
    """
    on_gpu = device.type == "cuda"
    return (precision == "32-true" and (on_gpu or device.type == "cpu")) or (precision == "bf16-mixed" and on_gpu)


def keep_implementation(optimizer: Optimizer) -> None:
    """Makes an optimiser keep its implementation, also if it is fused and the trainer clips gradients, or it is loaded.

    Otherwise Lightning would refuse to clip in bf16-mixed, as a fused optimiser could be one that unscales gradients
    itself; and a loaded state would bring the implementation of the device or the precision that it comes from.
    """

    def own(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        groups = zip(state["param_groups"], optimizer.param_groups, strict=False)  # PyTorch checks their number
        return {**state, "param_groups": [{**saved, "fused": here["fused"]} for saved, here in groups]}

    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # no public way
    optimizer.register_load_state_dict_pre_hook(own)
