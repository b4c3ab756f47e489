"""What an evaluation of a detector counts: COCO's average precision, and which objects were taken for which."""

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

_SCORES = {
    "map": "AP",
    "map50": "AP50",
    "map75": "AP75",
    "map_small": "AP S",
    "map_medium": "AP M",
    "map_large": "AP L",
}
BOX_SCORES = tuple(Score(key, label) for key, label in _SCORES.items())
MASK_SCORES = tuple(Score(f"mask_{key}", f"mask {label}") for key, label in _SCORES.items())
#: Which thresholds (IoU 0.5, 0.55 to 0.95) and areas (any, small, medium, large) a score is of.
_ALL = slice(None)
_PLACES = [(_ALL, 0), (slice(0, 1), 0), (slice(5, 6), 0), (_ALL, 1), (_ALL, 2), (_ALL, 3)]
_PARTS = dict(zip(_SCORES, _PLACES, strict=True))
_KINDS: dict[str, Literal["bbox", "segm"]] = {"": "bbox", "mask_": "segm"}
#: Of the confusion: from which score on an answer counts, and from which overlap (IoU) on it is of an object.
CONFIDENT, OVERLAPPING = 0.25, 0.5
_MASK_FROM = 0.5  # probability of a mask's pixels


class ClassPrecision(NamedTuple):
    """How well the C classes are found, NaN for those without objects.

    Attributes:
        ap_C: Average precision in percent, over IoU 0.5 to 0.95.
        ap50_C: Average precision in percent at IoU 0.5.
        recall_R: Where the curves are known, 0 to 1.
        precision_CR: Precision at IoU 0.5 by recall, 0 to 1.
    """

    ap_C: Tensor
    ap50_C: Tensor
    recall_R: Tensor
    precision_CR: Tensor


class DetectionMetrics(Metrics):
    """COCO's average precision of boxes, and of masks, in percent; NaN where there are no objects of a size.

    Over IoU 0.5 to 0.95 (``map``), at 0.5 and 0.75, and of small, medium and large objects, by the annotated areas; at
    most 100 answers a class and picture. What is found in a crowd does not count, nor do pictures that are not
    ``counted``. All is measured in the original picture's pixels. Of each picture there are kept boxes and masks as
    runs of pixels, on the CPU.

    The counts of classes taken for classes are of answers with a score of 0.25 or more, each with the object that it
    overlaps most, one with one, at IoU 0.5 or more; beside them stand answers without an object and objects without an
    answer, as class ``num_classes``, the background.

    Args:
        num_classes: Classes, no background among them.
        masks: Whether masks are found, too.

    Attributes:
        classes: ``""`` and ``"mask_"``, if masks are found, to what the last result says of each class.

    Raises:
        ConfigError: If faster-coco-eval is not installed.
    """

    SCORES: ClassVar[tuple[Score, ...]] = BOX_SCORES

    def __init__(self, num_classes: int, *, masks: bool = False) -> None:
        super().__init__()
        mask_library()
        self.num_classes = num_classes
        self.kinds = {prefix: kind for prefix, kind in _KINDS.items() if masks or not prefix}
        with torch.device("cpu"):  # its thresholds are computed, which a sweep's check on no device could not
            self.precision = _Precision(iou_type=tuple(self.kinds.values()), backend="faster_coco_eval")
        self.confusion = ConfusionCounts(num_classes + 1)
        self.classes: dict[str, ClassPrecision] = {}

    def update(self, outputs: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Adds a batch.

        Args:
            outputs: For each picture ``boxes`` (n, 4), left, top, right and bottom in pixels of the prepared picture,
                ``scores`` (n,) and ``labels`` (n,) from 0; for masks ``masks`` (n, h, w), bool or probabilities, of the
                original picture, or else of the prepared one, perhaps padded.
            targets: As :class:`~mobilemamba.data.batches.Boxes` lists them.
        """
        counted = [pair for pair in zip(outputs, targets, strict=True) if pair[1]["counted"]]
        found = [self._measured(output, target) for output, target in counted]
        known = [self._measured(target, target) for _, target in counted]
        self.precision.update(found, known)
        none = torch.zeros(0, dtype=torch.int64)  # so that all processes have some to gather
        of_pictures = (_pairs(*pair, self.num_classes) for pair in zip(found, known, strict=True))
        answers, of_classes = map(torch.cat, zip((none, none), *of_pictures, strict=True))
        # Unlike the other states, these are gathered as tensors of the processes' own devices.
        self.confusion.update(answers.to(self.confusion.device), of_classes.to(self.confusion.device))

    def compute(self) -> dict[str, Tensor]:
        """The scores by their keys, over all processes; then starts anew."""
        found = self.precision.compute()
        self.counts = self.confusion.compute()
        self.precision.reset()
        self.confusion.reset()
        values: dict[str, Tensor] = {}
        for prefix, kind in self.kinds.items():
            precision_TRCA = found[kind]
            for key, (thresholds, area) in _PARTS.items():
                part = precision_TRCA[thresholds, :, :, area]
                mean = part[part >= 0].mean().float()  # NaN of none
                values[prefix + key] = 100 * mean.to(self.confusion.device)
            self.classes[prefix] = self._by_class(precision_TRCA[..., 0], found["classes"].view(-1))
        return values

    def _measured(self, objects: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What torchmetrics reads of objects, in the original picture's pixels, on the CPU; those that are finite."""
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
        """Of all classes, by the precision of those that there are."""
        precision_TRA = torch.full((*precision_TRC.shape[:2], self.num_classes), torch.nan)
        precision_TRA[:, :, known] = torch.where(precision_TRC < 0, torch.nan, precision_TRC).float()
        ap_C, ap50_C = 100 * precision_TRA.mean((0, 1)), 100 * precision_TRA[0].mean(0)
        return ClassPrecision(ap_C, ap50_C, torch.linspace(0, 1, len(precision_TRA[0])), precision_TRA[0].T)


class _Precision(MeanAveragePrecision):
    """torchmetrics' metric, whatever number of pictures each process has; its own waits for ever if they differ.

    They do where pictures are skipped or do not count. Pictures come in the order of a single process.
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
        """``bbox`` and ``segm``: precision by IoU, recall, class and area, (T, R, K, A), -1 where unknown; ``classes``.

        Not torchmetrics' way: it rounds COCO's thresholds to float32, by which a recall of 0.1 falls short of 0.1, and
        to tell the classes apart it either copies every overlap or evaluates each class anew.
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
        """All answers (``detection``) or objects (``groundtruth``), as COCO's evaluation reads them.

        torchmetrics' own asks each box for its numbers, one after the other, which takes as long as the evaluation.
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
    """Masks (N, H, W) bool of the original picture, of such or of masks of the prepared picture, perhaps padded."""
    original, prepared = (tuple(target[name].tolist()) for name in ("original_size", "size"))
    if masks.shape[1:] != original:
        masks = masks[:, : prepared[0], : prepared[1]]
    if len(masks) and masks.shape[1:] != original:
        masks = F.interpolate(masks[None].float(), original, mode="bilinear", antialias=False)[0]
    return masks if masks.dtype == torch.bool else masks > _MASK_FROM


def _pairs(found: dict[str, Tensor], known: dict[str, Tensor], background: int) -> tuple[Tensor, Tensor]:
    """The classes of answers and of the objects they are of, of those that are of none, and of objects without one."""
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
    """Which share of each box lies in each other one, (N, M)."""
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (high - low).clamp(min=0).prod(2) / box_area(boxes).clamp(min=1e-9)[:, None]
