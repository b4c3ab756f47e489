"""Which checkpoints of a run's folder a training can go on from, and in which order they are tried."""

import os

import pytest
import torch

from mobilemamba.errors import WeightsError
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


LISTS = ("optimizer_states", "lr_schedulers")


def whole():
    """A training's state as Lightning writes it."""
    done = {"ready": 2, "completed": 2, "started": None, "processed": None}
    progress = {"total": done, "current": done}
    loop = {"epoch_progress": progress, "epoch_loop.batch_progress": {**progress, "is_last_batch": True}}
    return {
        "state_dict": {"weight": torch.zeros(3)},
        "optimizer_states": [{"state": {}}],
        "lr_schedulers": [{"last_epoch": 2}],
        "loops": {"fit_loop": {**loop, "epoch_loop.scheduler_progress": progress, "state_dict": {}}},
        "callbacks": {},
        "epoch": 1,
        "global_step": 2,
        "pytorch-lightning_version": "2.6.6",
    }


@pytest.mark.parametrize("entry", [*whole(), "hyper_parameters", "run_config"])
def test_a_checkpoint_of_another_structure_is_refused_by_name(tmp_path, entry):
    """Where the optimiser's state or the loops are missing, it holds weights alone, for all one knows."""
    damaged = [{**whole(), entry: value} for value in (None, 5.5, [] if entry in LISTS else 5.5)]
    if entry in whole().keys() - {"optimizer_states", "loops"}:
        damaged.append({name: value for name, value in whole().items() if name != entry})
    (tmp_path / "checkpoints").mkdir()
    for checkpoint in damaged:
        torch.save(checkpoint, tmp_path / "checkpoints/last.ckpt")
        with pytest.raises(WeightsError, match=rf"last.ckpt is damaged: {entry} is .*; go on from another") as error:
            read_training_checkpoint(tmp_path / "checkpoints/last.ckpt")
        assert "\n" not in str(error.value)
        assert not can_resume(tmp_path)


@pytest.mark.parametrize("damage", [{}, 5, {"total": 3, "current": "x"}, None], ids=repr)
@pytest.mark.parametrize("entry", ["fit_loop", "epoch_progress", "epoch_loop.batch_progress"])
def test_a_checkpoint_without_counts_is_refused(tmp_path, entry, damage):
    checkpoint = whole()
    loops = checkpoint["loops"]
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert read_training_checkpoint(tmp_path / "last.ckpt")["epoch"] == 1
    (loops if entry == "fit_loop" else loops["fit_loop"])[entry] = damage
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(WeightsError, match=r"last.ckpt is damaged: loops have no counts of what was trained; go on"):
        read_training_checkpoint(tmp_path / "last.ckpt")
