import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mobilemamba.data import YOLOFolder
from mobilemamba.data.objects import ObjectSet
from mobilemamba.errors import DataError

YAML = "path: ../elsewhere\ntrain: images/train\nval: images/val\nnames: {0: cat, 1: dog}\n"


def folder(root: Path, text: str = "1 0.5 0.5 0.25 0.5\n", description: str = YAML, layout: str = "{1}/{0}") -> Path:
    """Two pictures a part, of which one has no text."""
    root.mkdir(exist_ok=True)
    (root / "data.yaml").write_text(description)
    for part in ("train", "val"):
        images, labels = (root / layout.format(part, kind) for kind in ("images", "labels"))
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for name in "ab":
            Image.new("RGB", (80, 40)).save(images / f"{name}.png")
        (labels / "a.txt").write_text(text)
    return root


def ready(root: Path, **options: Any) -> YOLOFolder:
    data = YOLOFolder(str(root), num_workers=0, img_size=(40, 80), **options)
    data.setup()
    return data


ROBOFLOW = "train: ../train/images\nval: ../val/images\nnames: [cat, dog]\nnc: 2\n"


@pytest.mark.parametrize(("layout", "description"), [("{1}/{0}", YAML), ("{0}/{1}", ROBOFLOW)])
def test_boxes_are_shares_of_the_picture(tmp_path: Path, layout: str, description: str) -> None:
    data = ready(folder(tmp_path / "pets", description=description, layout=layout))
    assert data.name == "pets (1/2)"
    assert data.class_names == ("cat", "dog")
    (_, (first,)), (_, (second,)) = data.val_dataloader()
    assert first["boxes"].tolist() == [[30, 10, 50, 30]]
    assert first["labels"].tolist() == [1]
    assert first["area"].tolist() == [400]
    assert len(second["boxes"]) == 0


@pytest.mark.parametrize(("upright", "box"), [(True, [15, 20, 25, 60]), (False, [30, 10, 50, 30])])
def test_boxes_are_shares_of_the_picture_as_its_exif_turns_it(tmp_path: Path, upright: bool, box: list[int]) -> None:
    root = folder(tmp_path / "pets")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (80, 40)).save(root / "images/val/a.png", exif=turned)
    data = ready(root, upright=upright)
    assert isinstance(data.val_set, ObjectSet)
    image, target = data.val_set[0]
    assert image.shape[1:] == ((80, 40) if upright else (40, 80))
    assert target["boxes"].tolist() == [box]


def test_polygons_are_masks(tmp_path: Path) -> None:
    data = ready(folder(tmp_path / "pets", "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n"), masks=True)
    assert isinstance(data.val_set, ObjectSet)
    _, target = data.val_set[0]
    assert target["boxes"].tolist() == [[20, 10, 60, 30]]
    assert target["masks"].sum() == 40 * 20
    with pytest.raises(DataError, match=r"a\.txt, line 1, has a box and no corners of a mask; data\.masks=false"):
        ready(folder(tmp_path / "boxes"), masks=True)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1 0.5 0.5 0.2\n", "expected 5 numbers"),
        ("1 0.5 0.5 0.2 nan\n", "expected 5 numbers"),
        ("1 0.5 0.5 0.2 0.2 0.3\n", "expected 5 numbers"),
        ("dog 0.5 0.5 0.2 0.2\n", "expected 5 numbers"),
        ("2 0.5 0.5 0.2 0.2\n", "has the class 2: expected 0 to 1"),
        ("-1 0.5 0.5 0.2 0.2\n", "has the class -1"),
        ("0.5 0.5 0.5 0.2 0.2\n", r"has the class 0\.5"),
        ("1 0.5 0.5 -0.2 0.2\n", "without width or height"),
        ("1 0.5 0.5 0 0.2\n", r"without width or height, 0\.5 0\.5 0 0\.2"),
        ("1 0.5 0.1 0.5 0.2 0.5 0.9\n", "without width or height"),
        ("1 1.004 0.5 0.002 0.2\n", "reaches out of its picture"),
        ("1 40 20 20 20\n", "reaches out of its picture"),
    ],
)
def test_lines_that_cannot_be_are_refused_or_counted(tmp_path: Path, text: str, why: str) -> None:
    root = folder(tmp_path / "pets", "\n0 0.5 0.5 0.1 0.1\n \n" + text)  # blank lines are no objects
    with pytest.raises(DataError, match=rf"^{re.escape(str(root))}/labels/train/a\.txt, line 4, [^/]*{why}"):
        ready(root)
    data = ready(root, on_error="skip")
    assert "1 entry left out" in data.notes[0]
    assert isinstance(data.train_set, ObjectSet)
    assert len(data.train_set[0][1]["labels"]) == 1


def test_a_box_over_the_edge_is_cut_off_if_faults_are_skipped(tmp_path: Path) -> None:
    data = ready(folder(tmp_path / "pets", "0 1.0 0.5 0.5 0.5\n"), on_error="skip")
    assert isinstance(data.val_set, ObjectSet)
    assert data.val_set[0][1]["boxes"].tolist() == [[60, 10, 80, 30]]


@pytest.mark.parametrize(
    ("description", "why"),
    [
        ("train: images/train\n", "has no names"),
        ("names: [a, a]\n", "'a' twice"),
        ("names: {1: a, 2: b}\n", "number them from 0"),
        ("names: [a, b]\nnc: 3\n", "has nc 3, but 2 names"),
        ("names: [a\n", "is no YAML"),
        ("names: [a, b]\ntrain: [x, y]\n", "no folder as train"),
        ("names: [a, b]\ntrain: data.yaml\n", "no folder as train, but data.yaml"),
    ],
)
def test_descriptions_that_cannot_be_are_refused(tmp_path: Path, description: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        ready(folder(tmp_path / "pets", description=description))


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.yaml cannot be read"):
        ready(tmp_path)
    root = folder(tmp_path / "pets")
    (root / "labels").rename(root / "texts")
    with pytest.raises(DataError, match="put there a text for each picture"):
        ready(root)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "data.yaml").write_text("names: [a, b]\n")
    with pytest.raises(DataError, match="has no pictures in images/train/"):
        ready(tmp_path / "none")
