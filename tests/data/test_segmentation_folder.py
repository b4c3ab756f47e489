import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobilemamba.data import SegmentationFolder
from mobilemamba.data.sampling import EvaluationSampler
from mobilemamba.data.segmentation_transforms import SegmentationAugmentation
from mobilemamba.errors import ConfigError, DataError


def add_pair(
    root: Path, name: str, part: str = "", size: tuple[int, int] = (20, 16), mask_size: tuple[int, int] | None = None
) -> None:
    """A picture, width before height, whose left half is of class 0 and its right half of class 1."""
    width, height = mask_size or size
    labels = np.zeros((height, width), np.uint8)
    labels[:, width // 2 :] = 1
    for kind, picture in (("images", Image.new("RGB", size, (90, 40, 10))), ("masks", Image.fromarray(labels))):
        folder = root / kind / part
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(folder / f"{name}.{'jpg' if kind == 'images' else 'png'}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "classes.txt").write_text("left\nright\n")
    for number in range(10):
        add_pair(tmp_path, f"{number}", size=(20 + number, 16))
    return tmp_path


def ready(root: Path, **options: Any) -> SegmentationFolder:
    data = SegmentationFolder(str(root), **{"img_size": 16, "num_workers": 0, "batch_size": 2, **options})
    data.setup()
    return data


def test_a_share_of_a_flat_folder_is_held_out(folder: Path) -> None:
    data = ready(folder, val_fraction=0.3)
    assert data.class_names == ("left", "right")
    assert data.name == f"{folder.name} (7/3)"
    assert [Path(picture).stem for picture, _ in data.pairs.val] == ["1", "5", "8"]
    assert len({picture for part in data.pairs for picture, _ in part}) == 10
    assert len(data.palette) == 2


def test_batches(folder: Path) -> None:
    data = ready(folder)
    images, masks = next(iter(data.train_dataloader()))
    assert images.shape == (2, 3, 16, 16)
    assert masks.shape == (2, 16, 16)
    val = list(data.val_dataloader())
    assert [tuple(images.shape) for images, _ in val] == [(1, 3, 16, 22), (1, 3, 16, 27)]
    assert [tuple(masks.shape) for _, masks in val] == [(1, 16, 22), (1, 16, 27)]
    data = ready(folder, img_size=32)
    assert [tuple(part.shape[-2:]) for part in next(iter(data.val_dataloader()))] == [(32, 44), (16, 22)]


def test_a_repeat_that_fills_up_the_processes_shares_does_not_count(folder: Path) -> None:
    data = ready(folder, val_fraction=0.3)
    loader = data.val_dataloader()
    loader.batch_sampler.sampler = EvaluationSampler(3, rank=1, ranks=2)  # type: ignore[union-attr]
    (_, second), (_, repeat) = loader
    assert second.unique().tolist() == [0, 1]
    assert (repeat == 255).all()


def test_training_pictures_depend_on_seed_and_key_alone(folder: Path) -> None:
    first, second, other = ready(folder), ready(folder), ready(folder, seed=1)
    key = 3 + 8
    second.train_set[0]  # type: ignore[index]
    for a, b in zip(first.train_set[key], second.train_set[key], strict=True):  # type: ignore[index]
        assert torch.equal(a, b)
    assert not torch.equal(first.train_set[key][0], other.train_set[key][0])  # type: ignore[index]
    assert not torch.equal(first.train_set[key][0], first.train_set[3][0])  # type: ignore[index]


def test_sets_reach_worker_processes_however_these_start(folder: Path) -> None:
    data = ready(folder)
    for part in (data.train_set, data.val_set):
        again = pickle.loads(pickle.dumps(part))
        assert all(torch.equal(a, b) for a, b in zip(again[1], part[1], strict=True))  # type: ignore[index]


@pytest.mark.parametrize("within", [False, True])
def test_parts(tmp_path: Path, within: bool) -> None:
    (tmp_path / "classes.txt").write_text("left\nright\n")
    for part, number in (("training", 3), ("val", 2), ("test", 1)):
        for name in range(number):
            add_pair(tmp_path / part if within else tmp_path, f"{name}", "" if within else part)
    data = ready(tmp_path)
    assert [len(part) for part in data.pairs] == [3, 2, 1]
    assert len(data.test_dataloader()) == 1
    assert data.name.endswith("(3/2/1)")


def test_training_part_alone_and_validation_part_alone(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("left\nright\n")
    for number in range(5):
        add_pair(tmp_path / "a", f"{number}", "train")
        add_pair(tmp_path / "b", f"{number}", "val")
    classes = str(tmp_path / "classes.txt")
    assert [len(part) for part in ready(tmp_path / "a", class_list=classes).pairs] == [4, 1, 0]
    data = ready(tmp_path / "b", class_list=classes)
    assert [len(part) for part in data.pairs] == [0, 5, 0]
    with pytest.raises(DataError, match=r"has no training pictures: put them into .*images/train"):
        data.train_dataloader()


def test_what_is_not_used_is_told(folder: Path) -> None:
    Image.new("L", (4, 4)).save(folder / "masks" / "spare.png")
    (folder / "images" / "notes.txt").write_text("")
    data = ready(folder)
    assert any("1 mask in" in note and "without a picture (spare)" in note for note in data.notes)
    assert any("1 file (1 .txt)" in note for note in data.notes)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: (root / "masks" / "3.png").unlink(), r"1 of 10 pictures have no mask, the first is .*3\.jpg"),
        (lambda root: (root / "masks").rename(root / "labels"), r"has no folder masks/"),
        (lambda root: (root / "classes.txt").unlink(), r"classes\.txt cannot be read"),
        (lambda root: (root / "images" / "val").mkdir(), r"masks/val does not exist"),
        (lambda root: (root / "masks" / "val").mkdir(), r"images/val does not exist"),
        (lambda root: [(root / "images" / part).mkdir() for part in ("trn", "tst")], r"trn, .*tst look like parts"),
        (lambda root: Image.new("L", (4, 4)).save(root / "masks" / "3.tif"), r"has the name of another mask"),
    ],
)
def test_folders_that_do_not_fit_are_refused(folder: Path, break_it: Any, message: str) -> None:
    break_it(folder)
    with pytest.raises(DataError, match=message):
        ready(folder)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("left\nright\n")
    with pytest.raises(DataError, match=r"is not a folder: give one that holds images/ and masks/"):
        ready(tmp_path / "none", class_list=str(tmp_path / "classes.txt"))


def save_mask(root: Path, labels: np.ndarray) -> None:
    Image.fromarray(labels).save(root / "masks" / "1.png")


def truncate(path: Path, by: int) -> None:
    path.write_bytes(path.read_bytes()[:-by])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda root: save_mask(root, np.zeros((16, 40), np.uint8)),
            r"40 x 16 pixels for a picture of 21 x 16\b(?!, turned)",
        ),
        (lambda root: save_mask(root, np.full((16, 21), 7, np.uint8)), "value 7 is of none of the 2 classes"),
        (lambda root: save_mask(root, np.full((16, 21), 700, np.uint16)), "value 700 is of none"),
        (lambda root: save_mask(root, np.full((16, 21), 255, np.uint8)), "ignored pixels alone"),
        (lambda root: truncate(root / "masks" / "1.png", 25), "(truncated|broken PNG)"),
        (lambda root: (root / "masks" / "1.png").write_bytes(b""), "an empty file"),
    ],
)
def test_masks_that_do_not_fit_are_refused_or_skipped_by_name(folder: Path, break_it: Any, message: str) -> None:
    break_it(folder)
    with pytest.raises(
        DataError, match=rf"images/1\.jpg cannot be used \(its mask .*masks/1\.png: .*{message}.*mend it"
    ):
        list(ready(folder).train_dataloader())
    data = ready(folder, on_error="skip", batch_size=4)
    with pytest.warns(UserWarning, match=r"images/1\.jpg cannot be read \(its mask"):
        assert sum(len(images) for images, _ in data.train_dataloader()) == 7
    assert [Path(name).name for name in data.skipped] == ["1.jpg"]


def test_unreadable_pictures_are_refused_by_name(folder: Path) -> None:
    truncate(folder / "images" / "1.jpg", 300)
    with pytest.raises(DataError, match=r"images/1\.jpg cannot be used \("):
        list(ready(folder).train_dataloader())


def test_pictures_that_their_exif_turns(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("left\nright\n")
    for number in range(3):
        add_pair(tmp_path, f"{number}")
        turned = Image.Exif()
        turned[0x0112] = 6
        Image.new("RGB", (20, 16)).save(tmp_path / "images" / f"{number}.jpg", exif=turned)
    with pytest.raises(DataError, match=r"for a picture of 16 x 20, turned; data\.upright=false leaves"):
        next(iter(ready(tmp_path).val_dataloader()))
    _, mask = next(iter(ready(tmp_path, upright=False).val_dataloader()))
    assert mask.shape == (1, 16, 20)


def test_black_and_white_masks_are_not_taken_for_background_alone(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) * np.uint8(255)).save(path)
    with pytest.raises(DataError, match=r"0 and 255 alone.*data\.ignore=null and colours.*'right 255 255 255'"):
        ready(folder)
    (folder / "classes.txt").write_text("left 0 0 0\nright 255 255 255")
    data = ready(folder)
    assert next(iter(data.val_dataloader()))[1].unique().tolist() == [0, 1]
    assert data.palette == ((0, 0, 0), (255, 255, 255))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore": -1}, r"data\.ignore -1 is impossible"),
        ({"val_fraction": 1.0}, r"data\.val_fraction 1\.0 is impossible"),
        ({"augmentation": SegmentationAugmentation(scale=(2, 1))}, r"augmentation\.scale \[2, 1\] is impossible"),
        ({"augmentation": SegmentationAugmentation(max_share=0)}, r"augmentation\.max_share 0 is impossible"),
    ],
)
def test_bad_arguments_are_refused(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ready(folder, **options)
