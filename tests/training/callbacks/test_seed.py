"""Resuming draws what an uninterrupted run draws."""

from types import SimpleNamespace

import pytest
import torch

from mobilemamba.training.callbacks import StepSeed
from tests.training.callbacks.runs import Data, StopAfter, fit, killed_and_resumed, same_weights, small_task

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")


class TestStepSeed:
    @pytest.mark.parametrize("after", [1, 2])
    @pytest.mark.parametrize("workers", [0, 1])
    @pytest.mark.parametrize("saving", [{}, {"save_on_train_epoch_end": True}], ids=["after-val", "after-train"])
    def test_resumed_equals_uninterrupted_bit_for_bit(self, tmp_path, after, workers, saving):
        _, straight = fit(tmp_path / "a", 3, data=Data(workers), **saving)
        _, resumed = killed_and_resumed(tmp_path / "b", after, data=Data(workers), **saving)
        assert resumed.seen == [entry for entry in straight.seen if entry[0] >= after]
        assert same_weights(straight, resumed)

    @pytest.mark.parametrize("saving", [{}, {"save_on_train_epoch_end": True}], ids=["after-val", "after-train"])
    def test_so_it_does_with_max_steps_and_killed_twice(self, tmp_path, saving):
        """Lightning by itself would take the epoch that had ended for one to go on with, and skip the one after it."""
        options = {"max_steps": 100, **saving}
        _, straight = fit(tmp_path / "a", 3, **options)
        with pytest.raises(ConnectionAbortedError):
            killed_and_resumed(tmp_path / "b", 1, extra=(StepSeed(), StopAfter(2)), **options)
        trainer, resumed = fit(tmp_path / "b", 3, ckpt_path=str(tmp_path / "b/last.ckpt"), seed=99, **options)
        assert (trainer.global_step, trainer.current_epoch) == (9, 3)
        assert resumed.seen == [entry for entry in straight.seen if entry[0] >= 2]
        assert same_weights(straight, resumed)

    def test_with_the_task_and_drop_path(self, tmp_path):
        _, straight = fit(tmp_path / "a", 3, module=small_task)
        _, resumed = killed_and_resumed(tmp_path / "b", 2, module=small_task)
        assert same_weights(straight, resumed)

    def test_without_it_they_differ(self, tmp_path):
        """The comparison above can fail."""
        _, straight = fit(tmp_path / "a", 3, extra=())
        _, resumed = killed_and_resumed(tmp_path / "b", 2, extra=())
        assert not same_weights(straight, resumed)

    def test_epochs_and_seeds_of_seed_everything_draw_differently(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PL_GLOBAL_SEED", "5")
        _, first = fit(tmp_path / "a", 2)
        _, again = fit(tmp_path / "c", 2, seed=1)
        assert first.seen == again.seen
        monkeypatch.setenv("PL_GLOBAL_SEED", "6")
        _, second = fit(tmp_path / "b", 2)
        sums = [total for model in (first, second) for _, _, total in model.seen]
        assert len(set(sums)) == len(sums) == 12

    def test_persistent_workers_follow_the_epoch_too(self, tmp_path):
        data = {"workers": 1, "persistent_workers": True}
        _, straight = fit(tmp_path / "a", 3, data=Data(**data))
        _, resumed = killed_and_resumed(tmp_path / "b", 2, data=Data(**data))
        order = [labels for epoch, labels, _ in straight.seen if epoch == 2]
        assert [labels for _, labels, _ in resumed.seen] == order


def test_each_process_draws_its_own_numbers():
    def drawn(rank):
        trainer = SimpleNamespace(current_epoch=0, global_rank=rank)
        with torch.random.fork_rng(devices=[]):
            StepSeed().on_train_batch_start(trainer, None, None, 0)
            return torch.rand(())

    assert drawn(0) == drawn(0) != drawn(1)
