"""Who starts a sweep's rows: this machine, a Ray cluster or SLURM. One file each, behind the same two calls."""

from mobilemamba.sweep.config import Sweep
from mobilemamba.sweep.launchers import local, ray, slurm
from mobilemamba.sweep.launchers.base import Event, Launch
from mobilemamba.sweep.settings import Config

__all__ = ["Event", "Launch", "launcher"]

_LAUNCHERS = {"local": local.launcher, "ray": ray.launcher, "slurm": slurm.launcher}


def launcher(sweep: Sweep, config: Config) -> Launch:
    """What starts the rows of a sweep, checked as far as it can be before anything runs.

    Args:
        sweep: Names the launcher and holds its settings.
        config: Of a row; the others need the same machine.

    Raises:
        ConfigError: If it cannot work here, e.g. because its package is not installed.
    """
    return _LAUNCHERS[sweep.launcher](sweep, config)
