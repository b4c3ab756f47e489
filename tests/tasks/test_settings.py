"""The arguments of a task as a checkpoint keeps them."""

import pytest

from mobilemamba.errors import ConfigError
from mobilemamba.models import ArchOverrides
from mobilemamba.tasks.settings import network_settings, plain_settings


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("mobilemamba_b1", None, 0.03),
        ("mobilemamba_b4", None, 0.03),
        ("mobilemamba_s6", None, 0.0),
        ("resnet18", None, 0.0),
        ("mobilemamba_b1", 0.0, 0.0),
    ],
)
def test_the_drop_path_rate_of_the_release(name: str, given: float | None, expected: float) -> None:
    for arch in (ArchOverrides(d_state=4), {"d_state": 4}):  # as given, and as a checkpoint has it
        assert network_settings(name, arch, given) == {"arch": {"d_state": 4}, "drop_path_rate": expected}


@pytest.mark.parametrize("value", [1, 2, None])
def test_what_is_allowed_is_kept_as_a_plain_value(value: float | None) -> None:
    given = {"self": object(), "a": value, "betas": (0.0, 0.999), "weights": "w.pth", "partial_weights": True}
    assert plain_settings(given, {"a": (1, 2), "absent": (3, 4)}) == {"a": value, "betas": [0.0, 0.999]}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": 0.9}, "a=0.9: expected 1 to 2; change model.a"),
        ({"a": 2.1}, "a=2.1: expected 1 to 2; change model.a"),
        ({"a": float("nan")}, "a=nan: expected 1 to 2; change model.a"),
        ({"b": float("inf")}, "b=inf: expected 0 or more; change model.b"),
        ({"betas": (0.9, 1.0)}, r"betas=\[0.9, 1.0\]: expected two numbers from 0 to below 1; change model.betas"),
        ({"betas": (-0.1, 0.9)}, r"betas=\[-0.1, 0.9\]: expected two numbers from 0 to below 1; change model.betas"),
    ],
)
def test_what_is_not_allowed_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        plain_settings(given, {"a": (1, 2), "b": (0, float("inf"))})
