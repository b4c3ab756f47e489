"""The ``sweep:`` section of a configuration file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from mobilemamba.errors import ConfigError

#: What ``paper:`` may hold of a row, beside its task's scores; each stands beside what was measured.
PAPER_COSTS = ("flops_m", "params_m", "throughput")


@dataclass
class Sweep:
    """Several runs that differ in a few settings, and the table they make.

    Attributes:
        rows: Row name -> settings laid over the rest of the file, e.g. ``{model.arch.d_state: 16}``; ``{}`` is the file
            itself.
        grid: Setting -> values; every combination is a row (of each of ``rows``, where both are given). Rows that
            differ in ``seed_everything`` alone are one line of the table: mean and standard deviation.
        scale: Setting -> factor on the rows' values of it, which can so be the paper's sizes and lengths while a small
            data set is trained at a part of them; integers stay integers.
        fused: Row name -> the row whose network it is, with the norms folded (Table 8c): evaluated, not trained.
        only: Names or shell patterns of the rows to run.
        jobs: Rows at a time on a machine; they share its cores, and take one group of ``trainer.devices`` GPUs each.
        launcher: Who starts the rows: ``local`` on this machine, ``ray`` on the machines of a Ray cluster, ``slurm`` as
            jobs of an array. The last two need the extra of their name, and a folder that all machines share.
        slurm: What to ask of SLURM for each row, by submitit's names: ``{slurm_partition: gpu, timeout_min: 1440}``.
        retries: How often a failed row is started again.
        changed: What happens to a row whose settings differ from those it was started with: ``stop`` before any row
            starts, ``rerun`` it afresh (its former results are deleted), or ``keep`` it with its former settings.
        dry_run: Check and print the plan; run and write nothing.
        paper: Row name -> the paper's numbers, shown beside the measured ones; ``flops_m``,
            ``params_m``, ``throughput`` and the task's scores, e.g. ``top1``. Without the seed,
            where the grid has seeds.
        paper_note: What the paper's numbers were measured on.
        notes: Row name -> what of it is inferred or differs from the paper's print; the table marks the row by it.

    Raises:
        ConfigError: If a value is impossible.
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
