"""What is trained: LightningModules that put a network, its losses, metrics and optimiser together."""

from mobilemamba.tasks.classification import ClassificationTask

__all__ = ["ClassificationTask"]
