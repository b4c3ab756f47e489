"""Detection metrics: COCO's average precision, and confusion counts of the objects' classes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_area, box_iou

from mobilemamba.data.coco_masks import mask_library
from mobilemamba.scores import Score
from mobilemamba.training.confusion import ConfusionCounts
from mobilemamba.training.metrics import Metrics

_ALL = slice(None)
#: Key -> label, indices of the IoU thresholds (0.5, 0.55 to 0.95), and index of the area (any, small, medium, large).
_SCORES = {
    "map": ("AP", _ALL, 0),
    "map50": ("AP50", slice(0, 1), 0),
    "map75": ("AP75", slice(5, 6), 0),
    "map_small": ("AP S", _ALL, 1),
    "map_medium": ("AP M", _ALL, 2),
    "map_large": ("AP L", _ALL, 3),
}
BOX_SCORES = tuple(Score(key, label) for key, (label, *_) in _SCORES.items())
MASK_SCORES = tuple(Score(f"mask_{key}", f"mask {label}") for key, (label, *_) in _SCORES.items())
_KINDS: dict[str, Literal["bbox", "segm"]] = {"": "bbox", "mask_": "segm"}
#: For confusion counts: minimal score of a prediction, and minimal IoU at which it matches an object.
CONFIDENT, OVERLAPPING = 0.25, 0.5
_MASK_FROM = 0.5  # probability above which a pixel belongs to a mask


class ClassPrecision(NamedTuple):
    """Average precision and precision-recall curves of the C classes; NaN for classes without objects.

    Attributes:
        ap_C: Average precision in percent, over IoU 0.5 to 0.95.
        ap50_C: Average precision in percent at IoU 0.5.
        recall_R: The R recall values of the curves, 0 to 1.
        precision_CR: Precision at IoU 0.5 for each recall, 0 to 1.
    """

    ap_C: Tensor
    ap50_C: Tensor
    recall_R: Tensor
    precision_CR: Tensor


class DetectionMetrics(Metrics):
    """COCO's average precision of boxes, and of masks, in percent; NaN for a size that no object has.

    Computed over IoU 0.5 to 0.95 (``map``), at 0.5 and 0.75, and for small, medium and large objects by annotated area,
    with at most 100 predictions per class and picture. Predictions in a crowd do not count, nor do pictures that are
    not ``counted``. Sizes are in pixels of the original picture. Boxes and run-length encoded masks of all pictures are
    kept on the CPU.

    The confusion counts are of predictions with a score of 0.25 or more, matched one to one with the objects that they
    overlap most, at IoU 0.5 or more. Predictions without an object and objects without a prediction are counted as
    pairs with class ``num_classes``, the background.

    Args:
        num_classes: Number of classes without the background.
        masks: Whether the detector also finds masks.

    Attributes:
        classes: ``""`` (boxes) and, if there are masks, ``"mask_"`` -> precision of each class in the last result.

    Raises:
        ConfigError: If faster-coco-eval is not installed.
    """

    SCORES: ClassVar[tuple[Score, ...]] = BOX_SCORES

    def __init__(self, num_classes: int, *, masks: bool = False) -> None:
        super().__init__()
        mask_library()
        self.num_classes = num_classes
        self.kinds = {prefix: kind for prefix, kind in _KINDS.items() if masks or not prefix}
        with torch.device("cpu"):  # its __init__ computes thresholds, which fails on the meta device of a sweep's check
            self.precision = _Precision(iou_type=tuple(self.kinds.values()), backend="faster_coco_eval")
        self.confusion = ConfusionCounts(num_classes + 1)
        self.classes: dict[str, ClassPrecision] = {}

    def update(self, outputs: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Adds a batch.

        Args:
            outputs: For each picture ``boxes`` (n, 4), left, top, right and bottom in pixels of the prepared picture,
                ``scores`` (n,) and ``labels`` (n,) from 0; with masks also ``masks`` (n, h, w), bool or probabilities,
                in the size of the original picture or of the prepared one, which may be padded.
            targets: Targets as described in :class:`~mobilemamba.data.batches.Boxes`.
        """
        counted = [pair for pair in zip(outputs, targets, strict=True) if pair[1]["counted"]]
        found = [self._measured(output, target) for output, target in counted]
        known = [self._measured(target, target) for _, target in counted]
        self.precision.update(found, known)
        none = torch.zeros(0, dtype=torch.int64)  # so that every process has a tensor to gather
        of_pictures = (_pairs(*pair, self.num_classes) for pair in zip(found, known, strict=True))
        answers, of_classes = map(torch.cat, zip((none, none), *of_pictures, strict=True))
        # Unlike the other states, this one is gathered as tensors on the processes' own devices.
        self.confusion.update(answers.to(self.confusion.device), of_classes.to(self.confusion.device))

    def compute(self) -> dict[str, Tensor]:
        """Returns the scores by their keys, over all processes; then resets."""
        found = self.precision.compute()
        self.counts = self.confusion.compute()
        self.precision.reset()
        self.confusion.reset()
        values: dict[str, Tensor] = {}
        for prefix, kind in self.kinds.items():
            precision_TRCA = found[kind]
            for key, (_, thresholds, area) in _SCORES.items():
                part = precision_TRCA[thresholds, :, :, area]
                mean = part[part >= 0].mean().float()  # NaN if there are none
                values[prefix + key] = 100 * mean.to(self.confusion.device)
            self.classes[prefix] = self._by_class(precision_TRCA[..., 0], found["classes"].view(-1))
        return values

    def _measured(self, objects: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns finite objects as torchmetrics reads them, in pixels of the original picture, on the CPU."""
        height, width = (target["original_size"] / target["size"].double()).tolist()
        taken = {"boxes", "labels", "scores", "iscrowd", "area"} & set(objects)
        measured = {name: objects[name].detach().cpu() for name in taken}
        boxes = measured["boxes"].double() * torch.tensor([width, height, width, height], dtype=torch.float64)
        measured["boxes"] = boxes.float()
        if "masks" in objects and "mask_" in self.kinds:
            measured["masks"] = _original(objects["masks"].detach().cpu(), target)
        finite = boxes.isfinite().all(1)
        if "scores" in measured:
            measured["scores"] = measured["scores"].float()
            finite &= measured["scores"].isfinite()
        return measured if finite.all() else {name: value[finite] for name, value in measured.items()}

    def _by_class(self, precision_TRC: Tensor, known: Tensor) -> ClassPrecision:
        """Returns the precision of all classes, given that of the ``known`` classes, which occur."""
        precision_TRA = torch.full((*precision_TRC.shape[:2], self.num_classes), torch.nan)
        precision_TRA[:, :, known] = torch.where(precision_TRC < 0, torch.nan, precision_TRC).float()
        ap_C, ap50_C = 100 * precision_TRA.mean((0, 1)), 100 * precision_TRA[0].mean(0)
        return ClassPrecision(ap_C, ap50_C, torch.linspace(0, 1, len(precision_TRA[0])), precision_TRA[0].T)


class _Precision(MeanAveragePrecision):
    """torchmetrics' metric for any number of pictures per process; torchmetrics itself hangs if the numbers differ.

    They differ if pictures are skipped or do not count. Gathered pictures have the order of a single process.
    """

    warn_on_many_detections = False

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any = None) -> None:
        states = {name: getattr(self, name) for name in self._defaults}
        parts: list[Any] = [None] * dist.get_world_size(process_group)
        dist.all_gather_object(parts, states, process_group)
        for name in states:
            rounds = chain.from_iterable(zip_longest(*(part[name] for part in parts)))
            setattr(self, name, [of_picture for of_picture in rounds if of_picture is not None])

    def compute(self) -> dict[str, Tensor]:
        """Returns ``bbox`` and ``segm``: precision (T, R, K, A) by IoU, recall, class, area, or -1; and ``classes``.

        Replaces torchmetrics' method, which rounds COCO's thresholds to float32, so that a recall of 0.1 is below the
        threshold 0.1, and which for results per class either copies every overlap or evaluates each class separately.
        """
        backend: Any = self._coco_backend
        labels = [*self.detection_labels, *self.groundtruth_labels, torch.zeros(0, dtype=torch.int64)]
        classes = torch.cat(labels).unique()
        answers, targets = (self._dataset(part, classes.tolist()) for part in ("detection", "groundtruth"))
        precisions: dict[str, Tensor] = {}
        for kind in self.iou_type:
            for answer in answers.dataset["annotations"]:
                answer["area"] = answer[f"area_{kind}"]
            evaluation = backend.cocoeval(targets, answers, iouType=kind)
            if targets.imgs:
                with contextlib.redirect_stdout(io.StringIO()):
                    evaluation.evaluate()
                    evaluation.accumulate()
                precisions[kind] = torch.as_tensor(evaluation.eval["precision"][..., -1])
            else:
                precisions[kind] = torch.zeros(10, 101, 0, 4)
        return {**precisions, "classes": classes}

    def _dataset(self, part: str, classes: list[int]) -> Any:
        """Returns all predictions (``detection``) or objects (``groundtruth``) as COCO's evaluation reads them.

        torchmetrics' own method reads the numbers of each box one by one, which takes as long as the evaluation.
        """
        backend: Any = self._coco_backend
        mask_area = backend.mask_utils.area
        names = {"bbox": "box", "category_id": "labels", "score": "scores", "iscrowd": "crowds", "area": "area"}
        states = {key: getattr(self, f"{part}_{name}", None) for key, name in names.items()}
        images: list[dict[str, int]] = []
        annotations: list[dict[str, Any]] = []
        for number, masks in zip_longest(range(len(getattr(self, f"{part}_box"))), getattr(self, f"{part}_mask")):
            columns = {key: state[number].tolist() for key, state in states.items() if state is not None}
            if masks:
                columns["segmentation"] = [{"size": size, "counts": counts} for size, counts in masks]
            images.append({"id": number, **(dict(zip(("height", "width"), masks[0][0], strict=True)) if masks else {})})
            for row in zip(*columns.values(), strict=True):
                found: dict[str, Any] = {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0}
                found |= zip(columns, row, strict=True)
                found["area_bbox"] = found["bbox"][2] * found["bbox"][3]
                if masks:
                    found["area_segm"] = mask_area(found["segmentation"])
                if found.get("area", 0) <= 0:  # not annotated
                    found["area"] = found[f"area_{self.iou_type[-1]}"]
                annotations.append(found)
        dataset = backend.coco()
        dataset.dataset = {"images": images, "annotations": annotations, "categories": [{"id": c} for c in classes]}
        dataset.createIndex()
        return dataset


def _original(masks: Tensor, target: Mapping[str, Tensor]) -> Tensor:
    """Returns masks (N, H, W) bool in the original picture's size, given masks of that or of the prepared picture."""
    original, prepared = (tuple(target[name].tolist()) for name in ("original_size", "size"))
    if masks.shape[1:] != original:
        masks = masks[:, : prepared[0], : prepared[1]]
    if len(masks) and masks.shape[1:] != original:
        masks = F.interpolate(masks[None].float(), original, mode="bilinear", antialias=False)[0]
    return masks if masks.dtype == torch.bool else masks > _MASK_FROM


def _pairs(found: dict[str, Tensor], known: dict[str, Tensor], background: int) -> tuple[Tensor, Tensor]:
    """Matches predictions with objects and returns their classes; those without a partner get the background."""
    confident = found["scores"] >= CONFIDENT
    boxes, labels = found["boxes"][confident], found["labels"][confident]
    crowd = known["iscrowd"].bool()
    overlaps = box_iou(known["boxes"][~crowd], boxes)
    targets = known["labels"][~crowd]
    free = torch.ones(len(boxes), dtype=torch.bool)
    answers = torch.full((len(targets),), background)
    pairs = (overlaps >= OVERLAPPING).nonzero()
    for target, answer in pairs[overlaps[tuple(pairs.T)].argsort(descending=True, stable=True)].tolist():
        if free[answer] and answers[target] == background:
            answers[target] = labels[answer]
            free[answer] = False
    if crowd.any():
        free &= ~(_inside(boxes, known["boxes"][crowd]) >= OVERLAPPING).any(1)
    spare = labels[free]
    return torch.cat([answers, spare]), torch.cat([targets, torch.full_like(spare, background)])


def _inside(boxes: Tensor, others: Tensor) -> Tensor:
    """Returns the fraction of each of N boxes that lies in each of M others, (N, M)."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (high - low).clamp(min=0).prod(2) / box_area(boxes).clamp(min=1e-9)[:, None]
