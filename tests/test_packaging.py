"""What is built is what is needed: the typing marker, the sample with its licence, the compiled kernels."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from mobilemamba.ops.native.build import LIBRARY
from mobilemamba.version import __version__
from tests.ops.test_native_build import fake_compiler


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, as building puts the library beside its sources; by a compiler that compiles nothing."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: install the extra 'test'")
    folder, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    shutil.copytree(root / "mobilemamba", source / "mobilemamba")
    for name in ("pyproject.toml", "hatch_build.py", "mobilemamba_command.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(root / name, source)
    environment = os.environ | {"CC": fake_compiler(tmp_path_factory.mktemp("compiler"), refused="-nothing")}
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_wheel_holds_marker_and_sample(root: Path, wheel: zipfile.ZipFile) -> None:
    sample = root / "mobilemamba" / "data" / "sample"
    expected = {"mobilemamba/py.typed", *(f"mobilemamba/data/sample/{file.name}" for file in sample.iterdir())}
    assert {Path(name).name for name in expected} >= {"LICENSE", "t10k-images-idx3-ubyte.gz"}
    assert expected <= set(wheel.namelist())


def test_wheel_holds_every_module_and_nothing_else(root: Path, wheel: zipfile.ZipFile) -> None:
    modules = {file.relative_to(root).as_posix() for file in (root / "mobilemamba").rglob("*.py")}
    packed = set(wheel.namelist())
    assert modules <= packed
    top = {"mobilemamba", "mobilemamba_command.py", f"mobilemamba-{__version__}.dist-info"}
    assert {name.split("/")[0] for name in packed} == top


def test_wheel_holds_the_kernels_of_its_platform(root: Path, wheel: zipfile.ZipFile) -> None:
    packed = wheel.read(LIBRARY.relative_to(root).as_posix()).decode()
    assert "-shared" in packed.split()  # how the compiler was called
    assert not str(wheel.filename).endswith("-any.whl")


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
