"""The base class of callbacks that act when a training has ended."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.utilities import _is_max_limit_reached

from mobilemamba.training.callbacks.trainer_state import callbacks_of, is_recorded
from mobilemamba.training.callbacks.user_callbacks import culprit, is_ours
from mobilemamba.training.callbacks.validation import ValidateAtEnd


class AtEnd(Callback):
    """Base class of callbacks that act once a training has ended, even if a user's callback or logger fails then."""

    _begun = False

    def finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Acts at the end of the training; called once."""
        raise NotImplementedError

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.interrupted:
            self._once(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Calls :meth:`finish` if the training itself is complete and no callback of ours has failed."""
        if isinstance(exception, Exception) and not is_ours(culprit(exception)) and _is_over(trainer):
            self._once(trainer, pl_module)

    def _once(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._begun and is_recorded(trainer):
            self._begun = True
            self.finish(trainer, pl_module)


def _is_over(trainer: Trainer) -> bool:
    """Whether the last step is done and validated; like Lightning's ``fit_loop.done``, but without its log messages."""
    loop: Any = trainer.fit_loop
    ended = (
        _is_max_limit_reached(trainer.global_step, trainer.max_steps)
        or _is_max_limit_reached(loop.epoch_progress.current.processed, loop.max_epochs)
        or (trainer.should_stop and loop._can_stop_early)
    )
    if trainer.global_step == 0 or not ended or not is_recorded(trainer):
        return False
    validations = callbacks_of(trainer, ValidateAtEnd)
    return not trainer.enable_validation or any(one.validated_step == trainer.global_step for one in validations)
