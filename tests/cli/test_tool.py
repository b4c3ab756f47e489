"""Command lines as the arguments of a tool's function."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mobilemamba.cli.tool import run_tool
from mobilemamba.errors import ConfigError

CALLS: list[tuple[object, ...]] = []


def tool(
    *models: str,
    weights: list[str] | None = None,
    sizes: Sequence[int] = (),
    config: str | list[str] | None = None,
    data: str | None = None,
    train: bool = False,
) -> None:
    """Do nothing.

    Args:
        models: Some.
        weights: One each.
        sizes: Numbers.
        config: Files.
        data: A folder.
        train: Or not.
    """
    CALLS.append((models, weights, sizes, config, data, train))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("m1 m2 --weights s6.pt - - --data p", (("m1", "m2"), ["s6.pt", "-", "-"], (), None, "p", False)),
        ("m1 --weights [a,b] --train", (("m1",), ["a", "b"], (), None, None, True)),
        ("--weights=a m1", (("m1",), ["a"], (), None, None, False)),
        ("--weights null --sizes 8 -2 16", ((), None, [8, -2, 16], None, None, False)),
        ("--config a.yaml", ((), None, (), ["a.yaml"], None, False)),
        ("--config [a.yaml,b.yaml]", ((), None, (), ["a.yaml", "b.yaml"], None, False)),
        ("--config a.yaml --train --config b.yaml c.yaml", ((), None, (), ["a.yaml", "b.yaml", "c.yaml"], None, True)),
        ("--weights 1 on null", ((), ["1", "on", "null"], (), None, None, False)),
    ],
)
def test_an_option_takes_several_values(line: str, expected: tuple[object, ...]) -> None:
    run_tool("tool", f"{__name__}:tool", line.split())
    assert CALLS.pop() == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--sizes 1 x", "sizes: expected a whole number, got x"),
        ("--weight a", "unknown setting weight; did you mean"),
    ],
)
def test_a_mistake_in_one_of_them(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_tool("tool", f"{__name__}:tool", line.split())
