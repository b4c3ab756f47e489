"""The detection task: losses, weights of two kinds, frozen norms, evaluation with its curves, resuming."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch._dynamo.testing import CompileCounter

from mobilemamba.data import FashionObjects, FashionScenes
from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models import ArchOverrides, ModelCard, Preprocessing, create_model, load_network, save_weights
from mobilemamba.tasks import DetectionTask
from mobilemamba.tasks import detection as module
from mobilemamba.training.callbacks import RunResults, StepSeed, TrainingPlots, run_checkpoints
from mobilemamba.training.callbacks.examples import TrainingExamples, ValidationExamples
from tests.states import assert_same_state

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")

ARCH = ArchOverrides(embed_dims=(16, 16, 16), depths=(1, 1, 1))
TINY: dict[str, Any] = {"name": "mobilemamba_t2", "arch": ARCH, "num_classes": 10, "head_dim": 16}


def make_task(**changes: Any) -> DetectionTask:
    torch.manual_seed(0)
    quick = {"warmup_steps": 0, "lr": 1e-3, "reference_batch_size": 4, "schedule": "cosine", "frozen_norms": False}
    return DetectionTask(**TINY | quick | changes)


def make_trainer(folder: Path, **changes: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**quiet | {"default_root_dir": folder, "max_epochs": 1, "enable_checkpointing": False} | changes)


def make_data(**changes: Any) -> FashionObjects:
    data = FashionObjects(**{"img_size": 64, "scenes": 8, "batch_size": 4, "num_workers": 0} | changes)
    data.setup()
    assert data.val_set is not None
    data.val_set.number = 5  # type: ignore[attr-defined]
    return data


@pytest.mark.parametrize("head", ["ssdlite", "mask_rcnn"])
def test_a_training_learns_is_evaluated_and_leaves_a_whole_network(tmp_path: Path, head: str) -> None:
    masks = head == "mask_rcnn"
    task, data, results = make_task(head=head, ema_decay=0.5, regions=24), make_data(masks=masks), RunResults(None)
    plots = TrainingPlots()
    callbacks = [*run_checkpoints(tmp_path, task), results, plots, TrainingExamples(2), ValidationExamples(2)]
    assert not masks or task.model.region_samples == 24
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    trainer = make_trainer(tmp_path, enable_checkpointing=True, callbacks=callbacks)
    trainer.fit(task, data)
    assert any(not torch.equal(before[name], value) for name, value in task.model.state_dict().items())
    logged = trainer.callback_metrics
    parts = [
        float(value) for name, value in logged.items() if name.startswith("train/loss_") and name != "train/loss_step"
    ]
    assert sum(parts) == pytest.approx(float(logged["train/loss_step"]), rel=1e-5)
    key = "mask_map" if masks else "map"
    assert task.scores[0].key == key
    assert {"map", "map50", "map75"} <= {score.key for score in task.scores}
    assert float(logged[f"val/{key}_max"]) == max(float(logged[f"val/{key}"]), float(logged[f"val/{key}_ema"]))
    known = results.results(trainer, task)["classes"]
    assert known == task.of_classes
    assert sum(known.values()) / len(known) == pytest.approx(float(logged[f"val/{key}_max"]), abs=1e-3)
    assert [row["class"] for row in task.class_rows(worst_first=True)] == sorted(known, key=lambda name: known[name])
    plots.finish(trainer, task)
    written = {"confusion_matrix.png", "precision_recall.png", TrainingExamples.file, ValidationExamples.file}
    assert written <= {path.name for path in tmp_path.iterdir()}
    network, card = load_network(tmp_path / "checkpoints/best.ckpt", verbose=False)
    assert (card.task, card.head, card.head_options) == ("detection", head, {"head_dim": 16})
    assert (card.palette, card.category_ids) == (data.palette, data.category_ids)
    assert (card.preprocessing.resize, card.preprocessing.img_size) == ("stretch", (64, 64))
    again = make_task(head=head, weights=str(tmp_path / "checkpoints/best.ckpt"))
    assert_same_state(again.model, network)


def test_an_evaluation_is_also_of_the_network_that_predict_runs(tmp_path: Path) -> None:
    trainer, task = make_trainer(tmp_path), make_task()
    trainer.validate(task, make_data(), verbose=False)
    logged = trainer.callback_metrics
    assert float(logged["val/map_fused"]) == pytest.approx(float(logged["val/map"]), abs=1e-3)


@pytest.mark.filterwarnings("error:model.frozen_norms")  # as they are not
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    def run(folder: Path, epochs: int, checkpoint: Path | None = None) -> DetectionTask:
        task = make_task(schedule="half_cosine_by_epoch", ema_decay=0.5)
        callbacks = [StepSeed(), *run_checkpoints(folder, task)]
        trainer = make_trainer(folder, max_epochs=2, enable_checkpointing=True, callbacks=callbacks)
        trainer.limit_val_batches = 1
        if epochs < 2:
            trainer.fit_loop.max_epochs, trainer.should_stop = 2, False
            callbacks[0].on_train_epoch_end = lambda trainer, _: setattr(trainer, "should_stop", True)  # type: ignore[method-assign]
        trainer.fit(task, make_data(), ckpt_path=checkpoint)
        return task

    torch.manual_seed(0)
    whole = run(tmp_path / "whole", 2)
    run(tmp_path / "parts", 1)
    resumed = run(tmp_path / "parts", 2, tmp_path / "parts/checkpoints/last.ckpt")
    assert whole.global_step == resumed.global_step == 4
    assert_same_state(whole, resumed)


def test_frozen_norms_keep_their_statistics_and_learn_their_weights(tmp_path: Path) -> None:
    task = make_task(frozen_norms=True, head="retinanet")
    backbone = task.model.backbone
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.running_mean.clone(), norm.weight.detach().clone()) for norm in norms]
    with pytest.warns(UserWarning, match=r"frozen_norms=true without model\.weights: .* set model\.frozen_norms"):
        # No other norms train, so that one picture at a time is enough.
        make_trainer(tmp_path, limit_val_batches=0).fit(task, make_data(batch_size=1, scenes=3))
    assert all(torch.equal(norm.running_mean, mean) for norm, (mean, _) in zip(norms, before, strict=True))
    assert any(not torch.equal(norm.weight, weight) for norm, (_, weight) in zip(norms, before, strict=True))
    task.train()
    assert not any(norm.training for norm in norms)
    assert task.model.training


def test_a_classifier_s_weights_go_into_the_backbone(tmp_path: Path) -> None:
    classifier, path = create_model("mobilemamba_t2", ARCH, 9), str(tmp_path / "w.safetensors")
    look = Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3)
    save_weights(classifier, path, ModelCard("mobilemamba_t2", look, num_classes=9, arch=ARCH.given()))
    theirs, ours = classifier.state_dict(), make_task(weights=path).model.backbone.get_submodule("model").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    with pytest.raises((ConfigError, WeightsError), match="mobilemamba_t2"):
        make_task(weights=path, name="mobilemamba_t4")


def test_a_file_without_a_card_is_told_by_its_names(tmp_path: Path) -> None:
    path, whole = str(tmp_path / "w.pth"), {"arch": ArchOverrides()}  # as such a file's classifier is taken to be
    detector, classifier = make_task(**whole).model, create_model("mobilemamba_t2", num_classes=9)
    for network, part in ((detector, ""), (classifier, "backbone.model")):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(1)
        torch.save(network.state_dict(), path)
        ours, theirs = make_task(weights=path, **whole).model.get_submodule(part).state_dict(), network.state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_data_without_masks_are_refused_by_a_network_for_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.masks=False: mask_rcnn learns from masks; set data\.masks to true"):
        make_trainer(tmp_path).fit(make_task(head="mask_rcnn"), make_data())


def attached(task: DetectionTask, data: Any, folder: Path) -> DetectionTask:
    task.trainer = make_trainer(folder)
    task.trainer._data_connector.attach_datamodule(task, datamodule=data)
    return task


@pytest.mark.parametrize("head", ["ssdlite", "mask_rcnn"])
def test_pictures_are_drawn_as_they_are_learned_from(tmp_path: Path, head: str, monkeypatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(module, "draw_objects", lambda *given: drawn.append(given) or given[0])
    data = make_data(masks=head == "mask_rcnn")
    data.class_names = ["猫", *data.class_names[1:]]  # of letters that the font lacks
    images, targets = next(iter(data.train_dataloader()))[:2]
    assert any(0 in target["labels"] for target in targets[:3])
    task = attached(make_task(head=head), data, tmp_path)
    assert [picture.size for picture in task.draw_training(images, targets, 3)] == 3 * [(256, 256)]
    for (picture, boxes, names, colours, masks), target in zip(drawn, targets[:3], strict=True):
        assert boxes == (4 * target["boxes"]).tolist()
        assert names == [data.class_names[label] if label else "class 0" for label in target["labels"]]
        assert colours == [data.palette[label] for label in target["labels"]]
        assert masks is None if head == "ssdlite" else torch.equal(masks[:, ::4, ::4], target["masks"])
        assert picture.size == (256, 256)


@pytest.mark.parametrize("head", ["ssdlite", "mask_rcnn"])
def test_compiled_gives_the_same_loss(monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    """Traced, but not translated to C++, which takes minutes."""
    traced = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=traced))
    torch.compiler.reset()
    images, targets = next(iter(make_data(masks=True).train_dataloader()))
    losses, graphs = [], []
    for compiled in (False, True):
        task = make_task(head=head, compile=compiled)
        torch.manual_seed(0)
        losses.append(sum(task.model.losses(images, targets).values()).item())
        graphs.append(traced.frame_count)
    torch.compiler.reset()
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    of_heads = {"ssdlite": 1, "mask_rcnn": 3}[head]
    stages = 2 if head == "ssdlite" else 3
    assert graphs[0] == 0
    assert graphs[1] >= 1 + stages + 1 + of_heads, "the stem, stages, the neck and heads"


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_precision_that_rounds_boxes_is_refused(tmp_path: Path, precision: Any) -> None:
    with pytest.raises(ConfigError, match=f"precision={precision}: it rounds"):
        make_trainer(tmp_path, precision=precision).validate(make_task(), make_data(), verbose=False)


def test_predictions_of_a_batch_are_of_its_pictures_without_their_padding() -> None:
    task = make_task().eval()
    images = torch.randn(2, 3, 64, 128)
    sizes = torch.tensor([[64, 64], [40, 128]])
    found = task.predict_step((images, [{"size": size} for size in sizes]))
    for of_picture, expected, (height, width) in zip(found, task.model.detect(images, sizes), sizes, strict=True):
        assert len(of_picture["boxes"])
        assert torch.equal(of_picture["boxes"], expected["boxes"])
        assert (of_picture["boxes"].amax(0)[2:] <= torch.stack((width, height))).all()
    whole = task.predict_step(images)
    assert whole[0]["boxes"][:, 2].max() > 64


def test_data_of_another_task_draw_nothing(tmp_path: Path) -> None:
    task = attached(make_task(), FashionScenes(img_size=32, num_workers=0), tmp_path)
    assert task.draw_example(torch.zeros(1, 3, 64, 64), []) is None
    assert task.draw_training(torch.zeros(1, 3, 64, 64), [{}], 1) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_classes": 0}, "num_classes=0: expected 1 or more"),
        ({"head_dim": 2}, "head_dim=2: expected 4 or more"),
        ({"regions": 0}, "regions=0: expected 1 or more"),
        ({"head": "yolo"}, "head 'yolo': expected one of: mask_rcnn, retinanet, ssdlite"),
        ({"drop_path_rate": 2.0}, "drop_path_rate=2.0: expected 0 to 1"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_task(**changes)
