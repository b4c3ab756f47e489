from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data._utils.pin_memory import pin_memory

from mobilemamba.data.batches import Batch, Boxes, Collate, Labels, MarkedByKey, Unreadable
from mobilemamba.data.sampling import IGNORED


class OneByOne(Dataset[Any]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < 3:
            raise IndexError(index)
        return Unreadable("two.jpg", "broken") if index == 2 else (torch.full((3, 1, 1), float(index)), index)


class AtOnce(Dataset[Any]):
    def __len__(self) -> int:
        return 3

    def __getitems__(self, keys: list[int]) -> Any:
        assert all(0 <= key < 3 for key in keys)
        return torch.zeros(len(keys), 3, 1, 1), torch.tensor(keys)


def test_ignored_is_no_class() -> None:
    assert IGNORED == -1


class Dicts:
    """Targets of another kind: a dict for each picture."""

    def collate(self, items: list[tuple[Any, Any]]) -> tuple[Any, Any]:
        return [image for image, _ in items], [{"boxes": torch.zeros(number, 4)} for _, number in items]

    def ignored(self, targets: Any, where_B: torch.Tensor) -> Any:
        return [{**target, "ignored": bool(where)} for target, where in zip(targets, where_B, strict=True)]

    def blank(self, height: int, width: int) -> tuple[Any, Any]:
        raise NotImplementedError


COLLATE = Collate(Labels(), whole=False, marked=True)


def test_repeats_are_marked_one_by_one() -> None:
    data = MarkedByKey(OneByOne())
    assert len(data) == 3
    batch = COLLATE(data.__getitems__([1, 3, 4, 0]))
    assert batch.targets is not None
    assert batch.images is not None
    assert batch.targets.tolist() == [1, IGNORED, IGNORED, 0]
    assert batch.images[:, 0, 0, 0].tolist() == [1, 0, 1, 0]


def test_repeats_are_marked_in_whole_batches() -> None:
    batch = Collate(Labels(), whole=True, marked=True)(MarkedByKey(AtOnce()).__getitems__([2, 3, 5, 7]))
    assert batch.targets is not None
    assert batch.targets.tolist() == [2, IGNORED, IGNORED, IGNORED]


def test_targets_of_another_kind_are_marked_by_their_own_means() -> None:
    batch = Collate(Dicts(), whole=False, marked=True)(MarkedByKey(OneByOne()).__getitems__([1, 5, 4]))
    assert [(len(target["boxes"]), target["ignored"]) for target in batch.targets] == [(1, False), (1, True)]
    assert batch.unreadable == {"two.jpg": "broken"}


def test_unreadable_pictures_are_left_out() -> None:
    data = MarkedByKey(OneByOne())
    batch = COLLATE(data.__getitems__([0, 2, 5, 1]))
    assert batch.targets is not None
    assert batch.targets.tolist() == [0, 1]
    assert batch.unreadable == {"two.jpg": "broken"}
    nothing = COLLATE(data.__getitems__([2]))
    assert (nothing.images, nothing.targets, nothing.unreadable) == (None, None, {"two.jpg": "broken"})


def test_pinning_memory_keeps_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor.clone())  # the real one needs a GPU
    batch = pin_memory(Collate(Labels(), whole=False, marked=False)([OneByOne()[index] for index in range(3)]))
    assert isinstance(batch, Batch)
    assert batch.targets is not None
    assert batch.targets.tolist() == [0, 1]
    assert batch.unreadable == {"two.jpg": "broken"}
    alone = Collate(Labels(), whole=False, marked=False)([OneByOne()[2]])
    assert pin_memory(alone) == Batch(None, None, {"two.jpg": "broken"})


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(IndexError):
        OneByOne()[7]


def test_boxes_are_padded_to_the_right_and_below() -> None:
    form = Boxes(32, masks=True)
    _, (nothing,) = form.blank(5, 9)
    items = []
    for height, width in ((40, 30), (20, 70)):
        masks = torch.ones(2, height, width, dtype=torch.bool)
        items.append((torch.ones(3, height, width), {**nothing, "masks": masks, "counted": torch.tensor(True)}))
    items[1][1]["masks"] = torch.ones(2, 10, 35, dtype=torch.bool)  # in an evaluation, of the original picture
    images, targets = form.collate(items)
    assert images.shape == (2, 3, 64, 96)
    assert images.sum((1, 2, 3)).tolist() == [3 * 40 * 30, 3 * 20 * 70]
    assert images[0, :, :40, :30].all()
    assert [target["masks"].shape for target in targets] == [(2, 64, 96), (2, 10, 35)]
    assert targets[0]["masks"][:, :40, :30].all()
    assert targets[0]["masks"].sum() == 2 * 40 * 30
    marked = form.ignored(targets, torch.tensor([True, False]))
    assert [bool(target["counted"]) for target in marked] == [False, True]
    assert targets[0]["counted"]


def test_a_worker_hands_small_targets_over_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large, odd = torch.tensor([[True, False]]), torch.zeros(3, 80, 80), torch.ones(2, dtype=torch.bfloat16)
    items = [(torch.zeros(3, 8, 8), {"boxes": small, "masks": large, "own": odd, "counted": torch.tensor(True)})]
    collate = Collate(Boxes(), whole=False, marked=False)
    alone = collate(items)
    monkeypatch.setattr("mobilemamba.data.batches.get_worker_info", lambda: "a worker")
    handed = collate(items)
    assert {name: isinstance(x, np.ndarray) for name, x in handed.targets[0].items()} == {
        "boxes": True,
        "masks": False,
        "own": False,
        "counted": True,
    }
    assert isinstance(handed.images, torch.Tensor)
    for name, received in handed.received().targets[0].items():
        assert torch.equal(received, alone.targets[0][name])
        assert received.dtype == alone.targets[0][name].dtype
    pinned: list[torch.Tensor] = []  # as arrays are not, and the copy of what is not pinned waits for a GPU
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    batch = pin_memory(handed)
    assert isinstance(batch, Batch)
    assert {*map(id, pinned)} == {id(x) for x in (batch.images, *batch.targets[0].values())}


def test_a_blank_of_boxes_does_not_count() -> None:
    images, (target,) = Boxes(32).blank(33, 20)
    assert images.shape == (1, 3, 64, 32)
    assert not target["counted"]
    assert not Boxes().ignored([target], torch.tensor([False]))[0]["counted"]
    assert len(target["boxes"]) == len(target["labels"]) == 0
    assert "masks" not in target
