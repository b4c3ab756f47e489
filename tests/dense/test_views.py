"""Windows and views: what each pixel gets, against sums written out by hand."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilemamba.dense import Segmenter, SlidingWindow, Views, look_closely
from mobilemamba.errors import ConfigError
from mobilemamba.models import fuse_norms, optimize_for_inference

Tiny = Callable[..., Segmenter]


class Seen(nn.Module):
    """Two logits a pixel: the picture's red, and one number that tells the calls apart; and it keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return torch.stack([x[:, 0], torch.full_like(x[:, 0], len(self.seen))], 1)


def numbered(height: int, width: int) -> Tensor:
    """A picture whose red says where a pixel is."""
    return torch.arange(height * width).view(1, 1, height, width).expand(1, 3, -1, -1).float()


@pytest.mark.parametrize(
    ("size", "rows", "columns"),
    [
        ((48, 48), [(0, 48)], [(0, 48)]),
        ((40, 20), [(0, 40)], [(0, 20)]),
        ((48, 100), [(0, 48)], [(0, 48), (32, 80), (52, 100)]),
        ((80, 49), [(0, 48), (32, 80)], [(0, 48), (1, 49)]),
    ],
)
def test_windows_cover_the_picture_and_end_with_it(
    size: tuple[int, int], rows: list[tuple[int, int]], columns: list[tuple[int, int]]
) -> None:
    network, picture = Seen(), numbered(*size)
    logits = SlidingWindow(network, 48)(picture)
    boxes = [(top, bottom, left, right) for top, bottom in rows for left, right in columns]
    for seen, (top, bottom, left, right) in zip(network.seen, boxes, strict=True):
        assert torch.equal(seen, picture[..., top:bottom, left:right])
    assert torch.allclose(logits[:, 0], picture[:, 0], rtol=1e-6)  # an average of what is the same in each
    calls = [
        [[n for n, (t, b, lft, r) in enumerate(boxes, 1) if t <= y < b and lft <= x < r] for x in range(size[1])]
        for y in range(size[0])
    ]
    mean = torch.tensor([[sum(numbers) / len(numbers) for numbers in row] for row in calls])
    assert torch.allclose(logits[0, 1], mean)


def test_a_stride_of_the_window_has_no_overlap() -> None:
    network = Seen()
    SlidingWindow(network, 32, 32)(numbered(64, 96))
    assert len(network.seen) == 6


@pytest.mark.parametrize("antialias", [True, False])
def test_views_are_averaged_as_probabilities_in_the_pictures_own_place(antialias: bool) -> None:
    picture = torch.randn(2, 3, 70, 93)
    conv = nn.Conv2d(3, 5, 3, padding=1).eval()
    expected = torch.zeros(2, 5, 70, 93)
    with torch.no_grad():
        for scale in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75):
            size = [int(70 * scale + 0.5), int(93 * scale + 0.5)]
            view = F.interpolate(picture, size, mode="bilinear", antialias=antialias and scale < 1)
            for flip in (False, True):
                logits = conv(view.flip(3) if flip else view)
                back = F.interpolate(logits, (70, 93), mode="bilinear").softmax(1)
                expected += (back.flip(3) if flip else back) / 12
        found = Views(conv, antialias=antialias)(picture)
    assert torch.allclose(found.softmax(1), expected, atol=1e-6)
    assert torch.allclose(found.exp(), expected, atol=1e-6)


def test_a_certain_answer_stays_finite() -> None:
    conv = nn.Conv2d(3, 2, 1)
    nn.init.zeros_(conv.weight)
    conv.bias.data = torch.tensor([0.0, 1e4])
    with torch.no_grad():
        found = Views(conv, scales=(1,))(torch.randn(1, 3, 32, 32))
    assert found.isfinite().all()
    assert F.interpolate(found, (50, 50), mode="bilinear").isfinite().all()


def test_no_view_is_smaller_than_a_segmenter_takes(tiny: Tiny) -> None:
    with torch.no_grad():
        assert Views(tiny("pspnet"))(torch.randn(1, 3, 33, 50)).shape == (1, 7, 33, 50)


@pytest.mark.parametrize("prepare", [fuse_norms, optimize_for_inference])
def test_windows_in_views_of_a_segmenter_in_any_form(tiny: Tiny, prepare: Callable[[Any], Any]) -> None:
    segmenter, picture = tiny("semantic_fpn"), torch.randn(1, 3, 32, 50)
    closer = Views(SlidingWindow(segmenter, 32), scales=(1, 0.75))
    with torch.inference_mode():
        expected = closer(picture)
        found = pickle.loads(pickle.dumps(copy.deepcopy(prepare(closer))))(picture)
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_closer_looks_as_asked_for() -> None:
    network = nn.Identity()
    assert look_closely(network) is network
    both = look_closely(network, 64, True, antialias=False)
    assert isinstance(both, Views)
    assert not both.antialias
    assert isinstance(both.network, SlidingWindow)
    assert (both.network.window, both.network.stride, both.network.network) == (64, 42, network)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"window": 31}, "window=31: expected 32 px or more"),
        ({"window": 64, "stride": 0}, "stride=0: expected 1 to 64 px"),
        ({"window": 64, "stride": 65}, "stride=65: expected 1 to 64 px"),
    ],
)
def test_windows_that_cannot_be(choices: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SlidingWindow(nn.Identity(), **choices)
