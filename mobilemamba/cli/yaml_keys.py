"""Reading of YAML so that repeated keys are errors, and all keys are text."""

from __future__ import annotations

import json
from typing import Any

import jsonargparse
import yaml

from mobilemamba.errors import ConfigError
from mobilemamba.sweep.settings import short_key

#: Settings whose values are names of rows, and therefore text.
_OF_ROWS = ("sweep.only", "sweep.fused", "sweep.notes")
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def load_yaml(text: str, path: str = "") -> Any:
    """Reads YAML like jsonargparse, except that repeated keys are errors, and keys are always text.

    Plain YAML uses the last of two ``model:`` sections, and reads a row's name ``1``, ``on`` or ``2024-01-01`` as a
    number, a boolean or a date.

    Args:
        text: Content of a file, or an option's value.
        path: Path of the file, for messages.

    Raises:
        ConfigError: If a key is repeated, also as ``model.lr`` beside ``model: {lr: ...}``.
        yaml.YAMLError: If the text is no valid YAML.
    """
    node = _compose(text)
    load = jsonargparse.get_loader("yaml")
    return load(yaml.serialize(node) if _Keys(path).make_text(node, "", {}) else text)


def row_names(value: str) -> str:
    """Converts the value of ``--sweep.only`` to a JSON list of strings, even for ``1`` or ``[on, 2]``."""
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
        """Checks the keys below ``node`` and makes them text, in place; returns whether any was changed.

        ``name`` is the dotted key of the node, ``lines`` maps the dotted keys of settings so far to their lines.
        """
        if id(node) in self._seen:  # an alias
            return False
        self._seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            return name.startswith(_OF_ROWS) and _quote(node)
        if isinstance(node, yaml.SequenceNode):  # each item has its own settings
            return sum(self.make_text(item, name, {}) for item in node.value) > 0  # not any(), which would stop early
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
    """Quotes a scalar in place; returns whether it might otherwise be read as something other than text."""
    if node.style or (node.tag == _TEXT and node.value[:1].isalpha()):  # as jsonargparse reads 1e3 as a number
        return False
    node.tag, node.style = _TEXT, '"'
    return True


# jsonargparse writes the defaults of callbacks as YAML, and some of Lightning's are enumerations of strings.
yaml.SafeDumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str.__str__(text)))
