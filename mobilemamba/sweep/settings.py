"""Access to nested settings by dotted names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

Config = dict[str, Any]


def lookup(config: Config, key: str) -> Any:
    """Returns the value of a dotted setting, with or without ``init_args`` in its name; None if it is not set.

    Classes, also those of a list, are returned as their names.
    """
    value: Any = config
    for part in key.split("."):
        if isinstance(value, dict) and part not in value and "init_args" in value:
            value = value["init_args"]
        value = value.get(part) if isinstance(value, dict) else None
    return _named(value)


def _named(value: Any) -> Any:
    if isinstance(value, list):
        return [_named(item) for item in value]
    is_class = isinstance(value, dict) and "class_path" in value and value.keys() <= {"class_path", "init_args"}
    return str(value["class_path"]).rpartition(".")[2] if is_class else value


def differences(
    old: Config, new: Config, within: Sequence[str] | None = None, without: Sequence[str] = ()
) -> list[str]:
    """Lists the differences between two configurations, as ``setting: old -> new``.

    Whether ``data.seed`` is given as that of ``seed_everything``, or left to be that, makes none.

    Args:
        old: Nested settings.
        new: Nested settings.
        within: Compare only these settings and those inside them; None for all.
        without: Settings to leave out.
    """
    before, after = flatten(old), flatten(new)
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    keys = [key for key in keys if key != "data.seed" or _seed_of_data(before) != _seed_of_data(after)]
    keys = [key for key in keys if (within is None or is_inside(key, within)) and not is_inside(key, without)]
    return [f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}" for key in keys]


def _seed_of_data(flat: Config) -> Any:
    seed = flat.get("data.seed")
    return flat.get("seed_everything") if seed is None else seed


def is_inside(key: str, names: Sequence[str]) -> bool:
    """Whether a dotted setting is one of these, or inside one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def flatten(config: Config, prefix: str = "") -> Config:
    """Converts nested settings to dotted ones, without ``init_args``."""
    flat: Config = {}
    for key, value in config.items():
        name = short_key(f"{prefix}{key}")
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def short_key(key: str) -> str:
    """Shortens ``model.init_args.lr`` to ``model.lr``; a file may use either form, but must not mix them."""
    return ".".join(part for part in key.split(".") if part != "init_args")
