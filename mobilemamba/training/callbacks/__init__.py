"""Lightning callbacks: reproducible random numbers, skipped steps, checkpoints, results, plots and progress."""

from mobilemamba.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, run_checkpoints
from mobilemamba.training.callbacks.examples import TrainingExamples, ValidationExamples
from mobilemamba.training.callbacks.export import ExportBest
from mobilemamba.training.callbacks.kernels import SayKernels
from mobilemamba.training.callbacks.log_interval import LogInterval
from mobilemamba.training.callbacks.nonfinite import SkipNonFinite
from mobilemamba.training.callbacks.plots import TrainingPlots
from mobilemamba.training.callbacks.progress import EpochLines, TrainingBar
from mobilemamba.training.callbacks.receptive_fields import ReceptiveFields
from mobilemamba.training.callbacks.results import RunResults
from mobilemamba.training.callbacks.seed import StepSeed
from mobilemamba.training.callbacks.stop_early import StopEarly
from mobilemamba.training.callbacks.unfilled import UnfilledMemory
from mobilemamba.training.callbacks.validation import ValidateAtEnd

__all__ = [
    "BestCheckpoint",
    "EpochLines",
    "ExportBest",
    "LastCheckpoint",
    "LogInterval",
    "ReceptiveFields",
    "RunResults",
    "SayKernels",
    "SkipNonFinite",
    "StepSeed",
    "StopEarly",
    "TrainingBar",
    "TrainingExamples",
    "TrainingPlots",
    "UnfilledMemory",
    "ValidateAtEnd",
    "ValidationExamples",
    "run_checkpoints",
]
