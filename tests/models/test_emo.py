"""EMO: its paper's counts, its windows, its training; what timm asks of it is tested with MobileMamba's sizes."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from mobilemamba.analysis.complexity import complexity
from mobilemamba.models import EMO, ModelCard, Preprocessing, fuse_norms, load_network, save_weights
from mobilemamba.models.emo import WindowAttention, from_windows, to_windows

# Millions of parameters, cut off after the first decimal, and of FLOPs in the paper; then all of them, as counted here.
PUBLISHED = {
    "emo_1m": (1.3, 261, 1_361_688, 260_851_128),
    "emo_2m": (2.3, 439, 2_378_608, 439_372_096),
    "emo_5m": (5.1, 903, 5_110_728, 902_597_120),
    "emo_6m": (6.1, 961, 6_170_472, 960_767_424),
}
SIZES = [(7, 7), (14, 14), (15, 13), (1, 5), (16, 9)]


@pytest.fixture
def tiny() -> Callable[..., EMO]:
    """Builds a network of 8 to 32 channels with one block beside the first in each stage."""
    return lambda **choices: EMO((2, 2, 2, 2), (8, 16, 24, 32), (2, 2.5, 3, 3.5), (0, 0, 8, 16), 7, **choices)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_counts_are_the_paper_s(name: str) -> None:
    params_m, flops_m, params, flops = PUBLISHED[name]
    with torch.device("meta"):
        counts = complexity(timm.create_model(name), 224)
    assert (counts.params, counts.flops) == (params, flops)
    assert math.floor(counts.params / 1e5) / 10 == params_m
    assert round(counts.flops / 1e6) == flops_m


# Windows


@pytest.mark.parametrize("size", SIZES)
def test_windows_are_every_so_many_th_pixel(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    steps = down, across = math.ceil(size[0] / 7), math.ceil(size[1] / 7)
    windows = to_windows(x, steps).unflatten(0, (2, down, across))
    sides = math.ceil(size[0] / down), math.ceil(size[1] / across)
    for i in range(down):
        for j in range(across):
            own = x[:, :, i::down, j::across]
            window = windows[:, i, j].unflatten(2, sides)
            assert torch.equal(window[:, :, : own.shape[2], : own.shape[3]], own)
            assert window.count_nonzero() == own.count_nonzero()  # and what fills it up is nothing
    assert torch.equal(from_windows(to_windows(x, steps), steps, size), x)


def attend(attention: WindowAttention, x: Tensor) -> Tensor:
    """The definition: each head of each window by itself, on the pixels that there are."""
    q, k = attention.qk(x).chunk(2, dim=1)
    y = torch.zeros_like(x)
    down, across, width = math.ceil(x.shape[2] / 7), math.ceil(x.shape[3] / 7), x.shape[1] // attention.heads
    for b in range(x.shape[0]):
        for head in range(attention.heads):
            for i in range(down):
                for j in range(across):
                    place = b, slice(head * width, (head + 1) * width), slice(i, None, down), slice(j, None, across)
                    scores = q[place].flatten(1).T @ k[place].flatten(1) / width**0.5
                    mixed = scores.softmax(1) @ x[place].flatten(1).T
                    y[place] = mixed.T.reshape(x[place].shape)
    return y


@pytest.mark.parametrize("size", SIZES)
def test_attention_and_its_gradients_are_the_definition_s(size: tuple[int, int]) -> None:
    attention = WindowAttention(12, 4).double()
    x = torch.randn(2, 12, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 12, *size, dtype=torch.float64)
    answers = [
        (y, *torch.autograd.grad((y * weight).sum(), (x, *attention.parameters())))
        for y in (attend(attention, x), attention(x))
    ]
    for defined, computed in zip(*answers, strict=True):
        torch.testing.assert_close(computed, defined)


def test_a_pixel_sees_its_own_dilated_window_alone() -> None:
    x = torch.randn(1, 8, 14, 21, requires_grad=True)
    y = WindowAttention(8, 4)(x)
    (seen,) = torch.autograd.grad(y[0, :, 5, 7].sum(), x)
    expected = torch.zeros(14, 21, dtype=torch.bool)
    expected[1::2, 1::3] = True  # 7x7 of them
    assert torch.equal(seen[0].abs().sum(0) > 0, expected)


# The network


@pytest.mark.parametrize("size", [(225, 97), (32, 40), (1, 1)])
def test_sizes_that_no_window_and_no_stride_divides(tiny: Callable[..., EMO], size: tuple[int, int]) -> None:
    model, pictures, sides = tiny().train(), torch.randn(2, 3, *size), size
    for features, dim in zip(model.forward_intermediates(pictures)[1], (8, 16, 24, 32), strict=True):
        sides = tuple(math.ceil(side / (4 if dim == 8 else 2)) for side in sides)
        assert features.shape[1:] == (dim, *sides)
    model(pictures).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_where_attention_stands_and_what_is_dropped() -> None:
    model = timm.create_model("emo_2m", drop_path_rate=0.05)
    attentive = [name for name, module in model.named_modules() if isinstance(module, WindowAttention)]
    assert len(attentive) == 8 + 2  # all blocks of the last two stages but their first
    assert all(name.startswith(("stages.2.blocks", "stages.3.blocks")) for name in attentive)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    firsts = (0, 3, 6, 15)  # which have no residual
    assert rates == pytest.approx([0.05 * i / 17 for i in range(18) if i not in firsts])
    assert not any(isinstance(module, DropPath) for module in timm.create_model("emo_2m").modules())


def test_checkpointed_gradients_equal_plain(tiny: Callable[..., EMO]) -> None:
    model, pictures, gradients = tiny().train(), torch.randn(2, 3, 64, 96), []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(pictures).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_autocast_in_bfloat16_is_near_single_precision(tiny: Callable[..., EMO]) -> None:
    model, pictures = tiny().eval(), torch.randn(2, 3, 225, 97)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(pictures)
        logits.float().square().sum().backward()
    assert logits.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(logits.float(), model(pictures), atol=0.03, rtol=0)


def test_folded_norms_answer_alike(trained: Callable[..., EMO]) -> None:
    model = trained("emo_1m")
    fused = fuse_norms(model)
    pictures = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(fused(pictures), model(pictures))
    left = [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(left) == 4  # those before the first two stages' convolutions


def test_saved_weights_bring_the_network_back(tmp_path: Path) -> None:
    model = timm.create_model("emo_1m", num_classes=3).eval()
    save_weights(model, tmp_path / "emo.safetensors", ModelCard("emo_1m", Preprocessing.of_model("emo_1m"), 3))
    loaded, card = load_network(tmp_path / "emo.safetensors")
    assert card.preprocessing.img_size == (224, 224)
    pictures = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(loaded(pictures), model(pictures))
