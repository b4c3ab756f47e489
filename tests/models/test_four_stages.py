"""Four-stage networks on a stride-4 stem (Fig. 3 of the paper)."""

from typing import Any

import pytest
import timm
import torch

from mobilemamba.analysis import complexity
from mobilemamba.models import MobileMamba, fuse_norms
from mobilemamba.models.config import StageKind

CNN_FIRST: tuple[StageKind, ...] = ("cnn", "cnn", "mobilemamba", "mobilemamba")
FOUR: dict[str, Any] = {
    "stem_stride": 4,
    "depths": (1, 1, 2, 2),
    "global_ratio": (0.8, 0.8, 0.7, 0.6),
    "local_ratio": (0.2, 0.2, 0.2, 0.3),
    "kernel_sizes": (7, 7, 5, 3),
}


def build(embed_dims: tuple[int, ...], stages: tuple[StageKind, ...] | None = None, **choices: Any) -> MobileMamba:
    return timm.create_model("mobilemamba_s6", **{**FOUR, "embed_dims": embed_dims, "stages": stages, **choices})


@pytest.mark.parametrize(
    ("embed_dims", "stages", "flops", "params"),
    [
        ((32, 64, 160, 320), CNN_FIRST, "501", "4.75"),
        ((32, 64, 160, 320), None, "554", "4.80"),
        ((32, 64, 192, 384), CNN_FIRST, "642", "6.58"),
        ((32, 64, 192, 384), None, "695", "6.63"),
        ((48, 96, 192, 384), CNN_FIRST, "826", "6.80"),
        ((48, 96, 192, 384), None, "912", "6.90"),
    ],
    ids=str,
)
def test_counts(embed_dims: tuple[int, ...], stages: tuple[StageKind, ...] | None, flops: str, params: str) -> None:
    with torch.device("meta"):
        counts = complexity(build(embed_dims, stages), 224)
    assert (f"{counts.flops / 1e6:.0f}", f"{counts.params / 1e6:.2f}") == (flops, params)


@pytest.mark.kernels
@pytest.mark.parametrize("stages", [CNN_FIRST, None], ids=["cnn first", "all mobilemamba"])
def test_features(stages: tuple[StageKind, ...] | None) -> None:
    choices = {**FOUR, "embed_dims": (24, 32, 48, 64), "stages": stages}
    model = timm.create_model("mobilemamba_s6", features_only=True, **choices).eval()
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert model.feature_info.channels() == [24, 32, 48, 64]
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 24, 16, 24), (1, 32, 8, 12), (1, 48, 4, 6), (1, 64, 2, 3)]
    some = timm.create_model("mobilemamba_s6", features_only=True, out_indices=(1, 3), **choices)
    assert some.feature_info.reduction() == [8, 32]


@pytest.mark.kernels
def test_a_cnn_block_is_the_block_without_its_mixer() -> None:
    model = build((24, 32, 48, 64), CNN_FIRST)
    names = [[name for name, _ in stage.blocks[0].branch.named_children()] for stage in model.stages]
    assert names[0] == names[1] == ["dw0", "ffn0", "dw1", "ffn1"]
    assert names[2] == names[3] == ["dw0", "ffn0", "mixer", "dw1", "ffn1"]
    x = torch.randn(2, 24, 5, 4)
    assert torch.equal(model.stages[0].blocks[0](x), 2 * x)  # like every fresh block


@pytest.mark.kernels
def test_every_kind_of_stage_trains_and_folds() -> None:
    model = build((24, 32, 48, 64), ("cnn", "mobilemamba", "cnn", "mobilemamba"), num_classes=5)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pictures, labels = torch.randn(8, 3, 64, 64), torch.arange(8) % 5
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(pictures), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(fuse_norms(model)(pictures), model(pictures), rtol=1e-4, atol=1e-4)
