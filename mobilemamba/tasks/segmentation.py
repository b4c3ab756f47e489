"""Semantic segmentation with MobileMamba or any other timm model with feature maps as the backbone."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch.accelerators import CUDAAccelerator
from PIL import Image
from torch import Tensor, nn

from mobilemamba.data.batches import IGNORED_PIXEL, Masks
from mobilemamba.data.segmentation import SegmentationDataModule
from mobilemamba.dense import Segmenter, create_segmenter, look_closely
from mobilemamba.dense.pixels import likeliest
from mobilemamba.drawing import compare, unnormalised
from mobilemamba.scores import Score
from mobilemamba.tasks.dense import DenseTask
from mobilemamba.training.confusion import class_scores
from mobilemamba.training.schedule import Schedule
from mobilemamba.training.segmentation_metrics import SegmentationMetrics

Head = Literal["deeplabv3", "pspnet", "semantic_fpn"]


class SegmentationTask(DenseTask):
    """Trains and tests a segmenter on pictures (B, ``in_chans``, H, W) and the classes of their pixels (B, H, W) int64.

    Pixels that are ``IGNORED_PIXEL`` do not count. In evaluations, targets may differ in size from their pictures;
    predictions are then scaled to the target's size. Logs ``val/miou`` (mean IoU of the classes), ``val/aacc``
    (accuracy over all pixels) and ``val/macc`` (mean accuracy of the classes) in percent, 0 to 100, over the whole set,
    and ``val/loss``, the mean over the pixels that count; in tests with the prefix ``test/``. The suffix ``_ema`` marks
    those of the averaged network, and ``val/miou_max`` is the better of both; ``val/fused_changed`` counts the pixels
    that the network with folded norms assigns to another class.
    """

    task: ClassVar[str] = "segmentation"
    form: ClassVar[type] = Masks
    counted: ClassVar[str] = "pixels"
    table_classes: ClassVar[int] = 150
    scores: ClassVar[tuple[Score, ...]] = SegmentationMetrics.SCORES
    head_options: ClassVar[dict[str, Any]] = {"auxiliary": False, "head_dim": None, "output_stride": None}
    model: Segmenter
    LIMITS: ClassVar[dict[str, tuple[float, float]]] = {
        "num_classes": (2, IGNORED_PIXEL),
        "auxiliary_weight": (0, math.inf),
        "head_lr_ratio": (0, math.inf),
        **DenseTask.LIMITS,
    }

    def __init__(
        self,
        name: str = "mobilemamba_s6",
        head: Head = "semantic_fpn",
        num_classes: int = 150,
        head_dim: int | None = None,
        output_stride: int | None = None,
        auxiliary: bool = False,
        auxiliary_weight: float = 0.4,
        loss_over: Literal["all", "counted"] = "all",
        sync_heads: bool = True,
        head_lr_ratio: float = 1.0,
        lr: float = 1.2e-4,
        reference_batch_size: int = 32,
        schedule: Schedule = "half_cosine",
        **training: Any,
    ) -> None:
        """Builds the network. The optimiser's defaults are those of the paper's ADE20K trainings.

        Args:
            name: Backbone: any timm model with feature maps, or mobilemamba_t2, _t4, _s6, _b1, _b2 or _b4.
            head: Segmentation head on the backbone.
            num_classes: Number of classes.
            head_dim: Channels of the head; null for the paper's: 128 for semantic_fpn, 256 for the others.
            output_stride: Stride of the coarsest map, for backbones whose last stages can be dilated instead.
            auxiliary: Add a second head on the last map but one, for an auxiliary loss in training.
            auxiliary_weight: Weight of the auxiliary loss.
            loss_over: Pixels over which the cross entropy is averaged: ``all``, where ignored pixels add zero, as in
                the release; or only those ``counted``.
            sync_heads: Synchronise the statistics of the heads' norms across GPUs; the backbone's stay separate.
            head_lr_ratio: Factor on the learning rate of the head; not of the neck or the second head.
            lr: Peak learning rate for a batch of ``reference_batch_size``; scaled in proportion to the real batch size.
            reference_batch_size: Pictures per optimiser step for which ``lr`` is given.
            schedule: Learning rate after the warm-up: ``cosine`` decay over the whole training; or the peak rate for
                the first half of it and cosine decay over the second half, updated every step (``half_cosine``) or
                every epoch (``half_cosine_by_epoch``).
            **training: Initial weights, of a classifier for the backbone alone or of a whole segmenter; the remaining
                settings of optimiser, schedule, average and layout: arguments of
                :class:`~mobilemamba.tasks.base.Task`.

        Raises:
            ConfigError: If the model is unknown or a value is out of range.
            WeightsError: If ``weights`` cannot be read or do not fit.
        """
        given = dict(locals())
        super().__init__(name, **training)
        self.keep_settings(given)
        self._closely: tuple[int | None, bool] = (None, False)
        self.use_network(self.build_model())
        if self.hparams["compile"] and auxiliary:
            self.model.forward_heads = torch.compile(self.model.forward_heads)  # type: ignore[method-assign]  # on purpose

    def build_model(self, num_classes: int | None = None, in_chans: int | None = None) -> Segmenter:
        """See :meth:`~mobilemamba.training.contract.TaskContract.build_model`."""
        return create_segmenter(
            **self.network_arguments(num_classes, in_chans),
            auxiliary=self.hparams["auxiliary"] and num_classes is None,  # not in tables, as in the paper's counts
            output_stride=self.hparams["output_stride"],
        )

    def new_metrics(self) -> SegmentationMetrics:
        return SegmentationMetrics(self.hparams["num_classes"])

    @property
    def of_classes(self) -> dict[str, float]:
        """Class name -> IoU in percent, for the better network in the last evaluation."""
        if (counts := self.confusion) is None:
            return {}
        names = self.class_names
        return {names[score.label]: round(100 * score.iou, 4) for score in class_scores(counts)}

    def look_closely(self, window: int | None, tta: bool) -> None:
        look_closely(self.model, window)  # raises an error if the window is impossible
        self._closely = window, tta

    def evaluate(self, network: nn.Module, images: Tensor) -> Tensor:
        """Evaluates in windows and in several views of a picture, if :meth:`look_closely` asked for it."""
        return super().evaluate(look_closely(network, *self._closely, self.preprocessing.antialias), images)

    def draw_example(self, images: Tensor, targets: Tensor) -> Image.Image | None:
        data = self.data
        if not isinstance(data, SegmentationDataModule):
            return None
        found = likeliest(self.evaluate(self.better_network, images), (targets.shape[-2], targets.shape[-1]))
        return _drawn(data, images[0], {"truth": targets[0], "prediction": found[0]})

    def draw_training(self, images: Tensor, targets: Tensor, number: int) -> list[Image.Image]:
        data = self.data
        if not isinstance(data, SegmentationDataModule):
            return []
        return [_drawn(data, image, {"truth": labels}) for image, labels in zip(images[:number], targets, strict=False)]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        shared = stage == "fit" and self.hparams["sync_heads"] and self.trainer.world_size > 1
        if shared and isinstance(self.trainer.accelerator, CUDAAccelerator):  # SyncBatchNorm needs GPUs
            sync_heads(self.model)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Returns the optimiser's groups, with the head in separate groups if its learning rate differs."""
        groups, ratio = super().parameter_groups(), self.hparams["head_lr_ratio"]
        if ratio == 1:
            return groups
        of_head = {id(parameter) for parameter in self.model.head.parameters()}
        parts = []
        for group in groups:
            for inside, factor in ((False, 1.0), (True, ratio)):
                parameters = [p for p in group["params"] if (id(p) in of_head) == inside]
                if parameters:
                    parts.append({**group, "params": parameters, "lr_scale": factor * group.get("lr_scale", 1.0)})
        return parts

    def training_loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Returns the cross entropy of the head, plus the weighted cross entropy of the second head if there is one."""
        if not self.hparams["auxiliary"]:
            return self.cross_entropy(self(images), targets)
        of_head, of_auxiliary = self.model.forward_heads(self.in_layout(images))
        head = self.cross_entropy(of_head, targets)
        auxiliary = self.hparams["auxiliary_weight"] * self.cross_entropy(of_auxiliary, targets)
        self.log_dict({"train/loss_head_step": head, "train/loss_auxiliary_step": auxiliary})
        return head + auxiliary

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns the cross entropy of logits (B, classes, H, W) and classes (B, H, W), averaged by ``loss_over``."""
        # Summed afterwards, as on a GPU cross_entropy itself adds up pixels in no fixed order.
        total = F.cross_entropy(logits.float(), targets, ignore_index=IGNORED_PIXEL, reduction="none").sum()
        if self.hparams["loss_over"] == "all":
            return total / targets.numel()
        return total / (targets != IGNORED_PIXEL).sum().clamp(min=1)

    def predict_step(self, batch: Any) -> Tensor:
        """Returns the pixels' classes (B, H, W) int64 of pictures (B, in_chans, H, W), alone or first in a tuple."""
        x = batch[0] if isinstance(batch, list | tuple) else batch
        return likeliest(self(x), (x.shape[-2], x.shape[-1]))


def sync_heads(model: Segmenter) -> None:
    """Makes the norms of the heads share their statistics among processes; in place, keeping their parameters."""
    for name in ("head", "auxiliary_head"):
        if (head := getattr(model, name)) is not None:
            setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(head))


def _drawn(data: SegmentationDataModule, image: Tensor, labels: dict[str, Tensor]) -> Image.Image:
    """Draws a picture (3, H, W) as the network gets it, beside the classes of its pixels."""
    picture = unnormalised(image.float().cpu(), data.mean, data.std)
    return compare(picture, {title: one.cpu() for title, one in labels.items()}, data.class_names, data.palette)
