"""The commands, and the console script: what can be said without a network is said at once.

It stands beside the package, as importing anything inside it loads torch and timm to register the models there: seconds
that ``mobilemamba --help`` should not take.
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
    """What a command does, and the function that does it, as ``module:name``; None for one of Lightning's."""

    does: str
    function: str | None = None


COMMANDS = {
    "fit": Command("train a network; with a sweep: section, every row of a table"),
    "validate": Command("accuracy of a checkpoint on the validation pictures"),
    "test": Command("accuracy of a checkpoint on the test pictures"),
    "predict": Command(
        "say what is on pictures: the likeliest classes of each", "mobilemamba.tools.prediction:predict"
    ),
    "summary": Command("count parameters, FLOPs and MACs", "mobilemamba.tools.inspection:summary"),
    "report": Command("rebuild tables and plots from finished runs", "mobilemamba.tools.report:report"),
    "convert": Command(
        "convert a checkpoint, e.g. of the release, to .safetensors",
        "mobilemamba.tools.conversion:convert_checkpoint",
    ),
    "export": Command(
        "write a network for ONNX Runtime, OpenVINO and others, checked",
        "mobilemamba.tools.export:export_network",
    ),
    "backends": Command(
        "show which scan backends run here, and why others do not", "mobilemamba.tools.inspection:backends"
    ),
    "erf": Command("show what networks see: effective receptive fields of their stages", "mobilemamba.tools.erf:erf"),
    "benchmark": Command(
        "time networks against each other and the machine's ceiling", "mobilemamba.tools.benchmark:benchmark"
    ),
    "gpu": Command("check and measure everything once on a GPU", "mobilemamba.tools.gpu:gpu"),
}

_HELP = ("-h", "--help")


def run() -> None:
    """The console script: :func:`main`, with the user's mistakes as one line and exit code 2."""
    args = sys.argv[1:]
    if quick_answer(args) is None and args[0] not in COMMANDS:
        sys.stderr.write(f"mobilemamba: error: {unknown_command(args[0])}\n")
        sys.exit(2)
    try:
        if quick_answer(args) is not None:
            main(args)
            sys.stdout.flush()
            return
        gc.disable()  # what is imported is no garbage: to look through it again and again is a third of a short run
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
        args: By default this process's own.

    Returns:
        Lightning's CLI object with ``trainer``, ``model`` and ``datamodule``; None for a tool and for a help.

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
    """What to print for a version or a help that is a text of its own; None for other command lines."""
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
    """The message for a command that there is not."""
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
