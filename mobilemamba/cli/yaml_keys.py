"""Configuration files whose keys mean what they say: each is given once, and is text."""

from __future__ import annotations

import json
from typing import Any

import jsonargparse
import yaml

from mobilemamba.errors import ConfigError
from mobilemamba.sweep.settings import short_key

#: Settings whose values name rows, and so are text as the rows' names are.
_OF_ROWS = ("sweep.only", "sweep.fused", "sweep.notes")
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def load_yaml(text: str, path: str = "") -> Any:
    """YAML as jsonargparse reads it, except that a repeated key is an error and each key the text that was written.

    YAML itself would let the last of two ``model:`` sections win, and make a row named ``1``, ``on`` or ``2024-01-01``
    a number, a truth value or a date.

    Args:
        text: A file, or an option's value.
        path: Of the file, for the message.

    Raises:
        ConfigError: If a key is repeated, also as ``model.lr`` beside ``model: {lr: ...}``.
        yaml.YAMLError: If it is no YAML.
    """
    node = _compose(text)
    load = jsonargparse.get_loader("yaml")
    return load(yaml.serialize(node) if _Keys(path).make_text(node, "", {}) else text)


def row_names(value: str) -> str:
    """What ``--sweep.only`` is given, as a JSON list of texts, whatever YAML takes ``1`` or ``[on, 2]`` for."""
    try:
        node = _compose(value)
    except yaml.YAMLError:  # a pattern such as *_mlp is an alias to YAML
        node = None
    items = node.value if isinstance(node, yaml.SequenceNode) else []
    listed = bool(items) and all(isinstance(item, yaml.ScalarNode) for item in items)
    return json.dumps([item.value for item in items] if listed else [value])


def _compose(text: str) -> Any:
    return yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


class _Keys:
    """The keys of one document."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen: set[int] = set()

    def make_text(self, node: Any, name: str, lines: dict[str, int]) -> bool:
        """Checks the keys below ``node`` and makes them text, in place; whether any was not.

        ``name`` is its dotted key, ``lines`` where each setting met so far stands, by its dotted key.
        """
        if id(node) in self._seen:  # an alias
            return False
        self._seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            return name.startswith(_OF_ROWS) and _quote(node)
        if isinstance(node, yaml.SequenceNode):  # what its items set is their own
            return sum(self.make_text(item, name, {}) for item in node.value) > 0  # all of them, unlike any()
        changed, here = False, dict[str, int]()
        for key, value in node.value if isinstance(node, yaml.MappingNode) else []:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            changed |= _quote(key)
            line, below = key.start_mark.line + 1, short_key(f"{name}.{key.value}" if name else key.value)
            leaf = {} if isinstance(value, yaml.MappingNode) and value.value else lines
            if (first := here.get(key.value, leaf.get(below))) is not None:
                place = f"{self.path}, line {line}" if self.path else f"line {line} of a section's own file or text"
                raise ConfigError(f"{place}: {key.value!r} is given twice, first in line {first}; keep one of them")
            here[key.value] = leaf[below] = line
            changed |= self.make_text(value, below, lines)
        return changed


def _quote(node: yaml.ScalarNode) -> bool:
    """Makes a scalar text; whether it might be read as something else without."""
    if node.style or (node.tag == _TEXT and node.value[:1].isalpha()):  # jsonargparse takes 1e3 for a number, YAML not
        return False
    node.tag, node.style = _TEXT, '"'
    return True


# For jsonargparse, which writes out the defaults of callbacks: those of Lightning's are enumerations of texts.
yaml.SafeDumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str.__str__(text)))
