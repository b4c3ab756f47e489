"""Lightning callbacks: reproducible steps, steps that are better not taken, and what a run leaves behind."""

from mobilemamba.training.callbacks.export import ExportBest
from mobilemamba.training.callbacks.nonfinite import SkipNonFinite
from mobilemamba.training.callbacks.results import RunResults
from mobilemamba.training.callbacks.seed import StepSeed

__all__ = ["ExportBest", "RunResults", "SkipNonFinite", "StepSeed"]
