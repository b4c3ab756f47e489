"""COCO-style JSONs that cannot be true."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobilemamba.data import COCOFolder
from mobilemamba.data.coco_json import Faults, read_coco
from mobilemamba.data.objects import ObjectSet
from mobilemamba.errors import DataError
from tests.data.coco_files import content, write


def changed(key: str, number: int, **values: Any) -> dict[str, Any]:
    """The content with an entry of which some values are others, or gone if they are ``...``."""
    given = content()
    entry = {**given[key][number], **values}
    given[key][number] = {name: value for name, value in entry.items() if value is not ...}
    return given


ANNOTATIONS: list[tuple[dict[str, Any], str]] = [
    ({"bbox": [10, 10, -20, 10]}, "of negative width or height"),
    ({"bbox": [10, 10, float("nan"), 10]}, "expected left, top, width and height"),
    ({"bbox": [10, 10, float("inf"), 10]}, "expected left, top, width and height"),
    ({"bbox": [10, 10, 20]}, "expected left, top, width and height"),
    ({"bbox": None}, "expected left, top, width and height"),
    ({"bbox": [10, 10, [20], 10]}, "expected left, top, width and height"),
    ({"bbox": {"x": 1}}, "expected left, top, width and height"),
    ({"bbox": [5000, 10, 20, 10]}, r"reaches out of 1\.png of 64 x 48 pixels"),
    ({"bbox": [-50, 10, 20, 10]}, "reaches out of"),
    ({"bbox": ...}, "lacks one of image_id, category_id, bbox"),
    ({"image_id": 2}, "has the image_id 2, of no picture"),
    ({"image_id": "1"}, 'has the image_id "1", of no picture'),
    ({"image_id": 2**63}, "of no picture"),
    ({"category_id": 5}, "has the category_id 5, of no category"),
    ({"category_id": None}, "has the category_id null"),
    ({"area": -1}, "has the area -1"),
    ({"area": float("nan")}, "has the area NaN"),
    ({"iscrowd": 2}, "has the iscrowd 2"),
    ({"iscrowd": [1]}, r"has the iscrowd \[1\]"),
]
MASKS: list[tuple[dict[str, Any], str]] = [
    ({"segmentation": []}, r"its segmentation is empty; data\.masks=false"),
    ({"segmentation": ...}, "its segmentation is empty"),
    ({"segmentation": [[1, 2, 3, 4]]}, "polygon of 4 numbers"),
    ({"segmentation": [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4]]}, "polygon of 4 numbers"),
    ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "polygon of 7 numbers"),
    ({"segmentation": [[1, 2, 3, 4, 5, float("nan")]]}, "not finite"),
    ({"segmentation": [["a", 2, 3, 4, 5, 6]]}, "neither polygons nor runs"),
    ({"segmentation": 5}, "neither polygons nor runs"),
    ({"segmentation": {"size": [48, 64], "counts": [-5]}}, "neither polygons nor runs"),
    ({"segmentation": {"size": [48], "counts": [5]}}, "neither polygons nor runs"),
    ({"segmentation": {"counts": [5]}}, "neither polygons nor runs"),
]
IMAGES: list[tuple[dict[str, Any], str]] = [
    ({"id": "1"}, 'has no whole number as id, but "1"'),
    ({"id": 4}, "has the id of another"),
    ({"file_name": "4.png"}, "has the file_name of another"),
    ({"file_name": 7}, "has no file_name"),
    ({"file_name": "\ud83d.png"}, "has no file_name"),
    ({"height": 0}, "is of 64 x 0 pixels"),
    ({"width": ...}, "is of null x 48 pixels"),
    ({"file_name": "../9.png"}, r"images\[\d\], .*9\.png, does not exist \(1 of 3 pictures are missing\)"),
    ({"file_name": "no\u202e\n.png"}, "does not exist"),
]


@pytest.mark.parametrize(("values", "why"), ANNOTATIONS)
def test_annotations_are_refused_by_entry_or_left_out(tmp_path: Path, values: dict[str, Any], why: str) -> None:
    file = tmp_path / "train.json"
    file.write_text(json.dumps(changed("annotations", 1, **values)))
    with pytest.raises(DataError, match=rf"train\.json: annotations\[1\] .*{why}.*data\.on_error=skip"):
        read_coco(file, Faults(file, skip=False))
    faults = Faults(file, skip=True)
    objects = read_coco(file, faults).objects
    assert objects.entries.tolist() == [2, 3, 0]
    assert objects.starts.tolist() == [0, 1, 2, 3]
    (note,) = faults.notes
    assert note.startswith("train.json: 1 entry left out, the first is annotations[1]")


def test_each_kind_of_fault_has_its_note(tmp_path: Path) -> None:
    file, given = tmp_path / "train.json", changed("annotations", 1, category_id=5)
    for n, wrong in ((0, {"category_id": 6}), (2, {"bbox": [1, 1, -1, 1]})):
        given["annotations"][n] |= wrong
    file.write_text(json.dumps(given))
    faults = Faults(file, skip=True)
    assert read_coco(file, faults).objects.entries.tolist() == [3]
    assert [note[: note.index("]") + 1] for note in faults.notes] == [
        "train.json: 2 entries left out, the first is annotations[0]",
        "train.json: 1 entry left out, the first is annotations[2]",
    ]


@pytest.mark.parametrize(("values", "why"), MASKS)
def test_masks_are_refused_only_where_they_are_wanted(tmp_path: Path, values: dict[str, Any], why: str) -> None:
    file = tmp_path / "train.json"
    file.write_text(json.dumps(changed("annotations", 1, **values)))
    with pytest.raises(DataError, match=rf"annotations\[1\] has no mask: .*{why}"):
        read_coco(file, Faults(file, skip=False), masks=True)
    assert read_coco(file, Faults(file, skip=True), masks=True).objects.entries.tolist() == [2, 3, 0]
    assert len(read_coco(file, Faults(file, skip=False)).objects.entries) == 4


@pytest.mark.parametrize(("values", "why"), IMAGES)
def test_pictures_are_refused_by_entry_or_left_out(tmp_path: Path, values: dict[str, Any], why: str) -> None:
    write(tmp_path, **changed("images", 0, **values))
    data = COCOFolder(str(tmp_path), num_workers=0)
    with pytest.raises(DataError, match=why):
        data.setup()
    data = COCOFolder(str(tmp_path), num_workers=0, on_error="skip")
    assert sum(len(part) for part in data.parts.values()) == 2
    assert any("left out, the first is images[" in note for note in data.notes)


def test_a_box_over_the_edge_is_cut_off_if_faults_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_text(json.dumps(changed("annotations", 1, bbox=[40, 10, 100, 10])))
    with pytest.raises(DataError, match="reaches out of"):
        read_coco(file, Faults(file, skip=False))
    faults = Faults(file, skip=True)
    assert read_coco(file, faults).objects.boxes[0].tolist() == [40, 10, 64, 20]
    assert "1 entry cut off at the edge of their picture" in faults.notes[0]
    assert read_coco(file, Faults(file, skip=False), overhang=76).objects.boxes[0].tolist() == [40, 10, 140, 20]
    whole = read_coco(file, Faults(file, skip=False), overhang=np.inf).objects
    assert whole.boxes[0].tolist() == [40, 10, 140, 20]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no complete JSON"),
        ('{"images": [', "no complete JSON"),
        ("[" * 100_000, "no complete JSON"),
        ('[{"image_id": 1}]', "no list 'images'.*seems to be results"),
        ('{"images": [], "annotations": {}, "categories": []}', "no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": "1", "name": "a"}]}',
            r"categories\[0\] has no whole",
        ),
        ('{"images": [], "annotations": [], "categories": [7]}', r"categories\[0\] has no whole"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}',
            r"categories\[1\] has the id 2 and the name a, one of which another has",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "train.json"
    file.write_text(text)
    with pytest.raises(DataError, match=why):
        read_coco(file, Faults(file, skip=True))
    with pytest.raises(DataError, match="cannot be read"):
        read_coco(tmp_path / "none.json", Faults(file, skip=True))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"images": []}, "has the image_id 9, of no picture"),
        (
            {"annotations": [{**entry, "bbox": [1, 2, 3, 4, 0.5]} for entry in content()["annotations"]]},
            "expected left",
        ),
    ],
    ids=["no pictures", "boxes of five numbers"],
)
def test_what_is_wrong_with_all_entries(tmp_path: Path, given: dict[str, Any], why: str) -> None:
    file = tmp_path / "train.json"
    file.write_text(json.dumps({**content(), **given}))
    with pytest.raises(DataError, match=rf"annotations\[0\] .*{why}"):
        read_coco(file, Faults(file, skip=False))
    assert not len(read_coco(file, Faults(file, skip=True)).objects.entries)


def test_no_annotations_at_all(tmp_path: Path) -> None:
    write(tmp_path, annotations=[])
    data = COCOFolder(str(tmp_path), num_workers=0)
    with pytest.raises(DataError, match="no training pictures with boxes"):
        data.setup()


@pytest.mark.parametrize(
    ("segmentation", "why"),
    [
        ({"size": [48, 64], "counts": [4, 4_000_000_000]}, "in runs of 4,000,000,004"),
        ({"size": [10, 10], "counts": [100]}, "is of 10 x 10 pixels"),
        ({"size": [48, 64], "counts": "zzzz"}, "segmentation"),
        ({"size": [48, 64], "counts": "o" * 1000}, "no packed numbers"),
    ],
)
def test_runs_that_do_not_fit_their_picture_are_told_of_with_it(
    tmp_path: Path, segmentation: dict[str, Any], why: str
) -> None:
    write(tmp_path, **changed("annotations", 1, segmentation=segmentation))
    data = COCOFolder(str(tmp_path), num_workers=0, masks=True, val_fraction=0.1)
    data.setup()
    assert isinstance(data.train_set, ObjectSet)
    with pytest.raises(DataError, match=rf"1\.png cannot be used \(annotations\[1\]: .*{why}"):
        data.train_set[0]


def test_polygons_far_outside_take_no_memory(tmp_path: Path) -> None:
    write(tmp_path, **changed("annotations", 1, segmentation=[[1e9, 2, 3, 4, 5, 6e300]]))
    data = COCOFolder(str(tmp_path), num_workers=0, masks=True)
    data.setup()
    assert isinstance(data.train_set, ObjectSet)
    assert data.train_set[0][1]["masks"].shape[1:] == data.train_set[0][0].shape[1:]


def test_a_picture_of_another_size_is_refused_and_its_turn_named(tmp_path: Path) -> None:
    write(tmp_path, **changed("images", 0, width=48, height=64))
    for on_error in ("stop", "skip"):
        data = COCOFolder(str(tmp_path), num_workers=0, on_error=on_error, img_size=32, resize="stretch")  # type: ignore[arg-type]
        write(tmp_path, "val", **changed("images", 0, width=48, height=64))
        data.setup()
        if on_error == "stop":
            with pytest.raises(
                DataError, match=r"1\.png .*64 x 48 pixels, but annotated as 48 x 64, turned; data\.upr"
            ):
                next(iter(data.val_dataloader()))
            continue
        with pytest.warns(UserWarning, match="is skipped"):
            assert sum(len(targets) for _, targets in data.val_dataloader()) == 2
