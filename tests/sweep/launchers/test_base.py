import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilemamba.sweep.launchers.base import try_row, try_row_elsewhere
from mobilemamba_command import run


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_one_line(
    write: Callable[..., list[str]],
    name: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    # Nothing takes it back, and later tests measure.
    monkeypatch.setattr("mobilemamba.cli.exits.keep_freed_memory", lambda: True)
    options = write({"a": {"model.lr": 0.1}}, launcher=name, slurm={"timeout_min": 60})
    monkeypatch.setattr(sys, "argv", ["mobilemamba", "fit", *options])
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        f"mobilemamba: error: sweep.launcher={name} needs the package {package}, which is not installed; "
        f"pip install 'mobilemamba[{name}]'\n"
    )
    assert not Path("runs").exists()


def test_a_row_is_tried_until_it_is_finished() -> None:
    reasons = iter(["one", None, "three"])
    assert try_row(lambda *_: next(reasons), Path(), {}, threading.Event(), 5) is None
    assert next(reasons) == "three"
    reasons = iter(["one", "two", "three"])
    assert try_row(lambda *_: next(reasons), Path(), {}, threading.Event(), 1) == "two"


def test_elsewhere_a_row_finds_its_files_and_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # where a worker may have been started
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    seen: list[object] = []

    def fit(run_dir: Path, environment: dict[str, str], stop: threading.Event) -> None:
        seen.extend([run_dir.resolve(), environment])

    run_dir = Path("runs/a")
    shares = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    assert "use a folder that all machines share" in str(try_row_elsewhere(fit, run_dir, tmp_path, 0, shares))
    (tmp_path / run_dir).mkdir(parents=True)
    (tmp_path / run_dir / "run.yaml").touch()
    assert try_row_elsewhere(fit, run_dir, tmp_path, 0, shares) is None
    assert seen == [tmp_path / run_dir, {"OMP_NUM_THREADS": "2"}]
