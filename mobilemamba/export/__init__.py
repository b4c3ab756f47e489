"""Networks in the formats of other runtimes: written, verified against the original, and read back."""

from mobilemamba.export.formats import FORMATS
from mobilemamba.export.in_runtime import runners
from mobilemamba.export.options import Options
from mobilemamba.export.writing import Exported, export_network
from mobilemamba.models.runtime import RUNNERS, RUNTIMES

RUNTIMES |= FORMATS
RUNNERS |= runners()

__all__ = ["FORMATS", "Exported", "Options", "export_network"]
