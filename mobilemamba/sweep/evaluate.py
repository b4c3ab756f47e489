"""Validates or tests the networks of finished rows, in this process or in one process per row."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from mobilemamba.data.base import data_of
from mobilemamba.errors import user_error
from mobilemamba.files import read_json, write_json
from mobilemamba.scores import LOSS, Score
from mobilemamba.sweep.launchers import Event
from mobilemamba.sweep.launchers.base import try_row
from mobilemamba.sweep.row import FitRow, Row, run_logged
from mobilemamba.sweep.settings import Config, lookup
from mobilemamba.sweep.sheet import Sheet, cell
from mobilemamba.sweep.table import labels
from mobilemamba.training.callbacks.checkpoints import EXPORTED
from mobilemamba.training.loaders import pictures_evaluated

Command = Literal["validate", "test"]
#: Runs a command line, e.g. ``["validate", "--config", "run.yaml"]``, in this process.
Run = Callable[[list[str]], object]


class SaveMetrics(Callback):
    """Writes the metrics of ``validate`` or ``test``, and a description of their data, as JSON.

    Args:
        path: File to write.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the metrics named ``val/...``."""
        self._save(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the metrics named ``test/...``."""
        self._save(trainer, "test")

    def _save(self, trainer: Trainer, split: str) -> None:
        if not trainer.is_global_zero:
            return
        data = data_of(trainer)
        metrics = trainer.callback_metrics.items()
        found: dict[str, Any] = {name.removeprefix(f"{split}/"): float(value) for name, value in metrics}
        found |= {
            "data": None if data is None else data.name,
            "pictures": pictures_evaluated(trainer, split),
            "img_size": None if data is None else data.img_size,
        }
        write_json(self.path, found)


def evaluator(command: Command, file: str, options: list[str]) -> FitRow:
    """Returns the function that a launcher calls to evaluate a row."""
    return functools.partial(_evaluate, command, file, options)


def evaluates_here(launcher: str, jobs: int, config: Config) -> bool:
    """Whether to evaluate rows one by one in this process, so that libraries are loaded only once.

    Other machines or several GPUs need separate processes.
    """
    devices, strategy = str(lookup(config, "trainer.devices")), lookup(config, "trainer.strategy")
    gpus = 0 if lookup(config, "trainer.accelerator") == "cpu" else torch.cuda.device_count()
    one_device = devices == "1" or (devices in ("auto", "None", "-1") and gpus <= 1)
    return launcher == "local" and one_device and strategy in ("auto", None) and (jobs == 1 or gpus == 0)


def evaluate_here(run_dirs: list[Path], command: Command, file: str, options: list[str], run: Run) -> Generator[Event]:
    """Acts as a launcher with :func:`evaluator`, but in this process, where ``run`` runs a command line."""
    evaluate = functools.partial(_evaluate, command, file, options, run=run)
    for run_dir in run_dirs:
        yield "started", run_dir, None
        yield "done", run_dir, try_row(evaluate, run_dir, {}, threading.Event(), retries=0)


def _run_logged_here(run: Run, arguments: list[str], log_path: Path, title: str) -> str:
    """Runs a command line with its output appended to a file, and returns how it ended in one line."""
    with log_path.open("a", encoding="utf-8") as log:
        log.write(f"--- {title}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log), _lightning_quiet():
            try:
                run(arguments)
            except Exception as error:
                traceback.print_exc(file=log)
                return str(user_error(error) or f"{type(error).__name__}: {error}").strip()
            except SystemExit as error:  # raised by Lightning on Ctrl-C
                raise KeyboardInterrupt from error
    return "ended without metrics"


@contextlib.contextmanager
def _lightning_quiet() -> Iterator[None]:
    """Silences Lightning's log, whose handlers write to the terminal even if standard error is redirected."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _evaluate(
    command: Command,
    file: str,
    options: list[str],
    run_dir: Path,
    environment: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
    run: Run | None = None,
) -> str | None:
    """Evaluates ``best.safetensors`` of a run folder with the row's own settings, overridden by ``options``.

    Starts a process, unless ``run`` is given, which runs in this one. Returns None if the metrics were written to
    ``file`` in the run folder, otherwise the reason in one line.
    """
    target, weights = run_dir / file, run_dir / EXPORTED
    if not weights.exists():
        return f"no {weights}: this row exported no weights (its trainer.enable_checkpointing was off?)"
    target.unlink(missing_ok=True)
    config = yaml.safe_load((run_dir / "run.yaml").read_text(encoding="utf-8"))
    arguments = [command, "--config", str(run_dir / "run.yaml"), *options]
    arguments += ["--model.weights", str(weights), "--trainer.callbacks+", f"{__name__}.{SaveMetrics.__name__}"]
    arguments += ["--trainer.callbacks.path", str(target)]
    if lookup(config, "model.ema_decay") is not None:
        arguments += ["--model.ema_decay", "null"]  # the file has the better of the raw and the averaged weights
    if run is not None:
        ending = _run_logged_here(run, arguments, run_dir / "log.txt", command)
    else:
        arguments = [sys.executable, "-m", "mobilemamba_command", *arguments]
        ending = run_logged(arguments, run_dir / "log.txt", command, environment, stop or threading.Event())
    return None if target.exists() else ending


def _folded(score: Score) -> Score:
    return replace(score, key=f"{score.key}_fused", label=f"{score.label} folded")


def evaluation_sheet(title: str, rows: list[Row], swept: list[str], command: Command) -> Sheet:
    """Returns the table of these rows' evaluations, with the number of predictions that folding the norms changed.

    Rows without metrics are left out.
    """
    scores = [*dict.fromkeys(score for row in rows for score in row.scores), LOSS]
    header = ["row", *labels(swept).values(), *(score.head for score in scores), _folded(scores[0]).head, "changed"]
    lines, measured_on = [], []
    for row in rows:
        found = read_json(row.run_dir / f"{command}.json")
        if not found:
            continue
        line = [row.name, *(cell(row.values[key]) for key in swept)]
        line += [cell(found.get(score.key), score.digits) for score in (*scores, _folded(scores[0]))]
        lines.append([*line, cell(found.get("fused_changed"), 0)])
        pictures = "" if found["pictures"] is None else f" {found['pictures']:,} pictures,"
        measured_on.append(f"{found['data']},{pictures} {cell(found['img_size'])} px.")
    notes = list(dict.fromkeys(measured_on))
    notes.append(
        "Of each row's best.safetensors. Folded: with the norms folded; changed: pictures whose answer this changes."
    )
    numbers = list(range(1 + len(swept), len(header)))
    others = numbers[1 : len(scores)]
    spare = [*range(len(swept), 0, -1), *reversed(others), *reversed(numbers[-2:])]
    return Sheet(title, header, lines, notes, set(numbers), spare)
