"""The command line's tools: ``backends``, ``convert``, ``predict`` and ``summary``."""

from collections.abc import Callable

from mobilemamba.tools.conversion import convert_checkpoint
from mobilemamba.tools.inspection import backends, summary
from mobilemamba.tools.prediction import predict

#: Name on the command line to function.
TOOLS: dict[str, Callable[..., None]] = {
    "predict": predict,
    "summary": summary,
    "convert": convert_checkpoint,
    "backends": backends,
}
