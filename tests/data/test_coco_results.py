from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as reference_mask
from pycocotools.coco import COCO as Reference  # noqa: N811

from mobilemamba.data.coco_masks import pack, unpack
from mobilemamba.data.coco_results import read_results, result_rows, write_results
from mobilemamba.errors import DataError
from tests.data.coco_files import write


def test_results_are_read_back_by_cocos_own_code(tmp_path: Path) -> None:
    masks = torch.rand(2, 48, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    found = {
        "boxes": torch.tensor([[1.0, 2, 11, 22], [0.5, 0, 64, 48]]),
        "labels": torch.tensor([1, 0]),
        "scores": torch.tensor([0.75, 0.25]),
        "masks": masks,
    }
    file = tmp_path / "results.json"
    write_results(file, result_rows(1, found, (3, 7)))
    rows = Reference(str(write(tmp_path))).loadRes(str(file)).dataset["annotations"]
    assert [(row["image_id"], row["category_id"], row["score"]) for row in rows] == [(1, 7, 0.75), (1, 3, 0.25)]
    assert rows[0]["bbox"] == [1, 2, 10, 20]
    for row, mask in zip(rows, masks, strict=True):
        assert np.array_equal(reference_mask.decode(row["segmentation"]).astype(bool), mask.numpy())
    again = read_results(file)
    assert [row["bbox"] for row in again] == [[1, 2, 10, 20], [0.5, 0, 63.5, 48]]
    for row, mask in zip(again, masks, strict=True):
        assert np.array_equal(unpack(pack(row["segmentation"]), 48, 64), mask.numpy())


def test_nothing_found_is_a_list(tmp_path: Path) -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    write_results(tmp_path / "results.json", result_rows(1, nothing, (3, 7)))
    assert read_results(tmp_path / "results.json") == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "no list of results"),
        ("[1", "no complete JSON"),
        ('[{"image_id": 1, "score": 1}]', "row 0 lacks category"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match=why):
        read_results(tmp_path / "results.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path / "none.json")
