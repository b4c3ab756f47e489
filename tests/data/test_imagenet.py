import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from mobilemamba.data import ImageFolder, ImageNet
from mobilemamba.data.classification_transforms import Augmentation
from mobilemamba.data.imagenet import holds_imagenet
from mobilemamba.errors import ConfigError, DataError

WNIDS = ("n01440764", "n01443537", "n01484850", "n15075141")
LABELS = (0, 1, 2, 999)


def paint(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)).save(file, quality=95)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """5 training and 2 validation pictures in each of 4 classes."""
    root = tmp_path / "folders"
    for c, wnid in enumerate(WNIDS):
        for i in range(5):
            paint(root / "train" / wnid / f"{wnid}_{100 - 7 * i}.JPEG", 10 * c + i)
        for i in range(2):
            paint(root / "val" / wnid / f"ILSVRC2012_val_{4 * i + (c * 3) % 4:08}.JPEG", 100 + 10 * c + i)
    return root


def flat(folders: Path, root: Path) -> Path:
    """The same validation pictures without class folders, and a list of their labels."""
    (root / "val").mkdir(parents=True)
    lines = []
    for file in folders.glob("val/*/*"):
        (root / "val" / file.name).write_bytes(file.read_bytes())
        lines.append(f"{file.name} {file.parent.name}\n")
    (root / "val.txt").write_text("".join(lines))
    return root


def shards(folders: Path, root: Path, *, shuffled: bool = True, form: str = "cls") -> Path:
    """The same pictures in tar files of 3."""
    root.mkdir(exist_ok=True)
    for part in ("train", "val"):
        files = sorted(folders.glob(f"{part}/*/*"))
        if shuffled:
            files = [files[i] for i in np.random.default_rng(0).permutation(len(files))]
        pattern = str(root / f"imagenet1k-{part}-%04d.tar")
        with webdataset.ShardWriter(pattern, maxcount=3, verbose=0) as writer:
            for file in files:
                label = LABELS[WNIDS.index(file.parent.name)]
                key = file.stem if form == "cls" else f"{file.parent.name}/{file.stem}"
                member: dict[str, Any] = {"__key__": key, "jpg": file.read_bytes()}
                writer.write({**member, "cls": label} if form == "cls" else member)
    return root


def ready(root: Path, **arguments: Any) -> ImageNet:
    data = ImageNet(str(root), **{"img_size": 16, "batch_size": 4, "num_workers": 0, **arguments})
    data.prepare_data()
    data.setup()
    return data


Batches = list[tuple[torch.Tensor, torch.Tensor]]


def epoch_of(data: ImageNet, epoch: int) -> Batches:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(loader)


def same(first: Batches, second: Batches) -> bool:
    return all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_what_it_offers_before_setup() -> None:
    data = ImageNet("no/such/folder", crop_pct=7)  # refused when it is used
    assert data.num_classes == len(data.wnids) == 1000
    assert data.class_names[0] == "tench"
    assert data.wnids[999] == "n15075141"


def test_preprocessing_and_augmentation_are_the_releases() -> None:
    data = ImageNet("")
    assert data.preprocessing == {
        "img_size": (224, 224),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "upright": False,
    }
    assert vars(data.augmentation) == {
        "scale": (0.08, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "hflip": 0.5,
        "color_jitter": 0.4,
        "auto_augment": "rand-m9-mstd0.5-inc1",
        "re_prob": 0.25,
        "re_mode": "pixel",
    }


def test_folders(folders: Path) -> None:
    data = ready(folders)
    assert data.name == "ImageNet-1k (20/8)"
    assert data.classes_present == {"train": 4, "val": 4}
    labels = torch.cat([labels for _, labels in data.val_dataloader()])
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 999, 999]
    assert sorted(torch.cat([labels for _, labels in data.train_dataloader()]).tolist()) == sorted(LABELS * 5)


def test_missing_classes_are_said(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("lightning.pytorch").propagate = True
    with caplog.at_level(logging.INFO):
        data = ready(folders)
        data.setup()
    # Once each: a logger that propagates has its records caught where they are made and where they arrive.
    said = dict.fromkeys(record.getMessage() for record in caplog.records if "classes" in record.getMessage())
    assert list(said) == [f"{folders}: {part} has pictures of 4 of the 1,000 classes" for part in ("train", "val")]


@pytest.mark.parametrize("form", ["cls", "folder"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_tar_files_give_the_batches_of_the_folders(folders: Path, tmp_path: Path, form: str, shuffled: bool) -> None:
    packed = shards(folders, tmp_path / "packed", form=form, shuffled=shuffled)
    assert len(list(packed.glob("*train*.tar"))) == 7
    for workers in (0, 2) if shuffled else (0,):
        one, other = ready(folders, num_workers=workers), ready(packed, num_workers=workers)
        assert one.name == other.name
        for epoch in (0, 3):
            assert same(epoch_of(one, epoch), epoch_of(other, epoch))
        assert same(list(one.val_dataloader()), list(other.val_dataloader()))
    names = [[Path(name).stem for name in data.describe_batch(1, 2)] for data in (one, other)]
    assert names[0] == names[1]
    assert sorted(file.name for file in packed.glob("*.json")) == [
        "mobilemamba-train-index.json",
        "mobilemamba-val-index.json",
    ]


def test_a_flat_folder_gives_the_batches_of_class_folders(folders: Path, tmp_path: Path) -> None:
    data = ready(flat(folders, tmp_path / "flat"))
    assert data.name == "ImageNet-1k (0/8)"
    assert same(list(data.val_dataloader()), list(ready(folders).val_dataloader()))


def test_given_labels_come_before_those_beside(folders: Path, tmp_path: Path) -> None:
    root = flat(folders, tmp_path / "flat")
    (tmp_path / "other.txt").write_text("n01443537\n" * 8)
    labels = torch.cat([labels for _, labels in ready(root, val_labels=str(tmp_path / "other.txt")).val_dataloader()])
    assert labels.tolist() == [1] * 8
    with pytest.raises(DataError, match=r"none.txt cannot be read as a text of labels"):
        ready(root, val_labels=str(tmp_path / "none.txt"))


def test_an_epoch_over_tar_files_goes_on_in_its_middle(folders: Path, tmp_path: Path) -> None:
    packed = shards(folders, tmp_path / "packed")
    whole = epoch_of(ready(packed), 1)
    stopped = ready(packed).train_dataloader()
    stopped.sampler.set_epoch(1)  # type: ignore[attr-defined]
    iterator = iter(stopped)
    for _ in range(2):
        next(iterator)
    resumed = ready(packed).train_dataloader()
    resumed.load_state_dict(stopped.state_dict())
    resumed.sampler.set_epoch(1)  # type: ignore[attr-defined]
    assert same(list(resumed), whole[2:])


@pytest.mark.parametrize("upright", [None, True, False])
def test_pictures_are_turned_as_it_is_chosen(tmp_path: Path, upright: bool | None) -> None:
    """By default those of ImageNet stay as they are stored, and own ones are turned; the card says what was done."""
    stored = Image.new("RGB", (16, 16))
    stored.paste((255, 255, 255), (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3
    for file in (tmp_path / "val" / WNIDS[0] / "x.png", tmp_path / "own" / "val" / "a" / "x.png"):
        file.parent.mkdir(parents=True)
        stored.save(file, exif=exif)
    own = ImageFolder(str(tmp_path / "own"), classes=["a"], img_size=16, num_workers=0, crop_pct=1.0, upright=upright)
    own.setup()
    for data, turned in ((ready(tmp_path, crop_pct=1.0, upright=upright), False), (own, True)):
        turned = turned if upright is None else upright
        images, _ = next(iter(data.val_dataloader()))
        assert (images[0, 0, 0, 0] < images[0, 0, -1, 0]) == turned
        assert data.preprocessing["upright"] == turned


@pytest.mark.filterwarnings("ignore:.*cannot be read")
@pytest.mark.parametrize("packed", [False, True])
def test_unreadable_pictures(folders: Path, tmp_path: Path, packed: bool) -> None:
    (folders / "val" / WNIDS[1] / "ILSVRC2012_val_00000003.JPEG").write_bytes(b"no picture")
    root = shards(folders, tmp_path / "packed") if packed else folders
    with pytest.raises(DataError, match=r"ILSVRC2012_val_00000003\.\w+ cannot be read as a picture"):
        list(ready(root).val_dataloader())
    data = ready(root, on_error="skip")
    labels = torch.cat([labels for _, labels in data.val_dataloader()])
    assert labels.tolist() == [0, 0, 1, 2, 2, 999, 999]
    assert [Path(name).stem for name in data.skipped] == ["ILSVRC2012_val_00000003"]


def test_val_alone_can_be_validated_on_but_not_trained_on(folders: Path, tmp_path: Path) -> None:
    data = ready(flat(folders, tmp_path / "flat"))
    with pytest.raises(DataError, match=r"flat/train does not exist: put the training pictures there"):
        data.train_dataloader()


def test_train_alone_cannot_be_validated_on(folders: Path) -> None:
    (folders / "val").rename(folders / "elsewhere")
    data = ready(folders)
    assert len(data.train_dataloader()) == 5
    with pytest.raises(DataError, match=r"folders/val does not exist: put the validation pictures there"):
        data.val_dataloader()


@pytest.mark.parametrize("part", ["train", "val"])
def test_unknown_and_empty_classes_are_refused(folders: Path, part: str) -> None:
    paint(folders / part / "dog" / "x.png", 0)
    with pytest.raises(DataError, match=rf"{part}/dog is none of the 1,000 classes .* or use ImageFolder"):
        ready(folders)
    (folders / part / "dog").rename(folders / part / "n01491361")
    assert 5 in ready(folders).classes_present.values()
    (folders / part / "n01491361" / "x.png").unlink()
    with pytest.raises(DataError, match=rf"{part}/n01491361 holds no pictures"):
        ready(folders)


def test_what_is_no_imagenet_is_refused(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.root .*/none is not a folder: give one that holds train/<wnid>/"):
        ready(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no ImageNet: expected the folders train and val, or tar files"):
        ready(tmp_path / "empty")
    shards(folders, folders)
    with pytest.raises(DataError, match=r"holds both train/ and imagenet1k-train-0000.tar: move one"):
        ready(folders)


def test_pictures_beside_class_folders_are_refused(folders: Path) -> None:
    paint(folders / "val" / "x.png", 0)
    with pytest.raises(DataError, match=r"val holds both pictures and folders"):
        ready(folders)


def test_tar_files_without_pictures_are_refused(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "val-0.tar")) as writer:
        writer.write({"__key__": "x", "txt": "words"})
    with pytest.raises(DataError, match=r"val-0.tar and the other val files hold no pictures"):
        ready(tmp_path)


def test_a_flat_folder_without_labels_is_refused(folders: Path, tmp_path: Path) -> None:
    root = flat(folders, tmp_path / "flat")
    (root / "val.txt").unlink()
    with pytest.raises(DataError, match=r"no file with the labels of its pictures: give one as data.val_labels"):
        ready(root)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_pct": 1.5}, "data.crop_pct 1.5"),
        ({"std": (0.1, 0.0, 0.1)}, r"data.std \[0.1, 0.0, 0.1\]"),
        ({"augmentation": Augmentation(hflip=2.0)}, "data.augmentation.hflip 2.0"),
        ({"augmentation": Augmentation(re_prob=-0.1)}, "data.augmentation.re_prob -0.1"),
        ({"augmentation": Augmentation(scale=(1.0, 0.1))}, r"data.augmentation.scale \[1.0, 0.1\]"),
        ({"augmentation": Augmentation(ratio=(0.0, 1.0))}, r"data.augmentation.ratio \[0.0, 1.0\]"),
        ({"augmentation": Augmentation(auto_augment="nonsense")}, "data.augmentation.auto_augment 'nonsense'"),
    ],
)
def test_impossible_arguments_are_refused(folders: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ready(folders, **arguments)
    assert "\n" not in str(caught.value)


def test_it_is_recognised(folders: Path, tmp_path: Path) -> None:
    paint(tmp_path / "pets" / "train" / "cat" / "x.png", 0)
    paint(tmp_path / "pets" / "val" / "cat" / "x.png", 0)
    assert not holds_imagenet(tmp_path / "pets")
    assert not holds_imagenet(tmp_path / "none")
    assert holds_imagenet(folders)
    assert holds_imagenet(flat(folders, tmp_path / "flat"))
    assert holds_imagenet(shards(folders, tmp_path / "packed"))


def test_real_pictures(shared: Path) -> None:
    folder = shared / "data" / "imagenet_mini"
    if not (folder / "val").is_dir():
        pytest.skip("the shared folder holds no imagenet_mini/val")
    data = ready(folder, img_size=64, batch_size=50)
    assert data.name == "ImageNet-1k (0/200)"
    assert data.classes_present == {"val": 200}
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (50, 3, 64, 64)
    wnids = sorted(entry.name for entry in (folder / "val").iterdir())
    assert [data.wnids[label] for label in labels] == wnids[:50]
