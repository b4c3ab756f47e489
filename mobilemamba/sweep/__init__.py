"""Ablation sweeps: a YAML's rows, each trained in a process of its own, and the table they make."""

from mobilemamba.sweep.config import Sweep
from mobilemamba.sweep.network import network_kwargs
from mobilemamba.sweep.plan import Config, Row, differences, expand, flatten, select
from mobilemamba.sweep.row import fit_row
from mobilemamba.sweep.runner import SweepFailedError, SweepRunner

__all__ = [
    "Config",
    "Row",
    "Sweep",
    "SweepFailedError",
    "SweepRunner",
    "differences",
    "expand",
    "fit_row",
    "flatten",
    "network_kwargs",
    "select",
]
