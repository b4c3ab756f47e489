"""COCO-style data sets of a few small pictures, for tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = {1: (64, 48), 4: (48, 64), 9: (80, 48)}  # id: width and height


def content(**changes: Any) -> dict[str, Any]:
    """Three pictures, two categories whose ids have a gap, and four boxes, one of them around a crowd."""
    images = [{"id": n, "file_name": f"{n}.png", "width": w, "height": h} for n, (w, h) in SIZES.items()]
    square = [[10, 10, 30, 10, 30, 20, 10, 20]]
    crowd = {"size": [48, 64], "counts": [0, 48, 48 * 63]}
    annotations = [
        {"id": 1, "image_id": 9, "category_id": 7, "bbox": [10, 10, 20, 10], "area": 200, "segmentation": square},
        {"id": 2, "image_id": 1, "category_id": 3, "bbox": [10, 10, 20, 10], "area": 99.5, "segmentation": square},
        {"id": 3, "image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 48], "iscrowd": 1, "segmentation": crowd},
        {"id": 4, "image_id": 4, "category_id": 3, "bbox": [1, 1, 0.5, 9], "segmentation": square},
    ]
    categories = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    return {"images": images, "annotations": annotations, "categories": categories, **changes}


def write(root: Path, part: str = "train", **changes: Any) -> Path:
    """A part's JSON in ``root`` and its pictures in ``root/part``; gives the JSON."""
    (root / part).mkdir(parents=True, exist_ok=True)
    for number, (width, height) in SIZES.items():
        grey = np.random.default_rng(number).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(grey).save(root / part / f"{number}.png")
    file = root / f"{part}.json"
    file.write_text(json.dumps(content(**changes)))
    return file
