"""What all tasks have in common in training: the weights to start from, the optimiser and its schedule, the average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from mobilemamba.models import load_network, load_weights
from mobilemamba.models.card import CARD_KEY
from mobilemamba.models.runtime import runtime_of
from mobilemamba.tasks.evaluation import SAME_EVERYWHERE, EvaluatedTask
from mobilemamba.training.contract import init_arguments, plain_settings
from mobilemamba.training.metrics import Comparison, DeviceMean, Metrics
from mobilemamba.training.optimizer import (
    DecayRule,
    can_be_fused,
    parameter_groups,
    rate_to_show,
    scale_lr,
    set_learning_rates,
)
from mobilemamba.training.provenance import pictures_a_step
from mobilemamba.training.schedule import Schedule, rate_of, set_rates_of_now


class Task(EvaluatedTask):
    """Trains, evaluates and describes a network on batches ``(images, targets)``; a subclass says what they are.

    It builds its network and hands it to :meth:`use_network`; its :meth:`training_loss` is learned from, and
    :meth:`new_metrics` are evaluated. Besides what an evaluation logs, there are ``train/loss`` (mean over the epoch,
    as trained on), ``train/loss_step`` and, before any factor of a head or a layer, ``lr`` (each step).

    Attributes:
        accepted: Arguments of :func:`~mobilemamba.models.load_weights` that say what the weights may lack.
    """

    #: Least and greatest value of the arguments that are numbers.
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
        """The optimiser's defaults are those of the ImageNet training that the paper's models were released from.

        Args:
            weights: Checkpoint (.safetensors, .pth, .ckpt) to start from; to evaluate, an exported network too.
            partial_weights: Accept ``weights`` that lack some tensors or have them in another shape; what is not loaded
                stays as initialised, and is reported.
            new_head: Start with a fresh classifier where that of ``weights`` is for another number of classes.
            channels_last: Keep weights and pictures in channels-last layout, the faster one for convolutions.
            compile: Train through torch.compile.
            ema_decay: Keep an exponential moving average of weights and statistics, updated each step by this decay
                (release: 0.9998), and evaluate it too; null for none.
            lr: Peak learning rate at ``reference_batch_size``; the one used is in proportion to the real batch size.
            reference_batch_size: Pictures per optimiser step that ``lr`` is meant for.
            schedule: After the warm-up, a ``cosine`` over the whole training; or the peak in its first half and a
                cosine over the second, which changes the rate at every step (``half_cosine``) or once an epoch
                (``half_cosine_by_epoch``).
            min_lr_ratio: Final over peak learning rate.
            warmup_lr_ratio: First over peak learning rate.
            warmup_epochs: Length of the linear warm-up.
            warmup_steps: The same in optimiser steps, in place of ``warmup_epochs``; null for these.
            weight_decay: Of AdamW.
            weight_decay_rule: What decays: all but vectors, as in the ``release``; all but LayerNorms, as in its
                ``downstream`` trainings, detectors and segmenters; or a ``clean`` choice that spares, beside vectors,
                biases, scales and logarithms stored as matrices.
            layer_decay: Factor on the learning rate from one layer to the layer before it, e.g. 0.75 for fine-tuning.
            betas: Of AdamW.

        Raises:
            ConfigError: If a value is out of range.
        """
        given = dict(locals())
        super().__init__()
        self.keep_settings(given)
        self._weights, self.accepted = weights, {"partial": partial_weights, "new_head": new_head}
        self.ema = None

    def keep_settings(self, given: Mapping[str, Any]) -> None:
        """Adds the arguments of an ``__init__`` to ``hparams``.

        Raises:
            ConfigError: If a value is out of range.
        """
        self.save_hyperparameters({**self.hparams, **plain_settings(given, self.LIMITS)})

    def use_network(self, model: nn.Module) -> None:
        """Takes a network as the one to train: its weights, its layout, its average, the compiler.

        Raises:
            WeightsError: If the weights that were given cannot be read or do not fit.
        """
        if self._weights is not None and runtime_of(self._weights):
            model, _ = load_network(self._weights)  # to evaluate what was exported
        elif self._weights is not None:
            self.load(model, self._weights)
        if self.hparams["channels_last"]:
            # Not by `to`, as a scale (1, C, 1, 1) and its gradient would then differ in strides, of which DDP warns.
            model = nn.utils.convert_conv2d_weight_memory_format(model, torch.channels_last)
        self.model = model
        if self.hparams["ema_decay"] is not None:
            self.ema = ModelEmaV3(self.model, decay=self.hparams["ema_decay"]).requires_grad_(False)
            # Only evaluated, but Lightning warns of every module that is not in training mode; train() of a detector
            # leaves frozen norms out.
            for module in self.ema.modules():
                module.training = True
        if self.hparams["compile"]:
            self.model.compile()
        self.comparison = Comparison(self.new_metrics, self.scores[0])
        self.mean_train_loss = DeviceMean()
        self.mean_train_loss.persistent(True)  # so that a resumed epoch's mean is over all of it

    # What a subclass says.

    def load(self, model: nn.Module, weights: str) -> None:
        """Loads the file that a training starts from, as ``partial_weights`` and ``new_head`` allow.

        Raises:
            WeightsError: If it cannot be read or does not fit.
        """
        load_weights(model, weights, **self.accepted)

    def training_loss(self, images: Any, targets: Any) -> Tensor:
        """What a batch is learned by: a number."""
        raise NotImplementedError

    def new_metrics(self) -> Metrics:
        """The metrics of one network, for :attr:`scores` and the loss."""
        raise NotImplementedError

    # Training.

    def on_train_start(self) -> None:
        """Sets the first step's learning rate: a checkpoint brings that of its own training's length."""
        schedule = self.lr_schedulers()
        if isinstance(schedule, LambdaLR):  # and not a callback's that looks for a rate
            set_rates_of_now(schedule)

    def on_train_epoch_start(self) -> None:
        """Starts the epoch's mean; not where an epoch goes on after a resume."""
        self.mean_train_loss.reset()

    def training_step(self, batch: tuple[Any, Any]) -> Tensor:
        images, targets = batch
        loss = self.training_loss(images, targets)
        self.mean_train_loss.update(loss.detach().masked_fill(~loss.isfinite(), torch.nan), len(images))
        self.log("train/loss_step", loss, prog_bar=True)
        rate = torch.tensor(rate_to_show(self.trainer.optimizers) or 0.0)
        self.log("lr", rate)  # on the CPU: Lightning would copy a number to the device, and wait for it
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/loss", self.mean_train_loss.compute(), **SAME_EVERYWHERE)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups, without their learning rates; a resume is checked against them."""
        hparams = self.hparams
        decay = hparams["weight_decay"], hparams["weight_decay_rule"], hparams["layer_decay"]
        return parameter_groups(self.model, *decay)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up and the schedule, set every step.

        Raises:
            ConfigError: If the training has no end to which the cosine could lead, or no epochs for the warm-up.
        """
        hparams = self.hparams
        warmup = hparams["warmup_epochs"], hparams["warmup_steps"]
        rate = rate_of(hparams["schedule"], self.trainer, *warmup, hparams["min_lr_ratio"], hparams["warmup_lr_ratio"])
        lr = scale_lr(hparams["lr"], self.total_batch_size, hparams["reference_batch_size"])
        groups = self.parameter_groups()
        set_learning_rates(groups, lr)
        fused = can_be_fused(self.device, self.trainer.precision, bool(self.trainer.gradient_clip_val))
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=tuple(hparams["betas"]), fused=fused or None)
        scheduler = LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def total_batch_size(self) -> int:
        """Pictures an optimiser step sees, over all devices and accumulated batches."""
        return pictures_a_step(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the card, and which network was the better one; keeps the settings that the class is built from."""
        kept = checkpoint.get("hyper_parameters", {})
        checkpoint["hyper_parameters"] = {name: kept[name] for name in init_arguments(type(self)) if name in kept}
        checkpoint[CARD_KEY] = self.model_card.as_dict()
        checkpoint["use_ema"] = self.better == "ema"
