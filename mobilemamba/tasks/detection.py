"""Object detection: a detector on MobileMamba or on any other timm model that gives maps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from torch import Tensor

from mobilemamba.data import DetectionDataModule
from mobilemamba.data.batches import Boxes
from mobilemamba.dense import Detector, create_detector
from mobilemamba.dense.mask_rcnn import MaskRCNN
from mobilemamba.dense.regions import paste_masks
from mobilemamba.drawing import draw_objects, enlargement, panels, unnormalised
from mobilemamba.errors import ConfigError
from mobilemamba.models.fuse import count_batch_norms
from mobilemamba.scores import Score
from mobilemamba.tasks.dense import DenseTask
from mobilemamba.training.detection_metrics import BOX_SCORES, MASK_SCORES, ClassPrecision, DetectionMetrics
from mobilemamba.training.schedule import Schedule

Head = Literal["mask_rcnn", "retinanet", "ssdlite"]

#: Boxes with a lower score are in the metrics, but not in drawings.
_DRAWN = 0.3


class DetectionTask(DenseTask):
    """Trains and tests a detector on pictures (B, ``in_chans``, H, W) with objects, see :class:`Boxes`.

    Logs for validation and test COCO's average precisions in percent, 0 to 100: ``val/map`` (over IoU 0.5 to 0.95),
    ``val/map50``, ``val/map75`` and those of small, medium and large objects; of ``mask_rcnn`` also those of masks,
    ``val/mask_map`` the first of them, which is its headline. The averaged network's have the suffix ``_ema``, and
    ``val/map_max`` is the better of both. In training each part of the loss is ``train/loss_PART_step``.
    """

    task: ClassVar[str] = "detection"
    form: ClassVar[type] = Boxes
    counted: ClassVar[str] = "objects"
    table_classes: ClassVar[int] = 80
    head_options: ClassVar[dict[str, Any]] = {"head_dim": 256, "prune": False}
    scores: tuple[Score, ...] = BOX_SCORES  # type: ignore[misc]  # of a network with masks, more
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
        """Builds the network. The defaults of the optimiser are those of the paper's trainings on COCO.

        Args:
            name: Backbone: any timm model that gives maps; mobilemamba_t2, _t4, _s6, _b1, _b2 or _b4.
            head: The kind of detector; ``mask_rcnn`` needs data with masks.
            num_classes: Classes of objects.
            head_dim: Width of neck and head.
            prune: Leave out the stages that no head reads: for ``ssdlite`` those coarser than stride 32.
            frozen_norms: Keep the running statistics of the backbone's BatchNorms in training, as the paper's trainings
                do; for a backbone that was trained before.
            regions: How many of the boxes that ``mask_rcnn`` proposes in a training picture it learns from.
            lr: Peak learning rate at ``reference_batch_size``; the one used is in proportion to the real batch size.
            reference_batch_size: Pictures per optimiser step that ``lr`` is meant for.
            schedule: After the warm-up, a ``cosine`` over the whole training; or the peak in its first half and a
                cosine over the second, which changes the rate at every step (``half_cosine``) or once an epoch
                (``half_cosine_by_epoch``).
            **training: Weights to start from, of a classifier for the backbone alone or of a detector; the rest of
                optimiser and schedule, average and layout, as :class:`~mobilemamba.tasks.base.Task` takes them.

        Raises:
            ConfigError: If the model is unknown or a value is out of range, or if faster-coco-eval is not installed.
            WeightsError: If ``weights`` cannot be read or do not fit.
        """
        given = dict(locals())
        super().__init__(name, **training)
        self.keep_settings(given)
        self.scores = self.scores_with(self.hparams)
        self.use_network(self.build_model())

    model: Detector

    @classmethod
    def scores_with(cls, settings: Mapping[str, Any]) -> tuple[Score, ...]:
        """With those of masks, where it finds masks."""
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
        data = self.data
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
        """As for any module, except that frozen norms stay in evaluation."""
        super().train(mode)
        if hasattr(self, "model"):
            self.model.train(mode)
        return self

    def on_train_start(self) -> None:
        """Sets the frozen norms' mode; not before, as Lightning warns of what it then finds in evaluation."""
        self.train()
        super().on_train_start()

    def training_loss(self, images: Tensor, targets: list[dict[str, Tensor]]) -> Tensor:
        """The sum of the network's losses."""
        losses = self.model.losses(self.in_layout(images), targets)
        self.log_dict({f"train/loss_{name}_step": loss for name, loss in losses.items()})
        return torch.stack([*losses.values()]).sum()

    # Evaluation.

    def validation_step(self, batch: tuple[Tensor, list[dict[str, Tensor]]]) -> None:
        images, targets = batch
        outputs = {name: self.detect(network, images, targets) for name, network in self._evaluated.items()}
        self.comparison.update(outputs, targets)

    def detect(self, network: Any, images: Tensor, targets: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """What a network finds in the pictures of a batch; masks (n, H, W) bool are of the original pictures."""
        found = network.detect(self.in_layout(images), torch.stack([target["size"] for target in targets]))
        if self.finds_masks:
            for of_picture, target in zip(found, targets, strict=True):
                size = tuple(target["original_size"].tolist())
                boxes = of_picture["boxes"] * (target["original_size"] / target["size"]).flip(0).repeat(2)
                of_picture["masks"] = paste_masks(of_picture["masks"], boxes, size)
        return found

    @property
    def precision(self) -> ClassPrecision | None:
        """Of each class, of the better network in the last evaluation; None if there was none."""
        metrics = self.comparison.metrics[self.better]
        assert isinstance(metrics, DetectionMetrics)
        return metrics.classes.get("mask_" if self.finds_masks else "")

    @property
    def curves(self) -> dict[str, Tensor]:
        return {} if (found := self.precision) is None else found._asdict()

    @property
    def of_classes(self) -> dict[str, float]:
        """Class's name -> its average precision in percent, of the better network in the last evaluation."""
        if (found := self.precision) is None:
            return {}
        pairs = zip(self.class_names, found.ap_C.tolist(), strict=True)
        return {name: round(ap, 4) for name, ap in pairs if not math.isnan(ap)}

    def class_rows(self, *, worst_first: bool) -> list[dict[str, Any]] | None:
        """Of each class that there are objects of: average precision over all IoU and at 0.5."""
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
        found = self.detect(self.better_network, images, targets)[0]
        target, names = targets[0], data.class_names
        height, width = target["size"].tolist()
        picture = unnormalised(images[0, :, :height, :width].float().cpu(), data.mean, data.std)
        scale = enlargement((width, height))
        picture = picture.resize((scale * width, scale * height), Image.Resampling.BILINEAR)
        sure = {name: value[found["scores"] >= _DRAWN] for name, value in found.items()}

        def drawn(objects: dict[str, Tensor]) -> Image.Image:
            labels = objects["labels"].tolist()
            scores = (
                [f" {score:.2f}" for score in objects["scores"].tolist()] if "scores" in objects else [""] * len(labels)
            )
            texts = [names[label] + score for label, score in zip(labels, scores, strict=True)]
            masks = None
            if self.finds_masks:
                masks = objects["masks"]  # of the original picture; or of the batch, padded
                if masks.shape[1:] != (*target["original_size"].tolist(),):
                    masks = masks[:, :height, :width]
                rows, columns = (
                    torch.arange(whole) * side // whole
                    for side, whole in zip(masks.shape[1:], picture.size[::-1], strict=True)
                )
                masks = masks.cpu()[:, rows][:, :, columns]
            boxes = (scale * objects["boxes"]).tolist()
            return draw_objects(picture, boxes, texts, [data.palette[label] for label in labels], masks)

        return panels([("truth", drawn(target)), (f"prediction, scores from {_DRAWN}", drawn(sure))])

    def predict_step(self, batch: Any) -> list[dict[str, Tensor]]:
        """What is found in each picture of a batch (B, in_chans, H, W), alone or first in a tuple."""
        x = batch[0] if isinstance(batch, list | tuple) else batch
        return self.model.detect(self.in_layout(x))
