"""Imports go only downwards: reads every import of the package without running it."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "mobilemamba"

# What each layer may import, besides itself and BASE. `data` loads lightning, so only what may do that stands on it.
BASE = {"allocator", "cpus", "drawing", "errors", "files", "scores", "screen", "signals", "text", "version"}
_NETWORK = {"ops", "layers", "models", "dense"}
_INSPECTION = {*_NETWORK, "analysis", "export"}
_FIT = {*_INSPECTION, "training", "data"}
MAY_IMPORT = {
    **{name: set[str]() for name in BASE},
    "data": set[str](),
    "ops": set[str](),
    "layers": {"ops"},
    "models": {"ops", "layers", "data"},
    "dense": {"ops", "layers", "models"},
    "analysis": {*_NETWORK, "data"},
    "export": {*_NETWORK, "data"},
    "training": {*_INSPECTION, "data"} - {"dense"},
    "tasks": _FIT,
    "sweep": {*_FIT, "tasks"},
    "cli": {*_FIT, "tasks", "sweep", ""},
    "tools": {*_FIT, "tasks", "sweep", "cli", ""},
    "__main__": set[str](),
    "__init__": _INSPECTION,
}
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}
_SCAN, _LAUNCHERS = "ops/selective_scan/", "sweep/launchers/"
OPTIONAL = {
    "triton": "ops/",
    "mamba_ssm": _SCAN,
    "selective_scan_cuda": _SCAN,
    "ray": _LAUNCHERS,
    "submitit": _LAUNCHERS,
}


class Import(NamedTuple):
    file: str  # below the package, with slashes
    line: int
    module: str
    lazy: bool  # inside a function

    @property
    def at(self) -> str:
        return f"mobilemamba/{self.file}:{self.line} imports {self.module}"

    @property
    def layer(self) -> str:
        return self.file.split("/")[0].removesuffix(".py")


def imports_of(source: str, file: str) -> Iterator[Import]:
    """Yield each import statement and ``import_module("...")`` call; relative ones are made absolute."""
    package = ["mobilemamba", *file.split("/")[:-1]]

    def visit(node: ast.AST, *, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(file, node.lineno, alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from mobilemamba import x` imports the submodule x, if there is one.
            names = [f"{base}.{a.name}" for a in node.names] if base == "mobilemamba" else [base]
            yield from (Import(file, node.lineno, name, lazy) for name in names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield Import(file, node.lineno, node.args[0].value, lazy)
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy=inside)

    return visit(ast.parse(source), lazy=False)


def layer_of(module: str) -> str:
    """The layer a module of the package belongs to; '' for the package itself and names in its __init__."""
    part = [*module.split("."), ""][1]
    is_module = (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()
    return part if part and is_module else ""


def broken_rules(found: Import) -> Iterator[str]:
    top = found.module.split(".")[0]
    if top == "mobilemamba":
        own, other = found.layer, layer_of(found.module)
        if own not in MAY_IMPORT:
            yield f"{found.at}, but '{own}' is no layer: give it a place in MAY_IMPORT"
        elif other != own and other not in MAY_IMPORT[own] | BASE:
            yield f"{found.at}, but '{own}' may import only {sorted(MAY_IMPORT[own] | BASE)}"
    if top in LIGHTNING:
        allowed = found.layer in {"cli", "tools", "__main__", "sweep", "tasks", "data"}
        if not allowed and not found.file.startswith("training/callbacks"):
            yield f"{found.at}, but lightning belongs to cli, sweep, tasks, training/callbacks and data"
    if top in OPTIONAL:
        if not found.file.startswith(OPTIONAL[top]):
            yield f"{found.at}, but {top} belongs to {OPTIONAL[top].rstrip('/')}"
        if not found.lazy:
            yield f"{found.at} at its top: {top} is optional, import it inside a function"
    if found.layer == "layers" and "native" in found.module.split("."):
        yield f"{found.at}, but layers know no kernel: import the operation"
    if top in {"experiments", "notebooks", "tests"}:
        yield f"{found.at}, but nothing in the package may"


def test_imports_go_only_downwards() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert files
    broken = [
        rule
        for file in files
        for found in imports_of(file.read_text(), file.relative_to(PACKAGE).as_posix())
        for rule in broken_rules(found)
    ]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("ops/wavelet.py", "from mobilemamba.layers import ss2d"),
        ("ops/wavelet.py", "from ..layers.ss2d import SS2D"),
        ("ops/wavelet.py", "from mobilemamba import layers"),
        ("ops/wavelet.py", "import mobilemamba"),
        ("models/fuse.py", "def f():\n    from mobilemamba.tasks import classification"),
        ("models/fuse.py", "from lightning import Trainer"),
        ("training/schedule.py", "import lightning.pytorch"),
        ("export/onnx.py", "from mobilemamba.tasks import x"),
        ("layers/ss2d.py", "import triton"),
        ("layers/ss2d.py", "from mobilemamba.ops.selective_scan.native import Scan"),
        ("ops/selective_scan/triton.py", "import triton.language as tl"),
        ("ops/selective_scan/cuda.py", "from importlib import import_module\nimport_module('selective_scan_cuda')"),
        ("cli.py", "import experiments"),
        ("stray.py", "import mobilemamba.ops"),
    ],
)
def test_a_forbidden_import_is_found(file: str, source: str) -> None:
    assert [rule for found in imports_of(source, file) for rule in broken_rules(found)]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "layers/ss2d.py",
            "from ..ops.wavelet import dwt2d\nfrom .residual import Residual\nfrom ..errors import ConfigError",
        ),
        ("ops/selective_scan/triton.py", "def f():\n    import triton"),
        ("training/callbacks.py", "import lightning"),
        ("training/callbacks/ema.py", "import lightning"),
        ("data/base.py", "from lightning import LightningDataModule"),
        ("tasks/classification.py", "from mobilemamba.data import ImageDataModule"),
    ],
)
def test_an_allowed_import_passes(file: str, source: str) -> None:
    assert not [rule for found in imports_of(source, file) for rule in broken_rules(found)]
