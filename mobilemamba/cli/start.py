"""Where a training starts: in a new run's folder, or from a checkpoint of an earlier run.

Runs of the same name are numbered: ``base``, ``base-2``. Nothing is written here, so that a failed resume leaves every
run unchanged; failures are ConfigErrors.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobilemamba.cli.resume import (
    RUN_CONFIG,
    changed_settings,
    check_kept_settings,
    newest_readable_checkpoint,
    read_resumed,
)
from mobilemamba.errors import ConfigError, MobileMambaError
from mobilemamba.files import read_json
from mobilemamba.models.weights_file import read_checkpoint
from mobilemamba.sweep import PLAN_FILE, Config
from mobilemamba.sweep.row import is_finished
from mobilemamba.text import abridged
from mobilemamba.training.callbacks.progress import of_epochs
from mobilemamba.training.checkpoint_files import FOLDER, checkpoints_newest_first

#: Reads a run's ``config.yaml``, given its path or its text, in the form of the command's own settings.
SavedConfig = Callable[[Path | str], Config]


@dataclass
class Start:
    """How a training starts.

    Attributes:
        folder: The run's folder.
        checkpoint_path: Checkpoint to resume from; None for a new training.
        checkpoint: Content of the checkpoint.
        said: Description for the user.
    """

    folder: Path
    checkpoint_path: Path | None = None
    checkpoint: Mapping[str, Any] | None = None
    said: str = ""


def start_anew(folder: Path, numbered: bool, checkpoint: tuple[Path, Mapping[str, Any]] | None = None) -> Start:
    """Starts a new run, optionally from a checkpoint of another run; in ``folder-2`` and so on, if ``numbered``."""
    if not numbered and holds_run(folder):
        raise ConfigError(
            f"{folder} holds a run already; go on with it by --ckpt_path last, or choose another --name or "
            "--trainer.default_root_dir"
        )
    said = _hint_of_unfinished(folder)
    folder = free_folder(folder)
    if checkpoint is None:
        return Start(folder, said=f"run folder: {folder}{said}")
    return Start(folder, *checkpoint, f"run folder: {folder}, from {checkpoint[0]} on, {_steps(checkpoint[1])}")


def resume_newest(folder: Path, runs: Sequence[Path], config: Config, saved: SavedConfig) -> Start:
    """Resumes the newest unfinished run with exactly this configuration, from its newest readable checkpoint.

    ``runs`` are the runs that the command may refer to, the newest first.
    """
    run = _run_to_go_on_with(folder, runs, config, saved)
    path, checkpoint = newest_readable_checkpoint(run)
    said = f"run folder: {run}, going on from {path.name}, {_steps(checkpoint)}"
    return Start(run, path, checkpoint, said + _further_on(run, config, checkpoint["global_step"]))


def start_from_file(path: Path, folder: Path, numbered: bool, config: Config, saved: SavedConfig) -> Start:
    """Starts from a checkpoint: resumes its run if it is unfinished, has this configuration and no newer checkpoint.

    Otherwise a new run starts from the checkpoint.
    """
    run, checkpoint = path.parent.parent, read_resumed(path)
    file = run / "config.yaml"
    text = file if file.exists() else checkpoint.get(RUN_CONFIG)
    of_run = saved(text) if text else None
    newest = path in checkpoints_newest_first(run)[:1] and not is_finished(run)
    if newest and of_run is not None and not changed_settings(of_run, config):
        return resume_newest(folder, [run], config, saved)
    check_kept_settings(path, checkpoint, of_run, config)
    return start_anew(folder, numbered, (path, checkpoint))


def holds_run(folder: Path) -> bool:
    """Whether a folder contains something that must not be overwritten: results, a training's state, or a sweep."""
    return is_finished(folder) or (folder / PLAN_FILE).exists() or bool(checkpoints_newest_first(folder))


def config_files(config: Any) -> list[Path]:
    """Returns the files given by a command's ``--config``."""
    return [Path(str(path)) for path in config.config or [] if path is not None]


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a single run that has begun."""
    return not (folder / PLAN_FILE).exists() and ((folder / "config.yaml").exists() or holds_run(folder))


def free_folder(folder: Path) -> Path:
    """Returns the first of ``base``, ``base-2``, ... that contains no run."""
    candidates = (folder.with_name(f"{folder.name}-{number}") if number > 1 else folder for number in range(1, 10**6))
    return next(candidate for candidate in candidates if not holds_run(candidate))


def runs_named(folder: Path) -> list[Path]:
    """Returns the runs in ``base``, ``base-2``, ..., the most recently written first."""
    if not folder.parent.is_dir():
        return []
    of_name = re.compile(re.escape(folder.name) + r"(-\d+)?")
    return _newest_first(path for path in folder.parent.iterdir() if of_name.fullmatch(path.name) and is_run(path))


def _run_to_go_on_with(folder: Path, runs: Sequence[Path], config: Config, saved: SavedConfig) -> Path:
    found: list[str] = []
    for run in runs:
        if is_finished(run):
            found.append(f"{run} is finished")
        elif not checkpoints_newest_first(run):
            found.append(f"{run} was stopped before its first checkpoint{_further_on(run, config, 0)}")
        else:
            try:
                changed = changed_settings(saved(run / "config.yaml"), config)
            except (OSError, MobileMambaError) as error:
                found.append(f"{run} has no configuration that can be read ({error})")
                continue
            if not changed:
                return run
            found.append(f"{run} ({_progress(run)}) has other settings: {abridged(changed)}")
    reasons = abridged(found or [f"there is no run in {folder}"], "; ")
    remedy = _remedy(folder, runs, config, saved)
    raise ConfigError(f"ckpt_path=last finds no unfinished run of this configuration: {reasons}; {remedy}")


def _remedy(folder: Path, runs: Sequence[Path], config: Config, saved: SavedConfig) -> str:
    if any(not is_finished(run) and not checkpoints_newest_first(run) for run in runs):
        return "leave --ckpt_path out to start it again"
    afresh = "leave --ckpt_path out for a new run"
    if unfinished := _unfinished(runs) or _unfinished(_newest_first(folder.parent.glob("*/"))):
        return f"go on with {unfinished[0]} by --config {unfinished[0] / 'config.yaml'} --ckpt_path last, or {afresh}"
    for checkpoint in [path for run in runs for path in checkpoints_newest_first(run)[:1]]:  # of finished runs
        with contextlib.suppress(MobileMambaError, OSError):  # this command could not start from it
            check_kept_settings(checkpoint, {}, saved(checkpoint.parent.parent / "config.yaml"), config)
            return f"train for more --trainer.max_epochs in a new run by --ckpt_path {checkpoint}, or {afresh}"
    return afresh


def _hint_of_unfinished(folder: Path) -> str:
    """Returns a hint for the first line of a new run, if the newest run of this name can be resumed; else empty."""
    if unfinished := _unfinished(runs_named(folder)):
        return f"; {unfinished[0]} ({_progress(unfinished[0])}) is not finished, --ckpt_path last would go on with it"
    return ""


def _unfinished(runs: Sequence[Path]) -> list[Path]:
    return [run for run in runs if not is_finished(run) and checkpoints_newest_first(run)]


def _further_on(run: Path, config: Config, steps: int) -> str:
    """Returns a hint on the newest checkpoint that a callback wrote outside the run's folder, if it has more steps."""
    chosen = [callback.get("init_args") or {} for callback in config["trainer"].get("callbacks") or []]
    folders = {Path(options["dirpath"]).resolve() for options in chosen if options.get("dirpath")}
    outside = [path for folder in folders if not folder.is_relative_to(run.resolve()) for path in folder.glob("*.ckpt")]
    for path in sorted(outside, key=lambda path: path.stat().st_mtime)[-1:]:
        with contextlib.suppress(MobileMambaError, OSError):
            content = read_checkpoint(path, mmap=True)
            if "optimizer_states" in content and content.get("global_step", 0) > steps:
                return f"; {path} has {_steps(content)}: give it by --ckpt_path, if it is of this run"
    return ""


def _steps(checkpoint: Mapping[str, Any]) -> str:
    return f"{checkpoint['global_step']:,} steps done"


def _progress(run: Path) -> str:
    progress = read_json(run / "progress.json")
    return f"epoch {progress['epoch']}{of_epochs(progress['max_epochs'])}" if progress else "begun"


def _newest_first(runs: Iterable[Path]) -> list[Path]:
    def written(run: Path) -> float:
        return max(path.stat().st_mtime for path in (run, *(run / FOLDER).glob("*.ckpt")))

    return sorted(runs, key=written, reverse=True)
