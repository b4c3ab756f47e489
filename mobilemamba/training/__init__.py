"""Training: optimiser groups, learning rate schedule, losses, metrics, callbacks, and what a run stores and reports."""
