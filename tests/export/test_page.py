"""The page for browsers prepares pictures and reads answers as the predictors do; tried by Node.js and in Chromium."""

import json
import queue
import re
import shlex
import shutil
import subprocess
import threading
from dataclasses import asdict, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from mobilemamba.dense.candidates import RULES_KEY, Rules, RuntimeDetector
from mobilemamba.errors import ConfigError
from mobilemamba.export import web
from mobilemamba.models import ModelCard, Preprocessing, save_weights
from mobilemamba.models.predictor import predictor_of
from mobilemamba.models.runtime import RuntimeNetwork
from mobilemamba_command import main
from tests.export.conftest import awaken
from tests.export.test_dense import answer, card_of, in_runtime, picture

PAGE = Path(web.__file__).with_name("page")
NODE = shutil.which("node")


def in_node(script: str, given: Any, tmp_path: Path) -> Any:
    """What a script that has ``given`` and the page's modules ``prepare`` and ``answers`` calls ``result``."""
    if NODE is None:
        pytest.skip("node is not installed")
    for name in ("prepare", "answers"):
        shutil.copyfile(PAGE / f"{name}.js", tmp_path / f"{name}.mjs")
    (tmp_path / "given.json").write_text(json.dumps(given))
    (tmp_path / "run.mjs").write_text(
        'import { readFileSync, writeFileSync } from "node:fs"; import * as prepare from "./prepare.mjs";'
        'import * as answers from "./answers.mjs"; const given = JSON.parse(readFileSync("given.json"));'
        f'{script}; writeFileSync("result.json", JSON.stringify(result));'
    )
    subprocess.run([NODE, "run.mjs"], check=True, cwd=tmp_path, timeout=60)
    return json.loads((tmp_path / "result.json").read_text())


HOW = Preprocessing((48, 48), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
CASES = {
    "classes": ("classification", HOW),
    "oblong": ("classification", replace(HOW, img_size=(40, 56), interpolation="bilinear", crop_pct=0.9)),
    "lanczos": ("classification", replace(HOW, interpolation="lanczos", crop_pct=1)),
    "nearest": ("classification", replace(HOW, interpolation="nearest")),
    "hamming": ("classification", replace(HOW, interpolation="hamming", crop_pct=1.4)),
    "pixels": ("segmentation", replace(HOW, interpolation="bilinear")),
    "aliased": ("segmentation", replace(HOW, interpolation="bicubic", antialias=False)),
    "stretch": ("detection", replace(HOW, img_size=(40, 56), interpolation="bilinear", resize="stretch")),
    "fit": ("detection", replace(HOW, img_size=(48, 80), interpolation="bicubic", resize="fit")),
}


@pytest.mark.parametrize("size", [(70, 131), (150, 97), (30, 41)])
def test_pictures_are_prepared_as_in_training(tmp_path: Path, size: tuple[int, int]) -> None:
    of, given, expected = picture(*size), [], []
    for task, how in CASES.values():
        head = {"classification": "", "segmentation": "pspnet", "detection": "retinanet"}[task]
        card = ModelCard("test_resnet", how, 3, task=task, head=head)
        network = RuntimeNetwork(lambda x: x, (None, 3, 64, 96), "")
        predictor = predictor_of(network, card, torch.device("cpu"))
        prepared = predictor.prepare(of)
        taken = list(prepared.shape[1:])
        if task != "classification":  # seen as the file's network sees them
            taken = [64, 96]
            if task == "segmentation":
                prepared = nn.functional.interpolate(prepared[None], taken, mode="bilinear", antialias=True)[0]
            else:
                kept = json.dumps(asdict(Rules((), 0, 0, 0, 0, (), 1)))
                own = prepared.shape[1], prepared.shape[2]
                prepared = RuntimeDetector(network, {"kept": kept})._placed(prepared[None], [own])[0][0]
        expected.append(prepared.numpy())
        given.append({"how": {**asdict(how), "task": task}, "size": taken})
    pixels = np.asarray(of)
    found = in_node(
        "const result = given.cases.map(({ how, size }) => Array.from(prepare.input({ width: given.width, height: "
        "given.height, data: Uint8ClampedArray.from(given.data) }, how, size)[0]))",
        {"cases": given, "width": size[1], "height": size[0], "data": pixels.ravel().tolist()},
        tmp_path,
    )
    for name, ours, theirs in zip(CASES, found, expected, strict=True):
        levels = np.abs(np.reshape(ours, theirs.shape) - theirs).max(axis=(1, 2)) * np.array(HOW.std) * 255
        assert levels.max() < 2.01, f"{name}: off by {levels.max():.2f} levels of brightness"
        assert np.abs(np.reshape(ours, theirs.shape) - theirs).mean() < 1e-2, name


def test_answers_are_read_as_by_the_predictors(tmp_path: Path) -> None:
    """Objects that overlap, on a picture that takes a part of the canvas."""
    _, ours = in_runtime("retinanet", (64, 96))
    of, card = picture(192, 128), card_of("retinanet")
    expected = answer(ours, card, of)["objects"]
    assert len(expected) > 3
    predictor = predictor_of(ours, card, torch.device("cpu"))
    placed, shown = ours._placed(predictor.prepare(of)[None], [tuple(predictor.prepare(of).shape[1:])])
    kept = asdict(ours.rules)
    found, classes, (labels, shares) = in_node(
        "const values = Float32Array.from(given.values), { shown } = given;"
        "const of = answers.pixels(values.subarray(0, 12), 3);"
        "const result = [answers.objects(values, given.classes, given.kept, shown, [96, 64]),"
        " answers.classes(values.subarray(0, 7), 2, false), [Array.from(of[0]), of[1]]]",
        {"values": ours(placed).flatten().tolist(), "kept": kept, "classes": card.num_classes, "shown": shown[0][::-1]},
        tmp_path,
    )
    sure = [entry for entry in found if entry["score"] >= 0.3]
    assert [entry["index"] for entry in sure] == [entry["index"] for entry in expected]
    for entry, other in zip(sure, expected, strict=True):
        sides = [side * (128, 192)[place % 2] for place, side in enumerate(entry["box"])]
        assert sides == pytest.approx(other["box"], abs=0.05)
    values = ours(placed).flatten()
    top = values[:7].softmax(0).topk(2)
    assert [entry["index"] for entry in classes] == top.indices.tolist()
    assert [entry["probability"] for entry in classes] == pytest.approx(top.values.tolist(), abs=1e-6)
    assert labels == values[:12].view(3, 4).argmax(0).tolist()
    assert sum(entry["share"] for entry in shares) == pytest.approx(1)


#: Drops a picture on the page, then starts the camera, and tells what it says of the first and that it sees the other.
DROP = """<iframe src="index.html" width="1000" height="800"></iframe><script type="module">
const frame = document.querySelector("iframe");
await new Promise((done) => (frame.onload = done));
const page = frame.contentDocument, of = (id) => page.getElementById(id), files = new DataTransfer();
files.items.add(new File([await (await fetch("of.png")).blob()], "of.png"));
[of("file").files] = [files.files];
of("file").dispatchEvent(new Event("change"));
while (!of("time").textContent && !of("status").className) await new Promise((again) => setTimeout(again, 50));
const said = [...of("answers").children].map((item) => [...item.querySelectorAll("b, span")].map((x) => x.textContent));
const told = [of("status").textContent, of("time").textContent], first = of("answers").firstChild;
of("camera").click();
const tick = () => new Promise((again) => setTimeout(again, 50));
while (of("answers").firstChild === first && !of("status").className) await tick();
const seen = of("status").textContent || of("answers").children.length;
await fetch("said", { method: "POST", body: JSON.stringify([said, ...told, seen]) });
</script>"""


@pytest.fixture
def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or pytest.skip("chromium is not installed")


def in_chromium(chromium: str, folder: Path) -> Any:
    """What the page of a folder says of its ``of.png``."""
    (folder / "drop.html").write_text(DROP)
    said = queue.Queue[Any]()

    class Server(SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            said.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
        options += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a camera
        address = f"http://127.0.0.1:{server.server_port}/drop.html"
        with subprocess.Popen([chromium, *options, address], stderr=subprocess.DEVNULL) as browser:
            try:
                return said.get(timeout=120)
            finally:
                browser.terminate()
                server.shutdown()


def page_of(weights: Path, folder: Path) -> None:
    """Exports weights and writes their page; skips the test where npm does not give what runs it."""
    try:
        main(["export", str(weights), str(weights.with_suffix(".onnx")), "--web", str(folder)])
    except ConfigError as error:
        if "npm" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.slow
def test_the_page_answers_as_the_weights_do(chromium: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    network = awaken(timm.create_model("test_resnet", num_classes=9))
    card = ModelCard("test_resnet", replace(HOW, img_size=(64, 64)), 9, class_names=tuple("abcdefghi"))
    save_weights(network, tmp_path / "w.safetensors", card)
    page_of(tmp_path / "w.safetensors", tmp_path / "page")
    of = picture(120, 90)
    of.save(tmp_path / "page" / "of.png")
    said, status, time, seen = in_chromium(chromium, tmp_path / "page")
    expected = answer(network, card, of)["classes"]
    assert status == ""
    assert [name for name, _ in said] == [entry["name"] for entry in expected]
    for (_, share), entry in zip(said, expected, strict=True):
        assert float(share.removesuffix(" %")) == pytest.approx(100 * entry["probability"], abs=0.3)
    assert re.fullmatch(r"network [\d.]+ ms · preparing [\d.]+ ms", time)
    assert seen == len(said), "the camera's picture has its answer"
    (tmp_path / "page" / "of.png").write_text("no picture")
    said, status, *_ = in_chromium(chromium, tmp_path / "page")
    assert (said, status) == ([], "of.png cannot be read as a picture; choose a JPEG, PNG or WebP file")


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for an exported network, and for npm."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(web, "_about", lambda network: {"network": network.read_text()})
    monkeypatch.setattr(web, "_fetch", lambda folder: (folder / "ort.js").write_text("ort"))
    monkeypatch.setattr(web.shutil, "which", lambda name: name)
    Path("x.onnx").write_text("first")
    return Path("x.onnx")


def test_a_page_replaces_its_former_one_alone(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    for folder in ("empty", "new/page"):
        main(["export", "x.onnx", "--web", folder])
        exported.write_text("second")
        main(["export", "x.onnx", "--web", folder])
        assert Path(folder, "network.onnx").read_text() == "second"
        assert f"to see it: python -m http.server --directory {folder}" in capsys.readouterr().out
        assert {file.name for file in PAGE.iterdir()} < {file.name for file in Path(folder).iterdir()}
    assert sorted(path.name for path in Path().iterdir()) == ["empty", "new", "x.onnx"]
    assert [path.name for path in Path("new").iterdir()] == ["page"]
    Path("empty/mine.txt").touch()
    with pytest.raises(ConfigError, match=r"^--web empty: it holds other files, mine.txt for one; give a new folder$"):
        main(["export", "x.onnx", "--web", "empty"])
    assert Path("empty/mine.txt").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x.onnx --web x.onnx", "--web x.onnx: Not a directory; choose another folder"),
        ("x.onnx --web x.onnx/page", "--web x.onnx/page: (Not a directory|File exists); choose another folder"),
        ("x.onnx", r"export x.onnx to what\? Add --web FOLDER for a page of it"),
        ("w.safetensors --web page", r"export w.safetensors to what\? Add the file to write, e.g. w.onnx"),
        ("w.safetensors y.xml --web page", "--web page: a page runs .onnx files; write one, not y.xml"),
        ("x.onnx --web page --size 64", "a page alone has no other options: name the weights and a new .onnx file"),
        ("x.onnx --web page --dtype float16", "a page alone has no other options: name"),
        ("x.onnx --web page --no-verify", "a page alone has no other options: name"),
    ],
)
def test_mistakes_are_one_line(exported: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        main(["export", *shlex.split(line)])
    assert [path.name for path in Path().iterdir()] == ["x.onnx"]


@pytest.mark.parametrize("batch", [None, 2])
def test_the_page_knows_what_the_file_says(batch: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = {"score_threshold": 0.05, "overlap": 0.5}
    said = {"outputs": "candidates", RULES_KEY: json.dumps(rules)} if batch else {"outputs": "probabilities"}
    shape = [batch, 3, 40, 56]
    runtime = SimpleNamespace(metadata=lambda _: said, load=lambda _: SimpleNamespace(shape=tuple(shape)))
    how = replace(HOW, img_size=(48, 64), upright=False if batch else None)
    card = ModelCard("test_resnet", how, 2, class_names=("a", "b"), data="pets", head="ssdlite" if batch else "")
    monkeypatch.setattr(web, "read_card", lambda _: card)
    monkeypatch.setattr(web, "runtime_of", lambda _: runtime)
    about = web._about(Path("x.onnx"))
    assert (about["size"], about["batch"], about["names"]) == ((40, 56), batch, ("a", "b"))
    assert (about["kept"], about["probabilities"]) == ((rules, False) if batch else (None, True))
    assert about["how"] == {**asdict(how), "task": "classification", "upright": not batch}
    assert about["title"] == ("ssdlite on test_resnet" if batch else "test_resnet")
    assert about["about"].startswith(f"{about['title']}, trained on pets; 64 x 48 px; written by mobilemamba ")
    assert len(set(about["palette"])) == 2
    shape[2:] = [None, None]
    with pytest.raises(ConfigError, match=r"^x.onnx takes pictures of any size; export it anew with a size, for the p"):
        web._about(Path("x.onnx"))
    card = replace(card, in_chans=1)
    with pytest.raises(ConfigError, match=r"^x.onnx: a page shows pictures of three colours, and their classes$"):
        web._about(Path("x.onnx"))


def test_npm_is_named_where_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web.shutil, "which", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"^--web x: the page needs onnxruntime-web@[\d.]+, which npm fetches; install"
    ):
        web.check_page(Path("x"))
    done = subprocess.CompletedProcess([], 1, "", "npm error network\nrequest failed")
    monkeypatch.setattr(web.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(ConfigError, match=r"^npm cannot fetch onnxruntime-web@.*: network request failed; see"):
        web._fetch(tmp_path)
