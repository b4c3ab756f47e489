"""The list of commands, and the console script, which answers ``--help`` and the like without loading the package.

This module is beside the package, as importing anything inside it loads torch and timm to register the models, which
takes seconds that ``mobilemamba --help`` should not need.
"""

from __future__ import annotations

import difflib
import gc
import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningCLI


class Command(NamedTuple):
    """Description of a command, and its function as ``module:name``; None for one of Lightning's commands."""

    does: str
    function: str | None = None


COMMANDS = {
    "fit": Command("train a network, or with a sweep: section, every row of a table"),
    "validate": Command("evaluate a network on the validation pictures"),
    "test": Command("evaluate a network on the test pictures"),
    "predict": Command(
        "predict the classes, pixel classes or objects of pictures", "mobilemamba.tools.prediction:predict"
    ),
    "summary": Command("count parameters, FLOPs and MACs", "mobilemamba.tools.inspection:summary"),
    "report": Command("rebuild tables and plots from finished runs", "mobilemamba.tools.report:report"),
    "convert": Command(
        "convert a checkpoint, e.g. of the release, to .safetensors",
        "mobilemamba.tools.conversion:convert_checkpoint",
    ),
    "export": Command(
        "export a network for ONNX Runtime, OpenVINO and others, verified",
        "mobilemamba.tools.export:export_network",
    ),
    "backends": Command(
        "show which backends run here, and why faster ones do not", "mobilemamba.tools.inspection:backends"
    ),
    "erf": Command("show the effective receptive fields of networks' stages", "mobilemamba.tools.erf:erf"),
    "benchmark": Command(
        "measure the speed of networks, relative to the machine's limit", "mobilemamba.tools.benchmark:benchmark"
    ),
    "gpu": Command("check and measure everything once on a GPU", "mobilemamba.tools.gpu:gpu"),
}

_HELP = ("-h", "--help")


def run() -> None:
    """Runs :func:`main` as the console script, which prints the user's mistakes in one line and exits with code 2."""
    args = sys.argv[1:]
    answer = quick_answer(args)
    if answer is None and args[0] not in COMMANDS:
        sys.stderr.write(f"mobilemamba: error: {unknown_command(args[0])}\n")
        sys.exit(2)
    try:
        if answer is not None:
            sys.stdout.write(answer)
            sys.stdout.flush()
            return
        gc.disable()  # imports create no garbage, and collecting during them takes a third of a short run
        from mobilemamba.cli.exits import console
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        from mobilemamba.cli.exits import end_without_reader

        end_without_reader()
    with console():
        import_module((COMMANDS[args[0]].function or "mobilemamba.cli.lightning_cli").partition(":")[0])
        gc.freeze()
        gc.enable()
        main(args)


def main(args: list[str] | None = None) -> LightningCLI | None:
    """Runs a command line.

    Args:
        args: Arguments; by default those of this process.

    Returns:
        Lightning's CLI object with ``trainer``, ``model`` and ``datamodule``; None for tools and help texts.

    Raises:
        MobileMambaError: For a user's mistake; :func:`run` prints it as one line.
    """
    args = sys.argv[1:] if args is None else list(args)
    answer = quick_answer(args)
    if answer is not None:
        sys.stdout.write(answer)
        return None
    command, *options = args
    if command not in COMMANDS:
        from mobilemamba.errors import ConfigError

        raise ConfigError(unknown_command(command))
    if function := COMMANDS[command].function:
        from mobilemamba.cli.tool import run_tool

        run_tool(command, function, options)
        return None
    from mobilemamba.cli import run_lightning

    return run_lightning(command, options)


def quick_answer(args: list[str]) -> str | None:
    """Returns the text for ``--version``, or for a help that is stored as a file; None for other command lines."""
    command = args[0] if args else "--help"
    if command == "--version":
        return f"mobilemamba {_version()}\n"
    if command in _HELP:
        width = max(map(len, COMMANDS))
        listed = "\n".join(f"  {name:{width}}  {command.does}" for name, command in COMMANDS.items())
        return _text("main").replace("{commands}", listed)
    asked = any(arg in _HELP for arg in args[1:])
    return _text(command) if asked and command in COMMANDS and COMMANDS[command].function is None else None


def unknown_command(command: str) -> str:
    """Returns the error message for an unknown command."""
    near = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of: {', '.join(COMMANDS)}"
    return f"unknown command {command!r}: {hint}"


def _package() -> Path:
    spec = find_spec("mobilemamba")  # does not import it
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _version() -> str:
    found = re.search(r'^__version__ = "(.+)"', (_package() / "version.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return found[1]


def _text(name: str) -> str:
    return (_package() / "cli" / "texts" / f"{name}.txt").read_text(encoding="utf-8")


if __name__ == "__main__":
    run()
