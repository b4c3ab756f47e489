"""Which checkpoints of a run's folder a training can go on from, and in which order they are tried."""

import os

import pytest
import torch

from mobilemamba.training.checkpoint_files import checkpoints_newest_first


@pytest.fixture
def save(tmp_path):
    """Writes a checkpoint of the run."""

    def save(name, *, saved_at=None, date=None, full=True):
        path = tmp_path / "checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"state_dict": {"weight": torch.zeros(3)}, "global_step": 1}
        content |= {"optimizer_states": []} if full else {}
        content |= {} if saved_at is None else {"saved_at": saved_at}
        torch.save(content, path)
        if date is not None:
            os.utime(path, (date, date))
        return path

    return save


def test_newest_first_by_what_is_inside_else_by_the_date(tmp_path, save):
    save("best.ckpt", full=False, date=900)
    save("weights.ckpt", full=False, date=900)
    old, new = save("last.ckpt", saved_at=100.0, date=500), save("previous.ckpt", saved_at=300.0, date=1)
    own = save("epoch=1-val/top1=3.ckpt", date=200)  # a user's own name, with a folder in it
    (tmp_path / "checkpoints/.last.ckpt.0a0a.tmp").write_bytes(b"half")
    (tmp_path / "checkpoints/last-v1.ckpt").symlink_to(new)
    assert checkpoints_newest_first(tmp_path) == [new, own, old]


def test_one_that_cannot_be_read_is_named_at_its_place(tmp_path, save):
    last, previous = save("last.ckpt", date=200), save("previous.ckpt", date=100)
    last.write_bytes(last.read_bytes()[:100])
    os.utime(last, (200, 200))
    empty = tmp_path / "checkpoints/empty.ckpt"
    empty.touch()
    os.utime(empty, (50, 50))
    assert checkpoints_newest_first(tmp_path) == [last, previous, empty]


def test_a_folder_without_any(tmp_path):
    assert checkpoints_newest_first(tmp_path) == []
