"""What a training can go on from, and what a checkpoint is refused for."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule
from torch.utils._pytree import tree_leaves

from mobilemamba.cli.resume import check_data, check_fits, newest_readable_checkpoint
from mobilemamba.data import DataModule, FashionMNISTSample
from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.training.callbacks.checkpoint_io import AtomicCheckpointIO
from mobilemamba.training.contract import TaskContract
from mobilemamba_command import main
from tests.cli.runs import TINY, content, fit, refusal


def test_a_broken_checkpoint_falls_back_to_the_one_before_it(run: Callable[..., Path]) -> None:
    last = run() / "checkpoints/last.ckpt"
    previous = last.with_name("previous.ckpt")
    shutil.copy(last, previous)
    os.utime(previous, (1, 1))
    whole = last.read_bytes()
    for broken in (whole[:5000], whole[: len(whole) // 2] + bytes(9000) + whole[len(whole) // 2 + 9000 :]):
        last.write_bytes(broken)
        with pytest.warns(match=r"cannot read .*last.ckpt.*going on from the checkpoint before it, .*previous.ckpt"):
            path, checkpoint = newest_readable_checkpoint(Path("runs/default"))
        assert (path, checkpoint["global_step"]) == (previous, 4)
    previous.write_bytes(b"")
    with pytest.raises(WeightsError, match=r"no checkpoint in runs/default can be read: .*; repair one, or"):
        newest_readable_checkpoint(Path("runs/default"))


def test_a_training_that_ended_within_an_epoch_goes_on_there(run: Callable[..., Path]) -> None:
    # Whatever the number of steps is, the first of them has the full rate.
    length = "--trainer.logger false --trainer.limit_val_batches 0 --trainer.max_epochs -1 --trainer.max_steps"
    fit(f"--name straight {length} 5")
    fit(f"--name part {length} 1")
    fit(f"--name whole {length} 5 --ckpt_path runs/part/checkpoints/last.ckpt")
    whole, straight = (
        torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True) for name in ("whole", "straight")
    )
    for part in ("state_dict", "optimizer_states", "loops", "epoch"):
        left, right = tree_leaves(whole[part]), tree_leaves(straight[part])
        assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(left, right, strict=True)), part
    results = [json.loads(Path(f"runs/{name}/results.json").read_text()) for name in ("part", "whole", "straight")]
    assert [found["epochs"] for found in results] == [1, 3, 3]


class Own:
    """No plain value."""


def test_a_state_of_one_s_own_type_is_warned_of_when_saved_and_named_when_refused(run: Callable[..., Path]) -> None:
    last = run("x") / "checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)
    state["callbacks"]["Mine"] = Own()
    last.with_name("previous.ckpt").unlink(missing_ok=True)
    said = r"last.ckpt holds objects of tests.cli.test_goes_on.Own, which no resume reads, .* allow the type"
    with pytest.warns(UserWarning, match=said):
        AtomicCheckpointIO().save_checkpoint(state, last)
    assert re.search(said, refusal("--name x --ckpt_path last"))
    assert re.search(said, refusal(f"--name y --ckpt_path {last}"))


def test_a_checkpoint_that_a_callback_wrote_elsewhere_is_named(run: Callable[..., Path]) -> None:
    elsewhere = Path("elsewhere")
    elsewhere.mkdir()
    shutil.move(run("x") / "checkpoints/last.ckpt", elsewhere / "own.ckpt")
    shutil.rmtree("runs/x/checkpoints")
    own = "--trainer.callbacks+=ModelCheckpoint --trainer.callbacks.dirpath elsewhere"
    said = refusal(f"--name x --ckpt_path last {own}")
    assert "was stopped before its first checkpoint; " in said
    assert "elsewhere/own.ckpt has 4 steps done: give it by --ckpt_path" in said


class Other(TaskContract, LightningModule):
    def __init__(self, width: int = 2, groups: int = 1) -> None:
        super().__init__()
        self.layer, self.groups = torch.nn.Linear(2, width), groups

    def parameter_groups(self) -> list[dict[str, object]]:
        return [{"params": [p]} for p in self.parameters()][: self.groups]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Other(3), r"layer.weight is of shape \[2, 2\] there and of shape \[3, 2\] here"),
        (torch.nn.Module(), "layer.weight is of shape .* there and absent here"),
        (Other(groups=2), r"other parameter groups: \[1\] parameters there, \[1, 1\] here"),
    ],
)
def test_the_checkpoint_of_another_network_or_optimiser_is_refused(module: torch.nn.Module, message: str) -> None:
    if not isinstance(module, LightningModule):
        module = LightningModule()
    groups = [{"params": [0]}]
    checkpoint = {"state_dict": Other().state_dict(), "optimizer_states": [{"param_groups": groups}]}
    check_fits(Path("x.ckpt"), checkpoint, Other())
    with pytest.raises(ConfigError, match=message):
        check_fits(Path("x.ckpt"), checkpoint, module)


def test_a_training_does_not_go_on_with_other_classes(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    before = content(Path())
    first, second, *others = FashionMNISTSample.class_names
    monkeypatch.setattr(FashionMNISTSample, "class_names", (second, first, *others))
    for option in ("last", "runs/default/checkpoints/last.ckpt"):
        said = refusal(f"--ckpt_path {option}")
        assert f"was trained on other classes: {first!r} where the data have {second!r}; give the data of its" in said
    assert content(Path()) == before


def test_the_data_of_a_module_without_a_card_need_no_names() -> None:
    check_data("x.ckpt", {}, DataModule())


def test_a_training_that_goes_on_with_other_pictures_says_so(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    monkeypatch.setattr(FashionMNISTSample, "name", "another sample")
    with pytest.warns(
        UserWarning, match=r"was trained on Fashion-MNIST sample \(8,000/2,000\) and goes on with another"
    ):
        fit("--ckpt_path last")


def test_callbacks_that_keep_a_state_are_not_changed_in_silence(run: Callable[..., Path]) -> None:
    stopping = (
        "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor val/top1 --trainer.callbacks.mode max "
        "--trainer.callbacks.patience"
    )
    fit(f"--name stops {stopping} 5")
    Path("runs/stops/results.json").unlink()
    said = refusal(f"--name stops --ckpt_path last {stopping} 7")
    assert "has other settings: trainer.callbacks.EarlyStopping.patience: 5 -> 7" in said


def test_a_fine_tuning_goes_on_without_the_weights_that_it_began_with(run: Callable[..., Path]) -> None:
    weights = Path(shutil.copy(run(finished=True) / "best.safetensors", "w.safetensors"))
    fit("--name tuned --weights w.safetensors")
    Path("runs/tuned/results.json").unlink()
    weights.unlink()
    assert fit("--name tuned --weights w.safetensors --ckpt_path last") == Path("runs/tuned")
    assert yaml.safe_load(Path("runs/tuned/config.yaml").read_text())["model"]["init_args"]["weights"] == str(weights)
    assert main(["validate", "--config", "runs/tuned/config.yaml"]), "its own weights are there"


def test_moments_of_another_shape_are_refused() -> None:
    module = Other()
    state = {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}}
    optimizer = {"param_groups": [{"params": [0]}], "state": state}
    with pytest.raises(ConfigError, match=r"moments of shape \[3\] for a parameter of shape \[2, 2\]"):
        check_fits(Path("x.ckpt"), {"state_dict": module.state_dict(), "optimizer_states": [optimizer]}, module)


@pytest.mark.parametrize(("finder", "batch_size"), [("LearningRateFinder", 4), ("BatchSizeFinder", 2)])
def test_what_lightning_has_found_is_not_searched_again(run: Callable[..., Path], finder: str, batch_size: int) -> None:
    """It would forget the optimiser and the steps done, and train all epochs once more."""
    last = run() / "checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["pictures_per_step"] = 2
    torch.save(checkpoint, last)
    cli = main(["fit", *TINY, "--ckpt_path", "last", f"--trainer.callbacks+={finder}"])
    assert finder not in [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert cli.datamodule.batch_size == batch_size
