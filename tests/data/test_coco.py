"""COCO's own files, and others in its format."""

import json
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import coco as reference_coco
from torch import Tensor

from mobilemamba.data import COCO, COCOFolder
from mobilemamba.data.detection_transforms import DetectionAugmentation, eval_transform
from mobilemamba.data.objects import ObjectSet
from mobilemamba.data.pictures import read_picture
from mobilemamba.errors import ConfigError, DataError
from mobilemamba.models import ModelCard, Preprocessing
from mobilemamba.models.checkpoints import build_network
from mobilemamba.models.predictor import predictor_of
from mobilemamba.training.loaders import pictures_used
from tests.data.coco_files import content, write


@pytest.fixture(scope="module")
def mini(shared: Path) -> Path:
    return shared / "data" / "coco_mini"


def ready(root: Path, kind: type[COCOFolder] = COCOFolder, **options: Any) -> COCOFolder:
    data = kind(str(root), num_workers=0, **options)
    data.setup()
    return data


def test_classes_are_known_without_the_set(mini: Path) -> None:
    data = COCO("anywhere")
    stored = json.loads((mini / "annotations" / "instances_val2017.json").read_text())["categories"]
    stored.sort(key=lambda category: category["id"])
    assert data.class_names == tuple(category["name"] for category in stored)
    assert data.category_ids == tuple(category["id"] for category in stored)
    assert len(data.class_names) == len(set(data.palette)) == 80
    assert not data.preprocessing["antialias"]
    assert (data.image_hw, COCO("anywhere", img_size=600).image_hw) == ((800, 1333), (600, 1000))


def test_validation_has_all_that_the_reference_reads(mini: Path) -> None:
    data = ready(mini, COCO, masks=True, img_size=100, batch_size=3)
    reference = reference_coco.COCO(str(mini / "annotations" / "instances_val2017.json"))
    seen = []
    for images, targets in data.val_dataloader():
        assert images.shape[2] % 32 == images.shape[3] % 32 == 0
        for image, target in zip(images, targets, strict=True):
            number = int(target["image_id"])
            known = reference.imgs[number]
            rows = reference.imgToAnns[number]
            seen.append(number)
            assert target["original_size"].tolist() == [known["height"], known["width"]]
            height, width = target["size"].tolist()
            assert min(height, width) == 100
            assert not image[:, height:].any()
            assert not image[:, :, width:].any()
            assert image[:, height - 1, width - 1].any()
            scale = torch.tensor([width / known["width"], height / known["height"]] * 2)
            boxes = torch.tensor([row["bbox"] for row in rows])
            boxes[:, 2:] += boxes[:, :2]
            torch.testing.assert_close(target["boxes"], boxes * scale)
            assert [data.category_ids[label] for label in target["labels"]] == [row["category_id"] for row in rows]
            assert target["iscrowd"].tolist() == [bool(row["iscrowd"]) for row in rows]
            assert target["area"].tolist() == pytest.approx([row["area"] for row in rows])
            assert target["counted"]
            for mask, row in zip(target["masks"], rows, strict=True):
                assert np.array_equal(mask.numpy(), reference.annToMask(row).astype(bool))
    assert seen == list(reference.imgs)


def test_the_card_says_how_pictures_are_prepared(mini: Path) -> None:
    data = ready(mini, COCO, img_size=(90, 70))
    assert isinstance(data.val_set, ObjectSet)
    how = asdict(Preprocessing(**data.preprocessing))
    del how["upright"], how["crop_pct"]
    prepared = eval_transform(**how)(read_picture(data.val_set.name(1)))
    assert prepared.shape == (3, 68, 90)
    assert torch.equal(prepared, data.val_set[1][0])


def test_training_leaves_out_empty_pictures_and_crowds(mini: Path) -> None:
    data = ready(mini, COCO, img_size=64)
    assert data.name == "COCO (30/6)"
    assert any("2 of 32" in note for note in data.notes)
    targets = [target for _, targets in data.train_dataloader() for target in targets]
    assert not any(target["iscrowd"].any() for target in targets)
    stored = json.loads((mini / "annotations" / "instances_train2017.json").read_text())["annotations"]
    alone = [row for row in stored if not row["iscrowd"]]
    assert sum(len(target["boxes"]) for target in targets) == len(alone) < len(stored)


def test_training_is_a_function_of_seed_and_key(mini: Path) -> None:
    options = {"augmentation": DetectionAugmentation(expand=0.5, crop=True, hue=0.05, swap=0.5), "masks": True}
    first, again, other = (
        ready(mini, COCO, img_size=64, resize="stretch", seed=seed, **options).train_set for seed in (0, 0, 1)
    )
    assert isinstance(first, ObjectSet)
    for key in (3, 33):
        image, target = first[key]
        same, same_target = pickle.loads(pickle.dumps(again))[key]
        assert torch.equal(image, same)
        assert all(torch.equal(target[name], same_target[name]) for name in target)
    assert not torch.equal(first[3][0], first[33][0])
    assert other is not None
    assert not torch.equal(first[3][0], other[3][0])


def test_batches_of_an_epoch_are_wide_or_tall(mini: Path) -> None:
    data = ready(mini, COCO, img_size=64, batch_size=3)
    kinds = [{bool(t["size"][1] >= t["size"][0]) for t in targets} for _, targets in data.train_dataloader()]
    assert [len(kind) for kind in kinds[:-2]] == [1] * (len(kinds) - 2)
    assert {True, False} == set().union(*kinds)


@pytest.mark.parametrize("resize", ["fit", "stretch"])
def test_an_epoch_of_several_rounds_changes_pictures_in_each(tmp_path: Path, resize: str) -> None:
    write(tmp_path)
    write(tmp_path, "val")
    data = ready(tmp_path, resize=resize, img_size=(32, 64), batch_size=3, repeats=4)
    assert data.name == f"{tmp_path.name} (3/3)"
    assert sorted(data.train_sampler().keys(1)) == [*range(12, 24)]  # of the epochs 4 to 7 of the set itself
    loader = data.train_dataloader()
    assert sum(len(images) for images, _ in loader) == pictures_used(loader, 4, 1) == loader.state_dict()["pictures"]


def test_an_evaluation_sees_a_picture_as_predict_does(tmp_path: Path) -> None:
    """What is found in it must not depend on how much padding the pictures beside it would give it."""
    write(tmp_path)
    write(tmp_path, "val")
    for head in ("retinanet", "ssdlite"):
        data = ready(tmp_path, img_size=64, batch_size=3)
        how = Preprocessing(**data.preprocessing)
        card = ModelCard("test_resnet", how, 2, task="detection", head=head, head_options={"head_dim": 8})
        predictor = predictor_of(build_network(card), card, torch.device("cpu"))
        seen: list[Tensor] = []
        predictor.network.detect = lambda images, sizes, seen=seen: seen.append(images) or [{}]  # type: ignore[method-assign]
        assert isinstance(data.val_set, ObjectSet)
        for index, (images, _) in enumerate(data.val_dataloader()):
            predictor.forward(predictor.prepare(read_picture(data.val_set.name(index)))[None])
            assert torch.equal(images, seen[-1])
        assert len({images.shape for images in seen}) > 1
    stretched = ready(tmp_path, img_size=64, batch_size=3, resize="stretch")
    assert [len(images) for images, _ in stretched.val_dataloader()] == [3]


def test_labels_are_the_categories_by_their_ids(tmp_path: Path) -> None:
    thick = {
        "id": 5,
        "image_id": 4,
        "category_id": 7,
        "bbox": [5, 5, 1, 9],
        "segmentation": [[5, 5, 6, 5, 6, 14, 5, 14]],
    }
    flat = {**thick, "id": 6, "image_id": 9, "area": 0}
    write(tmp_path, annotations=[*content()["annotations"], thick, flat])
    write(tmp_path, "val")
    data = ready(tmp_path, img_size=32, masks=True)
    assert data.class_names == ("cat", "dog")
    assert data.category_ids == (3, 7)
    assert data.name == f"{tmp_path.name} (3/3)"
    targets = [target for _, (target,) in data.val_dataloader()]
    assert [target["labels"].tolist() for target in targets] == [[0, 1], [0], [1]]
    assert [target["area"].tolist() for target in targets] == [[99.5, 48.0], [4.5], [200.0]]
    assert targets[0]["masks"].sum((1, 2)).tolist() == [200, 48]
    assert isinstance(data.train_set, ObjectSet)
    objects = [data.train_set[n][1] for n in range(3)]
    # Of the picture with the crowd, the other object is left; a box thinner than a pixel or of no area is not learned.
    assert [target["labels"].tolist() for target in objects] == [[0], [1], [1]]


@pytest.mark.parametrize(
    ("files", "pictures"),
    [
        ({"train": "annotations/instances_train.json", "val": "annotations/instances_val.json"}, "images/{}"),
        ({"train": "annotations/train.json", "val": "annotations/val.json"}, "{}/images"),
        ({"train": "train/_annotations.coco.json", "val": "valid/_annotations.coco.json"}, "{}"),
        ({"train": "train2020.json", "val": "val2020.json"}, "{}2020"),
        ({"train": "train.json", "val": "val.json"}, "images"),
    ],
)
def test_usual_layouts_are_found(tmp_path: Path, files: dict[str, str], pictures: str) -> None:
    for part, file in files.items():
        written = write(tmp_path / "written", part)
        target = tmp_path / "root" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        written.rename(target)
        folder = tmp_path / "root" / pictures.format("valid" if "valid" in str(files) and part == "val" else part)
        folder.mkdir(parents=True, exist_ok=True)
        for picture in (tmp_path / "written" / part).iterdir():
            picture.rename(folder / picture.name)
    data = ready(tmp_path / "root", img_size=32)
    assert data.name == "root (3/3)"
    next(iter(data.val_dataloader()))


def test_a_single_file_is_shared(tmp_path: Path) -> None:
    write(tmp_path).rename(tmp_path / "boxes.json")
    (tmp_path / "train").rename(tmp_path / "images")
    assert ready(tmp_path, val_fraction=0.34).name == f"{tmp_path.name} (2/1)"
    alone = content(images=content()["images"][:1], annotations=content()["annotations"][1:2])
    (tmp_path / "boxes.json").write_text(json.dumps(alone))
    with pytest.raises(DataError, match="has no validation pictures"):
        ready(tmp_path).val_dataloader()
    assert len(ready(tmp_path).train_dataloader()) == 1
    (tmp_path / "boxes.json").rename(tmp_path / "boxes.txt")
    with pytest.raises(DataError, match=r"has no train\.json and val\.json"):
        ready(tmp_path)


def test_parts_with_other_categories_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    file = write(tmp_path, "val", categories=[{"id": 3, "name": "cat"}, {"id": 7, "name": "wolf"}])
    with pytest.raises(
        DataError, match=r"val\.json and .*train\.json disagree: category 7 is 'wolf' in the one and 'dog'"
    ):
        ready(tmp_path)
    rows = [row for row in content()["annotations"] if row["category_id"] == 7]
    file.write_text(json.dumps(content(categories=[{"id": 7, "name": "dog"}], annotations=rows)))
    data = ready(tmp_path, img_size=32)
    targets = [target for _, (target,) in data.val_dataloader()]
    assert [target["labels"].tolist() for target in targets] == [[1], [], [1]]


def test_pictures_for_the_test_alone(tmp_path: Path) -> None:
    write(tmp_path, "test")
    data = ready(tmp_path)
    assert len(data.test_set) == 3
    assert data.train_set is data.val_set is None


def test_arguments_that_cannot_work_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ConfigError, match=r"data\.augmentation\.sides \[40\] is for pictures that keep their shape"):
        ready(tmp_path, resize="stretch", augmentation=DetectionAugmentation(sides=(40,)))
    with pytest.raises(ConfigError, match=r"data\.augmentation\.expand 2 is impossible"):
        ready(tmp_path, augmentation=DetectionAugmentation(expand=2))
    with pytest.raises(DataError, match="names the part valid: give train, val or test"):
        ready(tmp_path, annotations={"valid": "train.json"})
    with pytest.raises(DataError, match=r"a\.json does not exist"):
        ready(tmp_path, annotations={"train": "a.json"})
