"""The command line's tools: what can be done besides training and evaluation."""

from collections.abc import Callable

from mobilemamba.tools.benchmark import benchmark
from mobilemamba.tools.conversion import convert_checkpoint
from mobilemamba.tools.inspection import backends, summary
from mobilemamba.tools.prediction import predict
from mobilemamba.tools.report import report
from mobilemamba.tools.width import match_throughput

#: Name on the command line to function.
TOOLS: dict[str, Callable[..., None]] = {
    "predict": predict,
    "summary": summary,
    "report": report,
    "convert": convert_checkpoint,
    "backends": backends,
    "benchmark": benchmark,
    "match_throughput": match_throughput,
}
