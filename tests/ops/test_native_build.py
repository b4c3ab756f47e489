"""The compiled kernels' making and absence, and the other tests once more under sanitizers and for other processors."""

import ctypes
import os
import platform
import random
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mobilemamba.errors import BackendUnavailableError
from mobilemamba.ops.backends import forget_choices
from mobilemamba.ops.kernels import describe_kernels
from mobilemamba.ops.native import build, library
from mobilemamba.ops.native.build import CompilationError, compile_library
from mobilemamba.ops.native.structures import STRUCTURES
from mobilemamba.ops.selective_scan import BACKENDS
from tests.ops.scans import needs_native, threads
from tests.ops.test_arguments import valid_arguments

COMPILER = next((c for c in map(shutil.which, ("cc", "gcc", "clang")) if c), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler (cc, gcc or clang)")
needs_gnu = pytest.mark.skipif(platform.system() != "Linux", reason="--wrap is an option of GNU's linker")
FUNCTIONS = ("scan_forward", "scan_backward", "scan_scratch", "depthwise", "wavelet")

# Notes how it was called, in place of the library; "$last" is the argument after -o.
FAKE_COMPILER = """#!/bin/sh
for last; do :; done
echo "$@" >> "{folder}/calls"
case " $* " in *{refused}*) echo "a warning" >&2; echo "error: {refused} is refused" >&2; exit 1;; esac
echo "$@" > "$last"
"""


def fake_compiler(folder: Path, refused: str) -> str:
    script = folder / "compiler"
    script.write_text(FAKE_COMPILER.format(folder=folder, refused=refused))
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where to write a library; an older one is there."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "kernels.so").write_text("older")
    return folder / "kernels.so"


def assert_as_it_was(target: Path) -> None:
    assert target.read_text() == "older"
    assert [file.name for file in target.parent.iterdir()] == [target.name]


# Making it


def test_a_compiler_that_is_not_there(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nonexistent -O1")
    with pytest.raises(CompilationError, match=r"^/nonexistent: No such file or directory$"):
        compile_library(target)
    assert_as_it_was(target)


def test_no_compiler_at_all(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompilationError, match=r"^no C compiler \(gcc or clang\)$"):
        compile_library(target)
    assert_as_it_was(target)


def test_a_compiler_that_refuses_is_quoted_in_one_line(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", fake_compiler(target.parent.parent, refused="-O3"))
    with pytest.raises(CompilationError, match=r"^error: -O3 is refused$"):
        compile_library(target)
    assert_as_it_was(target)


@pytest.mark.parametrize(
    ("refused", "calls", "kept"),
    [
        ("-nothing", 1, {"-fopenmp", "-DMOBILEMAMBA_CLONES"}),
        ("-DMOBILEMAMBA_CLONES", 2, {"-fopenmp"}),
        ("-fopenmp", 3, {"-DMOBILEMAMBA_CLONES"}),
    ],
)
def test_what_a_compiler_does_not_know_is_left_out(
    target: Path, monkeypatch: pytest.MonkeyPatch, refused: str, calls: int, kept: set[str]
) -> None:
    monkeypatch.setenv("CC", fake_compiler(target.parent.parent, refused) + " -extra='two words'")
    assert compile_library(target, ("-g",)) == target
    used = target.read_text().split()
    assert {"-fopenmp", "-DMOBILEMAMBA_CLONES"} & set(used) == kept
    assert {"-extra=two", "-g", "-O3", "-shared"} <= set(used)
    called = (target.parent.parent / "calls").read_text().splitlines()
    for source in build.HERE.glob("*.c"):
        assert sum(str(source) in line.split() for line in called) == calls
        assert f"{source.stem}.o" in [Path(word).name for word in used]
    assert [file.name for file in target.parent.iterdir()] == [target.name]


def test_the_command_fails_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/nonexistent")
    before = build.LIBRARY.stat() if build.LIBRARY.exists() else None
    with pytest.raises(SystemExit) as caught:  # Python prints what is no number, and exits with 1
        runpy.run_module("mobilemamba.ops.native", run_name="__main__")
    assert caught.value.code == "mobilemamba's CPU kernels were not built: /nonexistent: No such file or directory"
    assert before == (build.LIBRARY.stat() if build.LIBRARY.exists() else None)


@needs_compiler
def test_the_sources_compile_without_warnings(target: Path) -> None:
    """Not optimised, which is quick."""
    compiled = ctypes.CDLL(str(compile_library(target, ("-O0", "-UMOBILEMAMBA_CLONES", "-Werror"))))
    assert all(hasattr(compiled, f"mobilemamba_{name}") for name in FUNCTIONS)


# Doing without


@pytest.fixture
def fresh_choice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forgets what was loaded and chosen before, and after; nothing is switched off."""
    monkeypatch.delenv("MOBILEMAMBA_NATIVE", raising=False)
    caches = (library._load.cache_clear, forget_choices)
    for clear in caches:
        clear()
    yield
    monkeypatch.undo()
    for clear in caches:
        clear()


def assert_unavailable(reason: str) -> None:
    """``auto`` takes the next backend, and an explicit choice fails with the reason in one line."""
    cpu = torch.device("cpu")
    assert BACKENDS.choose("auto", cpu, torch.float32).name == "chunked"
    with pytest.raises(BackendUnavailableError) as error:
        BACKENDS.choose("native", cpu, torch.float32)
    assert str(error.value).startswith(f"scan backend 'native' cannot run here: {reason}")
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("fresh_choice")
def test_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "none.so")
    assert_unavailable("not compiled; install gcc or clang, then: python -m mobilemamba.ops.native")


@pytest.mark.usefixtures("fresh_choice")
def test_not_a_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "broken.so"
    path.write_text("not a library, but longer than the header of one. " * 10)
    monkeypatch.setattr(library, "LIBRARY", path)
    assert_unavailable(f"cannot be loaded: {path}: ")


@needs_native
@pytest.mark.usefixtures("fresh_choice")
def test_compiled_from_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "fingerprint", lambda: "another")
    assert_unavailable("compiled from other sources; install gcc or clang, then: python -m")


def test_the_fingerprint_is_of_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(build.HERE, tmp_path / "native")
    seen = {build.fingerprint()}
    monkeypatch.setattr(build, "HERE", tmp_path / "native")
    assert {build.fingerprint()} == seen
    for source in sorted((tmp_path / "native").glob("*.[ch]")):
        source.write_text(source.read_text() + "\n")
        assert build.fingerprint() not in seen
        seen.add(build.fingerprint())


@pytest.mark.usefixtures("fresh_choice")
def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEMAMBA_NATIVE", "0")
    assert_unavailable("switched off by MOBILEMAMBA_NATIVE=0. Use backend='auto', or see: mobilemamba backends")


# A poor library: no OpenMP, and no memory


NO_MEMORY = """
#include <stddef.h>
void *__wrap_aligned_alloc(size_t a, size_t b);
void *__wrap_aligned_alloc(size_t a, size_t b) { (void)a, (void)b; return 0; }
"""


@pytest.fixture(scope="module")
def poor_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("poor")
    (folder / "none.c").write_text(NO_MEMORY)
    subprocess.run([COMPILER, "-c", "-fPIC", folder / "none.c", "-o", folder / "none.o"], check=True)
    flags = ("-O0", "-UMOBILEMAMBA_CLONES", "-fno-openmp", "-Wl,--wrap=aligned_alloc", str(folder / "none.o"))
    return compile_library(folder / "kernels.so", flags)


@pytest.fixture
def poor(poor_library: Path, fresh_choice: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LIBRARY", poor_library)


@needs_compiler
@needs_gnu
@pytest.mark.usefixtures("poor")
def test_without_openmp_it_says_that_it_has_one_thread() -> None:
    with threads(2):
        line = describe_kernels(torch.device("cpu"))
    assert line == (
        "kernels: scan native, wavelet native, batch norm native, 2 threads, but 1 in the compiled kernels (their "
        "compiler had no OpenMP; install gcc, or clang with libomp, then: python -m mobilemamba.ops.native)"
    )


@needs_compiler
@needs_gnu
@pytest.mark.usefixtures("poor")
def test_a_lack_of_memory_is_an_error() -> None:
    for name, arguments in valid_arguments(random.Random(0)).items():
        operator = getattr(torch.ops.mobilemamba, name).default
        if name in ("depthwise_conv", "stem_conv"):  # which need none
            assert operator(*arguments).isfinite().all()
            continue
        with pytest.raises(MemoryError, match="no memory for its intermediate results; use smaller"):
            operator(*arguments)


@needs_native
@pytest.mark.usefixtures("fresh_choice")
def test_structures_that_are_not_c_s(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(ctypes.Structure):
        _fields_ = (("more", ctypes.c_char * 1000),)

    for name in STRUCTURES:
        library._load.cache_clear()
        with monkeypatch.context() as patch:
            patch.setitem(STRUCTURES, name, Longer)
            assert re.match(rf"compiled with \d+ bytes of {name}, where Python has 1000; ", library.why_not() or "")


# Other libraries of the same sources, through the same tests


#: Runs the tests with each of the libraries in one process: to import everything takes as long as the tests.
RERUN = """
import gc
import sys
from pathlib import Path

gc.disable()  # what is imported is no garbage; the tests enable it

import pytest

from mobilemamba.ops.native import library

libraries, options = sys.argv[1].split(), sys.argv[2:]
for compiled in libraries:
    library.LIBRARY = Path(compiled)
    library._load.cache_clear()
    if code := pytest.main(options):
        sys.exit(code)
"""


def rerun(compiled: list[Path], env: dict[str, str] | None = None) -> None:
    """Runs the kernels' tests in a new process, with these libraries one after the other."""
    here = Path(__file__).parent
    files = [
        str(here / f"test_{name}.py") for name in ("scan_2d", "selective_scan", "inference", "batch_norm", "arguments")
    ]
    plugins = [option for name in ("no:cacheprovider", "no:xdist") for option in ("-p", name)]
    # A sanitizer reports to the file, and ends the process.
    options = ["-q", "-x", "--capture=sys", *plugins, "-k", KERNEL_TESTS]
    result = subprocess.run(
        [sys.executable, "-c", RERUN, " ".join(map(str, compiled)), *options, *files],
        cwd=here.parents[1],
        env=os.environ | {"MOBILEMAMBA_NATIVE": "1"} | (env or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    assert "skipped" not in result.stdout  # which they are if the library does not load
    passed = re.findall(r"^(\d+) passed", result.stdout, re.MULTILINE)
    assert len(passed) == len(compiled), "every library has its turn"


# torch.compile and opcheck have nothing to do with the compiled code, and take long. Of the long sequences, whose
# expected values take longest, 225 is enough.
KERNEL_TESTS = (
    "(native or scan_norm_gate or mix_channels or depthwise or batch_norm or bits) "
    "and not opcheck and not operator_knows and not compile and not export and not traced and not 196"
)


def runtime_of_the_sanitizer() -> str | None:
    """The libraries that a process must load first if it is to load a sanitized one; the second for its exceptions."""
    if COMPILER is None or platform.system() != "Linux":
        return None
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        command = [COMPILER, f"-print-file-name={name}"]
        path = Path(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
        if not path.is_absolute() or not path.exists():
            return None
        found.append(str(path.resolve()))
    return " ".join(found)


@pytest.mark.slow
@needs_compiler
def test_no_access_out_of_bounds_and_nothing_undefined(tmp_path: Path) -> None:
    runtime = runtime_of_the_sanitizer()
    if runtime is None:
        pytest.skip("there is no libasan.so, or no libstdc++.so, beside the C compiler")
    # For one instruction set and not optimised: the C is the same, and takes as long to compile as all that follows.
    checks = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
    compiled = compile_library(tmp_path / "kernels.so", (*checks, "-g1", "-O0", "-UMOBILEMAMBA_CLONES"))
    # Python does not free all at its end. Fresh memory is NaN, so that what is read before it is written stands out.
    options = "detect_leaks=0:max_malloc_fill_size=1000000000:malloc_fill_byte=255"
    rerun([compiled], {"LD_PRELOAD": runtime, "ASAN_OPTIONS": options})


@pytest.mark.slow
@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere there is one instruction set")
def test_each_instruction_set(tmp_path: Path) -> None:
    """Of those that are compiled, the loader picks the best: the others are not otherwise tested."""
    features = {"x86-64": "fpu", "x86-64-v3": "avx2", "x86-64-v4": "avx512vl"}
    processor = Path("/proc/cpuinfo")
    known = processor.read_text().split() if processor.exists() else []
    *others, _ = [name for name, feature in features.items() if feature in known] or [""]
    if not others:
        pytest.skip("all other tests run at x86-64 here, or this processor is not known to be of another")
    # Not -O3, which all other tests run: it takes twice as long to compile.
    flags = {level: ("-UMOBILEMAMBA_CLONES", "-O2", f"-march={level}") for level in others}
    rerun([compile_library(tmp_path / f"{level}.so", chosen) for level, chosen in flags.items()])
