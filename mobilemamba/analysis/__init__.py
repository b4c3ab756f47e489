"""What a network costs and what it sees."""

from mobilemamba.analysis.complexity import Complexity, complexity
from mobilemamba.analysis.erf import (
    ReceptiveField,
    Row,
    contribution_ratios,
    draw_receptive_fields,
    figure_size,
    receptive_fields,
    superlevel_areas,
)
from mobilemamba.analysis.throughput import Throughput, measure_throughput

__all__ = [
    "Complexity",
    "ReceptiveField",
    "Row",
    "Throughput",
    "complexity",
    "contribution_ratios",
    "draw_receptive_fields",
    "figure_size",
    "measure_throughput",
    "receptive_fields",
    "superlevel_areas",
]
