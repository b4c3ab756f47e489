"""Trainings on a GPU that is not there: all tensors of a step are on it, and the host does not wait for it."""

import importlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy

from mobilemamba.data import FashionMNISTSample, FashionObjects, FashionScenes
from mobilemamba.models import ArchOverrides, ModelCard, Preprocessing, create_model, save_weights
from mobilemamba.tasks import ClassificationTask, DetectionTask, SegmentationTask, Task
from mobilemamba.training.callbacks import EpochLines, SkipNonFinite, StepSeed
from mobilemamba.training.distillation import Distillation
from mobilemamba.training.mixing import Mixing
from tests.pretended import CARD, CardAccelerator, CardEvent, PretendedCard, needs_no_driver

pytestmark = [
    needs_no_driver,
    pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
]

ARCH: dict[str, Any] = {"embed_dims": (8, 8, 8), "depths": (1, 1, 1)}
SHARED: dict[str, Any] = {
    "name": "mobilemamba_t2",
    "arch": ArchOverrides(**ARCH),
    "warmup_steps": 0,
    "lr": 1e-2,
    "ema_decay": 0.5,
}


class Steps(Callback):
    """Losses of the steps, and where each step and each batch of a validation made the host wait."""

    def __init__(self, card: PretendedCard) -> None:
        self.card, self.losses, self.waits = card, list[torch.Tensor](), list[Counter[tuple[str, str]]]()

    def on_train_batch_start(self, *_: Any) -> None:
        self.before = Counter(self.card.waits)

    on_validation_batch_start = on_train_batch_start

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(outputs["loss"].detach())
        self.on_validation_batch_end()

    def on_validation_batch_end(self, *_: Any) -> None:
        self.waits.append(self.card.waits - self.before)


def trained(folder: Path, task: Task, data: Any, **options: Any) -> tuple[list[float], list[Counter[Any]]]:
    """Losses of two steps, and where the host waited in them and in a batch of validation."""
    card = PretendedCard()
    steps = Steps(card)
    strategy = SingleDeviceStrategy(CARD, CardAccelerator())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    limits = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0} | options
    trainer = Trainer(
        default_root_dir=folder, strategy=strategy, callbacks=[steps, StepSeed(), SkipNonFinite(), EpochLines()],
        enable_checkpointing=False, gradient_clip_val=1.0, **quiet, **limits,
    )  # fmt: skip
    with card:
        trainer.fit(task, data)
        return [float(loss) for loss in steps.losses], steps.waits


def classification(folder: Path) -> tuple[Task, Any]:
    card = ModelCard("mobilemamba_t2", Preprocessing((48, 48), (0.5,) * 3, (0.25,) * 3), 10, arch=ARCH)
    save_weights(
        create_model("mobilemamba_t2", ArchOverrides(**ARCH), num_classes=10), folder / "teacher.safetensors", card
    )
    teacher = Distillation(weights=str(folder / "teacher.safetensors"))
    task = ClassificationTask(**SHARED, num_classes=10, mixing=Mixing(), distillation=teacher, distillation_head=True)
    return task, FashionMNISTSample(img_size=32, batch_size=4, num_workers=0)


def segmentation(folder: Path) -> tuple[Task, Any]:
    data = FashionScenes(img_size=64, scenes=4, batch_size=2, num_workers=0)
    heads = {"head": "pspnet", "head_dim": 8, "auxiliary": True}
    return SegmentationTask(**SHARED, **heads, num_classes=data.num_classes), data


def detection(head: str) -> tuple[Task, Any]:
    data = FashionObjects(img_size=64, scenes=4, batch_size=2, num_workers=0, masks=head == "mask_rcnn")
    heads = {"head": head, "head_dim": 8, "frozen_norms": False, "regions": 16}
    return DetectionTask(**SHARED, **heads, num_classes=10), data


#: What of a detector's step the host may wait for: how many boxes there are; and to the card, small constants.
COUNTS = {"nonzero.default", "nms.default", "index.Tensor", "index_put.default", "_local_scalar_dense.default"}


@pytest.fixture(autouse=True)
def _no_driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "Event", CardEvent)
    yield
    torch.use_deterministic_algorithms(mode=False)


@pytest.mark.parametrize("make", [classification, segmentation])
def test_no_step_and_no_batch_of_a_validation_waits(tmp_path: Path, make: Any) -> None:
    losses, waits = trained(tmp_path, *make(tmp_path), deterministic=True)
    assert all(map(math.isfinite, losses))
    assert waits == [Counter()] * 3


@pytest.mark.parametrize(("head", "most"), [("ssdlite", 3), ("mask_rcnn", 18)])
def test_detectors_wait_for_the_number_of_boxes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str, most: int
) -> None:
    def slow(*_: Any) -> None:
        raise AssertionError("every cell of the maps for every region")

    of_torchvision = importlib.import_module("torchvision.ops.roi_align")
    monkeypatch.setattr(of_torchvision, "_roi_align", slow)
    monkeypatch.setattr(of_torchvision, "is_compile_supported", lambda _: True)  # as on a GPU with Triton
    losses, waits = trained(
        tmp_path, *detection(head), deterministic="warn", limit_train_batches=1, limit_val_batches=0
    )
    assert all(map(math.isfinite, losses))
    kinds = Counter(kind for (_, kind), count in waits[0].items() for _ in range(count))
    assert kinds.keys() <= COUNTS | {"_to_copy.default"}
    assert sum(count for kind, count in kinds.items() if kind in COUNTS) <= 2 * most
