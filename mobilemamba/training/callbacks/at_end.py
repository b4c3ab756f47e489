"""The base of callbacks that do something when a training has ended."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.utilities import _is_max_limit_reached

from mobilemamba.training.callbacks.others import culprit, is_ours
from mobilemamba.training.callbacks.validation import ValidateAtEnd, callbacks_of, counts


class AtEnd(Callback):
    """Does something when a training has ended, even if another callback, or a logger, fails after its last step."""

    _begun = False

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is to be done, once."""
        raise NotImplementedError

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.interrupted:
            self._once(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Does it, if all else of the training is done: it was not one of ours that failed."""
        if isinstance(exception, Exception) and not is_ours(culprit(exception)) and _is_over(trainer):
            self._once(trainer, pl_module)

    def _once(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._begun and counts(trainer):
            self._begun = True
            self.finish(trainer, pl_module)


def _is_over(trainer: Trainer) -> bool:
    """Whether the last step is taken and validated. As Lightning's ``fit_loop.done``, which also says so each time."""
    loop: Any = trainer.fit_loop
    ended = (
        _is_max_limit_reached(trainer.global_step, trainer.max_steps)
        or _is_max_limit_reached(loop.epoch_progress.current.processed, loop.max_epochs)
        or (trainer.should_stop and loop._can_stop_early)
    )
    if trainer.global_step == 0 or not ended or not counts(trainer):
        return False
    validations = callbacks_of(trainer, ValidateAtEnd)
    return not trainer.enable_validation or any(one.validated_step == trainer.global_step for one in validations)
