"""A command line as its options."""

import pytest

from mobilemamba.cli.options import config_values, read_options
from mobilemamba.cli.parser import given_settings
from mobilemamba.cli.rows import passed_on
from mobilemamba.errors import ConfigError


def test_a_value_follows_its_name_or_an_equals_sign() -> None:
    args = ["--a", "1", "stray", "--b=x=y", "--c", "--d", "-1", "-c", "file", "--e=", "k=v"]
    found = [
        *(("--a", "1"), ("stray", None), ("--b", "x=y"), ("--c", None), ("--d", "-1"), ("-c", "file"), ("--e", "")),
        ("k=v", None),
    ]
    options = list(read_options(args))
    assert [(option.name, option.value) for option in options] == found
    assert [arg for option in options for arg in option.given] == args
    assert config_values([*args, "--config=b"]) == ["file", "b"]


def test_settings_inside_a_value_are_given_too() -> None:
    args = ["--model.arch", "{d_state: 1, init_args: {x: 2}}", "--config", "a.yaml", "--name=x", "--data", "{}"]
    assert given_settings(args) == ["model.arch.d_state", "model.arch.x", "name", "data"]


def test_only_the_rows_own_network_is_evaluated() -> None:
    given = ["--config", "x.yaml", "--data.root", "here", "--sweep.only=a", "--name", "n", "--trainer.devices=2"]
    assert passed_on(given) == ["--data.root", "here", "--trainer.devices=2"]
    for option in ("--model.weights", "--model", "--model.init_args.name=x", "--ckpt_path", "--trainer.callbacks+"):
        with pytest.raises(ConfigError, match=r"own network; leave it out, or add --sweep null"):
            passed_on(["--data.root", "here", option, "x"])
