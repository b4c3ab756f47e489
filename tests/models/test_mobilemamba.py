"""The network as a whole: its start, its inputs, its training, its choices by keyword, compilation."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import nn

from mobilemamba.errors import BackendUnavailableError, ConfigError
from mobilemamba.models import VARIANTS, MobileMamba
from mobilemamba.models.mobilemamba import MobileMambaStage

pytestmark = pytest.mark.kernels

Build = Callable[..., MobileMamba]
SIX = list(VARIANTS)
DIMS = {
    "mobilemamba_t2": (144, 272, 368),
    "mobilemamba_t4": (176, 368, 448),
    "mobilemamba_s6": (192, 384, 448),
    "mobilemamba_b1": (200, 376, 448),
    "mobilemamba_b2": (200, 376, 448),
    "mobilemamba_b4": (200, 376, 448),
}


@pytest.fixture(scope="module")
def t2(trained: Build) -> MobileMamba:
    return trained("mobilemamba_t2")


# Structure


@pytest.mark.parametrize("name", SIX)
def test_sizes(name: str) -> None:
    model = timm.create_model(name)
    assert model.config.embed_dims == DIMS[name]
    assert [len(stage.blocks) for stage in model.stages] == ([2, 3, 2] if "_b" in name else [1, 2, 2])
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert frozen == 32 * sum(
        d * g for d, (g, _, _) in zip(model.config.depths, model.config.channel_splits, strict=True)
    )


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("choices", [{}, {"directions": 4, "wavelet": "none"}], ids=str)
def test_a_fresh_block_doubles_its_input(choices: dict[str, Any], train: bool) -> None:
    model = timm.create_model("mobilemamba_t2", **choices).train(train)
    for stage, dim in zip(model.stages, model.config.embed_dims, strict=True):
        x = torch.randn(2, dim, 3, 5)
        assert all(torch.equal(block(x), 2 * x) for block in stage.blocks)


def test_tensor_names() -> None:
    """Released weights stand under these names: changing them breaks every saved checkpoint."""
    names = timm.create_model("mobilemamba_t2").state_dict().keys()
    assert names > {
        "patch_embed.0.conv.weight",
        "patch_embed.6.norm.running_var",
        "stages.0.blocks.0.branch.dw0.branch.conv.weight",
        "stages.0.blocks.0.branch.ffn0.branch.pw1.conv.weight",
        "stages.0.blocks.0.branch.mixer.branch.global_mixer.scale",
        "stages.0.blocks.0.branch.mixer.branch.global_mixer.ss2d.A_log",
        "stages.0.blocks.0.branch.mixer.branch.global_mixer.ss2d.D",
        "stages.0.blocks.0.branch.mixer.branch.global_mixer.ss2d.dt_bias",
        "stages.0.blocks.0.branch.mixer.branch.global_mixer.ss2d.dt_proj_weight",
        "stages.0.blocks.0.branch.mixer.branch.global_mixer.ss2d.in_proj.conv.weight",
        "stages.0.blocks.0.branch.mixer.branch.global_mixer.ss2d.x_proj_weight",
        "stages.0.blocks.0.branch.mixer.branch.global_mixer.wavelet_conv.dwt_filters",
        "stages.0.blocks.0.branch.mixer.branch.global_mixer.wavelet_conv.scale",
        "stages.0.blocks.0.branch.mixer.branch.local_mixer.parts.0.0.conv.weight",
        "stages.0.blocks.0.branch.mixer.branch.proj.norm.weight",
        "stages.1.downsample.dw0.branch.conv.weight",
        "stages.1.downsample.merge.se.fc1.weight",
        "stages.2.blocks.1.branch.ffn1.branch.pw2.norm.bias",
        "head.norm.weight",
        "head.linear.weight",
    }


# Inputs


@pytest.mark.parametrize(
    "size", [(32, 32), (33, 47), (64, 96), (65, 65), (200, 168), (224, 224)], ids=lambda s: f"{s[0]}x{s[1]}"
)
def test_any_size_from_32_px(t2: MobileMamba, size: tuple[int, int]) -> None:
    with torch.no_grad():
        x, maps = t2.forward_intermediates(torch.randn(1, 3, *size))
        assert t2.forward_head(x).isfinite().all()
    for reduction, dim, feature in zip((16, 32, 64), DIMS["mobilemamba_t2"], maps, strict=True):
        assert feature.shape == (1, dim, *(-(-side // reduction) for side in size))


@pytest.mark.parametrize("choices", [{}, {"directions": 4, "d_state": 3}, {"wavelet": "db2"}], ids=str)
def test_a_batch_gives_what_its_pictures_give_one_by_one(tiny: Build, choices: dict[str, Any]) -> None:
    model, pictures = tiny(**choices), torch.randn(3, 3, 72, 104)
    with torch.no_grad():
        together, alone = model(pictures), torch.cat([model(picture[None]) for picture in pictures])
    assert (together - together.mean(0)).norm() > 1e-2 * together.norm()  # the pictures matter
    assert (together - alone).norm() < 1e-5 * alone.norm()


@pytest.mark.parametrize(
    "choices", [{}, {"directions": 4}, {"wavelet": "db2"}, {"kernel_sizes": ((3, 5), 5, 3)}], ids=str
)
def test_channels_last_is_kept_end_to_end(tiny: Build, choices: dict[str, Any]) -> None:
    model, pictures = tiny(**choices), torch.randn(2, 3, 80, 112)
    with torch.no_grad():
        expected = model(pictures)
        model = model.to(memory_format=torch.channels_last)
        seen = {}
        for name, module in model.named_modules():
            if isinstance(module, MobileMambaStage | nn.Conv2d):
                module.register_forward_hook(lambda m, x, y, name=name: seen.update({name: y}))
        logits = model(pictures.to(memory_format=torch.channels_last))
    other = [n for n, y in seen.items() if not y.is_contiguous(memory_format=torch.channels_last)]
    assert seen
    assert not other
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_contiguous_input_stays_contiguous(tiny: Build) -> None:
    with torch.no_grad():
        maps = tiny().forward_intermediates(torch.randn(2, 3, 80, 112), intermediates_only=True)
    assert all(feature.is_contiguous() for feature in maps)


def test_double_precision_agrees_with_single(tiny: Build) -> None:
    model, pictures = tiny(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        single, double = model(pictures), copy.deepcopy(model).double()(pictures.double())
    assert double.dtype == torch.float64
    assert (single - double).norm() < 1e-5 * double.norm()


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_bfloat16_autocast_is_near_single_precision(tiny: Build, train: bool) -> None:
    model, pictures = tiny().train(train), torch.randn(4, 3, 96, 96)
    expected = model(pictures)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(pictures)
        logits.square().mean().backward()
    assert (logits - expected).norm() < 0.1 * expected.norm()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# Training


def test_same_seed_same_bits() -> None:
    def train() -> tuple[torch.Tensor, ...]:
        torch.manual_seed(5)
        model = timm.create_model("mobilemamba_t2", drop_path_rate=0.2, num_classes=3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(2, 3, 64, 64)).square().sum().backward()
            optimizer.step()
        return tuple(model.state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(train(), train(), strict=True))


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"directions": 1},
        {"directions": 4, "d_state": 3, "ssm_ratio": 1, "dt_rank": 2},
        {"kernel_sizes": ((3, 5, 7), (3, 5), 3), "wavelet": "db2"},
        {"global_ratio": (0, 0.5, 1), "local_ratio": (1, 0, 0)},
    ],
    ids=str,
)
def test_every_trainable_parameter_has_a_gradient(tiny: Build, choices: dict[str, Any]) -> None:
    model = tiny(**choices).train()
    model(torch.randn(2, 3, 96, 128)).square().sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not without
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_drop_path_rises_to_the_last_block() -> None:
    model = timm.create_model("mobilemamba_b1", drop_path_rate=0.3)
    rates = [getattr(b.drop_path, "drop_prob", 0) for stage in model.stages for b in stage.blocks]
    assert rates == pytest.approx([0.05 * i for i in range(7)])
    assert not any(isinstance(m, DropPath) for m in timm.create_model("mobilemamba_b1").modules())


def test_a_dropped_block_is_the_identity(tiny: Build) -> None:
    block = tiny(drop_path_rate=0.5).train().stages[2].blocks[0]
    block.drop_path.drop_prob = 1 - 1e-9
    x = torch.randn(2, 64, 3, 3)
    assert torch.equal(block(x), x)


def test_checkpointed_gradients_equal_plain(tiny: Build) -> None:
    pictures, gradients = torch.randn(2, 3, 64, 64), []
    for enable in (False, True):
        model = tiny().train()
        model.set_grad_checkpointing(enable)
        model(pictures).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


# Choices by keyword


def test_architecture_by_keyword() -> None:
    model = timm.create_model(
        "mobilemamba_s6",
        global_ratio=(0.8, 0.8, 0.8),
        local_ratio=(0.2, 0.1, 0.1),
        kernel_sizes=(5, 3, 3),
        embed_dims=(144, 256, 320),
        depths=(1, 1, 1),
        directions=4,
        d_state=16,
        ssm_ratio=1,
    ).eval()
    ss2d = model.stages[0].blocks[0].branch.mixer.branch.global_mixer.ss2d
    assert ss2d.A_log.shape == (4, 112, 16)
    assert model.stages[0].blocks[0].branch.mixer.branch.local_mixer.parts[0][0].conv.kernel_size == (5, 5)
    assert [s["num_chs"] for s in model.feature_info] == [144, 256, 320]
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)


def test_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="global_ration"):
        timm.create_model("mobilemamba_s6", global_ration=(0, 0, 0))


def test_scan_backend_by_keyword(tiny: Build) -> None:
    pictures = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        chunked, reference = (tiny(scan_backend=name)(pictures) for name in ("chunked", "reference"))
    torch.testing.assert_close(chunked, reference, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="unknown scan_backend 'fast'; expected one of auto, "):
        tiny(scan_backend="fast")
    with pytest.raises(BackendUnavailableError), torch.no_grad():
        tiny(scan_backend="mamba_ssm")(pictures)  # explicit: no silent fall-back on a CPU


# Compilation and export


def test_compile_without_graph_breaks(tiny: Build) -> None:
    model, pictures = tiny(), torch.randn(2, 3, 64, 64)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(pictures), model(pictures), rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def test_compiled_training(tiny: Build) -> None:
    model, pictures = tiny().train(), torch.randn(2, 3, 64, 64)
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    for network in (model, compiled):
        network(pictures).square().mean().backward()
    for ours, theirs in zip(compiled.parameters(), model.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.slow
def test_export_of_t2_keeps_one_node_a_scan(t2: MobileMamba) -> None:
    pictures = torch.randn(1, 3, 64, 64)
    program = torch.export.export(t2, (pictures,))
    names = [str(node.target) for node in program.graph.nodes]
    scans = [
        name for name in names if name.startswith("mobilemamba.selective_scan")
    ]  # of a map where kernels are compiled
    assert len(scans) == sum(t2.config.depths)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(pictures), t2(pictures), rtol=1e-4, atol=1e-4)
