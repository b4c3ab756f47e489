"""What a file cannot say of itself stands beside it, in ``x.tflite.json`` for ``x.tflite``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mobilemamba.errors import WeightsError
from mobilemamba.export.format import Format
from mobilemamba.files import write_json
from mobilemamba.text import printable


class WithJson(Format):
    """Of formats whose files hold a network and no more."""

    def metadata(self, path: Path) -> Mapping[str, str]:
        """See :meth:`Format.metadata`; without the other file nothing is known."""
        if not path.exists():
            raise self.unreadable(path, FileNotFoundError())
        beside = note_of(path)
        if not beside.exists():
            return {}
        try:
            said = json.loads(beside.read_text(encoding="utf-8"))
            return {str(key): str(value) for key, value in said.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise WeightsError(
                f"cannot read {printable(beside)}: {error}; expected what mobilemamba export wrote"
            ) from None


def note_of(path: Path) -> Path:
    """Where a file's metadata stand."""
    return path.with_name(f"{path.name}.json")


def write_note(path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a file's metadata."""
    write_json(note_of(path), dict(metadata))
