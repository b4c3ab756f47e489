"""Launchers of a sweep's rows: on this machine, a Ray cluster or SLURM. One file each, with the same interface."""

from mobilemamba.sweep.launchers import local, ray, slurm
from mobilemamba.sweep.launchers.base import Event, Launch
from mobilemamba.sweep.section import Sweep
from mobilemamba.sweep.settings import Config

__all__ = ["Event", "Launch", "launcher"]

_LAUNCHERS = {"local": local.launcher, "ray": ray.launcher, "slurm": slurm.launcher}


def launcher(sweep: Sweep, config: Config) -> Launch:
    """Returns the function that starts the rows of a sweep, checked as far as possible before anything runs.

    Args:
        sweep: Sweep with the name and the settings of the launcher.
        config: Configuration of one row; all rows need the same kind of machine.

    Raises:
        ConfigError: If the launcher cannot work here, e.g. because its package is not installed.
    """
    return _LAUNCHERS[sweep.launcher](sweep, config)
