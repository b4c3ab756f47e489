"""Pictures that cannot be read: left out and counted, replaced, or a reason to stop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mobilemamba.data import IGNORED, ImageFolder
from mobilemamba.errors import DataError


def broken_folder(folder: Path, broken: list[int], count: int = 8) -> Path:
    """``count`` training and as many validation pictures of two classes, some of them broken."""
    for part in ("train", "val"):
        for label in "ab":
            (folder / part / label).mkdir(parents=True)
        for i in range(count):
            file = folder / part / "ab"[i % 2] / f"{i}.png"
            Image.new("RGB", (8, 8), (30 * i, 0, 0)).save(file)
            if i in broken:
                file.write_bytes(b"none")
    return folder


def skipping(folder: Path, **options: Any) -> ImageFolder:
    data = ImageFolder(str(folder), **{"img_size": 8, "batch_size": 4, "num_workers": 0, "on_error": "skip", **options})
    data.setup()
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_pictures_are_left_out_and_counted(tmp_path: Path, workers: int) -> None:
    data = skipping(broken_folder(tmp_path, [1, 4]), num_workers=workers)
    loader = data.val_dataloader()
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        epochs = [[labels.tolist() for _, labels in loader] for _ in range(2)]  # but one warning for each picture
    assert epochs == [[[0, 0, 0], [1, 1, 1]]] * 2
    names = [str(tmp_path / "val" / name) for name in ("a/4.png", "b/1.png")]
    assert list(loader.skipped) == names
    assert set(loader.skipped.values()) == {"of no known picture format"}
    assert [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)] == [
        f"{name} cannot be read (of no known picture format) and is skipped" for name in names
    ]
    with pytest.warns(UserWarning, match="train"):
        assert sum(len(labels) for _, labels in data.train_dataloader()) == 6
    assert len(data.skipped) == 4


def test_stopping_is_the_default(tmp_path: Path) -> None:
    data = skipping(broken_folder(tmp_path, [1]), on_error="stop")
    with pytest.raises(DataError, match=r"val/b/1.png cannot be read"):
        list(data.val_dataloader())


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_an_evaluation_batch_without_readable_pictures_does_not_count(tmp_path: Path) -> None:
    data = skipping(broken_folder(tmp_path, [0, 2, 4, 6]))
    batches = list(data.val_dataloader())
    assert [labels.tolist() for _, labels in batches] == [[IGNORED], [1, 1, 1, 1]]
    assert batches[0][0].shape == (1, 3, 8, 8)
    assert not batches[0][0].any()


@pytest.mark.filterwarnings("ignore:.*cannot be read")
@pytest.mark.parametrize(("broken", "left"), [(range(8), 0), (range(7), 1)])
def test_a_training_batch_with_too_few_readable_pictures_stops(tmp_path: Path, broken: range, left: int) -> None:
    data = skipping(broken_folder(tmp_path, list(broken)), batch_size=8)
    with pytest.raises(DataError, match=rf"^{left} of the 8 pictures of a training batch .*\.png \(of no kn") as caught:
        list(data.train_dataloader())
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*cannot be read")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("broken", [[3], [1, 3]])
def test_readable_pictures_replace_a_batch_of_too_few(tmp_path: Path, workers: int, broken: list[int]) -> None:
    """Of 10 pictures in batches of 4, the last batch has two: both broken in some epoch, or one. Two are enough."""
    data = skipping(broken_folder(tmp_path, broken, count=10), num_workers=workers)
    loader, fewest = data.train_dataloader(), 4

    def readable(keys: list[int]) -> list[torch.Tensor]:
        items = map(data.train_set.__getitem__, keys)  # type: ignore[union-attr]
        return [item[0] for item in items if isinstance(item[0], torch.Tensor)]

    for epoch in range(12):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        keys = loader.sampler.keys(epoch)  # type: ignore[attr-defined]
        assert len(loader) == 3
        for number, (images, _) in enumerate(loader):
            own = readable(keys[4 * number : 4 * number + 4])
            assert torch.equal(images, torch.stack(own if len(own) >= 2 else readable(keys)[:2]))
            fewest = min(fewest, len(own))
    assert fewest < 2, "there was such an epoch"


@pytest.mark.filterwarnings("ignore:.*cannot be read")
def test_broken_pictures_that_come_one_by_one_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFolder, "single_pictures", True)
    data = skipping(broken_folder(tmp_path, [1, 2]), batch_size=1)
    assert [len(labels) for _, labels in data.train_dataloader()] == [1] * 8
    assert len(data.skipped) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
@pytest.mark.filterwarnings("ignore:.*cannot be read")
@pytest.mark.parametrize("workers", [0, 2])
def test_pinned_memory(tmp_path: Path, workers: int) -> None:
    data = skipping(broken_folder(tmp_path, [0, 1, 2, 4, 6]), num_workers=workers)
    loader = data.val_dataloader()
    assert loader.pin_memory
    batches = list(loader)
    assert [labels.tolist() for _, labels in batches] == [[IGNORED], [1, 1, 1]]
    assert all(part.is_pinned() for part in batches[1])
    assert len(data.skipped) == 5
