"""The ``sweep:`` section of a configuration file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from mobilemamba.errors import ConfigError

#: Keys that ``paper:`` allows for a row besides its task's scores; tables show them beside the measured values.
PAPER_COSTS = ("flops_m", "params_m", "throughput")


@dataclass
class Sweep:
    """Several runs that differ in a few settings, and the table of their results.

    Attributes:
        rows: Row name -> settings that override the rest of the file, e.g. ``{model.arch.d_state: 16}``; ``{}`` for the
            file itself.
        grid: Setting -> values; every combination is a row, for each of ``rows`` if both are given. Rows that differ
            only in ``seed_everything`` become one line of the table, with mean and standard deviation.
        scale: Setting -> factor on its values in the rows; so the rows can give the paper's sizes and lengths while a
            small data set is trained with a fraction of them. Integers stay integers; 0 and -1 are not scaled.
        fused: Row name -> row whose network it evaluates, without training, with folded norms (Table 8c).
        only: Names or shell patterns of the rows to run.
        jobs: Rows that run at the same time on a machine; they share its cores, and each gets ``trainer.devices`` GPUs.
        launcher: What starts the rows: ``local`` on this machine, ``ray`` on the machines of a Ray cluster, ``slurm``
            as the jobs of an array. The last two need the extra of that name and a folder that all machines share.
        slurm: Options of each row's SLURM job, by submitit's names: ``{slurm_partition: gpu, timeout_min: 1440}``.
        retries: How often a failed row is restarted.
        changed: What to do if a row's settings differ from those it was started with: ``stop`` before any row starts,
            unless the row has no checkpoint yet, ``rerun`` the row from the beginning (its old results are deleted), or
            ``keep`` the row's old settings.
        dry_run: Check and print the plan, but run and write nothing.
        paper: Row name -> the paper's numbers, shown beside the measured ones: ``flops_m``, ``params_m``,
            ``throughput`` and the task's scores, e.g. ``top1``. If the grid has seeds, the name is without the seed.
        paper_note: Conditions under which the paper's numbers were measured.
        notes: Row name -> what is inferred or differs from the paper in this row; shown as a note of the table.

    Raises:
        ConfigError: If a value is invalid.
    """

    rows: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    scale: dict[str, float] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)
    only: str | list[str] = "*"
    jobs: int = 1
    launcher: Literal["local", "ray", "slurm"] = "local"
    slurm: dict[str, Any] = field(default_factory=dict)
    retries: int = 0
    changed: Literal["stop", "rerun", "keep"] = "stop"
    dry_run: bool = False
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    paper_note: str = "the paper's own conditions"
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows and not self.grid:
            raise ConfigError("the sweep is empty: give sweep.rows or sweep.grid, or --sweep null for an ordinary run")
        for name, least in (("jobs", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"sweep.{name}={getattr(self, name)}: expected {least} or more")
        for key, values in self.grid.items():
            if not values:
                raise ConfigError(f"sweep.grid: {key} has no values; give a list, e.g. [1, 16], or leave it out")
        for key, factor in self.scale.items():
            if not 0 < factor < math.inf:
                raise ConfigError(f"sweep.scale: {key}: {factor}; expected a factor above 0, e.g. 0.25")
