"""What every test gets: one thread, a fixed seed, and the way to the optional test data."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Others may have the processor: how long an example takes says nothing.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    gc.disable()
    # The suite runs on all cores already (pytest-xdist); more threads would only make results wait for each other.
    os.environ["OMP_NUM_THREADS"] = "1"  # torch's, and those of the processes that tests start
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # else processes that first import torch


def pytest_collectstart() -> None:
    """Imports torch only where tests are collected: pytest-xdist's first process hands them out, and runs none."""
    # Before whatever else a test imports: if some other module asks typing for Optional[Union[float, int]] first, its
    # cache gives Lightning that for Optional[Union[int, float]], and a command line's `1` batch becomes `1.0`, all of
    # them.
    import lightning.pytorch  # noqa: F401
    import torch

    torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: else one worker ends with a long test while the others have nothing left to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)  # by file, as a file's tests share what it sets up


def pytest_collection_finish() -> None:
    """What is imported and collected is no garbage: to look through it again and again took a tenth of the time."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_process_for_the_next_test() -> Iterator[None]:
    """Other threads change bits, and a process group makes every later training one of several processes."""
    import torch

    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    yield
    for name in os.environ.keys() - environment.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]  # Lightning's seeds and addresses
    os.environ.update(environment)
    assert torch.get_num_threads() == 1
    assert not torch.distributed.is_initialized()


@pytest.fixture(autouse=True)
def _forget_the_automatic_backend() -> Iterator[None]:
    """A test that plays a machine without some backend must not choose for those after it."""
    from mobilemamba.ops.backends import forget_choices

    yield
    forget_choices()


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings leave empty pictures: to draw them takes longer than a tiny training, and has tests of its own."""
    from PIL import Image

    examples = "mobilemamba.training.callbacks.examples.ValidationExamples._draw"
    monkeypatch.setattr(examples, lambda *_: [Image.new("RGB", (1, 1))])
    for draw in ("draw_curves", "draw_confusion"):
        monkeypatch.setattr(f"mobilemamba.training.callbacks.plots.{draw}", lambda _, __, path, *___: path.touch())


@pytest.fixture
def short_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks that time a call a round after a first one, beside the limits of a small machine."""
    from mobilemamba.analysis import timing
    from mobilemamba.analysis.benchmark import ceilings

    def one_call(clock: timing.Clock, *_: float) -> int:
        clock(1)
        return 1

    monkeypatch.setattr(timing, "calls_per_round", one_call)
    monkeypatch.setattr(ceilings, "MATRIX_SIDE", {"cpu": 16, "cuda": 16})
    monkeypatch.setattr(ceilings, "COPIED_BYTES", {"cpu": 4096, "cuda": 4096})


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the repository with test data that may not be redistributed."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder '{folder.name}' beside the repository: its data may not be redistributed")
    return folder
