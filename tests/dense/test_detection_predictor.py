"""What a detector says of pictures: objects in the pixels of the picture as it was read, drawings, COCO's results."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO as Reference  # noqa: N811
from torch import Tensor

from mobilemamba.data.coco_masks import mask_library
from mobilemamba.dense.detection_predictor import RESULTS_FILE, DetectionPredictor
from mobilemamba.errors import ConfigError
from mobilemamba.models import ModelCard, Preprocessing
from mobilemamba.models.predictor import MASKS


class Reddish(torch.nn.Module):
    """Finds the red pixels' box in pictures, and a fainter one that is the whole; and masks of all of both."""

    def __init__(self, *, masks: bool) -> None:
        super().__init__()
        self.masks = masks
        self.seen: list[tuple[int, ...]] = []

    def detect(self, images: Tensor, sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
        self.seen.append(tuple(images.shape))
        found = []
        for image, (height, width) in zip(images, sizes, strict=True):
            y, x = ((image[0] > 0.5) & (image[1] < 0.5)).nonzero().T
            box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            boxes = torch.tensor([box, [0, 0, width, height]], dtype=torch.float32)
            of_picture = {"boxes": boxes, "scores": torch.tensor([0.9, 0.2]), "labels": torch.tensor([1, 0])}
            found.append(of_picture | ({"masks": torch.ones(2, 28, 28)} if self.masks else {}))
        return found


def asked(*, masks: bool = False, resize: str = "stretch", size: tuple[int, int] = (50, 50)) -> DetectionPredictor:
    card = ModelCard(
        "mobilemamba_b1",
        Preprocessing(size, (0.0,) * 3, (1.0,) * 3, "bilinear", resize=resize),  # type: ignore[arg-type]
        num_classes=2,
        class_names=("all", "red one"),
        task="detection",
        head="mask_rcnn" if masks else "retinanet",
        category_ids=(7, 13),
    )
    return DetectionPredictor(Reddish(masks=masks), card, torch.device("cpu"))


@pytest.fixture
def picture() -> Image.Image:
    """100 x 200, its red part at (20, 40) to (60, 120)."""
    picture = Image.new("RGB", (100, 200), "black")
    picture.paste("red", (20, 40, 60, 120))
    return picture


def row_of(predictor: DetectionPredictor, picture: Image.Image) -> dict[str, Any]:
    (row,) = predictor.rows(predictor.forward(predictor.prepare(picture)[None]), [(picture.height, picture.width)])
    return row


def test_boxes_are_of_the_picture_as_it_was_read(picture: Image.Image) -> None:
    predictor = asked()
    row = row_of(predictor, picture)
    assert row == {"objects": [{"index": 1, "name": "red one", "score": 0.9, "box": [20.0, 40.0, 60.0, 120.0]}]}
    assert predictor.network.seen == [(1, 3, 50, 50)]
    assert predictor.lines(row) == [[1, 1, "red one", 0.9, "20.0", "40.0", "60.0", "120.0"]]
    predictor.least_score = 0.1
    assert [entry["score"] for entry in row_of(predictor, picture)["objects"]] == [0.9, 0.2]
    predictor.topk = 1
    assert len(row_of(predictor, picture)["objects"]) == 1


def test_pictures_that_keep_their_shape_are_padded_as_in_validation(picture: Image.Image) -> None:
    """Whatever the network, as no ssdlite needs it."""
    predictor = asked(resize="fit", size=(50, 80))
    row = row_of(predictor, picture)
    assert predictor.network.seen == [(1, 3, 96, 64)]  # 80 x 40, up to multiples of 32
    assert row["objects"][0]["box"] == pytest.approx([20, 40, 60, 120], abs=2.5)


def test_masks_are_drawn_and_written_as_coco_s_runs(picture: Image.Image) -> None:
    predictor = asked(masks=True)
    predictor.check()
    row = row_of(predictor, picture)
    expected = np.zeros((200, 100), bool)
    expected[40:120, 20:60] = True
    assert np.array_equal(row[MASKS][0], expected)
    assert np.array_equal(mask_library().decode(row["objects"][0]["mask"]), expected)
    drawn, plain = (np.asarray(predictor.draw(picture, found)) for found in (row, {"objects": []}))
    assert plain.shape == (3 * 200, 3 * 100, 3), "enlarged, so that names hide less of it"
    assert np.array_equal(plain[::3, ::3], np.asarray(picture.resize((300, 600), Image.Resampling.BILINEAR))[::3, ::3])
    changed = (drawn != plain).any(2)
    assert changed[180:354, 66:174].all()
    assert not changed[390:].any()
    large = picture.resize((400, 800))
    assert predictor.draw(large, {"objects": []}).size == large.size


def test_masks_need_the_library_that_writes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval.core", None)
    asked().check()
    with pytest.raises(ConfigError, match=r"masks .* need faster-coco-eval"):
        asked(masks=True).check()


def test_results_are_coco_s(picture: Image.Image, tmp_path: Path) -> None:
    predictor = asked(masks=True)
    row = {name: value for name, value in row_of(predictor, picture).items() if name != MASKS}
    files = predictor.results([("a/000000000139.jpg", row), ("b/street.jpg", row)])
    rows = json.loads(files[RESULTS_FILE])
    assert [row["image_id"] for row in rows] == [139, 2]
    assert rows[0]["bbox"] == [20.0, 40.0, 40.0, 80.0]
    assert rows[0]["category_id"] == 13
    assert rows[0]["segmentation"]["size"] == [200, 100]
    reference = Reference()
    images = [{"id": number, "height": 200, "width": 100} for number in (139, 2)]
    reference.dataset = {"images": images, "annotations": [], "categories": []}
    reference.createIndex()
    (tmp_path / RESULTS_FILE).write_text(files[RESULTS_FILE])
    read = reference.loadRes(str(tmp_path / RESULTS_FILE))
    assert [row["bbox"] for row in read.dataset["annotations"]] == [row["bbox"] for row in rows]
    assert read.annToMask(read.anns[1]).sum() == 40 * 80
    ids = {
        ("a/1.jpg", "b/1.jpg"): [1, 2],
        ("2.jpg", "street.jpg", "7.jpg"): [1, 2, 3],
        ("7.jpg", "street.jpg", "9.jpg"): [7, 2, 9],
    }
    for paths, expected in ids.items():  # no picture gets the objects of another
        rows = json.loads(predictor.results([(path, row) for path in paths])[RESULTS_FILE])
        assert [row["image_id"] for row in rows] == expected
    unreadable = [("x.jpg", row), ("y.jpg", {"error": "of no known picture format"}), ("z.jpg", row)]
    assert [row["image_id"] for row in json.loads(predictor.results(unreadable)[RESULTS_FILE])] == [1, 3]
    assert json.loads(predictor.results([("c.png", {"objects": []})])[RESULTS_FILE]) == []
