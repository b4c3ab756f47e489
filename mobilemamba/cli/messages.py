"""One clear line out of what jsonargparse says about a user's mistake."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from mobilemamba.text import of_names


def parser_message(message: str) -> str:
    """The essence of a jsonargparse error: the setting, what is wrong with its value, what was expected."""
    key, text = _key(message), _reasons(message)
    key = key or ("config" if 'Parser key "config"' in message else "")
    text = f"{key}: {text}" if key else text
    if "File does not exist" in text:
        text += "; check the path, which counts from the current folder"
    return of_names(" ".join(text.replace("init_args.", "").split()))


def unknown_setting(message: str) -> str | None:
    """The setting that a jsonargparse error says there is not; None for other errors."""
    for pattern in (
        r"[Oo]ption '([^']+)' is not accepted",
        r"Group '([^']+)' does not accept option '([^']+)'",
        r"Subcommand '\w+' does not accept option '([^']+)'",
        r"[Uu]nrecognized arguments: (\S+)",
    ):
        if found := re.search(pattern, message):
            name = ".".join(part.removeprefix("--") for part in found.groups())
            if re.search(rf'Parser key "{re.escape(name)}":\s*Expected', message):
                return None  # of a union of types, one has it, and does not take its value
            key = _key(message)
            name = name if not key else key if f".{key}".endswith(f".{name}") else f"{key}.{name}"
            return name.replace("init_args.", "").partition("=")[0]
    return None


def likely_meant(name: str, known: Iterable[str]) -> list[str]:
    """Of the names that there are, those that may have been meant by one that there is not, the likeliest first.

    That is one that is spelt much like it, or else the same under another prefix: ``trainer.max_epochs`` for
    ``max_epochs`` or ``epochs``.
    """
    names = {other.lower(): other for other in known}
    last = {other: other.rpartition(".")[2] for other in names}
    name = name.lower()
    word = name.rpartition(".")[2].replace("-", "_")
    found = [other for other, part in last.items() if part == word]
    found += [other for other, part in last.items() if found and part.startswith(f"{word}_")]
    if not found:
        found = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    if not found:
        near = difflib.get_close_matches(word, last.values(), n=1, cutoff=0.75)
        found = [
            other
            for other, part in last.items()
            if part in near or part.startswith(f"{word}_") or part.endswith(f"_{word}")
        ]
    shallow = [other for other in found if other.count(".") < 2]  # a callback's last
    return [names[other] for other in (shallow or found)[:3] if not word.isdigit()]


def _key(message: str) -> str:
    """The dotted name of the setting that an error is about; blank if there is none."""
    key = ""
    for nested in re.findall(r'Parser key "([^"]+)"', message):
        if nested != "config":
            inside = not key or nested.startswith(f"{key}.")
            key = nested if inside else key if key.endswith(nested) else f"{key}.{nested}"
    return key


def _reasons(message: str) -> str:
    absent = (
        r"Problem with given class_path '([^']+)':\s*([^\n]*(?:No module named|has no attribute|cannot import)[^\n]*)"
    )
    if found := re.search(absent, message):
        return f"no such class: {found[1]} ({found[2]})"
    lines = [line.strip() for line in message.splitlines()]
    if "Errors:" in lines:  # a union of types: each says why it is not it; that it is not None helps nobody
        lines = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
        lines = [line for line in lines if not re.match(r"Expected a <class 'NoneType'>|Expected a path but", line)]
        lines = [
            line for line in lines if not re.match(r"Does not validate|a (class path|dict) |Option '", line)
        ] or lines
        if any("dot import path" in line or "are required" in line for line in lines):  # which says more than its list
            lines = [line for line in lines if not re.match(r"Expected a <class '(list|collections)", line)]
        # A nested error stands on the lines below its key.
        below = re.findall(r'Parser key "[^"]+":\s*\n\s*(Expected [^\n]*)', message)
        lines = [line for line in lines if not line.startswith("Parser key")] + below
    text = " or ".join(dict.fromkeys(lines)) if "Errors:" in message else " ".join(lines)
    text = re.sub(r'(Parser key "[^"]+":?\s*)', "", text)
    text = re.sub(r' - Unable to load config ".*"$', "", text)
    text = re.sub(r"Got value: Namespace\(.*", "", text)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = re.sub(r"[Ee]xpected an? typing\.Literal\[([^\]]*)\]", r"expected one of \1", text)
    text = re.sub(r"\bExpected an? ", "expected ", text).replace("expected dot import path string:", "no such class:")
    text = re.sub(r"\.? ?Got value: ", ", got ", text)
    text = re.sub(
        r"the following arguments are required: (?:fit\.|validate\.|test\.)?(.+)", r"missing \1; give it", text
    )
    given = re.findall(r"Given value: (.*)", message)
    if given and "got " not in text and "expected" in text and len(given[0]) < 80:
        text = f"{text}, got {given[0]}"
    if (found := re.search(r"Unable to load config '(.*)'", message)) and text.strip() in ("", found[0].strip()):
        text = f"expected settings, such as {{name: value}}, got {found[1]}"
    if re.search(r"Subtypes: \[<class 'mobilemamba\.(sweep|training)\.", message):  # settings of ours, and no class
        text = text.replace("no such class: ", "expected settings, such as {name: value}, or null, got ")
    text = re.sub(r", got NestedArg\(key='([^']+)', val=.*\)", r", which has no \1 in it", text)
    return text.strip()
