"""Training tasks: LightningModules that combine a network with its losses, metrics and optimiser."""

from mobilemamba.tasks.base import Task
from mobilemamba.tasks.classification import ClassificationTask
from mobilemamba.tasks.detection import DetectionTask
from mobilemamba.tasks.segmentation import SegmentationTask

__all__ = ["TASKS", "ClassificationTask", "DetectionTask", "SegmentationTask"]

#: Name in model cards -> task.
TASKS: dict[str, type[Task]] = {kind.task: kind for kind in (ClassificationTask, DetectionTask, SegmentationTask)}
