"""Ablation sweeps: the rows of a YAML file, each trained in a separate process, and the table of their results."""

from mobilemamba.sweep.network import build_task, network_kwargs, table_network
from mobilemamba.sweep.plan import expand, select
from mobilemamba.sweep.row import Row, fit_row
from mobilemamba.sweep.runner import SweepFailedError, SweepRunner
from mobilemamba.sweep.saved import PLAN_FILE
from mobilemamba.sweep.section import Sweep
from mobilemamba.sweep.settings import Config, differences, flatten

__all__ = [
    "PLAN_FILE",
    "Config",
    "Row",
    "Sweep",
    "SweepFailedError",
    "SweepRunner",
    "build_task",
    "differences",
    "expand",
    "fit_row",
    "flatten",
    "network_kwargs",
    "select",
    "table_network",
]
