"""Scan attention is the scan's own response, shares are what the branches add, sub-bands are PyWavelets'."""

import itertools
from dataclasses import asdict, astuple
from typing import Any

import numpy as np
import pytest
import pywt
import timm
import torch
from torch import Tensor, nn

from mobilemamba.analysis import BANDS, branch_shares, scan_attention, sub_bands
from mobilemamba.analysis.inside import find_layer
from mobilemamba.errors import ConfigError
from mobilemamba.layers.mrffi import MRFFI
from mobilemamba.layers.ss2d import SS2D
from mobilemamba.layers.wavelet_mamba import WaveletConv
from mobilemamba.models import MobileMamba, MobileMambaConfig, fuse_norms, optimize_for_inference
from mobilemamba.ops.scan_order import scan_order
from mobilemamba.ops.selective_scan import ScanInputs, selective_scan_2d
from mobilemamba.ops.wavelet.definition import idwt2d


def network(**choices: Any) -> MobileMamba:
    """A small one, as if trained: no gain is 0, and what starts as a constant is none."""
    small = {"embed_dims": (32, 48, 64), "depths": (1, 2, 1)}
    model = MobileMamba(MobileMambaConfig(**{**small, **choices}), num_classes=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "A_log", ".D", "scale")):
                parameter.add_(0.2 + 0.5 * torch.rand_like(parameter))
        for _ in range(3):  # the norms' statistics
            model.train()(torch.randn(4, 3, 64, 64))
    return model


def input_of(model: nn.Module, layer: nn.Module, pictures: Tensor) -> Tensor:
    seen: list[Tensor] = []
    with layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])), torch.no_grad():
        model.eval()(pictures)
    return seen[0]


def response(inputs: ScanInputs, size: tuple[int, int], t: int, direction: int | None = None) -> Tensor:
    """By how much the scan's output at t rises with its input at s, r_LD, of all directions or of one."""
    length, inner = inputs.u.shape[1:]
    impulses = torch.eye(length, dtype=torch.float64)[:, :, None].expand(-1, -1, inner)
    C = inputs.C if direction is None else torch.zeros_like(inputs.C)
    if direction is not None:
        C[:, direction] = inputs.C[:, direction]
    dt, B, C = (x.expand(length, -1, -1, -1) for x in (inputs.dt, inputs.B, C))
    no_skip = torch.zeros_like(inputs.D)
    y = selective_scan_2d(impulses, dt, inputs.A, B, C, no_skip, inputs.dt_bias, size, "reference")
    return y[:, t]


@pytest.mark.parametrize(
    ("directions", "d_state", "position"),
    [(1, 1, (4, 6)), (1, 4, (2, 3)), (2, 1, (2, 3)), (2, 4, None), (4, 1, (0, 5)), (4, 4, (1, 2))],
)
def test_attention_is_the_response_of_the_scan(directions: int, d_state: int, position: tuple[int, int] | None) -> None:
    model, picture = network(directions=directions, d_state=d_state), torch.randn(3, 80, 112)
    size = 5, 7
    ss2d = find_layer(model, SS2D, "stages.0")
    x = input_of(model, ss2d, picture[None])
    with torch.no_grad():
        inputs = ScanInputs(*(x.double() for x in ss2d.scan_inputs(ss2d.expand(x)[0])))
    row, column = position or (2, 3)
    t = row * size[1] + column
    expected = response(inputs, size, t)
    alone = torch.stack([response(inputs, size, t, k) for k in range(directions)])

    found = scan_attention(model, picture, "stages.0.blocks.0", position)
    assert found.position == (row, column)
    assert found.summed.dtype == torch.float64
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(found.summed.flatten(), expected.mean(1), **close)
    torch.testing.assert_close(found.by_direction.flatten(1), alone.mean(2), **close)
    torch.testing.assert_close(found.skip, inputs.D.mean(1), **close)
    for k, order in enumerate(scan_order(directions, size).long()):  # what is visited later has not been seen
        later = order[int((order == t).nonzero()) + 1 :]
        assert not found.by_direction[k].flatten()[later].any()
        assert found.by_direction[k].flatten()[t]

    of_one = scan_attention(model, picture[None], "stages.0", position, channel=5)
    torch.testing.assert_close(of_one.summed.flatten(), expected[:, 5], **close)
    torch.testing.assert_close(of_one.skip, inputs.D[:, 5], **close)
    magnitudes = scan_attention(model, picture, "stages.0", position, absolute=True)
    torch.testing.assert_close(magnitudes.summed.flatten(), expected.abs().mean(1), **close)
    torch.testing.assert_close(magnitudes.by_direction.flatten(1), alone.abs().mean(2), **close)
    cancel = (magnitudes.summed > found.summed.abs() + 1e-9).any()
    assert cancel == (d_state > 1)  # with one state, C_t B_s gives all channels their sign


def test_the_network_stays_as_it_was() -> None:
    model, picture = network().train(), torch.randn(1, 3, 64, 64)
    model.head.eval()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    scan_attention(model, picture, "stages.0")
    branch_shares(model, picture)
    sub_bands(model, picture, "stages.0")
    assert {name for name, m in model.named_modules() if not m.training} == {"head", "head.norm", "head.linear"}
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not [m for m in model.modules() if m._forward_pre_hooks]


@pytest.mark.parametrize(
    ("choices", "absent"),
    [
        ({}, ""),
        ({"local_ratio": (0, 0, 0)}, "local"),
        ({"global_ratio": (0, 0, 0)}, "mixer wavelet"),
        ({"wavelet": "none"}, "wavelet"),
        ({"wavelet": "none", "global_mixer": "rwkv6"}, "wavelet"),
        ({"global_mixer": "attention", "local_ratio": (0.5, 0.5, 0.5), "global_ratio": (0.5, 0.5, 0.5)}, "identity"),
    ],
    ids=str,
)
def test_shares_are_of_what_each_branch_adds(choices: dict[str, Any], absent: str) -> None:
    model, pictures = network(**{"global_ratio": (0.5, 0.5, 0.5), **choices}), torch.randn(2, 3, 64, 64)
    shares = branch_shares(model, pictures)
    assert [entry.block for entry in shares] == [f"stages.{i}.blocks.{j}" for i, j in ((0, 0), (1, 0), (1, 1), (2, 0))]
    for entry in shares:
        values = {name: value for name, value in asdict(entry).items() if name != "block"}
        assert {name for name, value in values.items() if not value} == set(absent.split())
        assert sum(values.values()) == pytest.approx(1)
        assert min(values.values()) >= 0

    # By its definition, of the last block: the projection's weights, its norm's scale, and nothing of its bias.
    mrffi = find_layer(model, MRFFI, "stages.2")
    x = input_of(model, mrffi, pictures)
    seen: list[Tensor] = []
    with mrffi.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])), torch.no_grad():
        mrffi(x)
    conv, norm = mrffi.proj.conv, mrffi.proj.norm.requires_grad_(False)
    conv.requires_grad_(False)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    ends = np.cumsum([0, *mrffi.splits])
    added = [
        float(torch.einsum("bchw,oc->bohw", seen[0][:, a:b], conv.weight[:, a:b, 0, 0] * scale[:, None]).abs().mean())
        for a, b in itertools.pairwise(ends)
    ]
    last = shares[-1]
    expected = [value / sum(added) for value in added]
    assert [last.mixer + last.wavelet, last.local, last.identity] == pytest.approx(expected, rel=1e-3)
    if last.mixer and last.wavelet:
        with torch.no_grad():
            x_global, mixer = x[:, : mrffi.splits[0]], mrffi.global_mixer
            mamba, wavelet = (
                (mixer.scale * mixer.ss2d(x_global)).abs().mean(),
                mixer.wavelet_conv(x_global).abs().mean(),
            )
        assert last.mixer / last.wavelet == pytest.approx(float(mamba / wavelet), rel=1e-3)


def test_folded_norms_change_no_share_and_a_fresh_network_has_none() -> None:
    model, pictures = network(), torch.randn(2, 3, 64, 64)
    for entry, folded in zip(branch_shares(model, pictures), branch_shares(fuse_norms(model), pictures), strict=True):
        assert astuple(entry)[1:] == pytest.approx(astuple(folded)[1:], rel=1e-3)
    fresh = MobileMamba(MobileMambaConfig(embed_dims=(32, 48, 64)))
    assert np.isnan([astuple(entry)[1:] for entry in branch_shares(fresh, pictures)]).all()


def test_a_compiled_network_shows_the_same() -> None:
    small, maps = nn.Sequential(MRFFI((4, 2, 2), nn.Sigmoid(), nn.Tanh())), torch.randn(2, 8, 5, 5)
    nn.init.ones_(small[0].proj.norm.weight)
    (expected,) = branch_shares(small, maps)
    compiled = torch.compile(small.eval(), backend="eager")
    with torch.no_grad():
        compiled(maps)
    (found,) = branch_shares(compiled, maps)
    assert astuple(found)[1:] == pytest.approx(astuple(expected)[1:])


def test_stages_without_mixers_are_passed_over() -> None:
    four = {"embed_dims": (16, 32, 48, 64), "depths": (1, 1, 1, 1), "kernel_sizes": (3, 7, 5, 3), "stem_stride": 4}
    model = network(**four, stages=("cnn", *3 * ["mobilemamba"]), global_ratio=(0.5,) * 4, local_ratio=(0.2,) * 4)
    assert [entry.block for entry in branch_shares(model, torch.randn(1, 3, 64, 64))] == [
        f"stages.{i}.blocks.0" for i in (1, 2, 3)
    ]
    assert scan_attention(model, torch.randn(3, 64, 72), "stages.1.blocks.0").summed.shape == (8, 9)


@pytest.mark.parametrize(("wavelet", "shift"), [("haar", 0), ("db2", 1)])
@pytest.mark.parametrize("channel", [None, 3])
def test_sub_bands_are_those_of_pywavelets(wavelet: str, shift: int, channel: int | None) -> None:
    """But for a shift, as in the transform's own test; the names by pictures that are known."""
    model, pictures = network(wavelet=wavelet), torch.randn(2, 3, 96, 64)
    branch = find_layer(model, WaveletConv, "stages.0.blocks.0")
    x = input_of(model, branch, pictures)
    maps = (x.mean(1) if channel is None else x[:, channel]).roll((-shift, -shift), (1, 2)).double().numpy()
    bands = sub_bands(model, pictures, "stages.0.blocks.0", channel)
    assert bands.before.shape == bands.after.shape == (2, 4, 3, 2)
    for picture, found in zip(maps, bands.before, strict=True):
        low, (horizontal, vertical, diagonal) = pywt.dwt2(picture, wavelet, mode="periodization")
        expected = torch.from_numpy(np.stack([low, horizontal, vertical, diagonal])).float()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)

    if channel is not None:
        filters = branch.idwt_filters[4 * channel : 4 * channel + 4]
        with torch.no_grad():
            torch.testing.assert_close(idwt2d(bands.after, filters, (6, 4))[:, 0], branch(x)[:, channel])


def test_sub_bands_of_an_odd_map_and_their_names() -> None:
    branch = WaveletConv(1, 3)
    stripes = torch.zeros(1, 1, 7, 5)
    stripes[:, :, ::2] = 1  # whole rows, whose edges are horizontal
    bands = sub_bands(nn.Sequential(branch), stripes, "0").before[0]
    energy = dict(zip(BANDS, bands[:, :, :2].square().sum((1, 2)).tolist(), strict=True))
    assert bands.shape == (4, 4, 3)
    assert energy["HL"] > 1
    assert energy["LH"] == energy["HH"] == 0
    assert "horizontal" in BANDS["HL"]


def test_mistakes_are_told() -> None:
    model, picture = network(), torch.randn(3, 64, 64)
    with pytest.raises(ConfigError, match=r"'stages.1' holds 2 SS2D layers; .*blocks stages.0.blocks.0, stages.1"):
        scan_attention(model, picture, "stages.1")
    with pytest.raises(ConfigError, match="'nothing' holds 0 WaveletConv"):
        sub_bands(model, picture[None], "nothing")
    with pytest.raises(ConfigError, match=r"position \(4, 0\): the layer's map has 4 rows and 4 columns"):
        scan_attention(model, picture, "stages.0", (4, 0))
    with pytest.raises(ConfigError, match="channel -1"):
        scan_attention(model, picture, "stages.0", channel=-1)
    with pytest.raises(ConfigError, match="channel 32: the wavelet branch has 32"):
        sub_bands(model, picture[None], "stages.0", channel=32)
    with pytest.raises(ConfigError, match="2 pictures"):
        scan_attention(model, torch.stack([picture, picture]), "stages.0")
    for other in (network(global_mixer="attention"), optimize_for_inference(model), timm.create_model("resnet10t")):
        with pytest.raises(ConfigError, match="has no SS2D layer"):
            scan_attention(other, picture, "stages.0.blocks.0")
    with pytest.raises(ConfigError, match=r"has no MRFFI layer.*before optimize_for_inference"):
        branch_shares(optimize_for_inference(model), picture[None])
    with pytest.raises(ConfigError, match="has no WaveletConv layer"):
        sub_bands(network(wavelet="none"), picture[None], "stages.0.blocks.0")
