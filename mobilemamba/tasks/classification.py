"""Image classification with MobileMamba or any other timm model."""

from __future__ import annotations

import difflib
import math
from typing import Any

import timm
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from mobilemamba.errors import ConfigError
from mobilemamba.models import VARIANTS, ArchOverrides, load_weights
from mobilemamba.training.optimizer import parameter_groups, scale_lr
from mobilemamba.training.schedule import warmup_cosine_scheduler


class ClassificationTask(LightningModule):
    """Trains and tests a classifier on batches of pictures (B, ``in_chans``, H, W) with class indices (B,) int64.

    Logs ``train/loss`` (mean over the epoch, with label smoothing), ``train/loss_step`` and ``lr`` (each step), and
    for validation and test ``val/loss`` (without label smoothing), ``val/top1`` and ``val/top5`` in percent, 0 to 100,
    over all pictures whatever the batches' sizes. With fewer than 5 classes top-5 counts all of them.
    """

    def __init__(
        self,
        name: str = "mobilemamba_s6",
        arch: ArchOverrides = ArchOverrides(),  # noqa: B008 - read only; an Optional would hide its options in --help
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        weights: str | None = None,
        partial_weights: bool = False,
        channels_last: bool = True,
        label_smoothing: float = 0.1,
        lr: float = 3e-3,
        reference_batch_size: int = 1024,
        min_lr_ratio: float = 0.01,
        warmup_lr_ratio: float = 0.001,
        warmup_epochs: float = 20.0,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        """The defaults are those of the ImageNet training that the paper's models were released from.

        Args:
            name: Any timm model; mobilemamba_t2, _t4, _s6, _b1, _b2 or _b4.
            arch: Architecture choices laid over a mobilemamba model; not for others.
            num_classes: Outputs of the network.
            in_chans: Channels of a picture.
            drop_path_rate: Share of residual branches dropped in training (paper: 0.03 for B1, none for T and S).
            weights: Checkpoint (.safetensors, .pth) to start from.
            partial_weights: Accept ``weights`` that lack some tensors or have them in another shape, such as the head
                for other classes; what is not loaded stays as initialised, and is reported.
            channels_last: Keep weights and pictures in channels-last layout, the faster one for convolutions.
            label_smoothing: Share of the training target spread over all classes.
            lr: Peak learning rate at ``reference_batch_size``; the one used is in proportion to the real batch size.
            reference_batch_size: Pictures an optimiser step that ``lr`` is meant for.
            min_lr_ratio: Final over peak learning rate.
            warmup_lr_ratio: First over peak learning rate.
            warmup_epochs: Length of the linear warm-up.
            weight_decay: Of AdamW, for matrices and kernels only.
            betas: Of AdamW.

        Raises:
            ConfigError: If the model is unknown or a value is out of range.
            WeightsError: If ``weights`` cannot be read or do not fit.
        """
        super().__init__()
        if isinstance(arch, dict):  # as a checkpoint keeps it
            arch = ArchOverrides(**arch)
        # A plain dict of the real values: what the command line links is not in its own record, and checkpoints have
        # to load with weights_only=True. The weights' path is left out, as a checkpoint brings its own.
        self.save_hyperparameters(
            {
                "name": name,
                "arch": arch.given(),
                "num_classes": num_classes,
                "in_chans": in_chans,
                "drop_path_rate": drop_path_rate,
                "channels_last": channels_last,
                "label_smoothing": label_smoothing,
                "lr": lr,
                "reference_batch_size": reference_batch_size,
                "min_lr_ratio": min_lr_ratio,
                "warmup_lr_ratio": warmup_lr_ratio,
                "warmup_epochs": warmup_epochs,
                "weight_decay": weight_decay,
                "betas": tuple(betas),
            }
        )
        self._check()
        self.configure_models(weights, partial_weights)
        self.configure_losses()
        self.configure_metrics()

    def _check(self) -> None:
        limits = {
            "num_classes": (1, math.inf),
            "in_chans": (1, math.inf),
            "drop_path_rate": (0, 1),
            "label_smoothing": (0, 1),
            "lr": (0, math.inf),
            "reference_batch_size": (1, math.inf),
            "min_lr_ratio": (0, 1),
            "warmup_lr_ratio": (0, 1),
            "warmup_epochs": (0, math.inf),
            "weight_decay": (0, math.inf),
        }
        for name, (low, high) in limits.items():
            if not low <= self.hparams[name] <= high:
                expected = f"{low} or more" if high == math.inf else f"{low} to {high}"
                raise ConfigError(f"{name}={self.hparams[name]}: expected {expected}; change model.{name}")

    def configure_models(self, weights: str | None, partial: bool) -> None:
        """Builds the network and, if given, loads its weights, all of them unless ``partial``."""
        self.model = self.build_model()
        if weights is not None:
            load_weights(self.model, weights, partial=partial)
        if self.hparams["channels_last"]:
            self.model = self.model.to(memory_format=torch.channels_last)

    def configure_losses(self) -> None:
        """Sets the losses, each a function of logits (B, num_classes) and targets (B,)."""
        self.train_loss = nn.CrossEntropyLoss(label_smoothing=self.hparams["label_smoothing"])
        self.eval_loss = nn.CrossEntropyLoss()

    def configure_metrics(self) -> None:
        """Sets the accuracies of validation and test."""
        classes = self.hparams["num_classes"]
        metrics = MetricCollection(
            {
                f"top{k}": MulticlassAccuracy(classes, top_k=min(k, classes), average="micro", validate_args=False)
                for k in (1, 5)
            },
            compute_groups=False,
        )
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")

    def build_model(self, num_classes: int | None = None, in_chans: int | None = None) -> nn.Module:
        """A freshly initialised network of this task's architecture.

        Args:
            num_classes: In place of the task's own, e.g. the 1000 that a table's counts are for.
            in_chans: Likewise.
        """
        hparams = self.hparams
        return create_model(
            hparams["name"],
            ArchOverrides(**hparams["arch"]),
            num_classes=hparams["num_classes"] if num_classes is None else num_classes,
            in_chans=hparams["in_chans"] if in_chans is None else in_chans,
            drop_path_rate=hparams["drop_path_rate"],
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of pictures (B, in_chans, H, W)."""
        if self.hparams["channels_last"]:
            x = x.contiguous(memory_format=torch.channels_last)
        return self.model(x)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of a batch."""
        x, target = batch
        loss = self.train_loss(self(x).float(), target)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(x), sync_dist=True)
        self.log("train/loss_step", loss, on_step=True, on_epoch=False, prog_bar=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Adds a batch to the validation's loss and accuracies."""
        self._evaluate("val", self.val_metrics, batch)

    def on_validation_epoch_end(self) -> None:
        """Logs the accuracies over all batches."""
        self._log_percent(self.val_metrics)

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Adds a batch to the test's loss and accuracies."""
        self._evaluate("test", self.test_metrics, batch)

    def on_test_epoch_end(self) -> None:
        """Logs the accuracies over all batches."""
        self._log_percent(self.test_metrics)

    def predict_step(self, batch: Any) -> dict[str, Tensor]:
        """What the network makes of a batch of pictures (B, in_chans, H, W), alone or first in a tuple.

        Returns:
            ``probabilities`` (B, num_classes) float32, and the k <= 5 likeliest classes first to last:
            ``top_probabilities`` (B, k) float32 and ``top_indices`` (B, k) int64.
        """
        x = batch[0] if isinstance(batch, list | tuple) else batch
        probabilities = self(x).float().softmax(-1)
        top = probabilities.topk(min(5, self.hparams["num_classes"]))
        return {"probabilities": probabilities, "top_probabilities": top.values, "top_indices": top.indices}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up and cosine, set every step.

        Raises:
            ConfigError: If the training has no end to which the cosine could lead.
        """
        hparams, trainer = self.hparams, self.trainer
        total_steps = trainer.estimated_stepping_batches
        if not 0 < total_steps < math.inf:
            raise ConfigError(
                f"trainer.max_epochs={trainer.max_epochs}, trainer.max_steps={trainer.max_steps}: the learning rate's "
                "cosine needs a training with an end; set trainer.max_epochs"
            )
        steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        warmup_steps = round(hparams["warmup_epochs"] * steps_per_epoch)
        if warmup_steps >= total_steps and not getattr(trainer, "fast_dev_run", False):
            rank_zero_warn(
                f"warmup_epochs={hparams['warmup_epochs']:g} ({warmup_steps} steps) is no shorter than the training "
                f"({total_steps} steps), which so never reaches lr; lower model.warmup_epochs"
            )
        optimizer = torch.optim.AdamW(
            parameter_groups(self.model, hparams["weight_decay"]),
            lr=scale_lr(hparams["lr"], self.total_batch_size, hparams["reference_batch_size"]),
            betas=tuple(hparams["betas"]),
        )
        scheduler = warmup_cosine_scheduler(
            optimizer, int(total_steps), warmup_steps, hparams["min_lr_ratio"], hparams["warmup_lr_ratio"]
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def total_batch_size(self) -> int:
        """Pictures an optimiser step sees: the loader's batch, times the devices, times the accumulated batches.

        Raises:
            ConfigError: If the training loader does not tell its batch size.
        """
        loader = self.trainer.train_dataloader
        batch = getattr(loader, "batch_size", None)
        if batch is None:
            batch = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
        if batch is None:
            raise ConfigError(
                f"the training loader ({type(loader).__name__}) has no batch_size, which the learning rate is scaled "
                "by; use a torch DataLoader with batch_size or with a batch sampler that has one"
            )
        return batch * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def _evaluate(self, split: str, metrics: MetricCollection, batch: tuple[Tensor, Tensor]) -> None:
        x, target = batch
        logits = self(x).float()
        metrics.update(logits, target)
        loss = self.eval_loss(logits, target)
        self.log(f"{split}/loss", loss, on_epoch=True, batch_size=len(x), sync_dist=True)

    def _log_percent(self, metrics: MetricCollection) -> None:
        # Computed here rather than by self.log(metric), which could only log the fraction.
        self.log_dict({name: 100 * value for name, value in metrics.compute().items()}, prog_bar=True)
        metrics.reset()


def create_model(
    name: str, arch: ArchOverrides, num_classes: int = 1000, in_chans: int = 3, drop_path_rate: float = 0.0
) -> nn.Module:
    """Builds a timm model without pretrained weights, with errors for the user rather than for the programmer.

    Args:
        name: Any timm model.
        arch: Architecture choices, for a mobilemamba model only.
        num_classes: Outputs.
        in_chans: Channels of a picture.
        drop_path_rate: Stochastic depth; 0 leaves it to the model, as not every timm model knows it.

    Raises:
        ConfigError: If there is no such model, or it does not take what is given.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "timm.list_models() names them all"
        raise ConfigError(f"model name {name!r}: expected {', '.join(VARIANTS)} or another timm model; {hint}")
    given = arch.given()
    if given and not name.startswith("mobilemamba_"):
        raise ConfigError(
            f"arch.{', arch.'.join(given)}: these are choices of the mobilemamba models, and name is {name!r}; "
            "leave arch out or choose a mobilemamba model"
        )
    if drop_path_rate:
        given["drop_path_rate"] = drop_path_rate
    try:
        return timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **given)
    except TypeError as error:
        if "drop_path_rate" in given and "drop_path_rate" in str(error):
            raise ConfigError(f"drop_path_rate={drop_path_rate}: {name} has no such option; set it to 0") from error
        raise
