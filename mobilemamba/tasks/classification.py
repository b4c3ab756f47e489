"""Image classification with MobileMamba or any other timm model."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import one_hot

from mobilemamba.data.batches import Labels
from mobilemamba.drawing import captioned, drawable, enlarged, unnormalised
from mobilemamba.models import ArchOverrides, ModelCard, create_model
from mobilemamba.scores import Score
from mobilemamba.tasks.base import Task
from mobilemamba.tasks.settings import network_settings
from mobilemamba.text import shorten
from mobilemamba.training.distillation import Distillation, Teacher, distillation_loss
from mobilemamba.training.metrics import ClassificationMetrics
from mobilemamba.training.mixing import Mixing
from mobilemamba.training.optimizer import classifier_modules
from mobilemamba.training.optimizer import freeze_backbone as _freeze_backbone

#: Smaller pictures are enlarged up to sides of this many pixels.
_LEAST_DRAWN = 160


class ClassificationTask(Task):
    """Trains and tests a classifier on batches of pictures (B, ``in_chans``, H, W) with class indices (B,) int64.

    Logs ``val/loss`` (without label smoothing), ``val/top1`` and ``val/top5`` in percent, 0 to 100, over all pictures
    whatever the batch sizes; in tests with the prefix ``test/``. The suffix ``_ema`` marks those of the averaged
    network; ``val/top1_max`` is the better of both, as the paper reports it. Outside of training, the network with
    folded norms is also evaluated (suffix ``_fused``); ``val/fused_changed`` counts the pictures that it assigns to
    another class.
    """

    task: ClassVar[str] = "classification"
    form: ClassVar[type] = Labels
    scores: ClassVar[tuple[Score, ...]] = ClassificationMetrics.SCORES
    LIMITS: ClassVar[dict[str, tuple[float, float]]] = {
        "num_classes": (1, math.inf),
        "in_chans": (1, math.inf),
        "drop_path_rate": (0, 1),
        "label_smoothing": (0, 1),
        **Task.LIMITS,
    }

    def __init__(
        self,
        name: str = "mobilemamba_s6",
        arch: ArchOverrides = ArchOverrides(),  # noqa: B008 - read only; an Optional would hide its options in --help
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float | None = 0.0,
        distillation_head: bool = False,
        freeze_backbone: bool = False,
        label_smoothing: float = 0.1,
        mixing: Mixing | None = None,
        distillation: Distillation | None = None,
        **training: Any,
    ) -> None:
        """Builds the network.

        Args:
            name: Name of any timm model, or mobilemamba_t2, _t4, _s6, _b1, _b2 or _b4.
            arch: Changes to the architecture of a mobilemamba model; not for other models.
            num_classes: Number of classes.
            in_chans: Channels of a picture.
            drop_path_rate: Fraction of residual branches dropped in training; null for the value that the model was
                released with: 0.03 for mobilemamba_b1, _b2 and _b4, none for others.
            distillation_head: Add a second classifier that learns only from the teacher; the network returns the mean
                of both. For mobilemamba models.
            freeze_backbone: Train only the classifier; the norms before it keep their statistics.
            label_smoothing: Fraction of the training target that is spread over all classes.
            mixing: Mixup and CutMix; null for none.
            distillation: Teacher to learn from; null for none.
            **training: Initial weights, optimiser, schedule, average and layout: arguments of
                :class:`~mobilemamba.tasks.base.Task`.

        Raises:
            ConfigError: If the model is unknown or a value is out of range.
            WeightsError: If ``weights`` cannot be read or do not fit.
        """
        given = dict(locals())
        super().__init__(**training)
        # A checkpoint stores them as dicts.
        self.mixing = Mixing(**mixing) if isinstance(mixing, dict) else mixing
        self.distillation = Distillation(**distillation) if isinstance(distillation, dict) else distillation
        given |= network_settings(name, arch, drop_path_rate)
        given |= {"mixing": self.mixing and asdict(self.mixing)}
        given |= {"distillation": self.distillation and asdict(self.distillation)}
        self.keep_settings(given)
        #: Networks that are not submodules: not trained, moved or saved with this module.
        self._beside: dict[str, nn.Module] = {}
        self.train_loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.mix = self.mixing.build(num_classes) if self.mixing else None
        self.use_network(self.build_model())
        if self.hparams["freeze_backbone"]:
            _freeze_backbone(self.model)
        if self.hparams["compile"] and distillation_head:
            self.model.forward_heads = torch.compile(self.model.forward_heads)  # type: ignore[assignment, arg-type]  # for a method

    def build_model(self, num_classes: int | None = None, in_chans: int | None = None) -> nn.Module:
        """See :meth:`~mobilemamba.training.contract.TaskContract.build_model`."""
        hparams = self.hparams
        return create_model(
            hparams["name"],
            ArchOverrides(**hparams["arch"]),
            num_classes=hparams["num_classes"] if num_classes is None else num_classes,
            in_chans=hparams["in_chans"] if in_chans is None else in_chans,
            drop_path_rate=hparams["drop_path_rate"],
            distilled=hparams["distillation_head"],
        )

    def new_metrics(self) -> ClassificationMetrics:
        return ClassificationMetrics(self.hparams["num_classes"])

    def draw_example(self, images: Tensor, targets: Tensor) -> Image.Image | None:
        if (picture := self._shown(images[0])) is None:
            return None
        (probability,), (answer,) = (found.tolist() for found in self.better_network(images)[0].softmax(-1).topk(1))
        truth, line = int(targets[0]), f"{probability:.0%} {self._named(answer)}"
        if answer == truth:
            return captioned(picture, [line], "green")
        return captioned(picture, [line, f"truth: {self._named(truth)}"], "firebrick")

    def draw_training(self, images: Tensor, targets: Tensor, number: int) -> list[Image.Image]:
        if self.mix is not None:
            images, targets = self.mix(images.clone(), targets)
        else:
            targets = one_hot(targets, self.hparams["num_classes"]).float()
        drawn = []
        for image, shares in zip(images[:number], targets, strict=False):
            if (picture := self._shown(image)) is None:
                return []
            # A mixed picture is of two classes at most.
            found = zip(*(values.tolist() for values in shares.topk(min(2, len(shares)))), strict=True)
            parts = [(f"{share:.0%} " if share < 1 else "", self._named(index)) for share, index in found if share > 0]
            drawn.append(captioned(picture, ["".join(part) for part in parts]))
        return drawn

    def _shown(self, image: Tensor) -> Image.Image | None:
        """Returns a picture (in_chans, H, W) as the network gets it, enlarged; None unless it is of known colours."""
        if self.data is None or len(image) != 3:
            return None
        return enlarged(unnormalised(image.float().cpu(), self.data.mean, self.data.std), _LEAST_DRAWN)

    def _named(self, index: int) -> str:
        assert self.data is not None
        return shorten(drawable(self.data.class_names[index], f"class {index}"))

    @classmethod
    def settings_of(cls, card: ModelCard) -> dict[str, Any]:
        return super().settings_of(card) | {"distillation_head": card.distilled}

    @property
    def model_card(self) -> ModelCard:
        return replace(super().model_card, distilled=self.hparams["distillation_head"])

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.distillation is not None and "teacher" not in self._beside:
            card = self.model_card
            how = card.preprocessing
            self._beside["teacher"] = Teacher(self.distillation, card.num_classes, how.mean, how.std, card.class_names)

    def train(self, mode: bool = True) -> ClassificationTask:
        """Sets training mode as for any module, but keeps a frozen backbone's norms and dropout in evaluation mode."""
        super().train(mode)
        if self.hparams["freeze_backbone"]:
            self.model.eval()
            for module in classifier_modules(self.model):
                module.train(mode)
        return self

    def on_fit_start(self) -> None:
        if "teacher" in self._beside:
            self._beside["teacher"].to(self.device)

    def on_train_start(self) -> None:
        """Puts a frozen backbone into evaluation mode; if this happened earlier, Lightning would warn about it."""
        self.train()
        super().on_train_start()

    def training_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Returns the cross entropy on the (mixed) pictures, plus the weighted distillation loss if there is one."""
        if self.mix is not None:
            images, targets = self.mix(images, targets)
        if self.distillation is None:
            return self.train_loss(self(images).float(), targets)
        if self.hparams["distillation_head"]:
            logits, of_teacher = self.model.forward_heads(self.in_layout(images))  # type: ignore[operator]  # ours has it
        else:
            logits = of_teacher = self(images)
        task = self.train_loss(logits.float(), targets)
        learned = distillation_loss(
            of_teacher, self._beside["teacher"](images), self.distillation.kind, self.distillation.tau
        )
        self.log_dict({"train/loss_task_step": task, "train/loss_distillation_step": learned})
        return task + self.distillation.weight * learned

    def predict_step(self, batch: Any) -> dict[str, Tensor]:
        """Classifies a batch of pictures (B, in_chans, H, W), given alone or as the first item of a tuple.

        Returns:
            ``probabilities`` (B, num_classes) float32, and the k <= 5 most probable classes in descending order:
            ``top_probabilities`` (B, k) float32 and ``top_indices`` (B, k) int64.
        """
        x = batch[0] if isinstance(batch, list | tuple) else batch
        probabilities = self(x).float().softmax(-1)
        top = probabilities.topk(min(5, self.hparams["num_classes"]))
        return {"probabilities": probabilities, "top_probabilities": top.values, "top_indices": top.indices}
