"""What the recipe adds to a plain training: average, teacher, frozen backbone, low precision, compilation."""

import copy
import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerStatus
from torch._dynamo.testing import CompileCounter
from torch.utils.data import DataLoader

from mobilemamba.errors import ConfigError
from mobilemamba.models import ArchOverrides, ModelCard, Preprocessing, create_model, load_network, save_weights
from mobilemamba.training.distillation import Distillation, Teacher, distillation_loss
from mobilemamba.training.mixing import Mixing
from tests.states import assert_same_state
from tests.tasks.test_classification import CLASSES, make_task, make_trainer, pictures

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch"),
]

TINY = {"name": "mobilemamba_t2", "arch": ArchOverrides(embed_dims=(16, 16, 16), depths=(1, 1, 1))}


class Watch(Callback):
    """Keeps the network's state after each step."""

    def __init__(self):
        self.states = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.states.append(copy.deepcopy(pl_module.model.state_dict()))


def fit(folder, task, *, callbacks=(), validation=None, **options):
    trainer = make_trainer(folder, callbacks=list(callbacks), **{"max_epochs": 1} | options)
    trainer.fit(task, DataLoader(pictures(), batch_size=4), validation)
    return trainer


@pytest.fixture
def teacher(tmp_path):
    """The configuration of a small teacher, and its file."""
    torch.manual_seed(3)
    path = tmp_path / "teacher.safetensors"
    card = ModelCard("test_efficientnet", Preprocessing((48, 48), (0.5,) * 3, (0.25,) * 3), num_classes=CLASSES)
    save_weights(create_model("test_efficientnet", num_classes=CLASSES), path, card)
    return Distillation(weights=str(path))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_the_recurrence(tmp_path, accumulate):
    task, watch = make_task(ema_decay=0.7, lr=0.01), Watch()
    expected = copy.deepcopy(task.model.state_dict())
    fit(tmp_path, task, callbacks=[watch], accumulate_grad_batches=accumulate)
    steps = {1: (0, 1, 2), 2: (1, 2)}[accumulate]  # the batches after which there is one
    for state in (watch.states[batch] for batch in steps):
        expected = {name: 0.7 * expected[name] + 0.3 * state[name] for name in expected}
    for name, value in task.ema.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in task.ema.parameters())


def test_the_average_is_evaluated_beside_the_network(tmp_path):
    trainer = fit(tmp_path, make_task(ema_decay=0.5, lr=0.3), validation=DataLoader(pictures(seed=1), batch_size=3))
    metrics = trainer.callback_metrics
    assert metrics["val/loss"] != metrics["val/loss_ema"]
    assert metrics["val/top1_max"] == max(metrics["val/top1"], metrics["val/top1_ema"])
    assert "val/top1_fused" not in metrics


@pytest.mark.parametrize(("split", "better"), [("val", "raw"), ("val", "ema"), ("test", "ema")])
def test_a_checkpoint_says_which_network_is_better_and_what_it_is(tmp_path, split, better):
    task = make_task(**TINY, ema_decay=0.5)
    trainer = fit(tmp_path, task)
    trainer.callback_metrics.update({f"{split}/top1": torch.tensor(60.0 if better == "raw" else 40.0)})
    trainer.callback_metrics.update({f"{split}/top1_ema": torch.tensor(50.0)})
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    network, card = load_network(tmp_path / "run.ckpt")
    expected = task.model if better == "raw" else task.ema.module
    task.comparison.metrics[better].counts = torch.tensor([[0, 1, 7]])  # the others have none, as nothing was evaluated
    assert task.confusion.tolist() == [[0, 1, 7]]
    assert task.better_network is expected
    assert_same_state(expected, network)
    assert (card.model, card.num_classes) == ("mobilemamba_t2", CLASSES)
    assert ArchOverrides(**{name: tuple(value) for name, value in card.arch.items()}) == TINY["arch"]


def test_a_frozen_backbone_does_not_move(tmp_path):
    task = make_task(**TINY, freeze_backbone=True, lr=0.1)
    before = copy.deepcopy(task.model.state_dict())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found .* in eval mode")  # Lightning's, which is not for those who froze it
        fit(tmp_path, task, validation=DataLoader(pictures(seed=1), batch_size=4), max_epochs=2)
    changed = {name for name, value in task.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"head.linear.weight", "head.norm.running_mean"} <= changed
    assert all(name.startswith("head.") for name in changed)
    learning = {name for name, parameter in make_task(**TINY).model.named_parameters() if parameter.requires_grad}
    assert any(name.startswith("stages.") for name in learning), "unless it is chosen"


def test_the_loss_is_the_tasks_and_the_teachers(tmp_path, teacher):
    task = make_task(distillation=teacher, label_smoothing=0.0)
    fit(tmp_path, task, limit_train_batches=1)
    x, target = pictures().tensors[0][:4], pictures().tensors[1][:4]
    wanted = Preprocessing.of_model("test_efficientnet")
    answers = Teacher(teacher, CLASSES, wanted.mean, wanted.std)(x)
    torch.manual_seed(0)
    fresh = make_task(label_smoothing=0.0)
    logits = fresh.train()(x)
    expected = F.cross_entropy(logits, target) + 5 * distillation_loss(logits, answers)
    assert task.trainer.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert not any("teacher" in name for name in task.state_dict())


def test_the_second_head_learns_from_the_teacher_alone(tmp_path, teacher):
    task = make_task(**TINY, distillation=teacher, distillation_head=True, mixing=Mixing(), lr=0.01)
    before = copy.deepcopy(task.model.state_dict())
    fit(tmp_path, task)
    for head in ("head", "head_dist"):
        assert not torch.equal(task.model.state_dict()[f"{head}.linear.weight"], before[f"{head}.linear.weight"])
    x, target = pictures().tensors
    task.model.zero_grad()
    logits, of_teacher = task.model.forward_heads(x)
    F.cross_entropy(logits, target).backward(retain_graph=True)
    assert task.model.head_dist.linear.weight.grad is None
    torch.testing.assert_close(task.model.eval()(x), sum(task.model.forward_heads(x)) / 2)
    assert of_teacher.shape == logits.shape


def test_both_heads_are_compiled(tmp_path, teacher, monkeypatch):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function: lambda *given: calls.append(given) or function(*given))
    task = make_task(**TINY, distillation=teacher, distillation_head=True, compile=True)
    fit(tmp_path, task, limit_train_batches=2)
    assert len(calls) == 2


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_checkpoint_waits_for_no_process_after_an_error(tmp_path, monkeypatch, interrupted):
    """With a second process whose loss is three times as large: each of both resumes from the mean of their sums."""
    task = make_task()
    trainer = fit(tmp_path, task, limit_train_batches=1)
    own = task.mean_train_loss.mean_value.clone()
    monkeypatch.setattr(trainer.strategy, "reduce", lambda value, reduce_op: 2 * value if reduce_op == "mean" else None)
    trainer.state.status = TrainerStatus.INTERRUPTED if interrupted else TrainerStatus.RUNNING
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    saved = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]["mean_train_loss.mean_value"]
    assert saved == (own if interrupted else 2 * own) != 0
    assert task.mean_train_loss.mean_value == own


def test_a_checkpoint_of_all_of_it_loads(tmp_path, teacher):
    task = make_task(**TINY, distillation=teacher, mixing=Mixing(), ema_decay=0.9)
    fit(tmp_path, task, limit_train_batches=1).save_checkpoint(tmp_path / "run.ckpt")
    again = type(task).load_from_checkpoint(tmp_path / "run.ckpt", weights_only=True)
    assert (again.distillation, again.mixing) == (task.distillation, task.mixing)
    assert_same_state(task, again)


def test_bfloat16_stays_finite_and_keeps_weights_in_fp32(tmp_path):
    task = make_task(**TINY, ema_decay=0.9)
    trainer = fit(tmp_path, task, precision="bf16-mixed")
    assert trainer.callback_metrics["train/loss"].isfinite()
    assert all(parameter.dtype == torch.float32 for parameter in task.model.parameters())


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_an_average_of_weights_in_half_precision_is_refused(tmp_path, precision):
    expected = f"ema_decay=0.9 with trainer.precision={precision}: .*; give {precision[:-4]}mixed, or leave"
    with pytest.raises(ConfigError, match=expected):
        fit(tmp_path, make_task(**TINY, ema_decay=0.9), precision=precision)


@pytest.mark.parametrize("channels_last", [True, False])
def test_channels_last_is_a_choice(channels_last):
    task = make_task(**TINY, channels_last=channels_last)
    seen = {}
    first, last = task.model.patch_embed[0].conv, task.model.stages[-1]
    for module in (first, last):
        module.register_forward_hook(lambda module, _, y: seen.update({module: y}))
    task(torch.randn(2, 3, 96, 96)).sum().backward()
    for tensor in (first.weight, *seen.values()):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last
    # Else DDP would copy each gradient, and warn of it.
    assert all(p.grad.stride() == p.stride() for p in task.model.parameters() if p.grad is not None and p.ndim == 4)


def test_compiled_gives_the_same_loss(tmp_path, monkeypatch):
    """Traced, but not translated to C++, which takes minutes."""
    traced = CompileCounter()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=traced))
    torch.compiler.reset()
    losses, graphs = [], []
    for compiled in (False, True):
        trainer = fit(tmp_path, make_task(**TINY, compile=compiled), limit_train_batches=2)
        losses.append(trainer.callback_metrics["train/loss"].item())
        graphs.append(traced.frame_count)
    torch.compiler.reset()
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert graphs == [0, 1]
