"""Writes a static page that runs an exported network in the browser: a folder that can be served as it is."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mobilemamba.dense.candidates import RULES_KEY
from mobilemamba.drawing import distinct_colours
from mobilemamba.errors import ConfigError
from mobilemamba.export.format import OUTPUTS_KEY
from mobilemamba.export.staging import staged
from mobilemamba.files import temporary_beside
from mobilemamba.models import read_card
from mobilemamba.models.card import ModelCard
from mobilemamba.models.predictor import class_names
from mobilemamba.models.runtime import runtime_of
from mobilemamba.text import printable
from mobilemamba.version import __version__

#: The runtime, at the version that was tested. Its npm package has many builds; this one needs two files, which are
#: renamed from the left name to the right one.
_PACKAGE = "onnxruntime-web@1.30.0"
_BUILD = {"ort.wasm.bundle.min.mjs": "ort.js", "ort-wasm-simd-threaded.wasm": "ort.wasm"}
#: The files of our page, and those that are made for each network.
_PAGE = Path(__file__).with_name("page")
_NETWORK, _ABOUT = "network.onnx", "network.json"
_TIMEOUT = 600  # seconds to fetch 33 MB


def write_page(network: Path, folder: Path) -> int:
    """Writes a page with an exported network.

    Args:
        network: An ``.onnx`` file that mobilemamba export wrote.
        folder: A folder that does not exist, is empty, or holds such a page, which is replaced as a whole.

    Returns:
        The size of all files in bytes.

    Raises:
        ConfigError: If the folder holds other files or cannot be made, npm is missing, or the network does not take RGB
            pictures.
        WeightsError: If the network cannot be read, or the page cannot be written.
    """
    about = _about(network)
    check_page(folder)
    with staged(folder.absolute()) as page:
        page.mkdir()
        _fetch(page)
        for file in _PAGE.iterdir():
            shutil.copyfile(file, page / file.name)
        shutil.copyfile(network, page / _NETWORK)
        (page / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
        return sum(file.stat().st_size for file in page.iterdir())


def check_page(folder: Path) -> None:
    """Refuses a folder that no page can be written to, before any work is done for it.

    Raises:
        ConfigError: If it is refused, with the reason.
    """
    shown = f"--web {printable(folder)}"
    if shutil.which("npm") is None:
        raise ConfigError(f"{shown}: the page needs {_PACKAGE}, which npm fetches; install Node.js with npm")
    ours = {*_BUILD.values(), _NETWORK, _ABOUT, *(file.name for file in _PAGE.iterdir())}
    try:
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
        elif others := sorted({file.name for file in folder.iterdir()} - ours):
            raise ConfigError(f"{shown}: it holds other files, {printable(others[0])} for one; give a new folder")
        with temporary_beside(folder.absolute(), folder=True):
            pass
    except OSError as error:
        raise ConfigError(f"{shown}: {error.strerror}; choose another folder") from None


def check_shown(card: ModelCard, network: Path) -> None:
    """Refuses a network whose pictures or answers a page cannot show.

    Raises:
        ConfigError: If it is refused, with the reason.
    """
    if card.in_chans != 3 or not card.num_classes:
        raise ConfigError(f"{printable(network)}: a page shows pictures of three colours, and their classes")


def _about(network: Path) -> dict[str, Any]:
    """Returns what the page needs to know about the network."""
    card, runtime = read_card(network), runtime_of(network)
    assert card is not None  # a file without a card was refused above
    assert runtime is not None
    check_shown(card, network)
    metadata, shape = runtime.metadata(network), runtime.load(network).shape
    size = shape[2:]
    if None in size:
        raise ConfigError(f"{printable(network)} takes pictures of any size; export it anew with a size, for the page")
    how = asdict(card.preprocessing)
    return {
        "title": _title(card),
        "about": _described(card),
        "how": {**how, "task": card.task, "upright": how["upright"] is not False},
        "names": class_names(card),
        "palette": card.palette or distinct_colours(card.num_classes),
        "size": size,
        "batch": shape[0],
        "kept": json.loads(metadata[RULES_KEY]) if RULES_KEY in metadata else None,
        "probabilities": metadata.get(OUTPUTS_KEY) == "probabilities",
    }


def _title(card: ModelCard) -> str:
    return f"{card.head} on {card.model}" if card.head else card.model


def _described(card: ModelCard) -> str:
    height, width = card.preprocessing.img_size
    trained = f"trained on {card.data}; " if card.data else ""
    return f"{_title(card)}, {trained}{width} x {height} px; written by mobilemamba {__version__}."


def _fetch(folder: Path) -> None:
    """Puts the runtime's files into a folder, from npm's cache or registry."""
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", _PACKAGE, "--loglevel", "error", "--prefer-offline", "--pack-destination", scratch]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, cwd=scratch)
            failed, reason = done.returncode != 0, done.stderr.strip() or f"it ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            failed, reason = True, f"no answer within {_TIMEOUT} s"
        archive = next(Path(scratch).glob("*.tgz"), None)
        if failed or archive is None:  # a full disk may leave a part
            line = " ".join(reason.replace("npm error", "").split())[:200]
            raise ConfigError(f"npm cannot fetch {_PACKAGE}: {line}; see that it reaches its registry")
        with tarfile.open(archive) as packed:
            for name, here in _BUILD.items():
                content = packed.extractfile(f"package/dist/{name}")
                assert content is not None
                (folder / here).write_bytes(content.read())
