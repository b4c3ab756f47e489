"""The recipes and tables of the paper's detectors: each row counts as printed, or says why not, and takes a step."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilemamba.cli import plan
from mobilemamba.dense import DETECTION_HEADS
from mobilemamba.sweep.network import complete
from mobilemamba.sweep.record import record
from mobilemamba.sweep.row import Row
from mobilemamba.sweep.settings import lookup
from mobilemamba.sweep.table import to_sheet
from mobilemamba.tasks import DetectionTask
from tests.sweep.counting import counts_of

COCO_FILES = sorted((Path(__file__).resolve().parents[2] / "experiments/coco").glob("*.yaml"))
TABLES = [path for path in COCO_FILES if path.stem.startswith("table")]


@cache
def rows_of(path: Path) -> list[Row]:
    return plan(["--config", str(path), "--data.root", "coco"])


def test_recipes_have_the_released_trainings_numbers() -> None:
    found = {path.stem: rows_of(path)[0].config for path in COCO_FILES if path not in TABLES}
    assert found.keys() == {"mask_rcnn", "retinanet", "ssdlite_320", "ssdlite_512"}
    for name, config in found.items():
        model, data = config["model"]["init_args"], config["data"]["init_args"]
        ssd = name.startswith("ssdlite")
        expected = (2.4e-3, 192, 120, 5, 24, "stretch") if ssd else (2e-4, 16, 12, 1, 4, "fit")
        trainer = config["trainer"]
        assert (trainer["gradient_clip_val"], model["warmup_steps"], model["warmup_lr_ratio"]) == (0.1, 500, 1e-5)
        assert (model["schedule"], model["min_lr_ratio"]) == ("half_cosine_by_epoch", 0)
        assert (model["drop_path_rate"], model["weight_decay"], model["frozen_norms"]) == (0.03, 0.05, True)
        length = trainer["max_epochs"], data["repeats"]
        numbers = model["lr"], model["reference_batch_size"], *length, data["batch_size"], data["resize"]
        assert numbers == expected
        changes = data["augmentation"]
        assert changes["hflip"] == 0.5
        assert (changes["expand"], changes["crop"], changes["swap"]) == ((0.5, True, 0.5) if ssd else (0, False, 0))
        assert data["masks"] == (name == "mask_rcnn")
        size = int(name[-3:]) if ssd else 800
        assert (data["img_size"], config["table_size"]) == (size, size)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[] if "_a" in path.stem else pytest.mark.slow) for path in TABLES],
)
def test_rows_count_as_printed_or_say_why_not(path: Path) -> None:
    rows = rows_of(path)
    counts = counts_of(rows)
    for row in rows:
        complete(row)
        printed = row.paper.get("params_m")
        assert printed is None or counts[row.name]["params_m"] == pytest.approx(printed, abs=0.051) or row.note, (
            row.name
        )
        flops = row.paper.get("flops_m")
        assert flops is None or counts[row.name]["flops_m"] == pytest.approx(flops, rel=0.1) or row.note, row.name
        headline = "mask_map" if lookup(row.config, "model.head") == "mask_rcnn" else "map"
        assert row.scores[0].key == headline
        assert headline in row.paper
        if lookup(row.config, "model.name").startswith("mobilemamba"):
            exact = {"ssdlite": 18.020845, "retinanet": 27.054253, "mask_rcnn": 37.954985}
            assert counts[row.name]["params_m"] == pytest.approx(exact[lookup(row.config, "model.head")], abs=1e-6)
    sheet = to_sheet("", [record(row, counts[row.name]) for row in rows], [*rows[0].values], "")
    assert [note for note in sheet.notes if note.endswith(" px and 80 classes.")]


@pytest.fixture(scope="module")
def networks() -> dict[str, dict[str, dict[str, Any]]]:
    """Head -> backbone -> what the task of a row with both is built by; these two are all that networks differ in."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in (row for path in COCO_FILES for row in rows_of(path)):
        model = row.config["model"]["init_args"]
        assert row.config["data"]["init_args"]["masks"] == (model["head"] == "mask_rcnn"), row.name
        assert not any(model["arch"].values()), row.name
        assert not model["prune"], row.name
        found.setdefault(model["head"], {})[model["name"]] = model
    return found


@pytest.mark.slow
@pytest.mark.parametrize("head", DETECTION_HEADS)
def test_every_network_learns_from_two_pictures(networks: dict[str, dict[str, dict[str, Any]]], head: str) -> None:
    target = {"boxes": torch.tensor([[4.0, 4, 50, 40]]), "labels": torch.tensor([3]), "size": torch.tensor([64, 64])}
    target |= {"masks": torch.ones(1, 64, 64, dtype=torch.bool)} if head == "mask_rcnn" else {}
    for name, settings in networks[head].items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = DetectionTask(**{**settings, "head_dim": 16}).model.train()
        losses = network.losses(torch.randn(2, 3, 64, 64), [target, target])
        torch.stack([*losses.values()]).sum().backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        assert gradients, name
        assert all(gradient.isfinite().all() for gradient in gradients), name
