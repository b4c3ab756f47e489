"""The checkpoints in a run's folder, and which of them a training can go on from."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mobilemamba.errors import ConfigError, WeightsError
from mobilemamba.models.weights_file import read_checkpoint

#: Below a run's folder, and the files in it: the weights of the best validation, the newest state of the training, and
#: the state before that one, for the case that the newest cannot be read.
FOLDER = "checkpoints"
BEST, LAST, PREVIOUS = "best.ckpt", "last.ckpt", "previous.ckpt"
#: What Lightning restores a training from, and what is ours; the latter may be absent.
_ENTRIES: dict[str, type | tuple[type, ...]] = {
    "state_dict": Mapping,
    "optimizer_states": list,
    "lr_schedulers": list,
    "loops": Mapping,
    "callbacks": Mapping,
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
}
_OWN_ENTRIES: dict[str, type | tuple[type, ...]] = {"hyper_parameters": Mapping, "run_config": str}
#: Under which a checkpoint says when it was written, in seconds since 1970: a copy of the folder has other dates.
SAVED_AT = "saved_at"


def checkpoints_newest_first(run_dir: Path) -> list[Path]:
    """Every checkpoint of a run's folder that a training can go on from, whoever wrote it.

    Those of weights alone are left out. A file that cannot be read stands where its date puts it: whoever goes on from
    the first of them that can be read knows of the newer ones that could not.

    Args:
        run_dir: The folder that holds ``checkpoints/``.
    """
    paths = sorted((run_dir / FOLDER).rglob("*.ckpt"), key=lambda path: (not path.is_symlink(), path))
    by_file = {path.resolve(): path for path in paths if path.name != BEST}  # not by its other name, a link
    written = {path: when for path in by_file.values() if (when := _written(path)) is not None}
    return sorted(written, key=written.__getitem__, reverse=True)


def read_training_checkpoint(path: Path) -> Mapping[str, Any]:
    """The content of a checkpoint that a training can go on from.

    Raises:
        WeightsError: If it cannot be read, or is not as Lightning writes it.
        ConfigError: If it holds weights alone.
    """
    checkpoint = read_checkpoint(path)  # all of it: a damaged tensor shows in no directory
    if "optimizer_states" not in checkpoint or "loops" not in checkpoint:
        raise ConfigError(
            f"ckpt_path={path} holds weights, not the state of a training; start from them by --weights {path}, or go "
            "on from a last.ckpt"
        )
    wrong = [
        f"{name} is {f'of type {type(checkpoint[name]).__name__}' if name in checkpoint else 'missing'}"
        for name, kind in (_ENTRIES | {name: kind for name, kind in _OWN_ENTRIES.items() if name in checkpoint}).items()
        if not isinstance(checkpoint.get(name), kind)
    ]
    if not wrong and not _has_counts(checkpoint["loops"].get("fit_loop")):
        wrong = ["loops have no counts of what was trained"]
    elif not wrong:
        stepped = checkpoint["loops"]["fit_loop"].get("epoch_loop.scheduler_progress", {}).get("total", {}).get("ready")
        empty = [name for name in ("optimizer_states", "lr_schedulers") if stepped and not checkpoint[name]]
        wrong = [f"{name} is empty" for name in empty]
    if wrong:
        raise WeightsError(f"{path} is damaged: {', '.join(wrong)}; go on from another checkpoint")
    return checkpoint


def _has_counts(loop: Any) -> bool:
    """Whether the state of Lightning's training loop has its counts, each of them a number."""

    def are_numbers(counts: Any) -> bool:
        if isinstance(counts, Mapping):
            return all(map(are_numbers, counts.values()))
        return counts is None or isinstance(counts, int)

    if not isinstance(loop, Mapping) or not {"epoch_progress", "epoch_loop.batch_progress"} <= loop.keys():
        return False
    progress = [counts for name, counts in loop.items() if name.endswith("progress")]
    return all(isinstance(counts, Mapping) and counts and are_numbers(counts) for counts in progress)


def can_resume(run_dir: Path) -> bool:
    """Whether a training can go on from any of a run's checkpoints."""
    for path in checkpoints_newest_first(run_dir):
        with contextlib.suppress(ConfigError, WeightsError):
            read_training_checkpoint(path)
            return True
    return False


def _written(path: Path) -> float | None:
    """When a checkpoint was written, in seconds since 1970; None if it is of weights alone, or gone by now."""
    try:
        when = path.stat().st_mtime
        content = read_checkpoint(path, mmap=True)
    except FileNotFoundError:
        return None
    except (OSError, WeightsError):
        return when
    if "optimizer_states" not in content:
        return None
    saved_at = content.get(SAVED_AT)
    return saved_at if isinstance(saved_at, float) else when
