"""Image classification with MobileMamba or any other timm model."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from mobilemamba.errors import ConfigError
from mobilemamba.models import ArchOverrides, ModelCard, Preprocessing, create_model, load_weights
from mobilemamba.models.card import CARD_KEY
from mobilemamba.tasks.evaluation import SAME_EVERYWHERE, EvaluationTask
from mobilemamba.training.distillation import Distillation, Teacher, distillation_loss
from mobilemamba.training.mixing import Mixing
from mobilemamba.training.optimizer import (
    DecayRule,
    classifier_modules,
    freeze_backbone,
    parameter_groups,
    scale_lr,
    set_learning_rates,
)
from mobilemamba.training.provenance import pictures_used
from mobilemamba.training.schedule import warmup_cosine_scheduler

#: Least and largest value of the arguments that are numbers.
_LIMITS = {
    "num_classes": (1, math.inf),
    "in_chans": (1, math.inf),
    "drop_path_rate": (0, 1),
    "label_smoothing": (0, 1),
    "ema_decay": (0, 1),
    "lr": (0, math.inf),
    "reference_batch_size": (1, math.inf),
    "min_lr_ratio": (0, 1),
    "warmup_lr_ratio": (0, 1),
    "warmup_epochs": (0, math.inf),
    "weight_decay": (0, math.inf),
    "layer_decay": (0, 1),
}
#: Arguments that say where the weights come from, which a checkpoint has no need of.
_NOT_KEPT = {"self", "__class__", "weights", "partial_weights", "new_head"}


class ClassificationTask(EvaluationTask):
    """Trains and tests a classifier on batches of pictures (B, ``in_chans``, H, W) with class indices (B,) int64.

    Logs ``train/loss`` (mean over the epoch, as trained on), ``train/loss_step`` and ``lr`` (each step), and for
    validation and test ``val/loss`` (without label smoothing), ``val/top1`` and ``val/top5`` in percent, 0 to 100,
    over all pictures whatever the batches' sizes. The averaged network's have the suffix ``_ema``; ``val/top1_max`` is
    the better of both, as the paper reports it. Outside a training the network with folded norms is evaluated beside
    the raw one (suffix ``_fused``; ``val/fused_changed`` counts the pictures that it puts into another class).
    """

    def __init__(
        self,
        name: str = "mobilemamba_s6",
        arch: ArchOverrides = ArchOverrides(),  # noqa: B008 - read only; an Optional would hide its options in --help
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        distillation_head: bool = False,
        weights: str | None = None,
        partial_weights: bool = False,
        new_head: bool = False,
        freeze_backbone: bool = False,
        channels_last: bool = True,
        compile: bool = False,  # noqa: A002 - Lightning's and timm's word for it
        label_smoothing: float = 0.1,
        mixing: Mixing | None = None,
        ema_decay: float | None = None,
        distillation: Distillation | None = None,
        lr: float = 3e-3,
        reference_batch_size: int = 1024,
        min_lr_ratio: float = 0.01,
        warmup_lr_ratio: float = 0.001,
        warmup_epochs: float = 20.0,
        weight_decay: float = 0.05,
        weight_decay_rule: DecayRule = "release",
        layer_decay: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        """The optimiser's defaults are those of the ImageNet training that the paper's models were released from.

        Args:
            name: Any timm model; mobilemamba_t2, _t4, _s6, _b1, _b2 or _b4.
            arch: Architecture choices laid over a mobilemamba model; not for others.
            num_classes: Outputs of the network.
            in_chans: Channels of a picture.
            drop_path_rate: Share of residual branches dropped in training (paper: 0.03 for B1, none for T and S).
            distillation_head: A second classifier that learns from the teacher alone; the network's answer is the mean
                of both. For mobilemamba models.
            weights: Checkpoint (.safetensors, .pth, .ckpt) to start from.
            partial_weights: Accept ``weights`` that lack some tensors or have them in another shape; what is not loaded
                stays as initialised, and is reported.
            new_head: Start with a fresh classifier where that of ``weights`` is for another number of classes.
            freeze_backbone: Train the classifier alone; the norms before it keep their statistics.
            channels_last: Keep weights and pictures in channels-last layout, the faster one for convolutions.
            compile: Train through torch.compile.
            label_smoothing: Share of the training target spread over all classes.
            mixing: Mixup and CutMix; null for none.
            ema_decay: Keep an exponential moving average of weights and statistics, updated each step by this decay
                (release: 0.9998), and evaluate it too; null for none.
            distillation: A teacher to learn from; null for none.
            lr: Peak learning rate at ``reference_batch_size``; the one used is in proportion to the real batch size.
            reference_batch_size: Pictures an optimiser step that ``lr`` is meant for.
            min_lr_ratio: Final over peak learning rate.
            warmup_lr_ratio: First over peak learning rate.
            warmup_epochs: Length of the linear warm-up.
            weight_decay: Of AdamW.
            weight_decay_rule: What decays: all but vectors, as in the ``release``, or a ``clean`` choice that spares
                biases, scales and logarithms stored as matrices too.
            layer_decay: Factor on the learning rate from one layer to the layer before it, e.g. 0.75 for fine-tuning.
            betas: Of AdamW.

        Raises:
            ConfigError: If the model is unknown or a value is out of range.
            WeightsError: If ``weights`` cannot be read or do not fit.
        """
        given = dict(locals())
        super().__init__()
        # As a checkpoint keeps them.
        arch = ArchOverrides(**arch) if isinstance(arch, dict) else arch
        self.mixing = Mixing(**mixing) if isinstance(mixing, dict) else mixing
        self.distillation = Distillation(**distillation) if isinstance(distillation, dict) else distillation
        # A plain dict of the real values: what the command line links is not in its own record, and checkpoints have
        # to load with weights_only=True. The weights' path is left out, as a checkpoint brings its own.
        given = {key: value for key, value in given.items() if key not in _NOT_KEPT}
        given |= {"arch": arch.given(), "betas": betas}
        given |= {"mixing": self.mixing and asdict(self.mixing)}
        given |= {"distillation": self.distillation and asdict(self.distillation)}
        self.save_hyperparameters(json.loads(json.dumps(given)))  # lists for tuples: plain YAML in hparams.yaml
        self._check()
        #: Networks that are no part of this one: not trained, moved or saved with it.
        self._beside: dict[str, nn.Module] = {}
        self.configure_models(weights, partial_weights, new_head)
        self.configure_losses()
        self.configure_metrics()

    def _check(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = self.hparams[name]
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                expected = f"{low} or more" if high == math.inf else f"{low} to {high}"
                raise ConfigError(f"{name}={value}: expected {expected}; change model.{name}")
        if not all(0 <= beta < 1 for beta in self.hparams["betas"]):
            raise ConfigError(
                f"betas={self.hparams['betas']}: expected two numbers from 0 to below 1; change model.betas"
            )

    def configure_models(self, weights: str | None, partial: bool, new_head: bool) -> None:
        """Builds the network and, if given, loads its weights, all of them unless ``partial``; then its average."""
        self.model = self.build_model()
        if weights is not None:
            load_weights(self.model, weights, partial=partial, new_head=new_head)
        if self.hparams["freeze_backbone"]:
            freeze_backbone(self.model)
        if self.hparams["channels_last"]:
            # Not by `to`, as a scale (1, C, 1, 1) and its gradient would then differ in strides, of which DDP warns.
            self.model = nn.utils.convert_conv2d_weight_memory_format(self.model, torch.channels_last)
        self.ema: ModelEmaV3 | None = None
        if self.hparams["ema_decay"] is not None:
            self.ema = ModelEmaV3(self.model, decay=self.hparams["ema_decay"]).requires_grad_(False)
            self.ema.train()  # only evaluated, but Lightning warns of every module that is not in training mode
        if self.hparams["compile"]:
            self.model.compile()
            if self.hparams["distillation_head"]:
                self.model.forward_heads = torch.compile(self.model.forward_heads)  # type: ignore[assignment, arg-type]

    def configure_losses(self) -> None:
        """Sets the training loss, a function of logits (B, num_classes) and classes (B,) or soft targets."""
        self.train_loss = nn.CrossEntropyLoss(label_smoothing=self.hparams["label_smoothing"])
        self.mix = self.mixing.build(self.hparams["num_classes"]) if self.mixing else None

    def configure_metrics(self) -> None:
        """Sets the accuracies, and the mean of the training loss."""
        super().configure_metrics()
        self.mean_train_loss = MeanMetric(nan_strategy="ignore")
        self.mean_train_loss.persistent(True)  # so that a resumed epoch's mean is over all of it

    @property
    def monitor(self) -> str:
        """The metric that the best epoch is chosen by."""
        return "val/top1" if self.hparams["ema_decay"] is None else "val/top1_max"

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
            distilled=self.hparams["distillation_head"],
        )

    def setup(self, stage: str) -> None:
        """Loads the teacher before a training."""
        if stage == "fit" and self.distillation is not None and "teacher" not in self._beside:
            preprocessing = self.preprocessing
            self._beside["teacher"] = Teacher(
                self.distillation, self.hparams["num_classes"], preprocessing.mean, preprocessing.std
            )

    def train(self, mode: bool = True) -> ClassificationTask:
        """As for any module, except that a frozen backbone's norms and dropout stay in evaluation."""
        super().train(mode)
        if self.hparams["freeze_backbone"]:
            self.model.eval()
            for module in classifier_modules(self.model):
                module.train(mode)
        return self

    def on_fit_start(self) -> None:
        """Brings the teacher to the device."""
        if "teacher" in self._beside:
            self._beside["teacher"].to(self.device)

    def on_train_start(self) -> None:
        """Sets a frozen backbone's mode; not before, as Lightning warns of what it then finds in evaluation.

        Also the first step's learning rate: a checkpoint brings that of its own training's length.
        """
        self.train()
        schedule = self.lr_schedulers()
        if not isinstance(schedule, LambdaLR):  # a callback's that looks for a rate
            return
        for group, peak, ratio in zip(
            schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = peak * ratio(schedule.last_epoch)

    def on_train_epoch_start(self) -> None:
        """Starts the epoch's mean; not where an epoch goes on after a resume."""
        self.mean_train_loss.reset()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of a batch."""
        x, target = batch
        if self.mix is not None:
            x, target = self.mix(x, target)
        loss = self._distilled(x, target) if self.distillation else self.train_loss(self(x).float(), target)
        self.mean_train_loss.update(torch.where(loss.isfinite(), loss, torch.nan).detach(), len(x))
        self.log("train/loss_step", loss, prog_bar=True)
        self.log("lr", max(group["lr"] for group in self.trainer.optimizers[0].param_groups))
        return loss

    def _distilled(self, x: Tensor, target: Tensor) -> Tensor:
        assert self.distillation is not None
        if self.hparams["distillation_head"]:
            logits, of_teacher = self.model.forward_heads(self.in_layout(x))  # type: ignore[operator]
        else:
            logits = of_teacher = self(x)
        task = self.train_loss(logits.float(), target)
        learned = distillation_loss(
            of_teacher, self._beside["teacher"](x), self.distillation.kind, self.distillation.tau
        )
        self.log_dict({"train/loss_task": task, "train/loss_distillation": learned})
        return task + self.distillation.weight * learned

    def on_train_epoch_end(self) -> None:
        """Logs the mean loss."""
        self.log("train/loss", self.mean_train_loss.compute(), **SAME_EVERYWHERE)
        if "teacher" in self._beside:
            cast(Teacher, self._beside["teacher"]).end_epoch()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step, then one of the average."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.model)

    @property
    def preprocessing(self) -> Preprocessing:
        """How the pictures are prepared: as the data module says, or else as the network's name says."""
        data = getattr(self._trainer, "datamodule", None)
        known = getattr(data, "preprocessing", None)
        return Preprocessing(**known) if known else Preprocessing.of_model(self.hparams["name"])

    @property
    def model_card(self) -> ModelCard:
        """What exported weights say of the network."""
        hparams, data = self.hparams, getattr(self._trainer, "datamodule", None)
        return ModelCard(
            model=hparams["name"],
            preprocessing=self.preprocessing,
            num_classes=hparams["num_classes"],
            in_chans=hparams["in_chans"],
            arch=hparams["arch"],
            distilled=self.hparams["distillation_head"],
            class_names=tuple(getattr(data, "class_names", ())),
            data=getattr(data, "name", ""),
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the card, and which network was the better one."""
        metrics = self.trainer.callback_metrics
        raw, averaged = metrics.get("val/top1"), metrics.get("val/top1_ema")
        checkpoint[CARD_KEY] = self.model_card.as_dict()
        checkpoint["use_ema"] = raw is not None and averaged is not None and bool(averaged > raw)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimiser's groups, without their learning rates; a resume is checked against them."""
        hparams = self.hparams
        return parameter_groups(
            self.model, hparams["weight_decay"], hparams["weight_decay_rule"], hparams["layer_decay"]
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with warm-up and cosine, set every step.

        Raises:
            ConfigError: If the training has no end to which the cosine could lead, or no epochs for the warm-up.
        """
        hparams, trainer = self.hparams, self.trainer
        trainer.fit_loop.setup_data()  # Lightning does so only where it needs the length of an epoch itself
        total_steps = trainer.estimated_stepping_batches
        if not 0 < total_steps < math.inf:
            raise ConfigError(
                f"trainer.max_epochs={trainer.max_epochs}, trainer.max_steps={trainer.max_steps}: the learning rate's "
                "cosine needs a training with an end; set trainer.max_epochs"
            )
        warmup_steps = self._warmup_steps()
        if warmup_steps >= total_steps and not getattr(trainer, "fast_dev_run", False):
            rank_zero_warn(
                f"warmup_epochs={hparams['warmup_epochs']:g} ({warmup_steps} steps) is no shorter than the training "
                f"({total_steps} steps), which so never reaches lr; lower model.warmup_epochs"
            )
        lr = scale_lr(hparams["lr"], self.total_batch_size, hparams["reference_batch_size"])
        groups = self.parameter_groups()
        set_learning_rates(groups, lr)
        # Without it PyTorch goes through the tensors one by one on a CPU. Lightning refuses it with AMP and clipping.
        fused = self.device.type == "cpu" and trainer.precision == "32-true"
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=tuple(hparams["betas"]), fused=fused or None)
        scheduler = warmup_cosine_scheduler(
            optimizer, int(total_steps), warmup_steps, hparams["min_lr_ratio"], hparams["warmup_lr_ratio"]
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _warmup_steps(self) -> int:
        epochs, batches = self.hparams["warmup_epochs"], self.trainer.num_training_batches
        if epochs and math.isinf(batches):
            raise ConfigError(
                f"warmup_epochs={epochs:g}: the training loader has no length, so its epochs are of unknown steps; set "
                "model.warmup_epochs to 0"
            )
        return round(epochs * math.ceil(batches / self.trainer.accumulate_grad_batches)) if epochs else 0

    @property
    def total_batch_size(self) -> int:
        """Pictures an optimiser step sees: those of the first step, over all devices and accumulated batches.

        Raises:
            ConfigError: If the training loader does not tell its batch size.
        """
        trainer = self.trainer
        loader, batches = trainer.train_dataloader, min(trainer.accumulate_grad_batches, trainer.num_training_batches)
        pictures = pictures_used(loader, batches, trainer.world_size)
        if pictures is None:
            raise ConfigError(
                f"the training loader ({type(loader).__name__}) has no batch_size, which the learning rate is scaled "
                "by; use a torch DataLoader with batch_size or with a batch sampler that has one"
            )
        return pictures
