"""What a segmenter says of pictures: classes of pixels at the pictures' own size, their areas, and drawings."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mobilemamba.dense import Segmenter
from mobilemamba.dense.segmentation_predictor import CoarseLogits, SegmentationPredictor
from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models import ModelCard, Preprocessing, load_network, save_weights
from mobilemamba.models.card import read_card
from mobilemamba.models.checkpoints import build_network
from mobilemamba.models.predictor import LABELS, predictor_of

PALETTE = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
LOOK = Preprocessing((64, 64), (0.0,) * 3, (1.0,) * 3, "bilinear")
CARD = ModelCard(
    "mobilemamba_s6",
    LOOK,
    num_classes=3,
    class_names=("night", "sky", "sea"),
    task="segmentation",
    head="semantic_fpn",
    head_options={"head_dim": 16},
    palette=PALETTE,
)


class Brightness(torch.nn.Module):
    """Dark pixels are class 0, reddish ones 1, bluish ones 2."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([0.3 - x.sum(1), x[:, 0] - 0.1, x[:, 2] - 0.1], 1)


def asked(**changes: Any) -> SegmentationPredictor:
    options = {"topk": changes.pop("topk", None)}
    card = ModelCard(**{**{name: getattr(CARD, name) for name in CARD.__dataclass_fields__}, **changes})
    return SegmentationPredictor(Brightness(), card, torch.device("cpu"), **options)


@pytest.fixture
def picture() -> Image.Image:
    """Red above, a band of blue, black below; 100 x 200."""
    picture = Image.new("RGB", (100, 200), "black")
    picture.paste("red", (0, 0, 100, 120))
    picture.paste("blue", (0, 120, 100, 150))
    return picture


def row_of(predictor: SegmentationPredictor, picture: Image.Image) -> dict[str, Any]:
    prepared = predictor.prepare(picture)
    (row,) = predictor.rows(predictor.forward(prepared[None]), [(picture.height, picture.width)])
    return row


def test_whole_pictures_scaled_to_the_shorter_side(picture: Image.Image) -> None:
    assert asked().prepare(picture).shape == (3, 128, 64)
    assert asked().prepare(picture.rotate(90, expand=True)).shape == (3, 64, 128)


def test_areas_of_classes_at_the_picture_s_own_size(picture: Image.Image) -> None:
    row = row_of(asked(), picture)
    assert row[LABELS].shape == (200, 100)
    assert row[LABELS].dtype == np.uint8
    assert [entry["name"] for entry in row["classes"]] == ["sky", "night", "sea"]
    assert [entry["pixels"] for entry in row["classes"]] == pytest.approx([12_000, 5_000, 3_000], abs=400)
    assert sum(entry["share"] for entry in row["classes"]) == pytest.approx(1, abs=2e-6)
    assert (row[LABELS][:110] == 1).all()
    assert (row[LABELS][130:140] == 2).all()
    lines = asked().lines(row)
    assert [line[:3] for line in lines] == [[1, 1, "sky"], [2, 0, "night"], [3, 2, "sea"]]
    assert [entry["name"] for entry in row_of(asked(topk=1), picture)["classes"]] == ["sky"]
    (of_prepared,) = asked().rows(CoarseLogits(torch.randn(1, 3, 7, 9), (14, 20)))
    assert of_prepared[LABELS].shape == (14, 20)


def test_drawings_have_the_palette_s_colours_and_every_label(picture: Image.Image) -> None:
    predictor = asked()
    row = row_of(predictor, picture)
    drawings = predictor.drawings(picture, row)
    assert list(drawings) == ["", "_labels"]
    overlaid, labels = drawings[""], drawings["_labels"]
    assert labels.size == picture.size
    assert labels.mode == "P"
    assert np.array_equal(np.asarray(labels), row[LABELS])
    assert labels.convert("RGB").getpixel((50, 135)) == PALETTE[2]
    assert overlaid.height > picture.height, "a legend below"
    below = overlaid.crop((0, 200, overlaid.width, overlaid.height))
    assert {colour for _, colour in below.getcolors(1 << 16)} >= set(PALETTE)
    assert overlaid.getpixel((50, 50)) == (255, 0, 0)


def test_without_a_palette_colours_differ() -> None:
    assert len(set(asked(palette=()).palette)) == 3


def test_a_file_alone_builds_and_draws(tiny: Callable[..., Segmenter], tmp_path: Any) -> None:
    segmenter = tiny("pspnet", auxiliary=True)
    arch = {"embed_dims": [32, 48, 64], "depths": [1, 1, 1]}
    options = {"auxiliary": True, "head_dim": 16}
    card = ModelCard("mobilemamba_s6", LOOK, 7, arch=arch, task="segmentation", head="pspnet", head_options=options)
    save_weights(segmenter, tmp_path / "own.safetensors", card)
    assert read_card(tmp_path / "own.safetensors") == card
    network, found = load_network(tmp_path / "own.safetensors", verbose=False)
    x = torch.randn(1, 3, 64, 80)
    with torch.no_grad():
        assert torch.equal(network(x), segmenter(x))
    predictor = predictor_of(network, found, torch.device("cpu"))
    assert isinstance(predictor, SegmentationPredictor)
    predictor.check()
    coarse, size = predictor.forward(x)
    assert coarse.shape == (1, 7, 1, 2)  # not scaled, as only labels are wanted
    with torch.no_grad():
        expected = segmenter(x)
        torch.testing.assert_close(F.interpolate(coarse, size, mode="bilinear"), expected, rtol=1e-3, atol=1e-4)
        assert (segmenter.labels(x) == expected.argmax(1)).float().mean() > 0.99
        for wrapped in (predictor, asked_closely(predictor)):
            (row,) = wrapped.rows(wrapped.forward(x))
            agreed = torch.from_numpy(row[LABELS]) == F.interpolate(expected, size, mode="bilinear").argmax(1)[0]
            assert agreed.float().mean() > 0.99


def asked_closely(predictor: SegmentationPredictor) -> SegmentationPredictor:
    predictor.look_closely(128, tta=False)  # larger than the picture, which so is one window
    assert predictor.forward(torch.randn(1, 3, 64, 80)).logits.shape[-2:] == (64, 80)
    return predictor


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "unet"}, "the weights describe a network that cannot be built: head 'unet': expected one of"),
        ({"head_options": {"depth": 3}}, "head_options has 'depth': expected auxiliary, head_dim, output_stride"),
        ({"head_options": {"head_dim": 0}}, "head_dim=0: expected 1 or more"),
        ({"head_options": {"head_dim": "wide"}}, "head_options has 'head_dim' = 'wide'"),
        ({"head_options": {"auxiliary": 3}}, "head_options has 'auxiliary' = 3"),
    ],
)
def test_a_card_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    card = ModelCard(**{**{name: getattr(CARD, name) for name in CARD.__dataclass_fields__}, **changes})
    with pytest.raises(WeightsError, match=message):
        build_network(card)


@pytest.mark.parametrize("palette", [[[0, 0, 0]], [[0, 0, 0], [0, 0, 0], [0, 0, 256]]])
def test_a_palette_has_a_colour_for_each_class(palette: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="palette is"):
        ModelCard.from_dict({**CARD.as_dict(), "palette": palette})
    assert ModelCard.from_dict(CARD.as_dict()) == CARD


def test_more_classes_than_a_pixel_has_numbers() -> None:
    with pytest.raises(ConfigError, match="257 classes; a pixel names one of 256 at most"):
        asked(num_classes=257, class_names=(), palette=()).check()


def test_in_windows_and_views_a_pixel_keeps_its_class(picture: Image.Image) -> None:
    predictor, expected = asked(), row_of(asked(), picture)[LABELS]
    predictor.look_closely(48, tta=False)
    assert predictor.how.endswith("in windows of 48 px")
    assert np.array_equal(row_of(predictor, picture)[LABELS], expected)
    predictor.look_closely(None, tta=True)
    assert predictor.how.endswith("in windows of 48 px, averaged over 12 views")
    assert (row_of(predictor, picture)[LABELS] == expected).mean() > 0.97  # but for edges
