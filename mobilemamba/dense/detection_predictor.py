"""Predictor for detectors: objects with their boxes and, for some networks, masks, in pixels of the picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mobilemamba.data.batches import DIVISOR
from mobilemamba.dense.detector import Detector
from mobilemamba.dense.regions import paste_masks
from mobilemamba.drawing import draw_objects, drawable, enlargement
from mobilemamba.models.predictor import MASKS, Predictor, Row

#: Name of the file with answers in COCO's results format.
RESULTS_FILE = "coco_results.json"


class DetectionPredictor(Predictor):
    """Returns objects, those with the highest scores first.

    Rows are ``{"objects": [{"index", "name", "score", "box": [left, top, right, bottom]}, ...]}``, in pixels of the
    picture as it was read. If the network finds masks, each object also has ``mask``, COCO's run-length encoding, and
    the row has ``MASKS``, (n, H, W) bool.

    Attributes:
        least_score: Objects with a lower score are left out.
    """

    columns = ("rank", "index", "class", "score", "left", "top", "right", "bottom")
    drawn_only = (MASKS,)
    batch_size = 1
    default_topk = None
    least_score = 0.3
    network: Detector

    def preparation(self, how: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
        """Returns the function that prepares whole pictures, scaled as the detector was trained."""
        from mobilemamba.data.detection_transforms import eval_transform  # imports torchvision, which takes long

        del how["crop_pct"]
        return eval_transform(**how)

    def check(self) -> None:
        """Also refuses networks that find masks if faster-coco-eval, which encodes them, is not installed."""
        super().check()
        if self.card.head == "mask_rcnn":
            from mobilemamba.data.coco_masks import mask_library

            mask_library()

    @torch.inference_mode()
    def forward(self, pictures: Tensor) -> list[dict[str, Any]]:
        """Returns the detections in prepared pictures (B, C, h, w), each with their common ``size``."""
        height, width = pictures.shape[-2:]
        divisor = DIVISOR if self.card.preprocessing.resize == "fit" else 1  # as in validation
        padded = F.pad(pictures, (0, -width % divisor, 0, -height % divisor))
        padded = padded.to(self.device, self.dtype, memory_format=torch.channels_last)
        found = self.network.detect(padded, [(height, width)] * len(pictures))
        return [{**of_picture, "size": (height, width)} for of_picture in found]

    def rows(self, outputs: Sequence[Mapping[str, Any]], sizes: Sequence[tuple[int, int]] | None = None) -> list[Row]:
        """Returns the rows for outputs of :meth:`forward`, see :meth:`Predictor.rows`."""
        sizes = [found["size"] for found in outputs] if sizes is None else sizes
        return [self._row(found, size) for found, size in zip(outputs, sizes, strict=True)]

    def _row(self, found: Mapping[str, Any], size: tuple[int, int]) -> Row:
        sure = found["scores"] >= self.least_score
        boxes, scores, labels = (found[name][sure][: self.topk].cpu() for name in ("boxes", "scores", "labels"))
        (height, width), (prepared_height, prepared_width) = size, found["size"]
        boxes = boxes.float() * torch.tensor([width / prepared_width, height / prepared_height] * 2)
        described = zip(labels.tolist(), scores.tolist(), boxes.tolist(), strict=True)
        objects: list[dict[str, Any]] = [
            {
                "index": index,
                "name": self.names[index],
                "score": round(score, 6),
                "box": [round(side, 2) for side in box],
            }
            for index, score, box in described
        ]
        row: Row = {"objects": objects}
        if "masks" in found:
            from mobilemamba.data.coco_masks import encode

            row[MASKS] = paste_masks(found["masks"][sure][: self.topk].float().cpu(), boxes, size)
            for entry, mask in zip(objects, row[MASKS], strict=True):
                entry["mask"] = encode(mask.numpy())
        return row

    def lines(self, row: Row) -> list[list[Any]]:
        return [
            [rank, entry["index"], entry["name"], entry["score"], *(f"{side:.1f}" for side in entry["box"])]
            for rank, entry in enumerate(row["objects"], 1)
        ]

    def draw(self, picture: Image.Image, row: Row) -> Image.Image:
        """Draws the objects' boxes, masks, names and scores on the picture; a small one is enlarged first."""
        scale, masks_NHW = enlargement(picture.size), row.get(MASKS)
        if scale > 1:
            picture = picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.BILINEAR)
            if masks_NHW is not None:
                masks_NHW = masks_NHW.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        names = [drawable(entry["name"], f"class {entry['index']}") for entry in row["objects"]]
        return draw_objects(
            picture,
            [[scale * side for side in entry["box"]] for entry in row["objects"]],
            [f"{name} {entry['score']:.2f}" for name, entry in zip(names, row["objects"], strict=True)],
            [self.palette[entry["index"]] for entry in row["objects"]],
            masks_NHW,
        )

    def results(self, answers: Sequence[tuple[str, Row]]) -> dict[str, str]:
        """Returns the objects in COCO's results format.

        A picture's ``image_id`` is its name if that is a number, as in COCO, or else its index, from 1 on; the index of
        each if two pictures would have the same id.
        """
        ids = self.card.category_ids or range(1, self.card.num_classes + 1)
        stems = [Path(path).stem for path, _ in answers]
        pictures = [int(stem) if stem.isascii() and stem.isdigit() else n for n, stem in enumerate(stems, 1)]
        if len(set(pictures)) < len(pictures):
            pictures = [*range(1, len(stems) + 1)]
        rows = []
        for picture, (_, row) in zip(pictures, answers, strict=True):
            for entry in row.get("objects", ()):
                left, top, right, bottom = entry["box"]
                found = {
                    "image_id": picture,
                    "category_id": ids[entry["index"]],
                    "bbox": [round(side, 2) for side in (left, top, right - left, bottom - top)],
                    "score": entry["score"],
                }
                rows.append(found | ({"segmentation": entry["mask"]} if "mask" in entry else {}))
        return {RESULTS_FILE: "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"}
