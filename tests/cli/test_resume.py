"""A training that is killed in the middle of an epoch goes on to the very same end."""

import json
import multiprocessing
import os
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils._pytree import tree_flatten

from mobilemamba.cli.mistakes import as_user_errors
from mobilemamba.errors import ConfigError
from mobilemamba.tasks import ClassificationTask
from mobilemamba_command import main

# Everything that keeps a state or draws random numbers: average, Mixup, DropPath, shifts and flips, schedule.
OPTIONS = shlex.split(
    "--trainer.max_epochs 2 --trainer.limit_train_batches 12 --trainer.limit_val_batches 3 --trainer.accelerator cpu "
    "--data.img_size 32 --data.batch_size 8 --table_size null --model.arch.embed_dims [16,16,16] "
    "--model.arch.depths [1,1,1] --model.ema_decay 0.9 --model.mixing {} --model.drop_path_rate 0.3 "
    "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint --trainer.callbacks.every_n_train_steps=5 "
    "--trainer.callbacks.filename=last --trainer.callbacks.enable_version_counter=false "
)
FORK = multiprocessing.get_context("fork")
#: The steps before which the processes are killed, in the first epoch and in the second, and the processes that load.
STEPS = {8: 0, 17: 1}


def options(name: str, workers: int) -> list[str]:
    folder = f"runs/{name}/checkpoints"
    return ["fit", *OPTIONS, f"--trainer.callbacks.dirpath={folder}", f"--data.num_workers={workers}", f"--name={name}"]


def killed(step: int, command: list[str]) -> int | None:
    """The exit code of a process that is killed before a step: a fork of the tests', as to import all takes seconds."""
    process = FORK.Process(target=_train_until, args=(step, command))
    process.start()
    process.join()
    return process.exitcode


def _train_until(last: int, command: list[str]) -> None:
    step = ClassificationTask.training_step

    def training_step(self: ClassificationTask, batch: Any) -> Any:
        if self.global_step == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch)

    ClassificationTask.training_step = training_step
    main(command)


@pytest.mark.slow
def test_killed_in_mid_epoch_and_resumed_equals_uninterrupted_bit_for_bit() -> None:
    """In the first epoch and in the second, with a process that loads and without."""
    main(options("straight", 0))
    for step, workers in STEPS.items():
        command = options(f"killed-{step}", workers)
        assert killed(step, command) == -signal.SIGKILL
        last = torch.load(f"runs/killed-{step}/checkpoints/last.ckpt", weights_only=True)
        assert last["global_step"] == step - step % 5  # so the step is lost, and its batch comes again
        cli = main([*command, "--ckpt_path", "last"])
        assert cli.trainer.global_step == 24
        assert_equal("straight", f"killed-{step}")


def assert_equal(*names: str) -> None:
    """In everything that a training leaves, to the bit."""
    one, other = (torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True) for name in names)
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        (left, left_spec), (right, right_spec) = tree_flatten(one[part]), tree_flatten(other[part])
        assert left_spec == right_spec
        assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(left, right, strict=True)), part
    assert any(name.startswith("ema.module.") for name in one["state_dict"])
    results = [json.loads(Path(f"runs/{name}/results.json").read_text()) for name in names]
    for key in ("top1", "top1_ema", "top5", "best_epoch", "epochs"):
        assert results[0][key] == results[1][key], key


def test_what_hinders_the_restoring_is_a_line() -> None:
    connector = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)._checkpoint_connector
    connector.trainer.state.fn = TrainerFn.FITTING
    connector._loaded_checkpoint = {"pytorch-lightning_version": "2.6.6", "loops": {"fit_loop": {"epoch_progress": 3}}}
    expected = (
        r"^the checkpoint is damaged or not of this Lightning: \w+Error: .*; go on from another one by --ckpt_path$"
    )
    with pytest.raises(ConfigError, match=expected), as_user_errors([]):
        connector.restore_loops()
    with pytest.raises(KeyError), as_user_errors([]):
        {}["another error"]
