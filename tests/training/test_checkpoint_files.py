"""Which checkpoints of a run's folder a training can go on from, and in which order they are tried."""

import os

import pytest
import torch

from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.training.checkpoint_files import can_resume, checkpoints_newest_first, read_training_checkpoint


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
    (tmp_path / "checkpoints/third.ckpt").symlink_to(new)
    assert checkpoints_newest_first(tmp_path) == [new, own, old]


def test_one_that_cannot_be_read_is_named_at_its_place(tmp_path, save):
    last, previous = save("last.ckpt", date=200), save("previous.ckpt", date=100)
    last.write_bytes(last.read_bytes()[:100])
    os.utime(last, (200, 200))
    empty = tmp_path / "checkpoints/empty.ckpt"
    empty.touch()
    os.utime(empty, (50, 50))
    (tmp_path / "checkpoints/best.ckpt").touch()  # has only weights, if anything
    assert checkpoints_newest_first(tmp_path) == [last, previous, empty]


def test_a_folder_without_any(tmp_path):
    assert checkpoints_newest_first(tmp_path) == []


def test_a_date_inside_that_is_none_is_not_taken(tmp_path, save):
    old, new = save("last.ckpt", saved_at="yesterday", date=1), save("previous.ckpt", saved_at=300.0, date=500)
    assert checkpoints_newest_first(tmp_path) == [new, old]


NEEDED = ("state_dict", "lr_schedulers", "callbacks", "epoch", "global_step", "pytorch-lightning_version")


@pytest.mark.parametrize("entry", NEEDED)
def test_a_checkpoint_without_an_entry_is_refused_by_its_name(tmp_path, save, entry):
    entries = {*NEEDED, "optimizer_states", "loops"}
    file = save("last.ckpt")
    torch.save(dict.fromkeys(entries, 0), file)
    assert read_training_checkpoint(file)["epoch"] == 0
    assert can_resume(tmp_path)
    torch.save(dict.fromkeys(entries - {entry}, 0), file)
    with pytest.raises(WeightsError, match=rf"last.ckpt is damaged: it lacks {entry}; go on from another") as error:
        read_training_checkpoint(file)
    assert "\n" not in str(error.value)
    assert not can_resume(tmp_path)


@pytest.mark.parametrize("entry", ["optimizer_states", "loops"])
def test_a_checkpoint_of_weights_alone_is_refused(tmp_path, save, entry):
    file = save("last.ckpt", full=False)
    torch.save({**torch.load(file), entry: []}, file)
    with pytest.raises(ConfigError, match=r"last.ckpt holds weights, not the state of a training; start from them by"):
        read_training_checkpoint(file)
    assert not can_resume(tmp_path)
