"""Expansion of a sweep into rows: names, resolved settings, and checks that reject a bad sweep before it runs."""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from mobilemamba.errors import ConfigError, MobileMambaError
from mobilemamba.sweep.row import Row
from mobilemamba.sweep.section import Sweep
from mobilemamba.sweep.settings import Config, flatten, lookup, short_key

Value = TypeVar("Value")
#: Overrides the base configuration with dotted settings, and returns the whole, checked configuration.
Resolve = Callable[[Config], Config]

#: Rows of a grid over this setting are repetitions, and one line of the table.
SEED = "seed_everything"
#: Settings of a run's folder; they do not count as differences, as the folder may be moved or renamed.
PLACE = ("name", "trainer.default_root_dir")
#: Settings that the sweep sets itself.
_RESERVED = (*PLACE, "config", "sweep", "ckpt_path")

#: Lower-case names of the files and folders in a sweep's folder that are not folders of rows.
_TAKEN = {"hparams", "slurm", "sweep.json", *(f"results.{kind}" for kind in ("csv", "md", "png"))}
_TAKEN |= {f"{command}.{kind}" for command in ("validate", "test") for kind in ("csv", "md")}
#: Length limit in bytes; file systems allow 255, and files of that name get suffixes.
_LONGEST_NAME = 200


def expand(sweep: Sweep, root: Path, resolve: Resolve, given: Iterable[str] = ()) -> list[Row]:
    """Returns all rows of a sweep, selected or not, in order.

    Args:
        sweep: The sweep.
        root: The sweep's folder.
        resolve: Overrides the base configuration with a row's changes.
        given: Settings from the command line, which a row must not silently override.

    Raises:
        ConfigError: If a row does not resolve, has an invalid name, equals another one, or changes a setting that is
            also given on the command line.
    """
    overrides, groups = _named_overrides(sweep)
    keys = list(dict.fromkeys(key for row in overrides.values() for key in row))
    _check_keys(overrides, given)
    rows: list[Row] = []
    for name, changes in overrides.items():
        _check_name(name)
        run_dir = root / name
        try:
            config = resolve({**changes, "trainer.default_root_dir": str(run_dir)})
        except MobileMambaError as error:
            raise ConfigError(f"row {name!r}: {error}") from error
        _check_config(name, config)
        values = {key: lookup(config, key) for key in keys}
        rows.append(Row(name, run_dir, config, values, group=groups[name]))
    _check_twins(rows)
    rows += _fused_rows(sweep, rows)
    _check_folders([row.name for row in rows])
    _annotate(sweep, rows)
    return rows


def select(rows: list[Row], only: str | list[str]) -> list[Row]:
    """Returns the rows that match ``--sweep.only``, in the sweep's order; each pattern must match at least one."""
    patterns = [only] if isinstance(only, str) else only
    for pattern in patterns:
        if not any(_fits(row, pattern) for row in rows):
            names = ", ".join(row.name for row in rows)
            raise ConfigError(f"sweep.only={pattern!r} fits no row; expected a name or pattern of: {names}")
    return [row for row in rows if any(_fits(row, pattern) for pattern in patterns)]


def _named_overrides(sweep: Sweep) -> tuple[dict[str, Config], dict[str, str]]:
    """Returns row name -> its changes, and row name -> its group."""
    rows = {name: _by_short_key(row) for name, row in sweep.rows.items()} or {"": {}}
    grid = _by_short_key(sweep.grid)
    named: dict[str, Config] = {}
    groups: dict[str, str] = {}
    for (name, changes), values in itertools.product(rows.items(), itertools.product(*grid.values())):
        point = dict(zip(grid, values, strict=True))
        parts = {key: f"{key.rpartition('.')[2]}={_compact(value)}" for key, value in point.items()}
        full_name = ",".join(([name] if name else []) + list(parts.values()))
        if full_name in named:
            raise ConfigError(f"sweep.grid makes two rows named {full_name!r}; give them as sweep.rows with own names")
        if clash := set(changes) & set(point):
            raise ConfigError(f"row {name!r} and sweep.grid both set {min(clash)}; keep one of them")
        named[full_name] = {**changes, **point}
        seedless = [part for key, part in parts.items() if key != SEED]
        groups[full_name] = ",".join(([name] if name else []) + seedless) or "base"
    return _scaled(named, _by_short_key(sweep.scale)), groups


def _by_short_key(settings: dict[str, Value] | None) -> dict[str, Value]:
    return {short_key(key): value for key, value in (settings or {}).items()}


def _scaled(named: dict[str, Config], scale: dict[str, float]) -> dict[str, Config]:
    for key, factor in scale.items():
        for name, changes in named.items():
            value = changes.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"sweep.scale: {key} is {value!r} in row {name!r}; only numbers can be scaled")
            if value > 0:  # 0 stays none, as of a warm-up's steps, and -1 no limit
                changes[key] = max(1, round(value * factor)) if isinstance(value, int) else value * factor
        if not any(key in changes for changes in named.values()):
            raise ConfigError(f"sweep.scale: no row sets {key}; take it out, or set it in sweep.rows or sweep.grid")
    return named


def _fused_rows(sweep: Sweep, rows: list[Row]) -> list[Row]:
    fused = []
    for name, parent in sweep.fused.items():
        parents = [row for row in rows if parent in (row.name, row.group)]
        if not parents or any(name in (row.name, row.group) for row in rows):
            raise ConfigError(
                f"sweep.fused: {name}: {parent}; expected a new name, and one of: "
                f"{', '.join(dict.fromkeys(row.group for row in rows))}"
            )
        _check_name(name)
        for row in parents:
            own_name = name if row.name == parent else f"{name},{SEED}={lookup(row.config, SEED)}"
            values = dict(row.values)
            fused.append(Row(own_name, row.run_dir, row.config, values, group=name, fused_of=row.name))
    return fused


def _annotate(sweep: Sweep, rows: list[Row]) -> None:
    """Adds the paper's numbers and the notes to the rows, by their own or their group's name."""
    names = list(dict.fromkeys(name for row in rows for name in (row.group, row.name)))
    for section, given in (("paper", sweep.paper), ("notes", sweep.notes)):
        if unknown := [name for name in given if name not in names]:
            raise ConfigError(
                f"sweep.{section}: no row {unknown[0]!r}; take it out, or name one of: {', '.join(names)}"
            )
    for row in rows:
        row.paper = sweep.paper.get(row.name, sweep.paper.get(row.group, {}))
        row.note = sweep.notes.get(row.name, sweep.notes.get(row.group, ""))


def _compact(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return text.replace("/", "_")  # a value may be a path, but the name must be that of one folder


def _check_name(name: str) -> None:
    plain = name == name.strip() and name.isprintable() and not set(name) & set("/\\") and not name.startswith(".")
    if not name or not plain or name.lower() in _TAKEN or len(name.encode()) > _LONGEST_NAME:
        raise ConfigError(
            f"row name {name[:40]!r} cannot be a folder's name: expected at most {_LONGEST_NAME} bytes without blanks "
            "at the ends, and none that a sweep has a file of; use letters, digits, _ and -, or give the rows of a "
            "sweep.grid as sweep.rows with names of their own"
        )


def _check_folders(names: list[str]) -> None:
    """Raises a ConfigError for names that are the same folder on a case-insensitive file system."""
    seen: dict[str, str] = {}
    for name in names:
        if (other := seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)) != name:
            raise ConfigError(
                f"rows {other!r} and {name!r} differ in capitals alone, and some disks keep them in one folder; "
                "rename one"
            )


def _check_config(name: str, config: Config) -> None:
    if isinstance(config.get("seed_everything"), bool):  # true would draw a new seed for each row and each resume
        raise ConfigError(f"row {name!r}: seed_everything={config['seed_everything']}; give a number in a sweep")
    if lookup(config, "trainer.fast_dev_run"):
        raise ConfigError(
            f"row {name!r}: trainer.fast_dev_run leaves no results for a table; try the sweep with "
            "--trainer.limit_train_batches 2 --trainer.max_epochs 1 and a --name of its own"
        )


def _check_keys(overrides: dict[str, Config], given: Iterable[str]) -> None:
    options = list(map(short_key, given))
    for key in dict.fromkeys(key for row in overrides.values() for key in row):
        if key in _RESERVED or key.startswith("sweep."):
            raise ConfigError(f"{key} cannot be swept: the sweep sets it itself; take it out of its rows and grid")
        # If rows only set a part to null, an option inside that part still applies to the other rows.
        only_left_out = all(row[key] is None for row in overrides.values() if key in row)
        for option in options:
            inside = option.startswith(f"{key}.") and not only_left_out
            if option == key or inside or key.startswith(f"{option}.class_path"):
                raise ConfigError(
                    f"--{option} is given, but the rows of this sweep set {key} and would win; "
                    "leave the option out, or use --sweep null for a single run with it"
                )


def _check_twins(rows: list[Row]) -> None:
    # Also finds swept settings without effect because another setting determines them (a linked argument).
    seen: dict[str, str] = {}
    for row in rows:
        text = json.dumps({k: v for k, v in flatten(row.config).items() if k not in PLACE})
        if text in seen:
            raise ConfigError(
                f"rows {seen[text]!r} and {row.name!r} have the same settings; remove one, "
                "or check that what they sweep is not set by something else (model.num_classes comes from the data)"
            )
        seen[text] = row.name


def _fits(row: Row, pattern: str) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for name in (row.name, row.group))
