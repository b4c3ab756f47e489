"""A signal ends a command as Ctrl-C does; one that was ignored from the start stays ignored."""

import multiprocessing
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

import mobilemamba_command
from mobilemamba.cli.mistakes import as_user_errors
from mobilemamba.cli.stopping import EndOnSecondInterrupt
from mobilemamba.signals import stop_on_signals

FIT = shlex.split(
    "--trainer.max_epochs 3 --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --trainer.accelerator cpu "
    "--data.img_size 32 --data.batch_size 4 --model.warmup_epochs 0 --model.arch.embed_dims [16,16,16] "
    "--model.arch.depths [1,1,1] --table_size null"
)


@pytest.fixture(autouse=True)
def _as_in_a_terminal() -> Iterator[None]:
    """Signals as a terminal leaves them: nohup and shells in the background have some ignored."""
    given = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in given.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_time_it_raises_what_ctrl_c_does(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt) as caught:
                signal.raise_signal(number)
            assert caught.value.args == (128 + number,)
    assert signal.getsignal(number) is before


def test_what_nohup_has_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signals():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_ends_a_training_that_is_slow_to_stop() -> None:
    """After the first, Lightning ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    callback, trainer, module = EndOnSecondInterrupt(), Trainer(accelerator="cpu", logger=False), LightningModule()
    callback.on_exception(trainer, module, ValueError())
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    callback.on_exception(trainer, module, KeyboardInterrupt())
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_a_forked_worker_ends_as_it_would_without() -> None:
    with stop_on_signals():
        worker = multiprocessing.get_context("fork").Process(target=signal.raise_signal, args=(signal.SIGTERM,))
        worker.start()
        worker.join()
    assert worker.exitcode == -signal.SIGTERM


def test_a_signal_that_meets_the_loaders_workers_first_stops_all_the_same() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, as_user_errors([]):
        raise RuntimeError("DataLoader worker (pid 8827) is killed by signal: Terminated. ")
    assert caught.value.args == (143,)


def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    """Exit code and last line of a command of the console."""
    monkeypatch.setattr(sys, "argv", ["mobilemamba", *args])
    monkeypatch.setattr(
        "mobilemamba.cli.exits.keep_freed_memory", lambda: True
    )  # nothing takes it back: later tests measure
    with pytest.raises(SystemExit) as caught:
        mobilemamba_command.run()
    return int(caught.value.code or 0), capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(("number", "epoch"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 0)])
def test_a_stopped_training_says_how_to_go_on(
    number: signal.Signals,
    epoch: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from mobilemamba.tasks import ClassificationTask

    monkeypatch.chdir(tmp_path)
    step = ClassificationTask.training_step

    def training_step(self: ClassificationTask, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        if self.current_epoch == epoch:
            signal.raise_signal(number)
        return step(self, batch)

    monkeypatch.setattr(ClassificationTask, "training_step", training_step)
    code, line = ended(monkeypatch, capsys, "fit", *FIT, "--name", "my run")
    torch.use_deterministic_algorithms(False)
    assert code == 128 + number
    assert not Path("runs/my run/results.json").exists()
    if epoch == 0:
        assert line.endswith("error: stopped; no epoch was finished, so the same command starts again")
    else:
        again = shlex.split(line.partition("stopped; go on with: ")[2])
        assert again == ["mobilemamba", "fit", *FIT, "--name", "my run", "--ckpt_path", "last"]


def test_a_stopped_tool_has_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("mobilemamba.tools.inspection.backends", lambda: signal.raise_signal(signal.SIGTERM))
    assert ended(monkeypatch, capsys, "backends") == (143, "mobilemamba: error: stopped")
