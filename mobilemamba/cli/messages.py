"""One-line messages for jsonargparse's long errors about a user's mistake: setting, value, expectation and remedy."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches

from mobilemamba.cli.options import read_options
from mobilemamba.errors import ConfigError
from mobilemamba.text import explain_encoding

_SETTINGS = "settings, such as {name: value} with a blank after each colon"
_LIST = "a list, such as [a, b]"
#: Name of a type -> description of what a user writes.
WRITTEN = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "dict": _SETTINGS}
WRITTEN |= {"list": _LIST, "tuple": _LIST, "Iterable": _LIST, "NoneType": "null", "Path": "text"}
#: How jsonargparse mentions a section's file that does not exist.
_FILE = re.compile(r"(?:class_path '|Expected a path but |[Gg]iven value: |load config ')(\S+\.(?:ya?ml|json))\b")
#: Setting -> option that chooses a class with further settings.
_EXAMPLES = {"data": "--data ImageFolder", "model": "--model SegmentationTask or --model DetectionTask"}
#: Similarity above which one name may have been meant by another.
_ALIKE = 0.75
#: Largest number of classes that are listed, which is that of the data sets.
_MOST_NAMES = 10


def mistake(
    message: str,
    args: Sequence[str],
    settings: Collection[str],
    classes: Mapping[str, Collection[str]],
    helps: str = "--help",
) -> ConfigError:
    """Returns the error that replaces one of jsonargparse's.

    Args:
        message: jsonargparse's message.
        args: The command line.
        settings: Names of all settings.
        classes: Setting -> names of classes to choose from.
        helps: Options that describe all settings.
    """
    if found := re.search(r"[Uu]nrecognized arguments: ([^-\s]\S*)", message):
        remedy = "give each file its own --config" if found[1].endswith((".yaml", ".yml")) else "leave it out"
        return ConfigError(
            f"unexpected {found[1]}: expected options, each a name with one value; {remedy}, or see {helps}"
        )
    if name := _unknown_setting(message):
        return unknown(name, settings, helps)
    key = _key(message)
    name = f"{key}: " if key else ""
    if found := re.search(r"argument (?:-\w/)?(--[\w.]+)\S*: expected one argument", message):
        bare = [option for option, value, _ in read_options(args) if value is None and option.startswith(found[1])]
        text = f"{next(iter(bare), found[1])} has no value; give one after it, or leave it out"
    elif found := re.search(r"arguments are required: (.+)", message):
        remedy = f"give it by --{key}.{found[1]}" if key else f"give it, as {helps} says"
        text = f"{name}missing {found[1]}; {remedy}"
    elif found := _FILE.search(message):
        text = f"{name}no such file: {found[1]}; in a file, give its path from that file's folder, else from here"
    # What a class says of its own settings is not that there is no such class.
    elif found := re.search(r"Problem with given class_path '([^']+)':\s*+(?!Parser key|Option)(.*)", message):
        text = f"{name}no such class: {found[1]} ({found[2]}); {_of_class(found[1], classes.get(key, ()))}"
    elif expected := _expected(message):
        given = _given(message)
        text = f"{name}expected {' or '.join(expected)}" + ("" if given is None else f", got {given or 'nothing'}")
        named = re.sub(r"^\{'?class_path'?: '?([^',}]+).*", r"\1", given or "")
        near = "a class" in expected and named and _of_class(named, classes.get(key, ()))
        text += f"; {near or 'give that, or leave it out'}"
    else:
        text = name + re.sub(r'Parser key "[^"]+":?\s*', "", message) + f"; {helps} says what it takes"
    return ConfigError(explain_encoding(" ".join(text.replace("init_args.", "").split())))


def unknown(name: str, known: Collection[str], helps: str) -> ConfigError:
    """Returns the error for an unknown setting, given the ``known`` ones."""
    if name in known and "." in name:
        section = name.rpartition(".")[0]
        example = _EXAMPLES.get(section, f"--{section} CLASS")
        what = f"the {section} that is chosen has none"
        return ConfigError(f"unknown setting {name}; {what}; choose a class that has it before, e.g. {example}")
    parts = name.split(".")
    above = [".".join(parts[: end + 1]) for end in range(len(parts))]  # in sweep.row.a.model.lr, sweep.row is wrong
    first = next((wrong for wrong in above if not any(f"{other}.".startswith(f"{wrong}.") for other in known)), name)
    sections = {other.partition(".")[0] for other in known if "." in other}
    if "." not in first and (near := get_close_matches(first, sections, 1, _ALIKE)):
        return ConfigError(f"unknown setting {first}; did you mean {near[0]}?")
    for wrong in dict.fromkeys((first, name)):
        if near := likely_meant(wrong, [other for other in known if other != wrong]):  # e.g. "weights", only an option
            return ConfigError(f"unknown setting {wrong}; did you mean {' or '.join(near)}?")
    return ConfigError(f"unknown setting {name}; leave it out, or take one that {helps} lists")


def likely_meant(name: str, known: Iterable[str]) -> list[str]:
    """Returns up to three known names that may have been meant by an unknown one.

    Their last words are compared: ``trainer.max_epoch``, ``max_epochs`` and ``epochs`` all mean ``trainer.max_epochs``.
    """
    section, _, word = name.lower().replace("-", "_").rpartition(".")

    def likeness(other: str) -> float:
        there, _, last = other.lower().rpartition(".")
        near = SequenceMatcher(None, word, last).ratio()
        if word == last or last.startswith(f"{word}_") or last.endswith(f"_{word}"):
            near = 1 if last.endswith(f"_{word}") else 2
        return near + 2 * (section == there != "" and near >= _ALIKE)

    found = {other: likeness(other) for other in known}
    best = [other for other, near in found.items() if near == max(found.values()) and near >= _ALIKE]
    best.sort(key=lambda other: other.lower().rpartition(".")[2] != word)
    shallow = [other for other in best if other.count(".") < 2]  # rather than settings of callbacks
    return (shallow or best)[:3]


def _of_class(given: str, names: Collection[str]) -> str:
    """Returns the remedy for an unknown class."""
    own = [name for name in names if not name.islower() and not name.startswith("_")]  # classes, not timm's models
    if near := likely_meant(given, own if "." in given else names):
        return f"did you mean {' or '.join(near)}?"
    by_path = "a class by the path that Python imports it by"
    return f"give {', '.join([*own[:_MOST_NAMES], f'or {by_path}'])}" if own else f"give {by_path}"


def _unknown_setting(message: str) -> str | None:
    """Returns the unknown setting that a message is about, or None if it is about something else."""
    for pattern in (
        r"[Oo]ption '([^']+)' is not accepted",
        r"Group '([^']+)' does not accept option '([^']+)'",
        r"Subcommand '\w+' does not accept option '([^']+)'",
        r"[Uu]nrecognized arguments: (\S+)",
    ):
        if found := re.search(pattern, message):
            name = ".".join(part.removeprefix("--") for part in found.groups())
            if re.search(rf'Parser key "{re.escape(name)}":\s*Expected', message):
                return None  # one type of a union has this setting, but does not accept its value
            key = _key(message)
            name = name if not key else key if f".{key}".endswith(f".{name}") else f"{key}.{name}"
            return name.replace("init_args.", "").partition("=")[0]
    return None


def _key(message: str) -> str:
    """Returns the dotted name of the setting that an error is about; empty if there is none."""
    key = ""
    for nested in re.findall(r'Parser key "([^"]+)"', message):
        if nested != "config":
            inside = not key or nested.startswith(f"{key}.")
            key = nested if inside else key if key.endswith(nested) else f"{key}.{nested}"
    return key or ("config" if 'Parser key "config"' in message else "")


def _expected(message: str) -> list[str]:
    """Returns descriptions of the accepted types, one for each of a union, without null, which helps nobody."""
    types = re.findall(r"Expected a <class '(?:\w+\.)*(\w+)'>", message)
    types = [kind for kind in types if kind != "NoneType" and not (kind == "int" and "float" in types)]
    words = [*dict.fromkeys(WRITTEN.get(kind, kind) for kind in types)]
    words += re.findall(r"Expected (a (?:tuple|list|dict) [^.\n]*)", message)
    if re.search("Expected a dot import path|Not a valid subclass|instantiatable class", message):
        if re.search(r"Subtypes: \[<class 'mobilemamba\.(sweep|training)\.", message):  # our dataclasses of settings
            return [_SETTINGS, "null"]
        return ["a class", *(word for word in words if word != _LIST)]
    if "Unable to load config" in message:
        return [_SETTINGS]
    choices = ", ".join(re.findall(r"Expected a typing\.Literal\[([^\]]*)\]", message)).replace("'", "")
    return words + ([f"one of {', '.join(dict.fromkeys(choices.split(', ')))}"] if choices else [])


def _given(message: str) -> str | None:
    """Returns the value from the innermost of nested errors; None if it consists of several settings."""
    found = re.search(r"Unable to load config '(.*)'", message) or re.search(r"(?:Got|Given) value: (.*)", message)
    if found is None or found[1].startswith("Namespace("):
        return None
    return re.sub(r"^NestedArg\(key='([^']+)', val='?(.*?)'?\)$", r"{\1: \2}", found[1])
