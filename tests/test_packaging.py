"""What is built is what is needed: the typing marker and the sample with its licence."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from mobilemamba.version import __version__


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: install the extra 'test'")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.mark.slow  # it compiles the kernels
def test_wheel_holds_marker_and_sample(root: Path, wheel: zipfile.ZipFile) -> None:
    sample = root / "mobilemamba" / "data" / "sample"
    expected = {"mobilemamba/py.typed", *(f"mobilemamba/data/sample/{file.name}" for file in sample.iterdir())}
    assert {Path(name).name for name in expected} >= {"LICENSE", "t10k-images-idx3-ubyte.gz"}
    assert expected <= set(wheel.namelist())


@pytest.mark.slow  # it compiles the kernels
def test_wheel_holds_every_module_and_nothing_else(root: Path, wheel: zipfile.ZipFile) -> None:
    modules = {file.relative_to(root).as_posix() for file in (root / "mobilemamba").rglob("*.py")}
    packed = set(wheel.namelist())
    assert modules <= packed
    top = {"mobilemamba", "mobilemamba_command.py", f"mobilemamba-{__version__}.dist-info"}
    assert {name.split("/")[0] for name in packed} == top


@pytest.mark.slow  # it compiles the kernels
def test_wheel_metadata(wheel: zipfile.ZipFile) -> None:
    metadata = wheel.read(f"mobilemamba-{__version__}.dist-info/METADATA").decode()
    assert "License-Expression: MIT" in metadata
    scripts = wheel.read(f"mobilemamba-{__version__}.dist-info/entry_points.txt").decode()
    assert "mobilemamba = mobilemamba_command:run" in scripts


def test_every_lower_bound_says_why(root: Path) -> None:
    text = (root / "pyproject.toml").read_text()
    lines = text.splitlines()
    for requirement in tomllib.loads(text)["project"]["dependencies"]:
        at = next(i for i, line in enumerate(lines) if f'"{requirement}"' in line)
        assert "#" in lines[at] or lines[at - 1].lstrip().startswith("#"), requirement
