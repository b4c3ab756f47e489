"""Checkpoints on the disk are whole or not there, also on a full one: played by a limit on the size of a file."""

import resource
import signal

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from mobilemamba.training.callbacks.checkpoint_io import AtomicCheckpointIO
from mobilemamba.training.checkpoint_files import checkpoints_newest_first
from tests.training.callbacks.runs import StopAfter
from tests.training.callbacks.test_checkpoints import Counter, fit, scores

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")


@pytest.fixture
def limit():
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, former)


def test_the_former_checkpoint_stays_and_the_path_is_named(tmp_path, limit):
    class Fill(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                limit(2000)

    with pytest.raises(OSError, match="File too large") as caught:
        fit(tmp_path, Counter(scores(at12=90)), Fill(), max_epochs=3)
    limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert caught.value.filename == str(tmp_path / "checkpoints/best.ckpt")
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "previous.ckpt"]
    last, previous = checkpoints_newest_first(tmp_path)
    assert (last.name, torch.load(last, weights_only=True)["global_step"]) == ("last.ckpt", 8)
    assert torch.load(previous, weights_only=True)["global_step"] == 4

    # A broken one is not kept in place of the one before.
    last.write_bytes(last.read_bytes()[:700])
    (tmp_path / "checkpoints/.last.ckpt.0a1b2c3d.tmp").touch()
    for name in ("progress.json", "config.yaml", "results.json", "measure.json", "best.safetensors", "curves.png"):
        (tmp_path / f".{name}.0a1b2c3d.tmp").touch()
    with pytest.raises(ConnectionAbortedError):
        fit(tmp_path, Counter(scores()), StopAfter(2), ckpt_path=previous, max_epochs=3)
    assert torch.load(last, weights_only=True)["global_step"] == 8
    assert torch.load(previous, weights_only=True)["global_step"] == 4
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == names
    assert not list(tmp_path.glob(".*"))


def test_the_last_one_is_the_newest_even_if_the_clock_is_set_back(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: clock.pop(0))
    clock, last = [5000.0, 100.0, 50.0], tmp_path / "checkpoints/last.ckpt"
    first, second = AtomicCheckpointIO(), AtomicCheckpointIO()
    for step, io in enumerate((first, first, second)):
        if io is second:
            io.load_checkpoint(last, weights_only=True)
        io.save_checkpoint({"optimizer_states": [], "global_step": step}, last)
        assert checkpoints_newest_first(tmp_path)[0] == last
        if step:
            former = torch.load(last.with_name("previous.ckpt"), weights_only=True)
            assert former["global_step"] == step - 1


def test_a_storage_of_one_s_own_is_used(tmp_path):
    class Own(TorchCheckpointIO):
        saved = 0

        def save_checkpoint(self, *args, **kwargs):
            self.saved += 1
            super().save_checkpoint(*args, **kwargs)

    own = Own()
    trainer = fit(tmp_path, Counter(scores()), plugins=[own])
    assert trainer.strategy.checkpoint_io is own
    assert own.saved
