"""What is trained: LightningModules that put a network, its losses, metrics and optimiser together."""

from mobilemamba.tasks.base import Task
from mobilemamba.tasks.classification import ClassificationTask
from mobilemamba.tasks.segmentation import SegmentationTask

__all__ = ["TASKS", "ClassificationTask", "SegmentationTask"]

#: By their names in cards.
TASKS: dict[str, type[Task]] = {kind.task: kind for kind in (ClassificationTask, SegmentationTask)}
