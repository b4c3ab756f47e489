"""Object detection with MobileMamba or any other timm model with feature maps as the backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor, nn

from mobilemamba.data import DetectionDataModule
from mobilemamba.data.batches import Boxes
from mobilemamba.dense import Detector, create_detector
from mobilemamba.dense.mask_rcnn import MaskRCNN
from mobilemamba.dense.regions import paste_masks
from mobilemamba.drawing import draw_objects, drawable, enlargement, panels, unnormalised
from mobilemamba.errors import ConfigError
from mobilemamba.models.fuse import count_batch_norms
from mobilemamba.scores import Score
from mobilemamba.tasks.dense import DenseTask
from mobilemamba.training.detection_metrics import BOX_SCORES, MASK_SCORES, ClassPrecision, DetectionMetrics
from mobilemamba.training.schedule import Schedule

Head = Literal["mask_rcnn", "retinanet", "ssdlite"]

#: Boxes with a lower score count in the metrics, but are not drawn.
_DRAWN = 0.3


class DetectionTask(DenseTask):
    """Trains and tests a detector on pictures (B, ``in_chans``, H, W) with objects, see :class:`Boxes`.

    Logs COCO's average precisions in percent, 0 to 100: ``val/map`` (over IoU 0.5 to 0.95), ``val/map50``,
    ``val/map75`` and those of small, medium and large objects; in tests with the prefix ``test/``. For ``mask_rcnn``
    the same are logged for masks, the first of which, ``val/mask_map``, is its headline. The suffix ``_ema`` marks
    those of the averaged network, and ``val/map_max`` is the better of both. In training, each part of the loss is
    logged as ``train/loss_PART_step``.
    """

    task: ClassVar[str] = "detection"
    form: ClassVar[type] = Boxes
    counted: ClassVar[str] = "objects"
    table_classes: ClassVar[int] = 80
    head_options: ClassVar[dict[str, Any]] = {"head_dim": 256, "prune": False}
    scores: tuple[Score, ...] = BOX_SCORES  # type: ignore[misc]  # more in an instance with masks
    model: Detector
    LIMITS: ClassVar[dict[str, tuple[float, float]]] = {
        "num_classes": (1, math.inf),
        "head_dim": (4, math.inf),
        "regions": (1, math.inf),
        **DenseTask.LIMITS,
    }

    def __init__(
        self,
        name: str = "mobilemamba_s6",
        head: Head = "ssdlite",
        num_classes: int = 80,
        head_dim: int = 256,
        prune: bool = False,
        frozen_norms: bool = True,
        regions: int = 512,
        lr: float = 2e-4,
        reference_batch_size: int = 16,
        schedule: Schedule = "half_cosine_by_epoch",
        **training: Any,
    ) -> None:
        """Builds the network. The optimiser's defaults are those of the paper's COCO trainings.

        Args:
            name: Backbone: any timm model with feature maps, or mobilemamba_t2, _t4, _s6, _b1, _b2 or _b4.
            head: Detection head on the backbone; ``mask_rcnn`` needs data with masks.
            num_classes: Number of classes of objects.
            head_dim: Channels of neck and head.
            prune: Leave out the stages that no head reads: for ``ssdlite``, those coarser than stride 32.
            frozen_norms: Keep the running statistics of the backbone's BatchNorms fixed in training, as in the paper's
                trainings; for a pretrained backbone.
            regions: Number of proposed boxes per training picture from which ``mask_rcnn`` learns.
            lr: Peak learning rate for a batch of ``reference_batch_size``; scaled in proportion to the real batch size.
            reference_batch_size: Pictures per optimiser step for which ``lr`` is given.
            schedule: Learning rate after the warm-up: ``cosine`` decay over the whole training; or the peak rate for
                the first half of it and cosine decay over the second half, updated every step (``half_cosine``) or
                every epoch (``half_cosine_by_epoch``).
            **training: Initial weights, of a classifier for the backbone alone or of a whole detector; the remaining
                settings of optimiser, schedule, average and layout: arguments of
                :class:`~mobilemamba.tasks.base.Task`.

        Raises:
            ConfigError: If the model is unknown or a value is out of range, or if faster-coco-eval is not installed.
            WeightsError: If ``weights`` cannot be read or do not fit.
        """
        given = dict(locals())
        super().__init__(name, **training)
        self.keep_settings(given)
        self.scores = self.scores_with(self.hparams)
        self.use_network(self.build_model())
        if self.hparams["compile"] and isinstance(self.model, Detector):
            # Losses never call the network, nor ssdlite its backbone, nor a backbone its list of stages, as a whole.
            backbone, *others = self.model.children()
            for module in (*backbone.get_submodule("model").children(), *others):
                for part in module.children() if isinstance(module, nn.Sequential | nn.ModuleList) else [module]:
                    part.compile()

    @classmethod
    def scores_with(cls, settings: Mapping[str, Any]) -> tuple[Score, ...]:
        """Returns the scores of boxes, preceded by those of masks if the head finds masks."""
        return (*MASK_SCORES, *BOX_SCORES) if settings.get("head") == "mask_rcnn" else BOX_SCORES

    @property
    def finds_masks(self) -> bool:
        return bool(self.hparams["head"] == "mask_rcnn")

    def build_model(self, num_classes: int | None = None, in_chans: int | None = None) -> Detector:
        """See :meth:`~mobilemamba.training.contract.TaskContract.build_model`."""
        options = {name: self.hparams[name] for name in ("prune", "frozen_norms")}
        model = create_detector(**self.network_arguments(num_classes, in_chans), **options)
        if isinstance(model, MaskRCNN):
            model.region_samples = self.hparams["regions"]
        return model

    def new_metrics(self) -> DetectionMetrics:
        return DetectionMetrics(self.hparams["num_classes"], masks=self.finds_masks)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        precision, data = self.trainer.precision, self.data
        if precision in ("16-true", "bf16-true"):  # Lightning converts all of a batch
            raise ConfigError(
                f"trainer.precision={precision}: it rounds the pixels of boxes and areas, too; give bf16-mixed or "
                "32-true"
            )
        if self.finds_masks and isinstance(data, DetectionDataModule) and not data.masks:
            raise ConfigError("data.masks=False: mask_rcnn learns from masks; set data.masks to true")
        fresh = stage == "fit" and self._weights is None
        if fresh and self.hparams["frozen_norms"] and count_batch_norms(self.model.backbone) > 0:
            rank_zero_warn(
                "model.frozen_norms=true without model.weights: the norms of a backbone that starts from nothing know "
                "no statistics yet; give --weights, or set model.frozen_norms to false"
            )

    # Training.

    def train(self, mode: bool = True) -> DetectionTask:
        """Sets training mode as for any module, but keeps frozen norms in evaluation mode."""
        super().train(mode)
        if hasattr(self, "model"):
            self.model.train(mode)
        return self

    def on_train_start(self) -> None:
        """Puts frozen norms into evaluation mode; if this happened earlier, Lightning would warn about it."""
        self.train()
        super().on_train_start()

    def training_loss(self, images: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        """Returns the sum of the network's losses."""
        losses = self.model.losses(self.in_layout(images), targets)
        self.log_dict({f"train/loss_{name}_step": loss for name, loss in losses.items()})
        return torch.stack([*losses.values()]).sum()

    # Evaluation.

    def validation_step(self, batch: tuple[Tensor, list[dict[str, Tensor]]]) -> None:
        images, targets = batch
        outputs = {name: self.detect(network, images, targets) for name, network in self._evaluated.items()}
        self.comparison.update(outputs, targets)

    def detect(self, network: Any, images: Tensor, targets: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Returns the objects found in each picture of a batch; masks (n, H, W) bool have its original size."""
        found = network.detect(self.in_layout(images), torch.stack([target["size"] for target in targets]))
        if self.finds_masks:
            for of_picture, target in zip(found, targets, strict=True):
                size = tuple(target["original_size"].tolist())
                boxes = of_picture["boxes"] * (target["original_size"] / target["size"]).flip(0).repeat(2)
                of_picture["masks"] = paste_masks(of_picture["masks"], boxes, size)
        return found

    @property
    def precision(self) -> ClassPrecision | None:
        """Precision of each class, for the better network in the last evaluation; None if there was none."""
        metrics = self.comparison.metrics[self.better]
        assert isinstance(metrics, DetectionMetrics)
        return metrics.classes.get("mask_" if self.finds_masks else "")

    @property
    def curves(self) -> dict[str, Tensor]:
        return {} if (found := self.precision) is None else found._asdict()

    @property
    def of_classes(self) -> dict[str, float]:
        """Class name -> average precision in percent, for the better network in the last evaluation."""
        if (found := self.precision) is None:
            return {}
        pairs = zip(self.class_names, found.ap_C.tolist(), strict=True)
        return {name: round(ap, 4) for name, ap in pairs if not math.isnan(ap)}

    def class_rows(self, *, worst_first: bool) -> list[dict[str, Any]] | None:
        """Returns a row per class that has objects: average precision over all IoU thresholds, and at 0.5."""
        if (found := self.precision) is None:
            return None
        of_50 = dict(zip(self.class_names, found.ap50_C.tolist(), strict=True))
        known = self.of_classes
        names = sorted(known, key=lambda name: known[name]) if worst_first else [*known]
        return [{"class": name, "AP (%)": f"{known[name]:.2f}", "AP50 (%)": f"{of_50[name]:.2f}"} for name in names]

    def draw_example(self, images: Tensor, targets: list[dict[str, Tensor]]) -> Image.Image | None:
        data = self.data
        if not isinstance(data, DetectionDataModule):
            return None
        target = targets[0]
        found = self.detect(self.better_network, images, targets)[0]
        sure = {name: value[found["scores"] >= _DRAWN] for name, value in found.items()}
        truth, prediction = (self._drawn(data, images[0], target, objects) for objects in (target, sure))
        return panels([("truth", truth), (f"prediction, scores from {_DRAWN}", prediction)])

    def draw_training(self, images: Tensor, targets: list[dict[str, Tensor]], number: int) -> list[Image.Image]:
        data = self.data
        if not isinstance(data, DetectionDataModule):
            return []
        pairs = zip(images[:number], targets, strict=False)
        return [self._drawn(data, image, target, target) for image, target in pairs]

    def _drawn(
        self, data: DetectionDataModule, image: Tensor, target: dict[str, Tensor], objects: dict[str, Tensor]
    ) -> Image.Image:
        """Draws objects, the target's own or predicted ones, on a picture (3, H, W) of a batch, without its padding."""
        height, width = target["size"].tolist()
        picture = unnormalised(image[:, :height, :width].float().cpu(), data.mean, data.std)
        scale = enlargement((width, height))
        picture = picture.resize((scale * width, scale * height), Image.Resampling.BILINEAR)
        labels = objects["labels"].tolist()
        scores = (
            [f" {score:.2f}" for score in objects["scores"].tolist()] if "scores" in objects else [""] * len(labels)
        )
        names = [drawable(data.class_names[label], f"class {label}") for label in labels]
        texts = [name + score for name, score in zip(names, scores, strict=True)]
        masks = None
        if self.finds_masks:
            masks = objects["masks"]  # in the size of the original picture, or of the padded batch
            if masks.shape[1:] != (*target["original_size"].tolist(),):
                masks = masks[:, :height, :width]
            rows, columns = (
                torch.arange(whole) * side // whole
                for side, whole in zip(masks.shape[1:], picture.size[::-1], strict=True)
            )
            masks = masks.cpu()[:, rows][:, :, columns]
        boxes = (scale * objects["boxes"]).tolist()
        return draw_objects(picture, boxes, texts, [data.palette[label] for label in labels], masks)

    def predict_step(self, batch: Any) -> list[dict[str, Tensor]]:
        """Returns the objects found in each picture of a batch: pictures (B, in_chans, H, W), alone or with targets.

        Boxes are in pixels of the pictures as they are in the batch; targets tell which part of these is padding.
        """
        x, targets = batch if isinstance(batch, list | tuple) else (batch, None)
        sizes = None if targets is None else torch.stack([target["size"] for target in targets])
        return self.model.detect(self.in_layout(x), sizes)
