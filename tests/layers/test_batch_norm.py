"""BatchNorm2d is PyTorch's by another way."""

import copy

import pytest
import torch
from torch import Tensor, nn

from mobilemamba.layers.batch_norm import BatchNorm2d
from mobilemamba.ops.batch_norm import native
from mobilemamba.ops.native import library

pytestmark = pytest.mark.kernels

needs_kernels = pytest.mark.skipif(
    library.why_not() is not None, reason=f"needs the compiled kernels ({library.why_not()})"
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What the kernel was given."""
    found: list[Tensor] = []
    kernel = native._forward
    monkeypatch.setattr(native, "_forward", lambda x, *other: found.append(x) or kernel(x, *other))
    return found


def pair(channels: int = 18) -> tuple[BatchNorm2d, nn.BatchNorm2d]:
    ours, theirs = BatchNorm2d(channels), nn.BatchNorm2d(channels)
    nn.init.normal_(ours.weight)
    nn.init.normal_(ours.bias)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def maps() -> Tensor:
    return (torch.randn(4, 18, 10, 12) + 1).contiguous(memory_format=torch.channels_last)


@needs_kernels
def test_trains_and_tracks_as_pytorch_s(calls: list[Tensor]) -> None:
    ours, theirs = pair()
    for _ in range(3):
        x = maps()
        torch.testing.assert_close(ours(x), theirs(x))
    assert len(calls) == 3
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    x = maps()
    assert torch.equal(ours.eval()(x), theirs.load_state_dict(ours.state_dict()) and theirs.eval()(x))
    assert len(calls) == 3


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_relu(training: bool) -> None:
    ours, theirs = (norm.train(training) for norm in pair())
    x = maps()
    torch.testing.assert_close(ours(x, relu=True), theirs(x).relu())


@pytest.mark.parametrize(
    "case", ["contiguous", "float64", "cumulative", "untracked", "no affine", "bfloat16 weights", "reference"]
)
def test_else_pytorch_s_own_runs(calls: list[Tensor], case: str) -> None:
    ours, theirs = pair()
    x = maps().contiguous() if case == "contiguous" else maps()
    if case == "reference":
        ours.backend = case
    for norm in (ours, theirs):
        if case == "cumulative":
            norm.momentum = None
        elif case == "untracked":
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        elif case == "no affine":
            norm.affine, norm.weight, norm.bias = False, None, None
    if case in ("float64", "bfloat16 weights"):
        dtype = torch.float64 if case == "float64" else torch.bfloat16
        ours, theirs, x = ours.to(dtype), theirs.to(dtype), x.to(dtype)
    assert torch.equal(ours(x), theirs(x))
    assert not calls


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 18, 1, 1), "more than 1 value per channel"), ((18, 4, 4), "expected 4D input")]
)
def test_one_pixel_and_one_map_are_refused_as_by_pytorch(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchNorm2d(18)(torch.ones(shape))


@needs_kernels
def test_copies_and_converts() -> None:
    ours, _ = pair()
    assert copy.deepcopy(ours)(maps()).shape == (4, 18, 10, 12)
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(ours))[0], nn.SyncBatchNorm)


@pytest.mark.slow
def test_compiles() -> None:
    ours, theirs = pair()
    x = maps()
    found, expected = torch.compile(ours, fullgraph=True)(x), theirs(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for y in (found, expected):
        y.square().mean().backward()
    for ours_, theirs_ in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours_.grad, theirs_.grad, rtol=1e-3, atol=1e-4)
