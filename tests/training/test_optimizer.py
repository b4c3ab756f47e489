"""Who decays, who learns how fast, who is frozen: every trainable parameter is in one group, and in the right one."""

from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from mobilemamba.training.optimizer import (
    can_be_fused,
    classifier_modules,
    freeze_backbone,
    keep_implementation,
    parameter_groups,
    rate_to_show,
)


class Scan(nn.Module):
    """A matrix that decays beside matrices that are not weights, a vector and a frozen filter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3))
        self.A_logs = nn.Parameter(torch.ones(2, 3))
        self.scale = nn.Parameter(torch.ones(1, 2, 1, 1))
        self.Ds = nn.Parameter(torch.ones(2))
        self.filters = nn.Parameter(torch.ones(2, 2), requires_grad=False)

    def no_weight_decay(self):
        return {"A_logs", "scale"}


def names_by_decay(model, rule, weight_decay=0.05):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, weight_decay, rule)
    return {group["weight_decay"]: [names[id(parameter)] for parameter in group["params"]] for group in groups}


def test_matrices_decay_unless_the_model_exempts_them():
    assert names_by_decay(Scan(), "clean") == {0.0: ["A_logs", "scale", "Ds"], 0.05: ["weight"]}
    assert names_by_decay(Scan(), "release") == {0.0: ["Ds"], 0.05: ["weight", "A_logs", "scale"]}
    assert names_by_decay(Scan(), "downstream").keys() == {0.05}


@pytest.mark.parametrize("name", ["mobilemamba_b1", "test_vit"])
def test_downstream_all_but_layer_norms_decays(name):
    spared = names_by_decay(timm.create_model(name), "downstream")[0.0]
    assert all("norm" in parameter for parameter in spared)
    if name == "mobilemamba_b1":  # of the seven scans; batch norms decay
        assert [parameter.rpartition(".out_norm.")[2] for parameter in spared] == ["weight", "bias"] * 7


@pytest.mark.parametrize("rule", ["release", "clean"])
def test_a_model_that_exempts_nothing(rule):
    assert names_by_decay(nn.Linear(3, 2), rule) == {0.0: ["bias"], 0.05: ["weight"]}


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "mobilemamba_t2"])
@pytest.mark.parametrize("layer_decay", [None, 0.7])
@pytest.mark.parametrize("rule", ["release", "clean", "downstream"])
def test_each_trainable_parameter_is_in_exactly_one_group(name, layer_decay, rule):
    model = timm.create_model(name)
    groups = parameter_groups(model, 0.05, rule, layer_decay)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


def decaying_kinds(rule):
    model = timm.create_model("mobilemamba_t2")
    decaying = names_by_decay(model, rule)[0.05]
    assert all(parameter.ndim > 1 for name, parameter in model.named_parameters() if name in decaying)
    return {name.rpartition(".")[2] for name in decaying}


def test_mobilemamba_by_either_rule():
    clean = {"weight", "x_proj_weight", "dt_proj_weight"}
    assert decaying_kinds("clean") == clean
    assert decaying_kinds("release") == clean | {"A_log", "dt_bias", "scale"}  # D is flat there, so it is spared


def test_layer_decay_goes_by_depth():
    model = timm.create_model("mobilemamba_t2")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.05, "clean", 0.5)
    rate = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    stem, head = rate["patch_embed.0.conv.weight"], rate["head.linear.weight"]
    first, last = (rate[f"stages.{block}.branch.dw0.branch.conv.weight"] for block in ("0.blocks.0", "2.blocks.1"))
    assert head == 1.0
    assert head == rate["head.norm.weight"] > last > first > stem
    assert all(value == 0.5 ** round(-torch.tensor(value).log2().item()) for value in rate.values())


@pytest.mark.parametrize("name", ["mobilemamba_t2", "test_efficientnet"])
def test_a_frozen_backbone_trains_its_classifier_alone(name):
    model = timm.create_model(name, num_classes=4)
    freeze_backbone(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    own = {"head.norm.weight", "head.norm.bias", "head.linear.weight", "head.linear.bias"}
    assert trained == (own if name.startswith("mobilemamba") else {"classifier.weight", "classifier.bias"})
    assert len(classifier_modules(model)) == 1


@pytest.mark.parametrize(
    ("groups", "shown"),
    [
        ([(1.0, 0.2), (10.0, 2.0)], 0.2),  # a head's factor
        ([(0.25, 0.05), (0.5, 0.1)], 0.2),  # layers by depth, and no group without a factor
        ([(0.0, 0.0), (3.0, 0.6)], 0.2),  # a head that stays
        ([(None, 0.1), (None, 0.2)], 0.2),  # another's optimiser
        ([(1.0, 0.0)], 0.0),
        ([], None),
    ],
)
def test_the_rate_to_show_is_the_schedule_s(groups, shown):
    kept = [{"lr": rate, **({} if scale is None else {"lr_scale": scale})} for scale, rate in groups]
    found = rate_to_show([SimpleNamespace(param_groups=kept)])
    assert found == (shown if shown is None else pytest.approx(shown))


@pytest.mark.parametrize(
    ("device", "precision", "fused"),
    [
        ("cpu", "32-true", True),
        ("cpu", "bf16-mixed", False),
        ("cuda", "32-true", True),
        ("cuda", "bf16-mixed", True),
        ("cuda", "16-mixed", False),
        ("mps", "32-true", False),
    ],
)
def test_one_kernel_for_all_tensors_where_no_scaler_waits(device, precision, fused):
    assert can_be_fused(torch.device(device), precision) == fused


@pytest.mark.parametrize(("saved", "here"), [(None, True), (True, None)])
def test_a_loaded_state_leaves_the_implementation(saved, here):
    """As a run may go on on another device, or in another precision."""
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    before, after = (torch.optim.AdamW([weight], lr=lr, fused=fused) for lr, fused in ((0.5, saved), (0.1, here)))
    before.step()
    keep_implementation(after)
    after.load_state_dict(before.state_dict())
    (group,) = after.param_groups
    assert (group["fused"], group["lr"]) == (here, 0.5)
    after.found_inf = torch.ones(()) if here else None  # which only the fused one knows
    was = weight.detach().clone()
    after.step()
    assert torch.equal(weight, was) == bool(here)
