"""Ratios become channels as in the released models; what cannot work is refused with a value that does."""

import re
from dataclasses import fields
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobilemamba.errors import ConfigError
from mobilemamba.models import VARIANTS, ArchOverrides, MobileMambaConfig, split_channels

pytestmark = pytest.mark.kernels

S6, STANDARD = (192, 384, 448), ((0.8, 0.7, 0.6), (0.2, 0.2, 0.3))
# (embed_dims, global_ratio, local_ratio): channels a stage.
SPLITS = {
    "A1-1": ((S6, (0.6, 0.6, 0.6), (0.4, 0.3, 0.3)), ((112, 76, 4), (224, 115, 45), (272, 134, 42))),
    "A1-2": ((S6, (0.7, 0.6, 0.5), (0.2, 0.2, 0.3)), ((128, 38, 26), (224, 76, 84), (224, 134, 90))),
    "A1-3": ((S6, (0.8, 0.6, 0.6), (0.2, 0.3, 0.3)), ((160, 32, 0), (224, 115, 45), (272, 134, 42))),
    "A1-4": ((S6, (0.8, 0.7, 0.6), (0.2, 0.3, 0.4)), ((160, 32, 0), (272, 112, 0), (272, 176, 0))),
    "A1-5": ((S6, (0.8, 0.8, 0.8), (0.2, 0.1, 0.1)), ((160, 32, 0), (304, 38, 42), (352, 44, 52))),
    "A1-6-printed": ((S6, (0.0, 0.7, 0.8), (1.0, 0.2, 0.1)), ((0, 192, 0), (272, 76, 36), (352, 44, 52))),
    "A1-6-corrected": ((S6, (0.0, 0.7, 0.6), (1.0, 0.2, 0.3)), ((0, 192, 0), (272, 76, 36), (272, 134, 42))),
    "A1-7": ((S6, (0.6, 0.7, 0.8), (0.4, 0.2, 0.1)), ((112, 76, 4), (272, 76, 36), (352, 44, 52))),
    "A1-8": ((S6, *STANDARD), ((160, 32, 0), (272, 76, 36), (272, 134, 42))),
    "A2-1": (
        ((192, 320, 368), (0, 0.75, 0.75), (0.9, 0.15, 0.15)),
        ((0, 172, 20), (240, 48, 32), (272, 55, 41)),
    ),
    "A2-2": (((172, 320, 368), (0.65,) * 3, (0.25,) * 3), ((112, 43, 17), (208, 80, 32), (240, 92, 36))),
    "A2-3": (((180, 336, 368), (0.5,) * 3, (0.4,) * 3), ((96, 72, 12), (176, 134, 26), (192, 147, 29))),
    "A2-5": (
        ((208, 400, 464), (0.6, 0.5, 0.4), (0.3, 0.4, 0.5)),
        ((128, 62, 18), (208, 160, 32), (192, 232, 40)),
    ),
    "A2-6": (((224, 336, 400), *STANDARD), ((176, 44, 4), (240, 67, 29), (240, 120, 40))),
    "A3-2": (
        ((128, 256, 384), (0.15, 0.55, 0.55), (0.35,) * 3),
        ((16, 44, 68), (144, 89, 23), (208, 134, 42)),
    ),
    "A3-3": (((208, 416, 624), *STANDARD), ((160, 41, 7), (288, 83, 45), (368, 187, 69))),
}


@pytest.mark.parametrize("row", SPLITS)
def test_splits_of_the_published_rows(row: str) -> None:
    (dims, global_ratio, local_ratio), expected = SPLITS[row]
    config = MobileMambaConfig(embed_dims=dims, global_ratio=global_ratio, local_ratio=local_ratio)
    assert config.channel_splits == expected


@pytest.mark.parametrize(
    ("dim", "ratio", "channels"),
    [
        pytest.param(368, 0.6, 224, id="220.8-tie-up"),  # truncated to 220, nearest multiple 224
        pytest.param(192, 0.8, 160, id="153.6-truncated"),
        pytest.param(376, 0.7, 256, id="263.2-is-263-rounds-down"),  # 68 %, not 70 %
        pytest.param(100, 0.24, 32, id="tie-goes-up"),  # 24 lies between 16 and 32
        pytest.param(368, 0.0, 0, id="nothing"),
        pytest.param(368, 1.0, 368, id="everything"),
    ],
)
def test_global_channels(dim: int, ratio: float, channels: int) -> None:
    assert split_channels(dim, ratio, 0)[0] == channels


dims, ratio = st.integers(8, 700), st.floats(0, 1)


@given(dims, ratio, ratio)
def test_a_split_is_complete_or_refused(dim: int, global_ratio: float, local_ratio: float) -> None:
    try:
        parts = split_channels(dim, global_ratio, local_ratio)
    except ConfigError:
        exceeds = global_ratio + local_ratio > 1
        rounds_up = (int(global_ratio * dim) + 8) // 16 * 16 > dim
        assert exceeds or rounds_up  # refused for a reason only
    else:
        assert sum(parts) == dim
        assert min(parts) >= 0
        assert parts[0] % 16 == 0


def refusal(dim: int, global_ratio: float, local_ratio: float) -> str:
    """Why a split is refused; empty if it is not."""
    try:
        split_channels(dim, global_ratio, local_ratio)
    except ConfigError as error:
        return str(error)
    return ""


@given(dims, ratio)
def test_the_suggested_global_ratio_works(dim: int, global_ratio: float) -> None:
    if message := refusal(dim, global_ratio, 0):
        suggested = re.search(r"use global_ratio=([\d.]+) \((\d+) channels\) or embed_dim=(\d+)", message)
        assert suggested
        assert split_channels(dim, float(suggested[1]), 0)[0] == int(suggested[2])
        split_channels(int(suggested[3]), global_ratio, 0)


@given(dims, ratio, ratio)
def test_the_suggested_local_ratio_works(dim: int, global_ratio: float, local_ratio: float) -> None:
    if suggested := re.search(r"local_ratio can be at most ([\d.e-]+)", refusal(dim, global_ratio, local_ratio)):
        again = refusal(dim, global_ratio, float(suggested[1]))
        assert not again or "rounds up" in again  # the other mistake, not this one again


def test_rounding_of_ratios_is_no_excess() -> None:
    global_ratio, local_ratio = torch.tensor([0.8, 0.2]).tolist()
    assert global_ratio + local_ratio > 1
    assert split_channels(160, global_ratio, local_ratio) == (128, 32, 0)


def test_a_cnn_stage_splits_nothing() -> None:
    config = MobileMambaConfig(stages=("cnn", "mobilemamba", "cnn"), global_ratio=(9, 0.7, 0.6))  # 9: not used
    assert config.channel_splits == ((0, 0, 192), (272, 76, 36), (0, 0, 448))
    assert MobileMambaConfig().stage_kinds == ("mobilemamba",) * 3


@pytest.mark.parametrize("value", [-0.1, 1.5])
@pytest.mark.parametrize("name", ["global_ratio", "local_ratio"])
def test_a_ratio_out_of_range_names_the_nearest_valid(name: str, value: float) -> None:
    ratios = {"global_ratio": 0.0, "local_ratio": 0.0, name: value}
    with pytest.raises(ConfigError, match=f"{name}={value}") as error:
        split_channels(64, **ratios)
    suggested = re.search(r"nearest valid ratio is (\S+)$", str(error.value))
    assert suggested
    split_channels(64, **{**ratios, name: float(suggested[1])})


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"directions": 3}, "directions=3: expected 1, 2 or 4"),
        ({"d_state": 0}, "d_state=0"),
        ({"dt_rank": 0}, "dt_rank=0"),
        ({"dt_rank": "full"}, "dt_rank='full'"),
        ({"ssm_ratio": 0}, "ssm_ratio=0"),
        ({"ffn_ratio": -1}, "ffn_ratio=-1"),
        ({"ffn_ratio": float("nan")}, "ffn_ratio=nan: expected at most 64"),
        ({"d_state": 10**9}, "d_state=1000000000: expected at most 4,096"),
        ({"kernel_sizes": ((3, 5, 10**11), 5, 3)}, "kernel_sizes=.*: expected at most 1,023"),
        ({"kernel_sizes": (7, 4, 3)}, "kernel size 4: expected an odd number, e.g. 5"),
        ({"wavelet_kernel_sizes": (7, 5, 2)}, "kernel size 2"),
        ({"kernel_sizes": (7, 5)}, "kernel_sizes=.* 3 stages"),
        ({"depths": (1, 2)}, "depths=.* 3 stages"),
        ({"depths": (1, 0, 2)}, "at least one block"),
        ({"embed_dims": (4, 8, 16)}, "at least 8 channels"),
        ({"embed_dims": ()}, "embed_dims"),
        ({"kernel_sizes": ((3, 5, 7), 5, 3), "local_ratio": (0.01, 0.2, 0.3)}, "3 kernels .* 1 local channels"),
        ({"global_ratio": (0.9, 0.7, 0.6)}, "take more than all 144 channels; .* at most 0.1"),
        ({"global_ratio": 0.5}, "global_ratio=0.5 needs one entry for each"),
        ({"stages": ("cnn", "mobilemamba")}, "stages=.* 3 stages"),
        ({"stages": ("cnn", "mamba", "mobilemamba")}, "stages=.*: expected mobilemamba or cnn for each stage"),
        ({"stem_stride": 8}, "stem_stride=8: expected 4 or 16"),
        ({"global_mixer": "gru"}, "unknown global_mixer 'gru'; expected one of mamba, ttt, "),
        (
            {"global_mixer": "ttt", "d_state": 4},
            "d_state=4 is a choice of global_mixer='mamba'; leave it out with global_mixer='ttt'",
        ),
        ({"wavelet": "nosuch"}, "unknown wavelet 'nosuch'"),
        ({"wavelet": "bior2.2"}, "'bior2.2' is not orthogonal"),
    ],
    ids=lambda value: ",".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_impossible_choices_are_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        timm.create_model("mobilemamba_t2", **choices)


def test_an_unknown_choice_lists_the_known() -> None:
    with pytest.raises(
        ConfigError, match="unknown architecture choice kernel_size; expected some of: embed_dims, depths"
    ):
        MobileMambaConfig().override(kernel_size=3)


def test_overrides_name_what_the_configuration_has() -> None:
    assert [f.name for f in fields(ArchOverrides)] == [f.name for f in fields(MobileMambaConfig)]
    assert all(field.default is None for field in fields(ArchOverrides))


def test_only_given_overrides_are_laid_over() -> None:
    overrides = ArchOverrides(d_state=16, global_ratio=(0.0, 0.5, 0.5))
    assert overrides.given() == {"d_state": 16, "global_ratio": (0.0, 0.5, 0.5)}
    config = MobileMambaConfig().override(**overrides.given())
    assert (config.d_state, config.depths) == (16, MobileMambaConfig().depths)


def test_lists_become_tuples() -> None:
    config = MobileMambaConfig(depths=[1, 2, 2], kernel_sizes=[[7, 5], 5, 3])  # type: ignore[arg-type]  # as from YAML
    assert config.kernel_sizes == ((7, 5), 5, 3)
    assert hash(config) == hash(MobileMambaConfig(kernel_sizes=((7, 5), 5, 3)))


@pytest.mark.parametrize(
    ("kernels", "wavelet_kernels", "expected"),
    [((7, 5, 3), None, (7, 5, 3)), (((5, 7), 5, 3), None, (5, 5, 3)), ((7, 5, 3), (3, 3, 3), (3, 3, 3))],
    ids=["same", "first-of-several", "own"],
)
def test_wavelet_kernels(kernels: Any, wavelet_kernels: Any, expected: tuple[int, ...]) -> None:
    assert MobileMambaConfig(kernel_sizes=kernels, wavelet_kernel_sizes=wavelet_kernels).wavelet_kernels == expected


def test_variants_are_the_paper_s() -> None:
    printed = {n: (v.img_size, v.paper_top1, v.paper_params_m, v.paper_flops_m) for n, v in VARIANTS.items()}
    assert printed == {
        "mobilemamba_t2": (192, 73.6, 8.8, 255),
        "mobilemamba_t4": (192, 76.1, 14.2, 413),
        "mobilemamba_s6": (224, 78.0, 15.0, 652),
        "mobilemamba_b1": (256, 79.9, 17.1, 1080),
        "mobilemamba_b2": (384, 81.6, 17.1, 2427),
        "mobilemamba_b4": (512, 82.5, 17.1, 4313),
    }
