"""Every help fits two screens, tells the truth, and names only helps that there are."""

import contextlib
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from lightning.pytorch import Callback

from mobilemamba.cli import plan
from mobilemamba.cli.classes import KINDS
from mobilemamba.cli.help import in_words
from mobilemamba.data import DataModule, DetectionDataModule, ImageDataModule, SegmentationDataModule, modules
from mobilemamba.errors import ConfigError
from mobilemamba.models import ArchOverrides
from mobilemamba.sweep.settings import lookup
from mobilemamba_command import COMMANDS, main, quick_answer

LIGHTNINGS = [name for name, command in COMMANDS.items() if command.function is None]


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What a command line that asks for help prints."""
    with contextlib.suppress(SystemExit):
        main([*args])
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["main", *LIGHTNINGS])
def test_the_first_help_is_short(command: str) -> None:
    text = quick_answer([] if command == "main" else [command, "--help"])
    assert text is not None
    lines = text.splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 80
    assert all(name in text for name in (COMMANDS if command == "main" else ["--model NAME", "--weights", "--data"]))


def test_every_data_set_has_a_help() -> None:
    bases = {DataModule, ImageDataModule, SegmentationDataModule, DetectionDataModule}
    named = {kind for kind in vars(modules).values() if isinstance(kind, type) and issubclass(kind, DataModule)}
    assert named - bases == {*KINDS["data"]}


@pytest.mark.parametrize("command", LIGHTNINGS)
def test_its_options_and_defaults_are_the_commands(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = str(quick_answer([command, "--help"]))
    helps = ("--help-all", "--model.help", "--data.help", "--model.distillation.help")
    every = "".join(printed(capsys, command, option) for option in helps)
    for option in set(re.findall(r"^  (--[\w.]+[\w])(?= |$)", text, re.MULTILINE)):
        known = re.sub(r"\.(CHOICE|OPTION)$", "", option)
        assert known in ("--weights", "--help-all", "--sweep") or known in every, option
    assert not re.search(r"type:|Optional\[|Union\[|Literal\[|default: (None|True|False|\()", every)
    (row,) = plan([])
    assert lookup(row.config, "model.reference_batch_size") == lookup(row.config, "data.batch_size"), "lr is as it is"
    for name in ("lr", "reference_batch_size", "warmup_epochs"):  # not as in the task's class
        told = (
            rf"--model.{name} [A-Z_]+ (?:(?!--).)*\(a (whole )?number; default: {lookup(row.config, f'model.{name}')}\)"
        )
        assert re.search(told, " ".join(every.split())), name
    for option, default in re.findall(r"^  --([\w.]+) .*\(default ([\w.-]+)\)", text, re.MULTILINE):
        value = lookup(row.config, "model.name" if option == "model" else option)
        assert default == str("32-true" if option == "trainer.precision" else value), option


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_every_help_that_a_help_names_works(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [str(quick_answer([command, "--help"])), printed(capsys, command, "--help-all")]
    asked = sorted(set(re.findall(r"--[\w.]+\.help", " ".join([*texts, printed(capsys, command, "--model.help")]))))
    assert {"--model.help", "--data.help", "--model.mixing.help", "--trainer.callbacks.help"} <= {*asked}
    needs = {"--trainer.callbacks.help": "EarlyStopping", "--trainer.logger.help": "CSVLogger"}
    needs |= {"--trainer.plugins.help": "lightning.pytorch.plugins.io.TorchCheckpointIO"}
    for option in asked:
        given = [needs[option]] if option in needs else []
        assert "--" in printed(capsys, command, option, *given), option


def test_the_help_of_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--model.mixing.mixup_alpha" in printed(capsys, "fit", "--model.mixing.help")
    assert "--model.arch.global_ratio" in printed(capsys, "fit", "--model.arch.help")
    assert "--data.augmentation.auto_augment" in printed(capsys, "fit", "--data", "ImageFolder", "--data.help")
    assert "--data.max_shift" in printed(capsys, "fit", "--data.help")
    assert "--data.val_labels" in printed(capsys, "fit", "--data.help", "ImageNet")
    with pytest.raises(ConfigError, match=r"--model.lr.help: .*no such group of settings; .*arch, mixing"):
        main(["fit", "--model.lr.help"])


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "a whole number or null"),
        (Literal["a", "b"] | None, "a or b or null"),
        (tuple[float, float], "[a number, a number]"),
        (tuple[int, ...], "[a whole number, ...]"),
        (Sequence[str] | None, "[text, ...] or null"),
        (dict[str, Any], "settings"),
        (ArchOverrides, "settings"),
        (Path, "text"),
        (Callback, "a class"),
    ],
)
def test_a_type_is_told_by_what_to_write(hint: object, words: str) -> None:
    assert in_words(hint) == words


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in LIGHTNINGS])
def test_a_tools_help_tells_what_is_needed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, command, "--help")
    assert text.startswith(f"usage: mobilemamba {command}")
    positional = re.search(r"positional arguments:\n(.*?)\n\n", text, re.DOTALL)
    if "..." in text.partition("options:")[0]:
        assert positional is not None
        assert "required" not in positional[1]
        assert len(positional[1].split()) > 3
    assert not re.search(r"``|type:|null|<class|default: (\[|True|False)|required", text)


def test_a_tools_help_tells_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(printed(capsys, "erf", "--help").split())
    assert "by the seed. (default: 50)" in text
    assert "every stage. (default: false)" in text
    assert "(default: erf)" in text
    assert "made for. --blocks" in text  # none


def test_the_light_answers_load_nothing() -> None:
    code = """
import sys
sys.argv = ["mobilemamba", *sys.argv[1:]]
import mobilemamba_command
try:
    mobilemamba_command.run()
finally:
    assert not {"torch", "timm", "lightning", "mobilemamba", "numpy"} & set(sys.modules)
"""
    for options, code_of_exit in (("--version", 0), ("--help", 0), ("fit --help", 0), ("fitt", 2)):
        done = subprocess.run([sys.executable, "-c", code, *shlex.split(options)], capture_output=True, check=False)
        assert done.returncode == code_of_exit, done.stderr
