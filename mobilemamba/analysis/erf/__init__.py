"""Effective receptive fields: maps, measures and figures."""

from mobilemamba.analysis.erf.fields import Position, ReceptiveField, Rule, receptive_fields
from mobilemamba.analysis.erf.figure import (
    UNTRAINED,
    Display,
    Row,
    Scale,
    count_pictures,
    draw_receptive_fields,
    figure_size,
)
from mobilemamba.analysis.erf.numbers import (
    THRESHOLDS,
    contribution_ratios,
    contribution_sides,
    share_beyond,
    superlevel_areas,
)
from mobilemamba.analysis.erf.taps import find_taps

__all__ = [
    "THRESHOLDS",
    "UNTRAINED",
    "Display",
    "Position",
    "ReceptiveField",
    "Row",
    "Rule",
    "Scale",
    "contribution_ratios",
    "contribution_sides",
    "count_pictures",
    "draw_receptive_fields",
    "figure_size",
    "find_taps",
    "receptive_fields",
    "share_beyond",
    "superlevel_areas",
]
