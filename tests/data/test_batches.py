from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data._utils.pin_memory import pin_memory

from mobilemamba.data.batches import Batch, MarkRepeats, Unreadable, as_batch, collate
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


def test_repeats_are_marked_one_by_one() -> None:
    data = MarkRepeats(OneByOne())
    assert len(data) == 3
    batch = collate(data.__getitems__([1, 3, 4, 0]))
    assert batch.labels is not None
    assert batch.images is not None
    assert batch.labels.tolist() == [1, IGNORED, IGNORED, 0]
    assert batch.images[:, 0, 0, 0].tolist() == [1, 0, 1, 0]


def test_repeats_are_marked_in_whole_batches() -> None:
    batch = as_batch(MarkRepeats(AtOnce()).__getitems__([2, 3, 5, 7]))
    assert batch.labels is not None
    assert batch.labels.tolist() == [2, IGNORED, IGNORED, IGNORED]


def test_unreadable_pictures_are_left_out() -> None:
    data = MarkRepeats(OneByOne())
    batch = collate(data.__getitems__([0, 2, 5, 1]))
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1]
    assert batch.unreadable == {"two.jpg": "broken"}
    nothing = collate(data.__getitems__([2]))
    assert (nothing.images, nothing.labels, nothing.unreadable) == (None, None, {"two.jpg": "broken"})


def test_pinning_memory_keeps_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())  # the real one needs a GPU
    batch = pin_memory(collate([OneByOne()[index] for index in range(3)]))
    assert isinstance(batch, Batch)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1]
    assert batch.unreadable == {"two.jpg": "broken"}
    assert pin_memory(collate([OneByOne()[2]])) == Batch(None, None, {"two.jpg": "broken"})


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(IndexError):
        OneByOne()[7]
