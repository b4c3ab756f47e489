"""How a network is trained: optimiser groups, learning-rate schedule, and what a run keeps and reports."""
