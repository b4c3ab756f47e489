"""The base class of all tasks: initial weights, optimiser, learning rate schedule and weight average (EMA)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from mobilemamba.errors import ConfigError
from mobilemamba.models import load_network, load_weights
from mobilemamba.models.card import CARD_KEY
from mobilemamba.models.runtime import runtime_of
from mobilemamba.tasks.evaluation import SAME_EVERYWHERE, EvaluatedTask
from mobilemamba.tasks.settings import init_arguments, plain_settings
from mobilemamba.training.callbacks.sync_norms import SyncNorms
from mobilemamba.training.loaders import pictures_a_step
from mobilemamba.training.metrics import Comparison, DeviceMean, Metrics
from mobilemamba.training.optimizer import (
    DecayRule,
    can_be_fused,
    keep_implementation,
    parameter_groups,
    rate_to_show,
)
from mobilemamba.training.schedule import Schedule, rate_of, set_rates_of_now


class Task(EvaluatedTask):
    """Base class of tasks, which train, evaluate and describe a network on batches ``(images, targets)``.

    A subclass defines what images and targets are. It builds its network and passes it to :meth:`use_network`,
    computes the loss in :meth:`training_loss` and creates its metrics in :meth:`new_metrics`. Besides the metrics of
    evaluations, training logs ``train/loss`` (mean over the epoch of the loss trained on) and, each step,
    ``train/loss_step`` and ``lr``, the learning rate before any factor for a head or a layer.

    Attributes:
        accepted: How weights may differ from the network: keyword arguments of
            :func:`~mobilemamba.models.load_weights`.
    """

    #: Smallest and largest allowed value of each numeric argument.
    LIMITS: ClassVar[dict[str, tuple[float, float]]] = {
        "ema_decay": (0, 1),
        "lr": (0, math.inf),
        "reference_batch_size": (1, math.inf),
        "min_lr_ratio": (0, 1),
        "warmup_lr_ratio": (0, 1),
        "warmup_epochs": (0, math.inf),
        "warmup_steps": (0, math.inf),
        "weight_decay": (0, math.inf),
        "layer_decay": (0, 1),
    }

    def __init__(
        self,
        weights: str | None = None,
        partial_weights: bool = False,
        new_head: bool = False,
        channels_last: bool = True,
        compile: bool = False,  # noqa: A002 - Lightning's and timm's word for it
        ema_decay: float | None = None,
        lr: float = 3e-3,
        reference_batch_size: int = 1024,
        schedule: Schedule = "cosine",
        min_lr_ratio: float = 0.01,
        warmup_lr_ratio: float = 0.001,
        warmup_epochs: float = 20.0,
        warmup_steps: int | None = None,
        weight_decay: float = 0.05,
        weight_decay_rule: DecayRule = "release",
        layer_decay: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        """Stores the settings; the optimiser's defaults are those that the paper's ImageNet models were trained with.

        Args:
            weights: Checkpoint (.safetensors, .pth, .ckpt) to start from; for evaluation, also an exported network.
            partial_weights: Accept ``weights`` in which some tensors are missing or have another shape; these tensors
                keep their initial values, and are reported.
            new_head: Initialise the classifier anew if that of ``weights`` has another number of classes.
            channels_last: Keep weights and pictures in channels-last layout, which is faster for convolutions.
            compile: Train with torch.compile.
            ema_decay: Also keep and evaluate an exponential moving average of weights and statistics, updated each
                step with this decay (release: 0.9998); null for no average.
            lr: Peak learning rate for a batch of ``reference_batch_size``; scaled in proportion to the real batch size.
            reference_batch_size: Pictures per optimiser step for which ``lr`` is given.
            schedule: Learning rate after the warm-up: ``cosine`` decay over the whole training; or the peak rate for
                the first half of it and cosine decay over the second half, updated every step (``half_cosine``) or
                every epoch (``half_cosine_by_epoch``).
            min_lr_ratio: Ratio of the final to the peak learning rate.
            warmup_lr_ratio: Ratio of the first to the peak learning rate.
            warmup_epochs: Length of the linear warm-up in epochs.
            warmup_steps: Length of the warm-up in optimiser steps, instead of ``warmup_epochs``; null to use those.
            weight_decay: Weight decay of AdamW.
            weight_decay_rule: Parameters that decay: ``release``, all but vectors, as in the release; ``downstream``,
                all but LayerNorms, as in the release's detectors and segmenters; ``clean``, all but vectors and the
                biases, scales and logarithms that are stored as matrices.
            layer_decay: Factor on the learning rate from each layer to the one before it, e.g. 0.75 for fine-tuning.
            betas: Coefficients of AdamW's running averages.

        Raises:
            ConfigError: If a value is out of range.
        """
        given = dict(locals())
        super().__init__()
        self.keep_settings(given)
        self._weights, self.accepted = weights, {"partial": partial_weights, "new_head": new_head}
        self.ema = None
        #: ``lr`` and ``total_batch_size`` that the learning rate schedule was made for.
        self._made_for: tuple[float, int] | None = None

    def keep_settings(self, given: Mapping[str, Any]) -> None:
        """Adds the arguments of an ``__init__`` to ``hparams``.

        Raises:
            ConfigError: If a value is out of range.
        """
        self.save_hyperparameters(plain_settings(given, self.LIMITS))

    def use_network(self, model: nn.Module) -> None:
        """Sets the network to train: loads its weights, and sets up memory layout, average, compilation and metrics.

        Raises:
            WeightsError: If the given weights cannot be read or do not fit.
        """
        if self._weights is not None and runtime_of(self._weights):
            model, _ = load_network(self._weights)  # an exported network, to be evaluated
        elif self._weights is not None:
            self.load(model, self._weights)
        if self.hparams["channels_last"]:
            # Not with `to`: the strides of a scale (1, C, 1, 1) and its gradient would then differ, and DDP would warn.
            model = nn.utils.convert_conv2d_weight_memory_format(model, torch.channels_last)
        self.model = model
        if self.hparams["ema_decay"] is not None:
            self.ema = ModelEmaV3(self.model, decay=self.hparams["ema_decay"]).requires_grad_(False)
            # The average is only evaluated, but Lightning warns about every module that is not in training mode. Set
            # here, as the train() of a detector skips frozen norms.
            for module in self.ema.modules():
                module.training = True
        if self.hparams["compile"]:
            self.model.compile()
        self.comparison = Comparison(self.new_metrics, self.scores[0])
        self.mean_train_loss = DeviceMean()
        self.mean_train_loss.persistent(True)  # so that the mean of a resumed epoch covers the whole epoch

    # Methods for subclasses to override.

    def load(self, model: nn.Module, weights: str) -> None:
        """Loads the initial weights from a file, as ``partial_weights`` and ``new_head`` allow.

        Raises:
            WeightsError: If it cannot be read or does not fit.
        """
        load_weights(model, weights, **self.accepted)

    def training_loss(self, images: Any, targets: Any) -> Tensor:
        """Returns the loss of a batch, a scalar."""
        raise NotImplementedError

    def new_metrics(self) -> Metrics:
        """Returns new metrics for one network, which compute :attr:`scores` and the loss."""
        raise NotImplementedError

    # Training.

    def setup(self, stage: str) -> None:
        """Makes a trainer with ``sync_batchnorm`` keep the activations of timm's norms."""
        if type(getattr(self.trainer.strategy, "_layer_sync", None)) is TorchSyncBatchNorm:
            self.trainer.strategy._layer_sync = SyncNorms()  # type: ignore[attr-defined]  # private, but read only after this hook

    def on_train_start(self) -> None:
        """Sets the first step's learning rate, as that in a checkpoint is for the length of its own training."""
        schedule = self.lr_schedulers()
        if isinstance(schedule, LambdaLR):  # not the schedule of a callback that searches for a learning rate
            self._use_what_was_found(schedule)
            set_rates_of_now(schedule)

    def _use_what_was_found(self, schedule: LambdaLR) -> None:
        """Gives the schedule what Lightning's LearningRateFinder and BatchSizeFinder have found after it was made.

        ``lr`` becomes the found rate for ``reference_batch_size``, as it is set to the rate itself.
        """
        lr, batch_size = self._made_for or (self.hparams["lr"], self.total_batch_size)
        if self.hparams["lr"] != lr:
            self.hparams["lr"] *= self.hparams["reference_batch_size"] / self.total_batch_size
        elif batch_size == self.total_batch_size:
            return
        schedule.base_lrs = [*self._peak_rates(schedule.optimizer.param_groups)]
        schedule.lr_lambdas = [self._rate()] * len(schedule.base_lrs)

    def on_train_epoch_start(self) -> None:
        """Resets the epoch's mean loss; Lightning skips this if a resumed run continues within an epoch."""
        self.mean_train_loss.reset()

    def training_step(self, batch: tuple[Any, Any]) -> Tensor:
        images, targets = batch
        loss = self.training_loss(images, targets)
        self.mean_train_loss.update(loss.detach().masked_fill(~loss.isfinite(), torch.nan), len(images))
        self.log("train/loss_step", loss, prog_bar=True)
        rate = torch.tensor(rate_to_show(self.trainer.optimizers) or 0.0)
        self.log("lr", rate)  # a CPU tensor, as Lightning would copy a float to the device and wait for it
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/loss", self.mean_train_loss.compute(), **SAME_EVERYWHERE)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Makes the gradient of each step the mean over its batches, also in an epoch's last step if it has fewer.

        Lightning divides every loss by ``accumulate_grad_batches``, however many batches are left for the step.
        """
        batches, index = self.trainer.accumulate_grad_batches, self.trainer.fit_loop.batch_idx
        in_step = min(batches, self.trainer.num_training_batches - index + index % batches)
        super().backward(loss * (batches / in_step) if in_step < batches else loss, *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the optimiser's parameter groups without learning rates; a resumed run is checked against them."""
        hparams = self.hparams
        decay = hparams["weight_decay"], hparams["weight_decay_rule"], hparams["layer_decay"]
        return parameter_groups(self.model, *decay)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Returns AdamW and a schedule with warm-up that sets the learning rate every step.

        Raises:
            ConfigError: If the training has no end for the cosine decay, or no epochs for the warm-up; or if there is
                an average, but weights in half precision, which its small updates would not change.
        """
        hparams, precision = self.hparams, self.trainer.precision
        if self.ema is not None and precision in ("16-true", "bf16-true"):
            raise ConfigError(
                f"model.ema_decay={hparams['ema_decay']} with trainer.precision={precision}: an average in half "
                f"precision rounds its updates away; give {precision.replace('true', 'mixed')}, or leave "
                "model.ema_decay out"
            )
        rate = self._rate()
        self._made_for = hparams["lr"], self.total_batch_size
        groups = self.parameter_groups()
        groups = [{**group, "lr": lr} for group, lr in zip(groups, self._peak_rates(groups), strict=True)]
        fused = can_be_fused(self.device, precision)
        optimizer = torch.optim.AdamW(groups, betas=tuple(hparams["betas"]), fused=fused or None)
        keep_implementation(optimizer)
        scheduler = LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _peak_rates(self, groups: Iterable[Mapping[str, Any]]) -> list[float]:
        """Returns the peak learning rate of each parameter group, in proportion to the real batch size."""
        peak = self.hparams["lr"] * self.total_batch_size / self.hparams["reference_batch_size"]
        return [peak * group.get("lr_scale", 1.0) for group in groups]

    def _rate(self) -> Callable[[int], float]:
        hparams = self.hparams
        warmup = hparams["warmup_epochs"], hparams["warmup_steps"]
        return rate_of(hparams["schedule"], self.trainer, *warmup, hparams["min_lr_ratio"], hparams["warmup_lr_ratio"])

    @property
    def total_batch_size(self) -> int:
        """Pictures per optimiser step, over all devices and accumulated batches."""
        return pictures_a_step(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the model card and which network was better; keeps only the settings that ``__init__`` takes.

        The epoch's mean loss so far becomes that of all processes, as each of them resumes from it.
        """
        so_far = self.mean_train_loss.state_dict(prefix="mean_train_loss.")
        if not self.trainer.interrupted:  # by an error in one process, which would wait for the others
            for name, value in so_far.items():
                checkpoint["state_dict"][name] = self.trainer.strategy.reduce(value.clone(), reduce_op="mean")
        kept = checkpoint.get("hyper_parameters", {})
        checkpoint["hyper_parameters"] = {name: kept[name] for name in init_arguments(type(self)) if name in kept}
        checkpoint[CARD_KEY] = self.model_card.as_dict()
        checkpoint["use_ema"] = self.better == "ema"
