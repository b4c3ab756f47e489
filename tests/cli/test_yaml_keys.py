"""Keys of configuration files: each once, and text whatever YAML takes it for."""

from pathlib import Path

import pytest

from mobilemamba.cli import plan
from mobilemamba.cli.yaml_keys import load_yaml, row_names
from mobilemamba.errors import ConfigError

ODD = ("1", "1.50", "1e3", "0x10", "on", "yes", "null", "~", "2024-01-01", "12:30", ".5", "-1", "=")


def test_every_key_is_text() -> None:
    keys = "".join(f"{key}: {number}\n" for number, key in enumerate(ODD))
    assert load_yaml(keys) == {key: number for number, key in enumerate(ODD)}
    assert load_yaml("a: [{1: on, 2: 1e-3}]") == {"a": [{"1": True, "2": 0.001}]}, "values stay what they are"
    assert load_yaml("a: &x {1: 2}\nb: {<<: *x, c: *x}") == {"a": {"1": 2}, "b": {"1": 2, "c": {"1": 2}}}
    assert load_yaml("sweep: {only: [1, on], fused: {2: 1.50}, notes: {3: 4}, jobs: 2}") == {
        "sweep": {"only": ["1", "on"], "fused": {"2": "1.50"}, "notes": {"3": "4"}, "jobs": 2}
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {lr: 1}\n\nmodel: {name: x}", r"f.yaml, line 3: 'model' is given twice, first in line 1; keep one"),
        ("model:\n  lr: 1\n  lr: 2", r"line 3: 'lr' is given twice, first in line 2"),
        ("model.lr: 1\nmodel:\n  init_args: {lr: 2}", r"line 3: 'lr' is given twice, first in line 1"),
        ("sweep:\n  rows:\n    1: {}\n    '1': {}", r"line 4: '1' is given twice, first in line 3"),
        ("sweep: {rows: {a: {model.lr: 1,\n model.init_args.lr: 2}}}", r"line 2: 'model.init_args.lr' is given twice"),
        ("a: [{b: 1,\n b: 2}]", r"line 2: 'b' is given twice"),
    ],
)
def test_a_key_is_given_once(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_yaml(text, "f.yaml")


def test_what_repeats_elsewhere_is_none() -> None:
    assert load_yaml("a: {lr: 1}\nb: {lr: 2}\nc: [{lr: 1}, {lr: 2}]\na.arch: null") is not None


@pytest.mark.parametrize(
    ("given", "names"),
    [("1", '["1"]'), ("[1, on]", '["1", "on"]'), ("*_mlp", '["*_mlp"]'), ("a[1]", '["a[1]"]'), ("[a, {b: c}]", None)],
)
def test_rows_are_named_on_the_command_line_as_in_the_file(given: str, names: str | None) -> None:
    assert row_names(given) == (names or '["[a, {b: c}]"]')


def test_odd_names_reach_the_sweep(tmp_path: Path) -> None:
    file = tmp_path / "odd.yaml"
    file.write_text("sweep: {rows: {1e3: {model.lr: 0.1}, on: {model.lr: 0.2}}, fused: {2: on}, paper: {2: {top1: 8}}}")
    assert [row.name for row in plan(["--config", str(file)])] == ["1e3", "on", "2"]
    file.write_text("model: {lr: 1}\nmodel: {lr: 2}")
    with pytest.raises(ConfigError, match=r"^odd.yaml, line 2: 'model' is given twice"):
        plan(["--config", str(file)])
