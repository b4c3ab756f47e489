"""Who decays: every trainable parameter is in one group, and in the right one."""

import pytest
import timm
import torch
from torch import nn

from mobilemamba.training.optimizer import parameter_groups, scale_lr


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


def names_by_decay(model, weight_decay=0.05):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, weight_decay)
    return {group["weight_decay"]: [names[id(parameter)] for parameter in group["params"]] for group in groups}


def test_matrices_decay_unless_the_model_exempts_them():
    assert names_by_decay(Scan()) == {0.0: ["A_logs", "scale", "Ds"], 0.05: ["weight"]}


def test_a_model_that_exempts_nothing():
    assert names_by_decay(nn.Linear(3, 2)) == {0.0: ["bias"], 0.05: ["weight"]}


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "mobilemamba_s6"])
def test_each_trainable_parameter_is_in_exactly_one_group(name):
    model = timm.create_model(name)
    grouped = [id(parameter) for group in parameter_groups(model, 0.05) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters() if parameter.requires_grad)


def test_mobilemamba_decays_weights_only():
    model = timm.create_model("mobilemamba_s6")
    decaying = names_by_decay(model)[0.05]
    assert {name.rpartition(".")[2] for name in decaying} == {"weight", "x_proj_weight", "dt_proj_weight"}
    assert all(parameter.ndim > 1 for name, parameter in model.named_parameters() if name in decaying)


def test_lr_is_in_proportion_to_the_batch():
    assert scale_lr(3e-3, 1024, 1024) == 3e-3
    assert scale_lr(3e-3, 64, 1024) == pytest.approx(3e-3 / 16)
