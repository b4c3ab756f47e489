"""What cannot be exported is refused in a line, and nothing is left where the file was to be."""

import errno
import os
import shlex
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from mobilemamba.errors import ConfigError, DataError, MobileMambaError, WeightsError
from mobilemamba.export import FORMATS, Options, export_network, verification
from mobilemamba.export import in_runtime as in_runtimes
from mobilemamba.export.format import Format, Source
from mobilemamba.export.quiet import quiet
from mobilemamba.models import optimize_for_inference, read_card, save_weights
from mobilemamba.models.runtime import RUNTIMES, RuntimeNetwork
from mobilemamba_command import main
from tests.export.conftest import CARD, SMALL


class Twice(nn.Module):
    """Answers with the means of the channels, doubled."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.mean((2, 3))


class Plain(Format):
    """A format whose runtime is NumPy: files hold a factor, and beside them a note."""

    name, suffix, extra, writes, reads = "numpy", ".plain", "none", ("numpy",), ("numpy",)
    factor = "2.0"

    def write(self, source: Source, metadata: Any, path: Path) -> None:
        path.with_suffix(".note").write_text(metadata["model_card"])
        path.write_text(self.factor)

    def metadata(self, path: Path) -> dict[str, str]:
        note = path.with_suffix(".note")
        return {"model_card": note.read_text()} if note.exists() else {}

    def load(self, path: Path) -> RuntimeNetwork:
        factor = np.float32(path.read_text())
        return RuntimeNetwork(lambda x: factor * x.mean((2, 3)), (None, 3, 8, 8), "NumPy")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Plain:
    form = Plain()
    monkeypatch.setitem(FORMATS, ".plain", form)
    monkeypatch.setitem(RUNTIMES, ".plain", form)
    return form


def test_all_files_of_an_export_are_replaced_together(plain: Plain, tmp_path: Path) -> None:
    (tmp_path / "x.plain").write_text("old")
    written = export_network(Twice(), SMALL, tmp_path / "x.plain")
    assert written.check is not None
    assert written.check.error == pytest.approx(0, abs=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.note", "x.plain"]
    assert read_card(tmp_path / "x.plain") == SMALL
    assert written.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


@pytest.mark.parametrize("kept", [True, False])
def test_what_is_not_exact_is_refused(plain: Plain, tmp_path: Path, kept: bool) -> None:
    if kept:
        (tmp_path / "x.plain").write_text("old")
    plain.factor = "2.001"
    with pytest.raises(WeightsError, match=r"^x.plain is not written: NumPy is off by 5.0e-04 of the largest logit, w"):
        export_network(Twice(), SMALL, tmp_path / "x.plain")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"] * kept
    export_network(Twice(), SMALL, tmp_path / "x.plain", Options(verify=False))
    plain.factor = "2.0001"
    found = export_network(Twice(), SMALL, tmp_path / "x.plain").check
    assert found is not None
    assert found.error == pytest.approx(5e-5, rel=0.01)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda x: x.no_such_thing, "fails on pictures of 1 x 3 x 8 x 8: 'numpy.ndarray' object has no attribute 'no_"),
        (lambda x: x.mean(3), r"answers with a shape of \(1, 3, 8\) where the network has \(1, 3\)$"),
    ],
)
def test_a_runtime_that_fails_or_answers_otherwise_is_named(
    plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[[np.ndarray], Any], message: str
) -> None:
    monkeypatch.setattr(Plain, "load", lambda *_: RuntimeNetwork(run, (None, 3, 8, 8), "NumPy"))
    with pytest.raises(WeightsError, match=f"^x.plain is not written: NumPy {message}"):
        export_network(Twice(), SMALL, tmp_path / "x.plain")
    assert not list(tmp_path.iterdir())


def test_objects_that_are_not_those_of_the_candidates_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two objects is elsewhere; in any order they are the same."""
    objects = torch.tensor([[[0.0, 0.0, 0.5, 0.5, 0.9, 1.0], [0.2, 0.2, 0.6, 0.6, 0.8, 0.0], [0.0] * 6]])
    monkeypatch.setattr(verification, "objects_of", lambda *_: objects)
    found = objects.flip(1).clone()
    monkeypatch.setattr(Plain, "load", lambda *_: RuntimeNetwork(lambda x: x, (None, 3, 8, 8), "NumPy"))
    monkeypatch.setattr(Plain, "load_objects", lambda *_: lambda _: found)
    given: Any = Plain(), Path("x.plain"), Source(nn.Identity(), 3, (8, 8), 1), None
    verification.check_objects(*given)
    found[0, 1, 2] += 0.1
    message = "^x.plain is not written: 50 % of the objects that NumPy chooses are not those of its candidates$"
    with pytest.raises(WeightsError, match=message):
        verification.check_objects(*given)


def test_nan_is_refused_even_in_8_bits_where_no_limit_holds(plain: Plain, tmp_path: Path) -> None:
    plain.factor, plain.dtypes = "nan", ("int8",)
    with pytest.raises(WeightsError, match=r"^x.plain is not written: NumPy is off by nan of the largest logit"):
        export_network(Twice(), SMALL, tmp_path / "x.plain", Options(dtype="int8"))


def test_probabilities_too_small_for_float32_are_no_inexactness(
    plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sure(pictures: Tensor) -> Tensor:
        return 2000 * pictures.mean((2, 3))

    def load(*_: object) -> RuntimeNetwork:
        run = lambda x: sure(torch.from_numpy(x)).softmax(1).numpy()  # noqa: E731
        return RuntimeNetwork(run, (None, 3, 8, 8), "NumPy", probabilities=True)

    monkeypatch.setattr(Twice, "forward", lambda _, x: sure(x))
    monkeypatch.setattr(Plain, "load", load)
    export_network(Twice(), SMALL, tmp_path / "x.plain", Options(softmax=True))
    assert (tmp_path / "x.plain").exists()


def test_a_folder_is_replaced_only_where_it_is_a_package_of_core_ml(
    plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, ".mlpackage", plain)
    for name in ("x.plain", "x.mlpackage"):
        (tmp_path / name / "inside").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"x.plain: Is a directory; choose"):
        export_network(Twice(), SMALL, tmp_path / "x.plain")
    export_network(Twice(), SMALL, tmp_path / "x.mlpackage")
    assert (tmp_path / "x.mlpackage").read_text() == plain.factor


def full(*_: object) -> None:
    """As a disk without room is."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_nothing(plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(WeightsError, match=r"cannot write .*x.plain: No space left on device; make room on the disk$"):
        export_network(Twice(), SMALL, tmp_path / "x.plain")
    assert not list(tmp_path.iterdir())


def test_a_library_that_fills_the_disk_is_no_riddle(
    plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        raise RuntimeError("iostream error")

    monkeypatch.setattr(Plain, "write", write)
    with pytest.raises(WeightsError, match=r"cannot write .*x.plain for numpy: iostream error$"):
        export_network(Twice(), SMALL, tmp_path / "x.plain")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(WeightsError, match=r"cannot write .*x.plain: No space left on device; make room on the disk$"):
        export_network(Twice(), SMALL, tmp_path / "x.plain")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()])
def test_a_lack_of_memory_is_said_as_such(
    plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> Tensor:
        raise error

    monkeypatch.setattr(Twice, "forward", fail)
    message = "^out of memory with pictures of 8x8 pixels, 3 at a time; give a smaller --size or --batch$"
    with pytest.raises(ConfigError, match=message):
        export_network(Twice(), SMALL, tmp_path / "x.plain", Options(batch=3))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ("x.onx", ConfigError, r"x.onx: expected a name that ends in .onnx or .*; did you mean x.onnx\?"),
        ("x.param --batch 2", ConfigError, "--batch 2: .param files take one picture at a time; leave it out"),
        ("x.param --batch dynamic", ConfigError, ".param files take no dynamic batch; give a number"),
        ("x.param --nms", ConfigError, "--nms: only .onnx and .xml files can choose among boxes; leave it out"),
        ("x.param --dtype int8", ConfigError, "--dtype int8: .param files take float32 or float16"),
        ("bad/y.param", ConfigError, "bad/y.param: y.bin beside it has the weights of bad/y.xml; take another name"),
        ("texts/y.xml", ConfigError, "texts/y.xml: y.bin beside it has the weights of texts/y.param; take another"),
        ("x", ConfigError, r"x: expected a name that ends in .onnx or "),
        ("no/x.onnx", ConfigError, "the target no/x.onnx: there is no folder no; make it, or choose another"),
        ("x.onnx --size 0", ConfigError, "--size 0: expected pixels as 224, height and width as 192x256, or dynamic"),
        (
            "x.onnx --size 9999999",
            ConfigError,
            "--size 9999999x9999999, 1 at a time: expected 89,478,485 pixels at most; give a smaller --size or --batch",
        ),
        ("x.xml --batch 100000", ConfigError, "--size 64x96, 100,000 at a time: expected 89,478,485 pixels at most; g"),
        ("x.onnx --size big", ConfigError, "--size big: expected pixels"),
        ("x.onnx --batch 0", ConfigError, "--batch 0: expected a number of pictures from 1 on, or dynamic"),
        ("x.onnx --opset 9", ConfigError, "--opset 9: expected 18 to 24"),
        (
            "x.onnx --web d --size dynamic",
            ConfigError,
            "--size dynamic with --web d: a page takes one size; give it in pixels",
        ),
        ("x.onnx --calibration empty --no-verify", ConfigError, "--calibration empty: no scales are fitted here, and"),
        ("x.xml --size dynamic --batch 2", ConfigError, "--batch 2 with --size dynamic: .xml files take any number of"),
        ("x.onnx --dtype int8 --calibration bad --size 999999", ConfigError, "--size 999999x999999, 1 at a time: ex"),
        ("x.xml --opset 18", ConfigError, "--opset 18: only .onnx files have one; leave it out"),
        ("x.onnx --dtype int4", ConfigError, "--dtype int4: .onnx files take float32 or float16 or int8"),
        ("x.onnx --dtype int8", ConfigError, "--dtype int8: .onnx files are fitted by pictures; give a folder of some"),
        ("x.onnx --dtype int8 --calibration no", ConfigError, "--calibration no: no such folder; expected a folder"),
        ("x.onnx --dtype int8 --calibration empty", DataError, "--calibration empty: no pictures in it; give some"),
        ("x.onnx --dtype int8 --calibration texts", DataError, r"no pictures in it \(left out, .*1 \.txt\)\); give"),
        ("x.onnx --dtype int8 --calibration bad", DataError, r"bad/x.png"),
        ("x.onnx --model mobilemamba_s6", ConfigError, "is of a mobilemamba_t2, and the model named is mobilemamba_s6"),
    ],
)
def test_mistakes_are_one_line(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, error: type, message: str
) -> None:
    for package in ("onnx", "openvino"):
        pytest.importorskip(package)
    for package in ("writes", "reads"):  # which CI does not have
        monkeypatch.setattr(FORMATS[".param"], package, ())
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "texts", "bad"):
        Path(folder).mkdir()
    Path("texts/x.txt").touch()
    Path("bad/x.png").write_text("no picture")
    for other in ("bad/y.xml", "texts/y.param"):
        Path(other).touch()
    with pytest.raises(error, match=message) as caught:
        main(["export", str(weights), *shlex.split(options)])
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "empty", "texts"]


def test_a_missing_package_is_named(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^.onnx files need onnx: pip install 'mobilemamba\[onnx\]'$"):
        main(["export", str(weights), str(tmp_path / "x.onnx")])
    (tmp_path / "x.xml").touch()
    (tmp_path / "x.png").touch()
    with pytest.raises(ConfigError, match=r"^.xml files need openvino: pip install 'mobilemamba\[openvino\]'$"):
        main(["predict", str(tmp_path), "--weights", str(tmp_path / "x.xml")])


def test_what_converters_and_runtimes_say_stays_off_the_screen(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet():
        print("progress")
        os.write(1, b"native progress")
        os.write(2, b"native warning")
        warnings.warn("old", stacklevel=1)
    print("result")
    os.write(2, b"error")
    assert capfd.readouterr() == ("result\n", "error")


def test_pictures_that_the_network_does_not_take_are_refused(plain: Plain, tmp_path: Path) -> None:
    network = timm.create_model("test_vit", num_classes=3)
    with pytest.raises(ConfigError, match="the network does not take pictures of 3 channels and 8x8 pixels: Inp"):
        export_network(network, SMALL, tmp_path / "x.plain")


def test_networks_with_nan_or_several_answers_are_refused(plain: Plain, tmp_path: Path) -> None:
    def minus_infinity(x: Tensor) -> Tensor:
        return x.mean((2, 3)) + torch.tensor([0.0, -torch.inf, 0.0])

    class Odd(Twice):
        answer: Any = None

        def forward(self, x: Tensor) -> Any:
            return self.answer(x)

    network = Odd()
    refused = "8x8 pixels with NaN or infinity; give weights from before"
    for answer, message in (
        (lambda x: x / 0, refused),
        (minus_infinity, refused),
        (lambda x: (x, x), "answers with a tuple"),
    ):
        network.answer = answer
        with pytest.raises(ConfigError, match=message):
            export_network(network, SMALL, tmp_path / "x.plain")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("fit --weights x.plain --data pictures", "weights=x.plain is an exported network; train the weights it was"),
        ("convert x.plain y.safetensors", "x.plain is an exported network, which only its runtime reads; expected a"),
        ("predict pictures --weights x.mlpackage", "x.mlpackage runs in Core ML, on macOS and iOS alone; give the wei"),
        ("export x.plain y.onnx", "x.plain is an exported network itself; give the weights that it was made of"),
    ],
)
def test_an_exported_network_is_for_answers_alone(
    plain: Plain, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    export_network(Twice(), SMALL, tmp_path / "x.plain")
    (tmp_path / "x.mlpackage").mkdir()
    with pytest.raises(MobileMambaError, match=message):
        main(shlex.split(command.replace("pictures", str(pictures))))


def test_a_network_can_be_run_elsewhere_without_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Made(Plain):
        def load(self, path: Path) -> RuntimeNetwork:
            return RuntimeNetwork(lambda x: 2 * x.mean((2, 3)), made[-1].shape, "")

        def write(self, source: Source, metadata: Any, path: Path) -> None:
            made.append(source)

    for any_batch, one_picture in ((True, False), (False, False), (False, True)):
        monkeypatch.setattr(Made, "any_batch", any_batch)
        monkeypatch.setattr(Made, "one_picture", one_picture)
        monkeypatch.setitem(FORMATS, ".made", Made())
        monkeypatch.setattr("mobilemamba.models.inference.RUNNERS", in_runtimes.runners())
        there = optimize_for_inference(timm.create_model("test_resnet").eval(), runtime="numpy")
        for batch, side in ((1, 8), (3, 8), (2, 16), (3, 8)):
            assert there(torch.ones(batch, 3, side, side)).tolist() == [[2, 2, 2]] * batch
    sizes = [(source.batch, source.size) for source in made]
    of_any, of_fixed = [(None, (8, 8)), (None, (16, 16))], [(1, (8, 8)), (3, (8, 8)), (2, (16, 16))]
    assert sizes == [*of_any, *of_fixed, (1, (8, 8)), (1, (16, 16))]
    with pytest.raises(ConfigError, match="runtime='tensorrt'; expected onnxruntime or openvino"):
        optimize_for_inference(timm.create_model("test_resnet"), runtime="tensorrt")
    with pytest.raises(ConfigError, match=r"runtime='numpy' with torch.bfloat16 on cpu; expected float32"):
        optimize_for_inference(timm.create_model("test_resnet"), torch.bfloat16, runtime="numpy")


def test_the_size_of_the_pictures_can_be_chosen(plain: Plain, tmp_path: Path) -> None:
    card = replace(CARD, model="test_resnet", arch={}, preprocessing=replace(CARD.preprocessing, img_size=(32, 32)))
    save_weights(timm.create_model("test_resnet", num_classes=3), tmp_path / "w.safetensors", card)
    main(["export", str(tmp_path / "w.safetensors"), str(tmp_path / "x.plain"), "--size", "64x96", "--no-verify"])
    assert read_card(tmp_path / "x.plain").preprocessing.img_size == (64, 96)
