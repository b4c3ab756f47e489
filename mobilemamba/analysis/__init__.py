"""What a network costs and what it sees."""

from mobilemamba.analysis.complexity import Complexity, complexity
from mobilemamba.analysis.erf import (
    ReceptiveField,
    contribution_ratios,
    receptive_fields,
    superlevel_areas,
)
from mobilemamba.analysis.throughput import Throughput, measure_throughput

__all__ = [
    "Complexity",
    "ReceptiveField",
    "Throughput",
    "complexity",
    "contribution_ratios",
    "measure_throughput",
    "receptive_fields",
    "superlevel_areas",
]
