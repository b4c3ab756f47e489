"""A step that is not finite leaves no trace but a count and a warning that names the batch."""

import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mobilemamba.errors import DivergedError
from mobilemamba.training.callbacks import SkipNonFinite

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:lightning", "ignore::UserWarning:torch")


class Net(LightningModule):
    """With a batch norm, whose statistics a bad picture would spoil; remembers its state after each batch."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.states = []

    def training_step(self, batch):
        x, target = batch
        return nn.functional.cross_entropy(self.model(x), target)

    def on_train_batch_end(self, *_):
        self.states.append(copy.deepcopy((self.model.state_dict(), self.optimizers().state_dict()["state"])))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, fused=True)


def data(bad_batches=(), value=float("nan")):
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    for batch in bad_batches:
        x[4 * batch] = value
    return TensorDataset(x, torch.arange(20) % 2)


def fit(folder, dataset, guard, **options):
    torch.manual_seed(0)
    net = Net()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(
        max_epochs=1, callbacks=[guard], default_root_dir=folder, enable_checkpointing=False, **quiet | options
    )
    trainer.fit(net, DataLoader(dataset, batch_size=4))
    return net, trainer


@pytest.fixture(params=[False, True], ids=["host", "device"])
def device_decides(request, monkeypatch):
    """On a CPU the same operations do what a GPU is left to do alone."""
    monkeypatch.setattr(SkipNonFinite, "_leaves_it_to_device", lambda *_: request.param)
    return request.param


def same(one, other):
    flat = [torch.utils._pytree.tree_leaves(state) for state in (one, other)]
    return all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(*flat, strict=True))


def without_counter(state):
    weights, moments = state
    return {name: value for name, value in weights.items() if "num_batches" not in name}, moments


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_step_changes_nothing(tmp_path, value, device_decides):
    guard = SkipNonFinite()
    with pytest.warns(UserWarning, match=r"the loss is not finite in epoch 0, batch 2: step 2 skipped, 1 so far"):
        net, trainer = fit(tmp_path, data([2], value), guard)
    assert guard.skipped == 1
    assert same(without_counter(net.states[1]), without_counter(net.states[2]))
    assert not same(without_counter(net.states[2]), without_counter(net.states[3]))
    assert all(value.isfinite().all() for value in net.state_dict().values())
    assert trainer.callback_metrics["train/grad_norm"].isfinite()


def test_good_steps_are_as_without_it(tmp_path, device_decides):
    guarded, trainer = fit(tmp_path, data(), SkipNonFinite())
    plain, _ = fit(tmp_path, data(), SkipNonFinite.__mro__[1]())
    assert same(guarded.states, plain.states)
    assert trainer.callback_metrics["train/skipped_steps"] == 0


def test_the_norm_is_that_before_clipping(tmp_path):
    _, free = fit(tmp_path, data(), SkipNonFinite(), limit_train_batches=1)
    _, clipped = fit(tmp_path, data(), SkipNonFinite(), limit_train_batches=1, gradient_clip_val=1e-3)
    assert free.callback_metrics["train/grad_norm"] == clipped.callback_metrics["train/grad_norm"] > 1e-2


def test_all_batches_of_an_accumulated_step_are_left_out(tmp_path, device_decides):
    with pytest.warns(UserWarning, match="1 so far"):
        net, _ = fit(tmp_path, data([2]), SkipNonFinite(), accumulate_grad_batches=2)
    assert same(without_counter(net.states[1]), without_counter(net.states[3]))  # steps are taken after 1, 3 and 4


@pytest.mark.parametrize(("own", "fused", "left"), [(False, True, True), (False, None, False), (True, None, False)])
def test_only_a_fused_optimiser_skips_by_itself(own, fused, left):
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))], fused=fused)
    optimizer._step_supports_amp_scaling = False
    if own:  # another's, which has no such option
        del optimizer.param_groups[0]["fused"]
    assert SkipNonFinite()._leaves_it_to_device(SimpleNamespace(is_cuda=True), optimizer) == left


def test_an_overflow_in_fp16_is_left_to_the_loss_scaler():
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, float("inf")])
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, **_: decision)
    trainer = SimpleNamespace(
        current_epoch=0,
        global_step=0,
        fit_loop=SimpleNamespace(batch_idx=0),
        precision_plugin=SimpleNamespace(scaler=object()),
        strategy=strategy,
    )
    guard = SkipNonFinite()
    module = SimpleNamespace(log=lambda *_: None)
    guard.on_before_backward(trainer, module, torch.tensor(1.0))
    guard.on_before_optimizer_step(trainer, module, torch.optim.SGD([weight]))
    assert guard.skipped == 0
    assert weight.grad[1].isinf(), "which the scaler looks for, to lower its scale"


def test_stops_at_the_limit(tmp_path):
    guard = SkipNonFinite(limit=2)
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(DivergedError, match=r"2 steps .*batch 3.*model\.lr"),
    ):
        fit(tmp_path, data([1, 3, 4]), guard)
    assert guard.skipped == 2


def test_left_to_the_device_it_stops_two_steps_later_and_loses_none(tmp_path, monkeypatch):
    monkeypatch.setattr(SkipNonFinite, "_leaves_it_to_device", lambda *_: True)
    guard = SkipNonFinite(limit=2)
    with (
        pytest.warns(UserWarning, match="batch 1: step 1 skipped, 1 so far"),
        pytest.raises(DivergedError, match=r"2 steps .*batch 2"),
    ):
        fit(tmp_path, data([1, 2]), guard)
    assert (guard.skipped, [awaited.place.batch for awaited in guard._awaited]) == (2, [3, 4])
    monkeypatch.setattr(SkipNonFinite, "on_before_backward", lambda *_: None)
    with pytest.warns(UserWarning, match="a gradient is not finite in epoch 0, batch 4: step 4 skipped, 1 so far"):
        fit(tmp_path, data([4]), late := SkipNonFinite())  # the last one, seen at the end
    assert late.state_dict() == {"skipped": 1}


def test_the_count_is_kept_in_checkpoints():
    guard = SkipNonFinite()
    guard.load_state_dict({"skipped": 7})
    assert guard.state_dict() == {"skipped": 7}
