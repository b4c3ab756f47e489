"""Analysis of networks: complexity and speed, effective receptive fields, and the inside of blocks."""

from mobilemamba.analysis.complexity import Complexity, complexity
from mobilemamba.analysis.erf import ReceptiveField, contribution_ratios, receptive_fields, superlevel_areas
from mobilemamba.analysis.inside import (
    BANDS,
    BranchShares,
    ScanAttention,
    SubBands,
    branch_shares,
    scan_attention,
    sub_bands,
)
from mobilemamba.analysis.throughput import Throughput, measure_throughput

__all__ = [
    "BANDS",
    "BranchShares",
    "Complexity",
    "ReceptiveField",
    "ScanAttention",
    "SubBands",
    "Throughput",
    "branch_shares",
    "complexity",
    "contribution_ratios",
    "measure_throughput",
    "receptive_fields",
    "scan_attention",
    "sub_bands",
    "superlevel_areas",
]
