"""Networks with another token mixer in Mamba's place (Table 1 of the paper)."""

from collections.abc import Callable
from typing import get_args

import pytest
import timm
import torch
from torch import nn

from mobilemamba.analysis import complexity
from mobilemamba.layers.global_mixer import GLOBAL_MIXERS
from mobilemamba.models import MobileMamba, fuse_norms
from mobilemamba.models.config import GlobalMixer

Build = Callable[..., MobileMamba]
MIXERS = list(GLOBAL_MIXERS)

# S6 with each mixer: all parameters, and millions of FLOPs by the paper's count (a digit more than it prints).
COUNTS = {
    "ttt": (14_221_846, "624.6"),
    "mlstm": (14_596_336, "660.3"),
    "rwkv6": (14_793_944, "647.0"),
    "attention": (12_879_256 + 4 * 321_536 + 8 * 1248, None),  # four projections with their norms
    "identity": (12_879_256, "551.5"),
}
# The paper's Table 1, printed: parameters. Its counter for the FLOPs of xLSTM and RWKV6 is not known.
PAPER_PARAMS = {"ttt": "14.2", "mlstm": "14.6", "rwkv6": "14.8"}


def test_every_choice_but_mamba_stands_in_for_it() -> None:
    assert list(get_args(GlobalMixer)) == ["mamba", *MIXERS]


@pytest.mark.parametrize("mixer", MIXERS)
def test_counts_of_s6(mixer: str) -> None:
    with torch.device("meta"):
        model = timm.create_model("mobilemamba_s6", global_mixer=mixer)
    counts = complexity(model, 224)
    params, flops = COUNTS[mixer]
    assert counts.params == params
    assert f"{params / 1e6:.1f}" == PAPER_PARAMS.get(mixer, f"{params / 1e6:.1f}")
    if flops is not None:
        assert f"{counts.flops / 1e6:.1f}" == flops


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_choice_reaches_every_block(mixer: str) -> None:
    model = timm.create_model("mobilemamba_t2", global_mixer=mixer)
    blocks = [block for stage in model.stages for block in stage.blocks]
    chosen = [block.branch.mixer.branch.global_mixer.ss2d for block in blocks]
    assert [type(module) for module in chosen] == [GLOBAL_MIXERS[mixer]] * 5


@pytest.mark.kernels
@pytest.mark.parametrize("wavelet", ["db1", "none"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_a_training_step_reaches_every_parameter(tiny: Build, mixer: str, wavelet: str) -> None:
    model = tiny(global_mixer=mixer, wavelet=wavelet).train()
    model.head.eval()  # with a batch's own statistics it would cancel what shifts a whole channel
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 3, 96, 128)).square().sum()
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not without
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.kernels
@pytest.mark.parametrize("mixer", MIXERS)
def test_norms_fold_and_channels_last_is_kept(tiny: Build, mixer: str) -> None:
    model, pictures = tiny(global_mixer=mixer), torch.randn(2, 3, 80, 112)
    fused = fuse_norms(model).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = model(pictures)
        maps = fused.forward_intermediates(pictures.to(memory_format=torch.channels_last), intermediates_only=True)
        assert (fused(pictures) - expected).norm() < 1e-4 * expected.norm()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
    assert all(feature.is_contiguous(memory_format=torch.channels_last) for feature in maps)


@pytest.mark.kernels
def test_without_the_wavelet_branch_the_identity_leaves_the_channels() -> None:
    model = timm.create_model("mobilemamba_t2", global_mixer="identity", wavelet="none")
    mixer = model.stages[0].blocks[0].branch.mixer.branch
    assert isinstance(mixer.global_mixer, nn.Identity)
    seen = []
    mixer.proj.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x = torch.randn(1, 144, 3, 3)
    mixer(x)
    assert torch.equal(seen[0][:, :112], x[:, :112].relu())


@pytest.mark.parametrize("mixer", ["ttt", "mlstm", "rwkv6"])
def test_weight_decay_spares_what_is_no_weight(mixer: str) -> None:
    model = timm.create_model("mobilemamba_t2", global_mixer=mixer)
    exempt = model.no_weight_decay()
    kept = {
        name.rpartition("global_mixer.ss2d.")[2]
        for name, p in model.named_parameters()
        if ".ss2d." in name and p.ndim > 1 and not name.endswith(".bias") and name not in exempt
    }
    assert kept
    assert all("weight" in name for name in kept)


@pytest.mark.slow
def test_compiled_without_graph_breaks(tiny: Build) -> None:
    model, pictures = tiny(global_mixer="rwkv6"), torch.randn(2, 3, 64, 64)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(pictures), model(pictures), rtol=1e-4, atol=1e-5)
    torch.compiler.reset()
