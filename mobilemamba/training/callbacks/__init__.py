"""Lightning callbacks: reproducible steps, steps better not taken, what computes a run and what it leaves behind."""

from mobilemamba.training.callbacks.export import ExportBest
from mobilemamba.training.callbacks.kernels import SayKernels
from mobilemamba.training.callbacks.nonfinite import SkipNonFinite
from mobilemamba.training.callbacks.results import RunResults
from mobilemamba.training.callbacks.seed import StepSeed

__all__ = ["ExportBest", "RunResults", "SayKernels", "SkipNonFinite", "StepSeed"]
