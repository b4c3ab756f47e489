"""The segmentation task: losses, head's rate and norms, weights of two kinds, resuming, the average, evaluation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mobilemamba.data import IGNORED_PIXEL, FashionScenes
from mobilemamba.dense import create_segmenter, look_closely
from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models import ArchOverrides, ModelCard, Preprocessing, create_model, load_network, save_weights
from mobilemamba.tasks import ClassificationTask, SegmentationTask
from mobilemamba.tasks.segmentation import sync_heads
from mobilemamba.training.callbacks import RunResults, StepSeed, TrainingExamples, ValidationExamples, run_checkpoints
from tests.states import assert_same_state

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")

CLASSES = 4
ARCH = ArchOverrides(embed_dims=(16, 16, 16), depths=(1, 1, 1))
TINY: dict[str, Any] = {"name": "mobilemamba_t2", "arch": ARCH, "num_classes": CLASSES, "head_dim": 8}


def make_task(**changes: Any) -> SegmentationTask:
    torch.manual_seed(0)
    return SegmentationTask(**TINY | {"warmup_steps": 0, "lr": 1e-3, "reference_batch_size": 4} | changes)


def make_trainer(folder: Path, **changes: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**quiet | {"default_root_dir": folder, "max_epochs": 1, "enable_checkpointing": False} | changes)


def pairs(count: int = 8, size: int = 64, seed: int = 0) -> TensorDataset:
    """The class of a pixel shows in its colour; some do not count."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(CLASSES, (count, 4, 4), generator=generator)
    targets = targets.repeat_interleave(size // 4, 1).repeat_interleave(size // 4, 2)
    pictures = torch.stack([targets == index for index in range(3)], 1).float()
    pictures += 0.1 * torch.randn(pictures.shape, generator=generator)
    targets[:, :3] = IGNORED_PIXEL
    return TensorDataset(pictures, targets)


@pytest.mark.parametrize("loss_over", ["all", "counted"])
def test_the_loss_is_the_mean_over_all_pixels_or_those_that_count(loss_over: str) -> None:
    task, targets = make_task(loss_over=loss_over), pairs(2).tensors[1]
    logits = torch.randn(2, CLASSES, 64, 64, requires_grad=True)
    loss = task.cross_entropy(logits, targets)
    mean = F.cross_entropy(logits, targets, ignore_index=IGNORED_PIXEL).item()
    share = (targets != IGNORED_PIXEL).float().mean().item()
    assert share == pytest.approx(61 / 64)
    assert loss.item() == pytest.approx(mean * (share if loss_over == "all" else 1), rel=1e-5)
    nothing = task.cross_entropy(logits, torch.full_like(targets, IGNORED_PIXEL))
    nothing.backward()
    assert nothing == 0
    assert (logits.grad == 0).all()


def test_the_second_head_has_its_part(tmp_path: Path) -> None:
    task = make_task(head="pspnet", auxiliary=True, auxiliary_weight=0.25, lr=0.0, weight_decay=0.0)
    for module in task.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    trainer, data = make_trainer(tmp_path), pairs(4)
    trainer.fit(task, DataLoader(data, batch_size=4))
    logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
    x, targets = data.tensors
    both = task.train().model.forward_heads(x)
    head, auxiliary = (task.cross_entropy(each, targets).item() for each in both)
    assert logged["train/loss_head_step"] == pytest.approx(head, rel=1e-4)
    assert logged["train/loss_auxiliary_step"] == pytest.approx(0.25 * auxiliary, rel=1e-4)
    assert logged["train/loss"] == pytest.approx(head + 0.25 * auxiliary, rel=1e-4)
    assert {"train/loss_head", "train/loss_auxiliary"}.isdisjoint(logged)  # which curves would take for epochs' means


def rates(task: SegmentationTask) -> dict[str, float]:
    """Parameter -> factor on its learning rate; each is in one group."""
    names = {id(parameter): name for name, parameter in task.model.named_parameters()}
    groups = task.parameter_groups()
    found = {names[id(p)]: group.get("lr_scale", 1.0) for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    assert found.keys() == {name for name, parameter in task.model.named_parameters() if parameter.requires_grad}
    return found


def test_the_head_alone_has_another_rate() -> None:
    found = rates(make_task(auxiliary=True, head_lr_ratio=10.0))
    assert {name.split(".")[0] for name, rate in found.items() if rate == 10} == {"head"}
    assert {name.split(".")[0] for name, rate in found.items() if rate == 1} == {"backbone", "neck", "auxiliary_head"}
    decays = {
        (group["weight_decay"], group["lr_scale"])
        for group in make_task(head_lr_ratio=3.0, weight_decay_rule="clean").parameter_groups()
    }
    assert decays == {(0.0, 1.0), (0.05, 1.0), (0.0, 3.0), (0.05, 3.0)}


def test_the_logged_rate_has_no_factor_of_the_head(tmp_path: Path) -> None:
    trainer, rates = make_trainer(tmp_path, max_epochs=2), set()
    task = make_task(lr=2e-3, head_lr_ratio=10.0, schedule="half_cosine")
    task.on_before_optimizer_step = lambda optimizer: rates.update(group["lr"] for group in optimizer.param_groups)
    trainer.fit(task, DataLoader(pairs(4), batch_size=4))
    assert trainer.logged_metrics["lr"] == pytest.approx(2e-3)
    assert rates == {2e-3, 2e-2}


@pytest.mark.parametrize("name", ["mobilemamba_t2", "resnet18"])
def test_layers_learn_more_slowly_by_their_depth(name: str) -> None:
    arch = ARCH if name.startswith("mobilemamba") else ArchOverrides()
    found = rates(make_task(name=name, arch=arch, layer_decay=0.5, head_lr_ratio=10.0))
    assert {rate for part, rate in found.items() if part.startswith("head.")} == {10.0}
    assert {rate for part, rate in found.items() if part.startswith("neck.")} == {1.0}
    backbone = [rate for part, rate in found.items() if part.startswith("backbone.")]  # in the order of the layers
    assert backbone[0] == min(backbone) < backbone[-1] == 0.5
    assert len(set(backbone)) > 3


@pytest.mark.parametrize("auxiliary", [True, False])
def test_norms_of_the_heads_alone_are_shared(auxiliary: bool) -> None:
    model = create_segmenter("pspnet", "mobilemamba_t2", CLASSES, auxiliary=auxiliary, head_dim=8, arch=ARCH)
    before, names = [id(parameter) for parameter in model.parameters()], list(model.state_dict())
    sync_heads(model)
    shared = {name.split(".")[0] for name, part in model.named_modules() if isinstance(part, nn.SyncBatchNorm)}
    own = {name.split(".")[0] for name, part in model.named_modules() if type(part).__name__ == "BatchNorm2d"}
    assert (shared, own) == ({"head", "auxiliary_head"} if auxiliary else {"head"}, {"backbone"})
    assert [id(parameter) for parameter in model.parameters()] == before
    assert list(model.state_dict()) == names


def card(**changes: Any) -> ModelCard:
    look = Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3)
    known: dict[str, Any] = {"model": "mobilemamba_t2", "preprocessing": look, "arch": ARCH.given()}
    return ModelCard(**{**known, "num_classes": CLASSES, **changes})


@pytest.mark.parametrize("carded", [True, False])
def test_a_classifier_s_weights_go_into_the_backbone(tmp_path: Path, carded: bool) -> None:
    classifier = create_model("mobilemamba_t2", ARCH if carded else None, 9)
    path = str(tmp_path / ("w.safetensors" if carded else "w.pth"))
    if carded:
        save_weights(classifier, path, card(num_classes=9))
    else:
        torch.save(classifier.state_dict(), path)
    task = make_task(weights=path, arch=ARCH if carded else ArchOverrides())
    theirs = classifier.state_dict()
    for name, value in task.model.backbone.get_submodule("model").state_dict().items():
        assert torch.equal(value, theirs[name]), name
    with pytest.raises((ConfigError, WeightsError), match=r"mobilemamba_t[24]"):
        make_task(weights=path, name="mobilemamba_t4")
    if carded:
        wider = ArchOverrides(embed_dims=(16, 16, 24), depths=(1, 1, 1))
        backbone = make_task(weights=path, arch=wider, partial_weights=True).model.backbone
        ours = backbone.get_submodule("model").state_dict()
        fits = [name for name in ours.keys() & theirs.keys() if ours[name].shape == theirs[name].shape]
        assert 0 < len(fits) < len(ours)
        assert all(torch.equal(ours[name], theirs[name]) for name in fits)


@pytest.mark.parametrize("carded", [True, False])
def test_a_segmenter_s_weights_are_taken_whole(tmp_path: Path, carded: bool) -> None:
    segmenter = create_segmenter("semantic_fpn", "mobilemamba_t2", CLASSES, head_dim=8, arch=ARCH)
    path = str(tmp_path / "w.safetensors")
    options = {"task": "segmentation", "head": "semantic_fpn", "head_options": {"head_dim": 8}}
    save_weights(segmenter, path, card(**options) if carded else None)
    loaded = make_task(weights=path).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in segmenter.state_dict().items())
    with pytest.raises(WeightsError, match=r"head\.classifier\.1"):
        make_task(weights=path, num_classes=CLASSES + 1)
    other = make_task(weights=path, num_classes=CLASSES + 1, new_head=True).model
    assert torch.equal(other.state_dict()["neck.inner_blocks.0.0.weight"], loaded["neck.inner_blocks.0.0.weight"])
    assert (other.get_classifier()[0].weight == 0).all()


def test_an_evaluation_scores_every_pixel_once_and_a_checkpoint_is_its_network(tmp_path: Path) -> None:
    data = FashionScenes(img_size=32, scenes=8, batch_size=4, num_workers=0)
    data.setup()
    data.val_set.number = 6
    task = make_task(num_classes=11, ema_decay=0.5)
    results = RunResults(None)
    trainer = make_trainer(
        tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=[*run_checkpoints(tmp_path, task), results]
    )
    trainer.fit(task, data)
    assert trainer.callback_metrics["val/miou_max"] == max(
        trainer.callback_metrics[name] for name in ("val/miou", "val/miou_ema")
    )
    written = results.results(trainer, task)
    known = list(written["classes"].values())
    assert sum(known) / len(known) == pytest.approx(max(written["miou"], written["miou_ema"]), abs=1e-3)
    assert written["classes"].keys() <= set(data.class_names)
    assert task.confusion is not None
    assert int(task.confusion[:, 2].sum()) == 6 * 32 * 32
    network, found = load_network(tmp_path / "checkpoints/best.ckpt", verbose=False)
    assert (found.task, found.head, found.head_options) == ("segmentation", "semantic_fpn", {"head_dim": 8})
    assert found.palette == data.palette
    assert (found.preprocessing.interpolation, found.preprocessing.img_size) == ("bilinear", (32, 32))
    again = make_task(num_classes=11, weights=str(tmp_path / "checkpoints/best.ckpt"))
    assert_same_state(again.model, network)
    (logged,) = make_trainer(tmp_path).validate(again, data, verbose=False)
    assert logged["val/miou"] == pytest.approx(max(written["miou"], written["miou_ema"]), abs=1e-3)
    assert logged["val/fused_changed"] <= 2


def test_masks_of_another_size_than_their_picture(tmp_path: Path) -> None:
    x, targets = pairs(2).tensors
    larger = F.interpolate(targets[:, None].float(), (150, 100)).long()[:, 0]
    task = make_task()
    (logged,) = make_trainer(tmp_path).validate(task, DataLoader(TensorDataset(x, larger), batch_size=1), verbose=False)
    with torch.no_grad():
        logits = F.interpolate(task.eval()(x), (150, 100), mode="bilinear")
    counted = larger != IGNORED_PIXEL
    right = (logits.argmax(1) == larger)[counted].float().mean()
    assert logged["val/aacc"] == pytest.approx(100 * float(right), abs=1e-3)
    assert logged["val/loss"] == pytest.approx(float(F.cross_entropy(logits, larger, ignore_index=255)), rel=1e-4)
    assert task.predict_step((x, targets)).shape == (2, 64, 64)


def test_a_resumed_training_is_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(until: int, ckpt_path: Path | None = None) -> SegmentationTask:
        task = make_task(num_classes=11, head="pspnet", auxiliary=True, ema_decay=0.9, drop_path_rate=0.1)
        data = FashionScenes(img_size=64, scenes=4, batch_size=2, num_workers=0)
        # Of three epochs in any case: the cosine's length.
        trainer = make_trainer(tmp_path, max_epochs=3, callbacks=[StepSeed()], limit_val_batches=0)
        task.on_train_epoch_end = lambda: setattr(trainer, "should_stop", trainer.current_epoch + 1 == until)
        trainer.fit(task, data, ckpt_path=ckpt_path, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{until}.ckpt")
        return task

    whole = run(3)
    run(2)
    resumed = run(3, tmp_path / "2.ckpt")
    assert_same_state(whole, resumed, but={name for name in whole.state_dict() if "mean_train_loss" in name})


def test_every_parameter_learns() -> None:
    for head, auxiliary in (("deeplabv3", True), ("pspnet", False), ("semantic_fpn", False)):
        task = make_task(head=head, auxiliary=auxiliary)
        images, targets = pairs(2).tensors
        task.log_dict = lambda *_: None  # type: ignore[method-assign]
        task.train().training_loss(images, targets).backward()
        idle = [name for name, p in task.model.named_parameters() if p.requires_grad and p.grad is None]
        assert not idle, "several processes would wait for it"


@pytest.mark.parametrize("auxiliary", [False, True])
def test_what_is_trained_is_compiled(monkeypatch: pytest.MonkeyPatch, auxiliary: bool) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function: lambda *given: calls.append(given) or function(*given))
    task = make_task(head="pspnet", auxiliary=auxiliary, compile=True)
    task.log_dict = lambda *_: None  # type: ignore[method-assign]
    task.train().training_loss(*pairs(2).tensors)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 1}, "num_classes=1: expected 2 to 255; change model.num_classes"),
        ({"head": "unet"}, "head 'unet': expected one of: deeplabv3, pspnet, semantic_fpn"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight=-1.0: expected 0 or more"),
        ({"output_stride": 8}, "output_stride=8: mobilemamba_t2 has no such option; leave it out"),
        ({"name": "vgg11", "arch": ArchOverrides(), "drop_path_rate": 0.1}, "drop_path_rate=0.1"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        make_task(**changes)
    assert "\n" not in str(error.value)


def test_evaluations_in_windows_and_views_alone() -> None:
    task, picture = make_task().eval(), torch.randn(1, 3, 40, 70)
    with torch.no_grad():
        plain = task.evaluate(task.model, picture)
        task.look_closely(32, tta=True)
        assert torch.equal(task.evaluate(task.model, picture), look_closely(task.model, 32, tta=True)(picture))
        assert torch.equal(task(picture), plain)
    with pytest.raises(ConfigError, match="window=31: expected 32 px or more"):
        task.look_closely(31, tta=False)
    other = ClassificationTask("test_resnet")
    for window, option in ((None, "--tta"), (32, "--window")):
        with pytest.raises(ConfigError, match=f"{option} is for segmentation, not classification"):
            other.look_closely(window, tta=window is None)


def test_pictures_and_masks_of_another_size_are_drawn(tmp_path: Path) -> None:
    task, data = make_task(num_classes=11), FashionScenes(img_size=32, num_workers=0)
    task.trainer = make_trainer(tmp_path)
    task.trainer._data_connector.attach_datamodule(task, datamodule=data)
    images, targets = torch.randn(2, 3, 32, 64), torch.randint(11, (2, 48, 96))
    for drawn, panels in (
        (task.eval().draw_example(images, targets), 3),
        *((one, 2) for one in task.draw_training(images, targets, 2)),
    ):
        assert drawn.width == panels * 320 + (panels - 1) * 6
        assert drawn.height > 20 + 160
    assert len(task.draw_training(images, targets, 1)) == 1
    assert task.of_classes == {}, "nothing has been evaluated"


def test_a_training_draws_validation_pictures(tmp_path: Path) -> None:
    data = FashionScenes(img_size=32, scenes=4, batch_size=2, num_workers=0)
    trainer = make_trainer(
        tmp_path, callbacks=[TrainingExamples(2), ValidationExamples(2)], limit_val_batches=1, limit_train_batches=1
    )
    trainer.fit(make_task(num_classes=data.num_classes, ema_decay=0.9), data)
    with Image.open(tmp_path / "validation_examples.png") as drawn:
        assert drawn.width == 3 * 320 + 2 * 6
        assert drawn.height > 2 * 320
        background = np.asarray(drawn)[20 + 5, 0]
    image = data.val_set[0][0][:, 0, 0] * torch.tensor(data.std) + torch.tensor(data.mean)
    assert np.allclose(background, 255 * image, atol=25)
    with Image.open(tmp_path / "training_examples.png") as drawn:
        assert drawn.width == 2 * (2 * 320 + 6) + 6  # two pictures, each beside its classes
