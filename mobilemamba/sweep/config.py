"""The ``sweep:`` section of a configuration file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mobilemamba.errors import ConfigError

#: Columns that ``paper:`` may hold; each stands beside what was measured.
PAPER_COLUMNS = ("flops_m", "params_m", "throughput", "top1", "top5")


@dataclass
class Sweep:
    """Several runs that differ in a few settings, and the table they make.

    Attributes:
        rows: Row name -> settings laid over the rest of the file, e.g. ``{model.arch.d_state: 16}``; ``{}`` is the file
            itself.
        grid: Setting -> values; every combination is a row (of each of ``rows``, where both are given).
        only: Names or shell patterns of the rows to run.
        jobs: Rows at a time on this machine; they share its cores, and take one group of ``trainer.devices`` GPUs each.
        launcher: Who starts the rows.
        retries: How often a failed row is started again.
        changed: What happens to a row whose settings differ from those it was started with: ``stop`` before any row
            starts, ``rerun`` it afresh (its former results are deleted), or ``keep`` it with its former settings.
        dry_run: Check and print the plan; run and write nothing.
        paper: Row name -> the paper's numbers, shown beside the measured ones; see ``PAPER_COLUMNS``.
        paper_note: What the paper's numbers were measured on.

    Raises:
        ConfigError: If a value is impossible.
    """

    rows: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    only: str | list[str] = "*"
    jobs: int = 1
    launcher: Literal["local"] = "local"
    retries: int = 0
    changed: Literal["stop", "rerun", "keep"] = "stop"
    dry_run: bool = False
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    paper_note: str = "the paper's own conditions"

    def __post_init__(self) -> None:
        if not self.rows and not self.grid:
            raise ConfigError("the sweep is empty: give sweep.rows or sweep.grid, or --sweep null for an ordinary run")
        for name, least in (("jobs", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"sweep.{name}={getattr(self, name)}: expected {least} or more")
        for key, values in self.grid.items():
            if not values:
                raise ConfigError(f"sweep.grid: {key} has no values; give a list, e.g. [1, 16], or leave it out")
        for row, numbers in self.paper.items():
            if unknown := sorted(set(numbers) - set(PAPER_COLUMNS)):
                raise ConfigError(f"sweep.paper.{row}: unknown {unknown[0]!r}; expected: {', '.join(PAPER_COLUMNS)}")
