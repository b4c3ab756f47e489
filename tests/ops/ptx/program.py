"""PTX as text, and as instructions."""

from __future__ import annotations

import re
from typing import NamedTuple


class Instruction(NamedTuple):
    """``@predicate name operands``, and the line of the kernel that it stems from; ``parts`` are those of its name."""

    predicate: str
    name: str
    parts: list[str]
    operands: list[str]
    source: str


class Program(NamedTuple):
    """A kernel: its parameters' names, its instructions, and where labels stand among them."""

    parameters: list[str]
    instructions: list[Instruction]
    labels: dict[str, int]


def parse(ptx: str) -> Program:
    """Reads the one kernel of a module."""
    head, body = ptx[ptx.index(".entry") :].split("\n{\n", 1)
    instructions, labels, source = list[Instruction](), dict[str, int](), ""
    for line in body.splitlines():
        if place := re.match(r"\s*\.loc\b.*// (\S+)", line):
            source = place[1]
        elif label := re.match(r"(\$\w+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s*(?:@(!?%\w+)\s+)?([a-z][\w.:]*)\s*(.*?)\s*;", line):
            name = found[2].replace("::cta", "")
            operands = re.findall(r"\{.*?\}|\[.*?\]|[^\s,]+", found[3])
            instructions.append(Instruction(found[1] or "", name, name.split("."), operands, source))
    return Program(re.findall(r"(\w+_param_\d+)", head), instructions, labels)
