"""Lowered networks compute what the originals do, whatever their parts, in few operators."""

from collections import Counter
from typing import Any

import pytest
import timm
import torch
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from mobilemamba.errors import ConfigError
from mobilemamba.export.format import Source
from mobilemamba.export.lowering import decompositions, exportable, without_idle_steps
from mobilemamba.export.lowering.layers import Scan
from mobilemamba.export.lowering.scan import recurrence, softplus
from mobilemamba.export.lowering.side_by_side import side_by_side
from mobilemamba.layers.ss2d import SS2D
from mobilemamba.layers.wavelet_mamba import WaveletConv
from mobilemamba.models import ArchOverrides, create_model, optimize_for_inference
from mobilemamba.ops import selective_scan
from tests.export.conftest import awaken

VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "one direction": {"directions": 1},
    "four directions": {"directions": 4},
    "states": {"d_state": 3, "dt_rank": 5, "ssm_ratio": 1.0},
    "states, four directions": {"d_state": 2, "directions": 4},
    "no wavelet": {"wavelet": "none"},
    "long wavelet": {"wavelet": "db2"},
    "wavelet kernels": {"wavelet_kernel_sizes": (1, 3, 5)},
    "several kernels": {"kernel_sizes": ((3, 5, 7), 3, (5, 3))},
    "global only": {"global_ratio": (1.0,) * 3, "local_ratio": (0.0,) * 3},
    "local only": {"global_ratio": (0.0,) * 3, "local_ratio": (1.0,) * 3},
    "all but global": {"global_ratio": (0.0,) * 3, "local_ratio": (0.5,) * 3},
    "no local": {"global_ratio": (0.5,) * 3, "local_ratio": (0.0,) * 3},
    "attention": {"global_mixer": "attention"},
    "xlstm": {"global_mixer": "mlstm"},
    "rwkv": {"global_mixer": "rwkv6"},
    "ttt": {"global_mixer": "ttt"},
    "cnn stage": {"stages": ("cnn", "mobilemamba", "mobilemamba")},
    "four stages": {
        "stem_stride": 4,
        "embed_dims": (48, 48, 64, 64),
        "depths": (1,) * 4,
        "stages": ("cnn", "mobilemamba", "mobilemamba", "mobilemamba"),
        "global_ratio": (0.5,) * 4,
        "local_ratio": (0.3,) * 4,
        "kernel_sizes": (3,) * 4,
        "wavelet_kernel_sizes": (3,) * 4,
    },
    "odd stem": {"embed_dims": (36, 48, 64)},
}


class Undecided(nn.Module):
    """Goes one way or the other, depending on the picture."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def small(**choices: Any) -> nn.Module:
    torch.manual_seed(0)
    arch = ArchOverrides(**{"embed_dims": (32, 48, 64), "depths": (1, 1, 1), **choices})
    network = awaken(create_model("mobilemamba_t2", arch, 5))
    for name, parameter in network.named_parameters():
        if name.endswith(("A_log", ".D", "dt_bias", "scale")):
            parameter.data += 0.3 * torch.randn_like(parameter)
    return network


def pictures(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def assert_same(lowered: nn.Module, network: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected, given = network(x), lowered(x)
    assert (given - expected).abs().max() <= 1e-4 * expected.abs().max()


def kinds(module: nn.Module) -> Counter[str]:
    return Counter(type(layer).__name__ for layer in module.modules())


@pytest.mark.parametrize("choices", VARIANTS.values(), ids=VARIANTS)
def test_it_computes_what_the_network_does(choices: dict[str, Any]) -> None:
    network = small(**choices)
    lowered = exportable(network)
    for size in ((96, 176), (48, 32)):  # maps of 6 x 11, 3 x 6, 2 x 3, and of one pixel
        assert_same(lowered, network, pictures(*size))
    assert kinds(lowered)["MRFFI"] == 0


def test_a_long_wavelet_has_no_sums_by_index_which_runtimes_lack_in_half_precision() -> None:
    program = torch.export.export(WaveletConv(4, 3, "db2"), (torch.zeros(1, 4, 6, 7),))
    calls = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any(name in call for call in calls for name in ("index_add", "index_put", "scatter"))


@pytest.mark.parametrize("directions", [1, 2, 4])
@pytest.mark.parametrize("states", [1, 3])
def test_scans_stand_side_by_side_for_runtimes_of_one_picture(directions: int, states: int) -> None:
    layer = awaken(SS2D(8, directions=directions, d_state=states)).requires_grad_(requires_grad=False)
    layer.A_log += torch.randn_like(layer.A_log)
    layer.D += torch.randn_like(layer.D)
    scan = Scan(layer)
    lowered = side_by_side(nn.Sequential(scan))
    assert kinds(lowered)["Scan"] == 0
    for size in ((3, 5), (6, 4), (1, 1)):
        u_BHWD = torch.randn(2, *size, 16)
        torch.testing.assert_close(lowered(u_BHWD), scan(u_BHWD), rtol=1e-4, atol=1e-5)
    calls = [node for node in torch.export.export(lowered, (u_BHWD,)).graph.nodes if node.op == "call_function"]
    assert not any("index" in str(node.target) for node in calls)
    assert all(node.meta["val"].ndim <= 4 for node in calls if isinstance(node.meta["val"], Tensor))


def test_the_published_sizes_keep_nothing_that_runtimes_are_slow_at() -> None:
    for name in ("mobilemamba_t2", "mobilemamba_b1"):
        network = awaken(timm.create_model(name, depths=(1, 1, 1)))
        lowered = exportable(network)
        assert_same(lowered, network, pictures(128, 128, batch=1))
        assert not {"SS2D", "WaveletConv", "PatchMerging"} & set(kinds(lowered))


def test_a_graph_of_t2_has_few_operators() -> None:
    x = pictures(192, 192, batch=1)
    program = torch.export.export(exportable(timm.create_model("mobilemamba_t2")), (x,))
    calls = Counter(node.target.__name__ for node in program.graph.nodes if node.op == "call_function")
    assert sum(calls[name] for name in ("conv2d.default", "matmul.default", "mul.Tensor", "add.Tensor")) < 440
    assert not any("conv_transpose" in name or "mobilemamba" in name for name in calls)


@pytest.mark.parametrize("network", ["resnet10t.c3_in1k", "repvit_m0_9"])
def test_other_networks_stay_as_they_are(network: str) -> None:
    original = awaken(timm.create_model(network.partition(".")[0]))
    assert_same(exportable(original), original, pictures(64, 64))


def test_a_network_that_does_not_fold_still_exports() -> None:
    network = small()
    for module in list(network.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    x = pictures(64, 64)
    program = torch.export.export(exportable(network), (x,)).run_decompositions(decompositions())
    assert "mobilemamba" not in str(program.graph)
    assert_same(program.module(), network, x)


@pytest.mark.skipif(TorchVersion(torch.__version__) < "2.11", reason="this PyTorch loses a constant of the program")
def test_a_network_laid_out_for_the_cpu_exports_as_well() -> None:
    network, x = small(), pictures(64, 64)
    optimized = optimize_for_inference(network)
    with torch.no_grad():
        program = torch.export.export(optimized, (x,)).run_decompositions(decompositions())
    assert "mobilemamba" not in str(program.graph)
    assert_same(program.module(), network, x)


@pytest.mark.parametrize("choices", [{}, {"directions": 4, "d_state": 2}], ids=str)
def test_halves_give_nearly_the_same(choices: dict[str, Any]) -> None:
    network, x = small(**choices), pictures(64, 96)
    with torch.no_grad():
        expected, given = network(x), exportable(network).half()(x.half()).float()
    assert (given - expected).abs().max() <= 1e-2 * expected.abs().max()


@pytest.mark.parametrize(("directions", "precision"), [(2, torch.float32), (4, torch.float16)], ids=str)
def test_a_graph_with_low_rank_step_sizes_is_expanded(
    directions: int, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selective_scan, "_is_triton", lambda *_: True)  # as where it was traced on a GPU
    layer = awaken(SS2D(8, directions=directions, d_state=2, dt_rank=3)).requires_grad_(requires_grad=False)
    x = torch.randn(2, 8, 3, 5)
    with torch.autocast("cpu", torch.float16, enabled=precision == torch.float16):
        program = torch.export.export(layer, (x,))
        (scan,) = (node for node in program.graph.nodes if "selective_scan" in str(node.target))
        assert scan.args[1].meta["val"].shape[-1] == 3
        assert scan.args[-1].meta["val"].shape[-2] == 3
        plain = program.run_decompositions(decompositions())
        assert "mobilemamba" not in str(plain.graph)
    tolerance = 1e-5 if precision == torch.float32 else 1e-2
    torch.testing.assert_close(plain.module()(x).float(), layer(x), rtol=tolerance, atol=tolerance)


def test_aliases_and_splits_into_one_part_are_left_out() -> None:
    class Idle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            (whole,) = x.split([1], 1)
            (all_of_it,) = whole.split(3, 0)
            first, second = torch.ops.aten.alias(all_of_it).split(1, 0)
            return first * second

    x = torch.randn(2, 1, 3)
    program = without_idle_steps(torch.export.export(Idle(), (x,)))
    names = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    assert names == {"aten.split.Tensor": 1, "<built-in function getitem>": 2, "aten.mul.Tensor": 1}
    torch.testing.assert_close(program.module()(x), x[:1] * x[1:])


def test_every_operator_of_ours_has_a_decomposition() -> None:
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("mobilemamba::")}
    ours = {name for name in names if not name.endswith("_for_tests")}  # of another file, in the same process
    known = {operator.name() for operator in decompositions()}
    of_training = {"batch_norm", "haar_conv_weight"} | {name.partition("::")[2] for name in ours if "_backward" in name}
    assert ours - {f"mobilemamba::{name}" for name in of_training} == known


@pytest.mark.parametrize("length", [1, 2, 3, 7, 9, 16, 30])
def test_the_recurrence_is_that_of_its_steps(length: int) -> None:
    decay, drive = torch.rand(2, length, 5), torch.randn(2, length, 5)
    decay[:, ::3] = 0  # steps that forget all
    h, states = torch.zeros(2, 5), []
    for step in range(length):
        h = decay[:, step] * h + drive[:, step]
        states.append(h)
    torch.testing.assert_close(recurrence(decay, drive), torch.stack(states, 1))


def test_softplus_is_exact_far_from_zero() -> None:
    x = torch.tensor([-200.0, -30.0, -3.0, 0.0, 3.0, 30.0, 200.0])
    torch.testing.assert_close(softplus(x), nn.functional.softplus(x), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"wavelet": "db2"}, "the wavelet's filters run over the border, which is written out for one size; give"),
        ({"global_mixer": "attention"}, "Attention in the place of Mamba is laid out for one size of pictures; give"),
    ],
)
def test_layers_of_one_size_are_refused_for_any(choices: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=f"--size dynamic: {reason}"):
        exportable(small(**choices), any_size=True)


def test_a_classifier_by_the_average_over_the_map_is_traced_for_any_size() -> None:
    """As most of timm's are, without functions of ONNX."""
    layers = (nn.Conv2d(3, 8, 3, 2, 1), SelectAdaptivePool2d(pool_type="avg", flatten=True), nn.Linear(8, 5))
    network = nn.Sequential(*layers).eval()
    program = Source(exportable(network), 3, size=None, batch=None).program
    for shape in ((1, 3, 64, 96), (3, 3, 81, 47)):
        assert_same(program.module(), network, torch.randn(shape))


def test_a_graph_is_decomposed_for_a_converter_only_if_it_has_operators_of_ours() -> None:
    layer = awaken(SS2D(8)).requires_grad_(requires_grad=False)
    ours, plain = (Source(network, 8, (3, 5), 2) for network in (layer, nn.Conv2d(8, 5, 3)))
    assert "mobilemamba" in str(ours.traced.graph)
    assert "mobilemamba" not in str(ours.without_ours.graph)
    assert plain.without_ours is plain.traced


@pytest.mark.parametrize(
    ("network", "size", "message"),
    [
        (nn.Linear(256, 4), None, "--size dynamic: the network takes 256 alone; give that"),
        (Undecided(), None, "the network cannot be traced for pictures of any size; give --size in pixels: "),
        (Undecided(), (8, 8), "the network cannot be traced: "),
    ],
)
def test_what_cannot_be_traced_is_said(network: nn.Module, size: tuple[int, int] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        _ = Source(network, 3, size, batch=None).traced
