"""What a network costs and what it sees."""

from mobilemamba.analysis.complexity import Complexity, complexity
from mobilemamba.analysis.throughput import Throughput, measure_throughput

__all__ = ["Complexity", "Throughput", "complexity", "measure_throughput"]
