"""An interactive viewer of receptive fields for notebooks."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor, nn

from mobilemamba.analysis.erf import Display, ReceptiveField, Row, Rule, draw_receptive_fields, figure_size
from mobilemamba.analysis.erf import receptive_fields as compute

if TYPE_CHECKING:
    from ipywidgets import Widget

_NONE, _ALL = "none", "all"


def erf_viewer(networks: Mapping[tuple[str, str], nn.Module], pictures: Tensor) -> Widget:
    """Returns a widget with controls for network, stage, position, rule and display above the receptive fields.

    Args:
        networks: (name, origin of the weights) as in a ``Row`` -> network; one or two are shown at a time.
        pictures: (N, C, H, W), prepared for all networks.
    """
    import ipywidgets as widgets

    labels = {f"{name}, {weights}": (name, weights) for name, weights in networks}

    @functools.cache
    def fields(label: str, rule: Rule, row: float, column: float) -> list[ReceptiveField]:
        return compute(networks[labels[label]], pictures, "stages", rule, (row, column))

    network = widgets.Dropdown(options=list(labels), description="network")
    beside = widgets.Dropdown(options=[_NONE, *labels], description="beside it")
    most = max(len(fields(label, "relu", 0.5, 0.5)) for label in labels)
    stage = widgets.SelectionSlider(options=[_ALL, *range(1, most + 1)], description="stage")
    place = {"min": 0.0, "max": 0.99, "step": 0.01, "value": 0.5, "continuous_update": False}
    down = widgets.FloatSlider(description="down", **place)
    across = widgets.FloatSlider(description="across", **place)
    rule = widgets.Dropdown(options=get_args(Rule), description="rule")
    display = widgets.Dropdown(options=get_args(Display), description="display")
    image = widgets.Image(format="png", layout=widgets.Layout(align_self="flex-start", max_width="100%"))  # unscaled

    def show(_: Any = None) -> None:
        rows = []
        for label in (network.value, beside.value):
            if label != _NONE:
                found = fields(label, rule.value, down.value, across.value)
                rows.append(Row(*labels[label], found if stage.value == _ALL else found[stage.value - 1 : stage.value]))
        image.value = _png([row for row in rows if row.fields], display.value)

    choices = [network, beside, stage, down, across, rule, display]
    for choice in choices:
        choice.observe(show, "value")
    show()
    return widgets.VBox([widgets.Box(choices, layout=widgets.Layout(flex_flow="row wrap")), image])


def _png(rows: list[Row], display: Display) -> bytes:
    from matplotlib.figure import Figure

    content = io.BytesIO()
    if rows:  # none if the network has fewer stages
        figure = Figure(figsize=figure_size(rows), layout="constrained", dpi=110)
        draw_receptive_fields(figure, rows, display)
        figure.savefig(content, format="png")
    return content.getvalue()
