"""The folder of a command: its name from the options, the choice of the run, and its lock."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mobilemamba.cli.start import (
    SavedConfig,
    Start,
    config_files,
    holds_run,
    is_run,
    resume_newest,
    runs_named,
    start_anew,
    start_from_file,
)
from mobilemamba.errors import ConfigError
from mobilemamba.files import make_folder
from mobilemamba.sweep import Config
from mobilemamba.sweep.row import BY_ANOTHER, is_finished

#: How long a run waits for its folder's lock, as an ending process may hold it slightly longer than its parent waits.
LOCK_SECONDS = 5.0


class RunFolder:
    """The folder to which a command writes; stored as ``trainer.default_root_dir`` in its settings."""

    def __init__(self, config: Any, given: Collection[str], single: bool) -> None:
        """Sets the folder in the settings, before existing runs are considered; ``given`` are the given options."""
        self.config, self.given = config, given
        if "name" in given and "trainer.default_root_dir" in given:
            raise ConfigError(f"--name {config.name} with --trainer.default_root_dir: both name the folder; give one")
        if config.name is not None and (
            Path(config.name).is_absolute() or {"", ".", ".."} & set(config.name.split("/"))
        ):
            raise ConfigError(f"name={config.name!r}: expected the name of a folder below runs/, e.g. base")
        if "name" in given and config.name is not None:
            config.trainer.default_root_dir = None  # overrides that of a file, e.g. of the run that saved it
        self.is_given, name = config.trainer.default_root_dir is not None, None
        if not self.is_given:
            name = config.name or "-".join(file.stem for file in config_files(config)) or "default"
            config.trainer.default_root_dir = str(Path("runs", name))
        if single:
            config.name = name

    @property
    def path(self) -> Path:
        """The folder."""
        return Path(self.config.trainer.default_root_dir)

    def choose(self, resolved: Config, saved: SavedConfig) -> Start:
        """Decides between a new run and a resumed one."""
        start = self._start(resolved, saved)
        self._is_new = not holds_run(start.folder)
        self.config.trainer.default_root_dir = str(start.folder)
        if start.checkpoint_path is not None:
            self.config.ckpt_path = str(start.checkpoint_path)
        return start

    def _start(self, resolved: Config, saved: SavedConfig) -> Start:
        path, numbered = self.config.ckpt_path, not self.is_given
        if path == "last":
            return resume_newest(self.path, self._candidates(), resolved, saved)
        if path is not None and Path(path).exists():
            return start_from_file(Path(path), self.path, numbered, resolved, saved)
        if path is None and os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
            # SLURM has queued the job again, and repeats its command as it was.
            with contextlib.suppress(ConfigError):  # none of its runs can go on
                return resume_newest(self.path, self._candidates(), resolved, saved)
        return start_anew(self.path, numbered)

    def lock(self, resources: contextlib.ExitStack) -> None:
        """Locks the folder until ``resources`` close, so that no other process trains in it; removed if left unused."""
        was_there = self.path.exists()
        make_folder(self.path, "the run folder")
        try:
            resources.enter_context(FileLock(self.path / ".lock", timeout=LOCK_SECONDS))
        except Timeout:
            raise ConfigError(
                f"{BY_ANOTHER} is training in {self.path}; wait for it or choose another --name"
            ) from None
        if is_finished(self.path) or (self._is_new and holds_run(self.path)):
            raise ConfigError(f"{BY_ANOTHER} has trained in {self.path} meanwhile; give the command once more")
        if not was_there:  # removed while it is locked, so that it is nobody else's
            resources.callback(_remove_unused, self.path)

    def _candidates(self) -> list[Path]:
        """Returns the runs that ``--ckpt_path last`` may refer to."""
        files = config_files(self.config)
        named = {"name", "trainer.default_root_dir"} & set(self.given)
        if len(files) == 1 and holds_run(files[0].parent) and not named:
            return [files[0].parent]  # the file is a run's own configuration, even if its folder was moved
        if self.is_given:
            return [self.path] if holds_run(self.path) else []
        return runs_named(self.path)


def _remove_unused(folder: Path) -> None:
    """Removes a folder that the command created, if no training has begun in it: it has only a lock and empty logs."""
    if not is_run(folder):
        shutil.rmtree(folder, ignore_errors=True)
