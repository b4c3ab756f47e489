"""The classification task: network, losses, exact metrics, learning rate, checkpoints."""

import contextlib
import itertools
import json
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models import ArchOverrides, load_network, save_weights
from mobilemamba.models.predictor import ClassificationPredictor
from mobilemamba.tasks import ClassificationTask
from mobilemamba.tasks import classification as module
from mobilemamba.training.mixing import Mixing
from tests.states import assert_same_state
from tests.training.callbacks.runs import Data

CLASSES = 7


def pictures(count=10, classes=CLASSES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 32, 32, generator=generator)
    return TensorDataset(x, torch.randint(classes, (count,), generator=generator))


def make_task(**changes):
    torch.manual_seed(0)
    return ClassificationTask(**{"name": "test_efficientnet", "num_classes": CLASSES, "warmup_epochs": 1} | changes)


def make_trainer(folder, **changes):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**quiet | {"default_root_dir": folder, "max_epochs": 2, "enable_checkpointing": False} | changes)


class Endless(IterableDataset):
    def __iter__(self):
        return itertools.cycle(pictures())


@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
class TestFit:
    @pytest.mark.parametrize("stage", ["validate", "test"])
    @pytest.mark.parametrize("batch_size", [10, 4, 3])
    def test_metrics_are_exact_over_uneven_batches(self, tmp_path, stage, batch_size):
        data, task = pictures(), make_task().eval()
        x, target = data.tensors
        with torch.no_grad():
            logits = task(x)
        order = logits.argsort(dim=1, descending=True)
        expected = {
            "loss": torch.nn.functional.cross_entropy(logits, target).item(),  # without label smoothing
            "top1": 100 * (order[:, 0] == target).float().mean().item(),
            "top5": 100 * (order[:, :5] == target[:, None]).any(1).float().mean().item(),
        }
        assert 0 < expected["top5"] < 100
        prefix = {"validate": "val", "test": "test"}[stage]
        run = getattr(make_trainer(tmp_path), stage)
        (logged,) = run(task, DataLoader(data, batch_size=batch_size), verbose=False)
        assert logged == pytest.approx({f"{prefix}/{name}": value for name, value in expected.items()}, rel=1e-5)

    @pytest.mark.parametrize("broken", [[], [(torch.zeros(3), "no label")]], ids=["ended", "interrupted"])
    def test_metrics_start_afresh_each_time(self, tmp_path, broken):
        task, trainer = make_task(), make_trainer(tmp_path)
        with pytest.raises(RuntimeError) if broken else contextlib.nullcontext():
            trainer.validate(task, DataLoader([*pictures(8, seed=1), *broken], batch_size=4), verbose=False)
        (again,) = trainer.validate(task, DataLoader(pictures(), batch_size=4), verbose=False)
        (alone,) = make_trainer(tmp_path).validate(make_task(), DataLoader(pictures(), batch_size=4), verbose=False)
        assert again == alone

    def test_a_fit_logs_smoothed_loss_and_lr(self, tmp_path):
        trainer = make_trainer(tmp_path, max_epochs=1)
        task = make_task(lr=0.0, weight_decay=0.0)  # so that the weights stay
        data = pictures()
        trainer.fit(task, DataLoader(data, batch_size=10), DataLoader(data, batch_size=4))
        logged = trainer.logged_metrics
        assert {"train/loss", "train/loss_step", "lr", "val/loss", "val/top1", "val/top5"} <= logged.keys()
        with torch.no_grad():
            logits = make_task().train()(data.tensors[0])
        expected = torch.nn.functional.cross_entropy(logits, data.tensors[1], label_smoothing=0.1)
        assert logged["train/loss"] == pytest.approx(expected.item(), rel=1e-5)
        assert logged["lr"] == 0

    # The last two: of more pictures than there are.
    @pytest.mark.parametrize(("batch_size", "accumulate", "seen"), [(2, 1, 2), (2, 3, 6), (1000, 1, 10), (4, 7, 10)])
    def test_lr_follows_the_schedule_at_the_real_batch_size(self, tmp_path, batch_size, accumulate, seen):
        trainer = make_trainer(tmp_path, max_epochs=4, accumulate_grad_batches=accumulate)
        task = make_task(lr=1.0, reference_batch_size=8, min_lr_ratio=0.1, warmup_lr_ratio=0.2)
        rates = []
        task.on_before_optimizer_step = lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])
        trainer.fit(task, DataLoader(pictures(), batch_size=batch_size))
        peak = seen / 8
        steps = math.ceil(10 / seen)  # an epoch; the warm-up is one epoch
        warmup = [peak * (0.2 + 0.8 * step / steps) for step in range(steps)]
        cosine = [
            peak * (0.1 + 0.45 * (1 + math.cos(math.pi * step / (4 * steps)))) for step in range(steps, 4 * steps)
        ]
        assert rates == pytest.approx(warmup + cosine)

    def test_checkpoint_is_plain_data_and_loads(self, tmp_path):
        arch = ArchOverrides(global_ratio=(0.8, 0.8, 0.8), local_ratio=(0.2, 0.1, 0.1), depths=(1, 1, 1))
        task = make_task(name="mobilemamba_t2", arch=arch, label_smoothing=0.2)
        trainer = make_trainer(tmp_path, max_steps=1, enable_checkpointing=True)
        trainer.fit(task, DataLoader(pictures(4), batch_size=4))
        path = tmp_path / "task.ckpt"
        trainer.save_checkpoint(path)
        kept = torch.load(path, weights_only=True)["hyper_parameters"]
        assert kept["arch"] == json.loads(json.dumps(arch.given()))
        again = ClassificationTask.load_from_checkpoint(path, weights_only=True)
        assert again.hparams == task.hparams
        x = torch.randn(2, 3, 64, 64)
        assert torch.equal(again.eval()(x), task.eval()(x))

    def test_predicts_probabilities_and_the_likeliest_classes(self, tmp_path):
        task = make_task()
        (out,) = make_trainer(tmp_path).predict(task, DataLoader(pictures(), batch_size=10))
        assert out["probabilities"].shape == (10, CLASSES)
        assert out["probabilities"].sum(1) == pytest.approx(torch.ones(10), abs=1e-5)
        assert torch.equal(out["top_indices"][:, 0], out["probabilities"].argmax(1))
        assert torch.equal(out["top_probabilities"], out["probabilities"].gather(1, out["top_indices"]))
        assert out["top_indices"].shape == (10, 5)

    def test_top5_with_fewer_classes(self, tmp_path):
        task = make_task(num_classes=3)
        (logged,) = make_trainer(tmp_path).validate(task, DataLoader(pictures(classes=3), batch_size=4), verbose=False)
        assert logged["val/top5"] == 100
        assert logged["val/top1"] < 100

    def test_endless_training_is_refused(self, tmp_path):
        with pytest.raises(ConfigError, match=r"set trainer\.max_epochs"):
            make_trainer(tmp_path, max_epochs=-1).fit(make_task(), DataLoader(pictures(), batch_size=5))

    def test_steps_alone_may_be_the_end(self, tmp_path):
        """Three epochs of two steps, of which one and a half are warm-up."""
        trainer, task = make_trainer(tmp_path, max_epochs=-1, max_steps=5), make_task(warmup_epochs=1.5)
        trainer.fit(task, DataLoader(pictures(), batch_size=5))
        assert (trainer.global_step, trainer.current_epoch) == (5, 3)
        (schedule,) = trainer.lr_scheduler_configs
        assert schedule.scheduler.lr_lambdas[0](2) == pytest.approx(0.001 + 0.999 * 2 / 3)
        assert schedule.scheduler.lr_lambdas[0](5) == pytest.approx(0.01)

    def test_data_without_a_length(self, tmp_path):
        loader = DataLoader(Endless(), batch_size=5)
        trainer = make_trainer(tmp_path, max_epochs=-1, max_steps=3)
        trainer.fit(make_task(warmup_epochs=0), loader)
        assert trainer.global_step == 3
        with pytest.raises(ConfigError, match=r"warmup_epochs=1: .* no length.* give model\.warmup_steps"):
            make_trainer(tmp_path, max_steps=3).fit(make_task(), loader)
        task = make_task(warmup_steps=2)
        make_trainer(tmp_path, max_epochs=-1, max_steps=3).fit(task, loader)
        assert task.lr_schedulers().lr_lambdas[0](1) == pytest.approx((1 + task.hparams.warmup_lr_ratio) / 2)

    def test_warmup_beyond_the_end_is_told(self, tmp_path):
        with pytest.warns(UserWarning, match=r"warmup_epochs=5 .*lower model.warmup_epochs"):
            make_trainer(tmp_path).fit(make_task(warmup_epochs=5), DataLoader(pictures(), batch_size=5))


def test_forward_gives_logits_in_either_layout():
    x = torch.randn(2, 3, 32, 40)
    last, first = make_task().eval(), make_task(channels_last=False).eval()
    assert last(x).shape == (2, CLASSES)
    torch.testing.assert_close(last(x), first(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "mobilemamba_s7"}, r"'mobilemamba_s7'.*did you mean mobilemamba_s6"),
        ({"name": "qqqqqqqq"}, r"list_models"),
        ({"arch": ArchOverrides(d_state=4)}, r"arch.d_state: .*'test_efficientnet'"),
        ({"name": "vgg11", "drop_path_rate": 0.1}, r"drop_path_rate=0.1: vgg11"),
        ({"num_classes": 0}, r"num_classes=0: expected 1 or more"),
        ({"label_smoothing": 1.5}, r"label_smoothing=1.5: expected 0 to 1"),
        ({"lr": -1.0}, r"lr=-1.0: expected 0 or more"),
        ({"name": "mobilemamba_s6", "arch": ArchOverrides(global_ratio=(2, 0, 0))}, "global_ratio=2"),
    ],
)
def test_mistakes_are_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_task(**changes)
    assert "\n" not in str(error.value)


def test_weights_are_loaded(tmp_path):
    arch = ArchOverrides(depths=(1, 1, 1))
    source = make_task(name="mobilemamba_t2", arch=arch)
    torch.nn.init.constant_(source.model.get_classifier().weight, 0.5)
    path = tmp_path / "start.pth"
    torch.save(source.model.state_dict(), path)
    task = make_task(name="mobilemamba_t2", arch=arch, weights=str(path))
    assert_same_state(source.model, task.model)
    assert "weights" not in task.hparams  # or a checkpoint could not be loaded once the file is gone


def test_weights_of_other_classes_are_loaded_but_for_the_head_if_told(tmp_path):
    arch = ArchOverrides(depths=(1, 1, 1))
    source = make_task(name="mobilemamba_t2", arch=arch, num_classes=4)
    path = tmp_path / "start.pth"
    torch.save({name: value + 1 for name, value in source.model.state_dict().items()}, path)
    with pytest.raises(WeightsError):
        make_task(name="mobilemamba_t2", arch=arch, weights=str(path))
    task = make_task(name="mobilemamba_t2", arch=arch, weights=str(path), partial_weights=True)
    stem = next(iter(source.model.state_dict()))
    assert torch.equal(task.model.state_dict()[stem], source.model.state_dict()[stem] + 1)
    assert task.model.get_classifier().weight.shape[0] == CLASSES


def test_drop_path_reaches_the_network():
    blocks = [m for m in make_task(drop_path_rate=0.2).model.modules() if type(m).__name__ == "DropPath"]
    assert any(block.drop_prob > 0 for block in blocks)


def test_what_an_evaluation_calls_fused_is_what_predict_runs(tmp_path):
    arch = ArchOverrides(embed_dims=(16, 16, 16), depths=(1, 1, 1))
    task = make_task(name="mobilemamba_t2", arch=arch, in_chans=1).eval()
    save_weights(task.model, tmp_path / "w.safetensors", task.model_card)
    predictor = ClassificationPredictor(*load_network(tmp_path / "w.safetensors"), torch.device("cpu"))
    x = torch.randn(4, 1, 64, 64)
    assert torch.equal(task.predictor().forward(x), predictor.forward(x))
    asked = []
    task.predictor = lambda: asked.append(True) or predictor
    for precision in ("32-true", "bf16-mixed"):
        (logged,) = make_trainer(tmp_path, precision=precision).validate(
            task, DataLoader(TensorDataset(x, torch.arange(4)), batch_size=2), verbose=False
        )
        assert logged["val/loss_fused"] == pytest.approx(logged["val/loss"], rel=2e-2)
    assert len(asked) == 1, "autocast would give its layers another type than theirs"


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn: each picture's size, with its lines and their colour."""
    found = []
    monkeypatch.setattr(module, "captioned", lambda picture, *text: found.append((picture.size, *text)) or picture)
    return found


def attached(task, folder):
    trainer = make_trainer(folder)
    trainer._data_connector.attach_datamodule(task, datamodule=Data())  # of the classes a to e
    task.trainer = trainer
    return task


def test_an_answer_is_drawn_beside_the_truth(tmp_path, drawn):
    task = attached(make_task(num_classes=5), tmp_path).eval()
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        share, answer = (value.item() for value in task(x).softmax(-1).max(-1))
    for target in (answer, (answer + 1) % 5):
        task.draw_example(x, torch.tensor([target]))
    line = f"{100 * share:.0f}% {'abcde'[answer]}"
    wrong = [line, f"truth: {'abcde'[(answer + 1) % 5]}"]
    assert drawn == [((144, 96), [line], "green"), ((144, 96), wrong, "firebrick")]


def test_pictures_are_drawn_as_they_are_learned_from(tmp_path, drawn, monkeypatch):
    np.random.seed(0)  # noqa: NPY002  Mixup draws from it; a share of almost 100 % would be drawn as the whole
    x, target = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    attached(make_task(num_classes=5), tmp_path).draw_training(x, target, number=3)
    assert [lines for _, lines in drawn] == [["a"], ["b"], ["c"]]
    task, before = attached(make_task(num_classes=5, mixing=Mixing(mode="elem")), tmp_path), x.clone()
    shown = []
    monkeypatch.setattr(module, "unnormalised", lambda image, *_: shown.append(image.clone()) or Image.new("L", (9, 9)))
    with isolate_rng():
        task.draw_training(x, target, number=9)
    assert torch.equal(x, before)
    mixed, soft = task.mix(x, target)
    assert torch.equal(torch.stack(shown), mixed)
    for row, (_, lines) in zip(soft, drawn[3:], strict=True):
        assert lines == [f"{100 * row[index]:.0f}% {'abcde'[index]}" for index in row.argsort(descending=True)[:2]]


def test_pictures_of_unknown_colours_are_not_drawn(tmp_path):
    task, x, target = attached(make_task(num_classes=5, in_chans=4), tmp_path), torch.rand(2, 4, 32, 32), torch.zeros(2)
    assert task.draw_example(x[:1], target[:1]) is None
    assert task.draw_training(x, target.long(), number=2) == []
    task.trainer = make_trainer(tmp_path)  # without a data module
    assert task.draw_training(x[:, :3], target.long(), number=2) == []
