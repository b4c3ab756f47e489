import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

from mobilemamba.data import ImageFolder
from mobilemamba.data.classification_transforms import Augmentation
from mobilemamba.data.image_folder import _set_aside
from mobilemamba.errors import ConfigError, DataError


def paint(folder: Path, count: int, suffix: str = "png", mode: str = "RGB") -> None:
    """Write ``count`` different tiny pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng([i, len(folder.name)]).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i:03}.{suffix}")


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A set of 2 classes with 6 + 2 and 5 + 3 pictures."""
    folder = tmp_path / "pets"
    for part, cats, dogs in (("train", 6, 5), ("val", 2, 3)):
        paint(folder / part / "cat", cats)
        paint(folder / part / "dog", dogs, "jpg")
    return folder


def ready(root: Path, **arguments: Any) -> ImageFolder:
    data = ImageFolder(str(root), **{"img_size": 16, "batch_size": 4, "num_workers": 0, **arguments})
    data.setup()
    return data


def epoch_of(data: ImageFolder, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


def val_files(data: ImageFolder) -> list[str]:
    return list(data.val_set.source.paths)  # type: ignore[union-attr]


def test_what_it_offers_before_setup(pets: Path) -> None:
    data = ImageFolder(str(pets))
    assert data.class_names == ("cat", "dog")
    assert data.num_classes == 2
    assert data.name == "pets (11/5)"


def test_construction_reads_nothing() -> None:
    ImageFolder("no/such/folder", crop_pct=7)  # refused when it is used, with a message that is not wrapped


def test_preprocessing(pets: Path) -> None:
    assert ImageFolder(str(pets)).preprocessing == {
        "img_size": (224, 224),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "upright": True,
    }
    given: dict[str, Any] = {"img_size": (64, 96), "mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.3), "crop_pct": 1.0}
    given |= {"upright": False}
    assert ImageFolder(str(pets), interpolation="bilinear", **given).preprocessing == {
        **given,
        "interpolation": "bilinear",
    }
    # It concerns training alone.
    assert ImageFolder(str(pets), interpolation="random").preprocessing["interpolation"] == "bicubic"


@pytest.mark.parametrize("crop_pct", [None, 0.875, 1.0])
def test_validation_is_what_preprocessing_says(pets: Path, crop_pct: float | None) -> None:
    data = ready(pets, crop_pct=crop_pct, interpolation="bilinear", batch_size=5)
    transform = create_transform(16, mean=data.mean, std=data.std, interpolation="bilinear", crop_pct=crop_pct or 0.875)
    expected = torch.stack([transform(Image.open(path).convert("RGB")) for path in val_files(data)])
    assert torch.equal(next(iter(data.val_dataloader()))[0], expected)


@pytest.mark.parametrize("size", [16, (16, 31), 33])
def test_batches(pets: Path, size: int | tuple[int, int]) -> None:
    data = ready(pets, img_size=size)
    for loader, total in ((data.train_dataloader(), 11), (data.val_dataloader(), 5), (data.predict_dataloader(), 5)):
        batches = list(loader)
        assert sum(len(labels) for _, labels in batches) == total
        for images, labels in batches:
            assert images.shape[1:] == (3, *(size if isinstance(size, tuple) else (size, size)))
            assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_normalised(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (20, 20), (255, 0, 128)).save(tmp_path / "val" / name / "x.png")
    data = ready(tmp_path, mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.5))
    images, _ = next(iter(data.val_dataloader()))
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.tensor([1.0, -2.0, 128 / 255 * 2 - 1]))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode: str) -> None:
    for name in ("a", "b"):
        paint(tmp_path / name, 3, "tif" if mode == "CMYK" else "png", mode)
    for images, _ in ready(tmp_path).train_dataloader():
        assert images.shape[1:] == (3, 16, 16)


def test_class_folders_directly_in_root(tmp_path: Path) -> None:
    paint(tmp_path / "a", 10)
    paint(tmp_path / "b", 20)
    data = ready(tmp_path)
    assert data.name.endswith("(24/6)")
    assert data.class_names == ("a", "b")


def test_absent_val_is_split_off_the_same_way_each_time(pets: Path) -> None:
    for file in (pets / "val").rglob("*.*"):
        file.unlink()
    for name in ("cat", "dog", "."):
        (pets / "val" / name).rmdir()
    first, second = ready(pets, seed=0), ready(pets, seed=5)
    assert first.name == second.name == "pets (9/2)"
    assert val_files(first) == val_files(second)


@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=5),
    fraction=st.floats(0.01, 0.99),
)
def test_set_aside(counts: list[int], fraction: float) -> None:
    samples = [(f"{label}/{i}", label) for label, count in enumerate(counts) for i in range(count)]
    train, val = _set_aside(samples, fraction, len(counts))
    assert sorted(train + val) == sorted(samples)
    for label, count in enumerate(counts):
        chosen = sum(own == label for _, own in val)
        assert min(1, count - 1) <= chosen <= max(count - 1, 0)
        assert abs(chosen - count * fraction) <= 1


def test_hidden_folders_and_other_files_are_no_pictures(pets: Path) -> None:
    (pets / "train" / ".ipynb_checkpoints").mkdir()
    (pets / "train" / "cat" / "notes.txt").write_text("not a picture")
    (pets / "train" / "README.md").write_text("not a class")
    assert ready(pets).name == "pets (11/5)"


def test_a_class_without_validation_pictures_is_allowed(pets: Path) -> None:
    for file in (pets / "val" / "cat").iterdir():
        file.unlink()
    (pets / "val" / "cat").rmdir()
    data = ready(pets)
    assert torch.cat([labels for _, labels in data.val_dataloader()]).tolist() == [1, 1, 1]


def test_val_alone_can_be_validated_on_but_not_trained_on(tmp_path: Path) -> None:
    paint(tmp_path / "val" / "a", 2)
    paint(tmp_path / "val" / "b", 2)
    data = ready(tmp_path)
    assert data.num_classes == 2
    assert len(list(data.val_dataloader())) == 1
    with pytest.raises(DataError, match="train does not exist: put"):
        data.train_dataloader()


RANDOM = {
    "augmentation": Augmentation(auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.5),
    "interpolation": "random",
}


def test_same_seed_and_epoch_give_the_same_pictures_after_anything(pets: Path) -> None:
    walked = ready(pets, **RANDOM)
    epochs = [epoch_of(walked, epoch) for epoch in range(3)]
    torch.manual_seed(9)
    resumed = ready(pets, **RANDOM)
    for again, once in zip(epoch_of(resumed, 2), epochs[2], strict=True):
        assert torch.equal(again, once)
    assert not torch.equal(epochs[1][0], epochs[2][0])
    first, second = (walked.train_set[3 + epoch * len(walked.train_set)][0] for epoch in range(2))  # type: ignore[index, arg-type]
    assert not torch.equal(first, second), "the same picture"
    assert not torch.equal(epoch_of(ready(pets, seed=1, **RANDOM), 2)[0], epochs[2][0])


def test_workers_and_batches_change_no_picture(pets: Path) -> None:
    alone, _ = epoch_of(ready(pets, **RANDOM), 1)
    workers, _ = epoch_of(ready(pets, num_workers=2, batch_size=2, **RANDOM), 1)
    many, _ = epoch_of(ready(pets, batch_size=11, **RANDOM), 1)
    assert torch.equal(alone, many)
    assert torch.equal(workers, many[: len(workers)])


def test_persistent_workers_learn_of_the_new_epoch(pets: Path) -> None:
    loader = ready(pets, num_workers=1, batch_size=11, **RANDOM).train_dataloader()
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        images, _ = next(iter(loader))
        assert torch.equal(images, epoch_of(ready(pets, batch_size=11, **RANDOM), epoch)[0])


def test_loading_draws_nothing_from_the_global_stream(pets: Path) -> None:
    data = ready(pets, **RANDOM)
    before = torch.get_rng_state()
    epoch_of(data, 0)
    list(data.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_no_training_batch_of_one_picture(pets: Path) -> None:
    assert [len(labels) for _, labels in ready(pets, batch_size=5).train_dataloader()] == [5, 5]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.root .*/none is not a folder: give"):
        ready(tmp_path / "none")


def test_no_classes(tmp_path: Path) -> None:
    paint(tmp_path / "train", 2)
    with pytest.raises(DataError, match=r"train has no class folders: put"):
        ready(tmp_path)


def test_empty_class(pets: Path) -> None:
    (pets / "train" / "bird").mkdir()
    with pytest.raises(DataError, match=r"train/bird holds no pictures \(.jpg .*\): add"):
        ready(pets)


def test_val_without_pictures(pets: Path) -> None:
    for file in (pets / "val").rglob("*.*"):
        file.unlink()
    with pytest.raises(DataError, match=r"val/cat holds no pictures"):
        ready(pets)


def test_val_class_that_train_does_not_have(pets: Path) -> None:
    paint(pets / "val" / "horse", 1)
    with pytest.raises(
        DataError, match=r"val/horse is none of the 2 classes \(cat, dog\) of the training pictures: rename"
    ):
        ready(pets)


def test_the_only_picture_of_a_class_is_for_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paint(tmp_path / "train" / "a", 1)
    paint(tmp_path / "train" / "b", 2)
    assert ready(tmp_path, classes=["a", "b", "none"]).name == f"{tmp_path.name} (2/1)"
    assert "train has pictures of 2 of the 3 classes" in caplog.text
    assert "val has pictures of 1 of the 3 classes" in caplog.text


def test_a_test_part_needs_no_split_of_the_others(tmp_path: Path) -> None:
    """Nor all of the classes that the weights know."""
    paint(tmp_path / "train" / "a", 1)
    paint(tmp_path / "test" / "a", 3)
    data = ready(tmp_path, classes=["a", "b"])
    assert sum(len(labels) for _, labels in data.test_dataloader()) == 3
    with pytest.raises(DataError, match="val does not exist: put the validation pictures there"):
        data.val_dataloader()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["nonsense", "cut off", "empty"])
def test_unreadable_picture(pets: Path, damage: str, workers: int) -> None:
    file = pets / "val" / "dog" / "000.jpg"
    whole = file.read_bytes()
    file.write_bytes({"nonsense": b"no picture", "cut off": whole[: len(whole) // 2], "empty": b""}[damage])
    with pytest.raises(DataError, match=r"val/dog/000.jpg cannot be read as a picture \(.*\): repair") as caught:
        list(ready(pets, num_workers=workers).val_dataloader())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_fraction": 0.0}, "data.val_fraction 0.0"),
        ({"val_fraction": 1.0}, "data.val_fraction 1.0"),
        ({"crop_pct": 1.5}, "data.crop_pct 1.5"),
        ({"img_size": -3}, "data.img_size -3"),
        ({"img_size": 10**6}, "data.img_size 1000000 is impossible: pictures have 89,478,485 pixels at most"),
        ({"augmentation": Augmentation(color_jitter=-1.0)}, "data.augmentation.color_jitter -1.0"),
        ({"mean": (0.2, float("inf"), 0.2)}, "data.mean"),
        ({"std": (0.2, float("nan"), 0.2)}, "data.std"),
        ({"augmentation": Augmentation(ratio=(0.2, float("inf")))}, "data.augmentation.ratio"),
        ({"classes": ["cat", "cat"]}, r"data.classes \[cat, cat\]"),
        ({"classes": []}, r"data.classes \[\]"),
        ({"std": (0.2, 0.2, 0.0)}, r"data.std \[0.2, 0.2, 0.0\]"),
    ],
)
def test_impossible_arguments_are_refused(pets: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ready(pets, **arguments)


def test_real_pictures(shared: Path) -> None:
    folder = shared / "data" / "imagenet_mini"
    if not (folder / "val").is_dir():
        pytest.skip("the shared folder holds no imagenet_mini/val")
    data = ready(folder, img_size=64, batch_size=50)
    assert data.num_classes == 200
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (50, 3, 64, 64)
    assert labels.tolist() == list(range(50))


def test_the_test_part_is_for_the_command_test(pets: Path) -> None:
    assert torch.cat([labels for _, labels in ready(pets).test_dataloader()]).tolist() == [0, 0, 1, 1, 1]  # val
    paint(pets / "test" / "dog", 4)
    data = ready(pets)
    assert data.name == "pets (11/5/4)"
    assert torch.cat([labels for _, labels in data.test_dataloader()]).tolist() == [1, 1, 1, 1]
    assert len(val_files(data)) == 5


def test_train_and_test_without_val(pets: Path) -> None:
    """The best epoch is never chosen by the test pictures."""
    (pets / "val").rename(pets / "test")
    data = ready(pets)
    assert data.name == "pets (9/2/5)"
    assert all("/train/" in path for path in val_files(data))


def test_a_test_part_without_classes_stops_no_training(pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    paint(pets / "test" / "unknown", 3)
    assert ready(pets).name == "pets (11/5)"
    assert "not used: test/, which has none of the classes' folders" in caplog.text


def test_what_is_left_out_is_said_once(pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    (pets / "train" / "cat" / "1.heic").touch()
    (pets / "val" / "dog" / "2.heic").touch()
    (pets / "val" / "cat").rename(pets / "elsewhere")
    data = ready(pets)
    data.setup()
    assert caplog.messages == [
        f"{pets}: not used: elsewhere/ beside train/, val/",
        f"{pets}: left out, as no pictures by their names: 2 files (2 .heic)",
        f"{pets}: val has pictures of 1 of the 2 classes",
    ]


def test_given_classes_decide_the_labels(pets: Path) -> None:
    data = ready(pets, classes=["dog", "bird", "cat"])
    assert data.class_names == ("dog", "bird", "cat")
    assert torch.cat([labels for _, labels in data.val_dataloader()]).tolist() == [0, 0, 0, 2, 2]
    with pytest.raises(
        DataError, match=r"train/dog is none of the 2 classes \(bird, cat\) of the weights or of data.c"
    ):
        ready(pets, classes=["bird", "cat"])


def test_folders_of_another_layout_are_said_to_be_so_where_the_classes_are_known(pets: Path) -> None:
    with pytest.raises(DataError, match=r"a data set one level deeper: give that folder"):
        ready(pets.parent, classes=["cat", "dog"])
    (pets / "train").rename(pets / "fold1")
    (pets / "val").rename(pets / "fold2")
    with pytest.raises(DataError, match=r"fold1/, fold2/ in .*pets hold folders of the same names \(cat, dog\)"):
        ready(pets, classes=["cat", "dog"])
    assert ready(pets, classes=["fold1", "fold2"]).name == "pets (13/3)"  # whoever says so means it


def test_names_of_classes_are_text_whatever_their_folders_are_called(tmp_path: Path) -> None:
    names = [b"caf\xe9", b"two\nlines", "猫".encode()]
    for count, name in enumerate(names, 2):
        paint(tmp_path / os.fsdecode(name), count)
    data = ready(tmp_path)
    assert data.class_names == (r"caf\xe9", r"two\nlines", "猫")
    assert data.name.endswith("(6/3)")
    again = ready(tmp_path, classes=["猫", *data.class_names[:2]])
    assert [os.fsencode(Path(path).parent.name) for path in val_files(again)] == [names[2], *names[:2]]


def test_a_single_picture_of_each_class_leaves_none_to_validate_on(tmp_path: Path) -> None:
    paint(tmp_path / "cat", 1)
    paint(tmp_path / "dog", 1)
    data = ready(tmp_path)
    assert [labels.tolist() for _, labels in data.train_dataloader()] in ([[0, 1]], [[1, 0]])
    with pytest.raises(DataError, match=r"has a single picture of each class, .* add more, or put some into "):
        data.val_dataloader()
