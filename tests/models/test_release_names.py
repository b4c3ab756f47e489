"""The two-way table of the authors' names and ours."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

from mobilemamba.models import MobileMamba
from mobilemamba.models.release_names import is_release, ours_to_release, release_to_ours

Build = Callable[..., MobileMamba]


@pytest.mark.parametrize(
    "choices",
    [{}, {"directions": 4, "d_state": 3}, {"directions": 1}, {"depths": (2, 3, 2)}, {"distilled": True}],
    ids=str,
)
def test_round_trip_is_bit_exact(tiny: Build, equal: Callable, choices: dict[str, Any]) -> None:
    model = tiny(**choices)
    release = ours_to_release(model.state_dict())
    assert is_release(release)
    assert not is_release(model.state_dict())
    assert equal(model, release_to_ours(release, model.config.directions))
    again = ours_to_release(release_to_ours(release, model.config.directions))
    assert again.keys() == release.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in release.items())


def test_release_names() -> None:
    """By the release's own list; the whole list is compared where the optional test data is."""
    release = ours_to_release(timm.create_model("mobilemamba_s6", distilled=True).state_dict())
    attention = "blocks2.4.mixer.m.attn.global_op.global_atten"
    assert release.keys() > {
        "patch_embed.0.c.weight",
        "blocks1.0.dw0.m.c.weight",
        "blocks2.0.0.m.bn.weight",
        "blocks2.0.1.m.pw1.c.weight",
        "blocks3.1.conv2.c.weight",
        f"{attention}.x_proj_weight",
        "head.l.weight",
        "head_dist.l.weight",
        "head_dist.bn.running_mean",
    }
    assert release[f"{attention}.A_logs"].shape == (2 * 544, 1)
    assert release[f"{attention}.Ds"].shape == (2 * 544,)
