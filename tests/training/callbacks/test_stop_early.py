"""A training ends when its own score gets no better, whichever that is and in whichever direction."""

import pytest

from mobilemamba.training.callbacks import StopEarly
from tests.training.callbacks.test_checkpoints import Counter, fit, scores


@pytest.mark.parametrize(("monitor", "steps"), [("val/top1", 12), ("val/loss", 16)])
def test_it_waits_for_the_best_by_the_modules_own_score(tmp_path, monitor, steps) -> None:
    module = Counter(scores(at4=50, at8=40, at12=45, at16=60, at20=30))
    module.metric = module.monitor = monitor
    trainer = fit(tmp_path, module, StopEarly(patience=2), max_epochs=5)
    assert trainer.global_step == steps, "the greatest top-1 is after 4 steps at first, the least loss after 8"
