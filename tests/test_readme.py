"""The README and the pages of docs/ are true: their Python runs, their commands run, their counts are the package's."""

import re
import shlex
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from mobilemamba.analysis import complexity
from mobilemamba.cli import plan
from mobilemamba.data import FashionObjects, FashionScenes
from mobilemamba.models import VARIANTS, ModelCard, Preprocessing, save_weights
from mobilemamba.models.checkpoints import build_network
from mobilemamba.models.release_names import ours_to_release
from mobilemamba.sweep import row
from mobilemamba_command import main
from tests.ops.scans import needs_native
from tests.sweep.conftest import fake_command

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    """The code of all pages in a language, as often as it is there."""
    return [
        block
        for page in PAGES
        for block in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    ]


def commands() -> list[str]:
    """Each command of the pages once."""
    lines = [line.partition(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line))


# What shortens a training without changing what the command does.
SHORT = [
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=1",
    "--trainer.limit_val_batches=1",
    "--data.init_args.img_size=32",
    "--data.init_args.batch_size=4",
    "--table_size=null",
]
TOOLS = [c for c in commands() if re.match(r"mobilemamba (summary|backends|convert|predict|benchmark|erf)", c)]
FIT = [command for command in commands() if command.startswith("mobilemamba fit")]
AFTER_SWEEP = [c for c in commands() if re.match(r"mobilemamba (report|validate --config)", c)]
VALIDATE = [c for c in commands() if c.startswith("mobilemamba validate") and c not in AFTER_SWEEP]
# The same for a benchmark; its modes that compile have tests of their own.
SHORT_BENCHMARK = ["--batch=1", "--rounds=1", "--seconds=0.001", "--mode=eager", "--layout=contiguous", "--no-memory"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: the experiments, own pictures, released weights."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    names = {"my_pictures": ("red", "blue"), "my_imagenet": ("n01440764", "n01443537")}
    for data, labels in names.items():
        for part, count in (("train", 4), ("val", 2)):
            for label, colour in zip(labels, ((200, 0, 0), (0, 0, 200)), strict=True):
                (folder / data / part / label).mkdir(parents=True)
                for number in range(count):
                    Image.new("RGB", (40, 36), colour).save(folder / data / part / label / f"{number}.jpg")
    release = timm.create_model("mobilemamba_s6")
    torch.save({"net": ours_to_release(release.state_dict())}, folder / "mobilemamba_s6.pth")
    torch.save(timm.create_model("tresnet_v2_l").state_dict(), folder / "tresnet_v2_l.pth")
    preprocessing = Preprocessing.of_model("mobilemamba_s6")
    save_weights(release, folder / "s6_imagenet.safetensors", ModelCard("mobilemamba_s6", preprocessing))
    own = ModelCard("mobilemamba_s6", preprocessing, num_classes=2, class_names=names["my_pictures"])
    (folder / "runs/default").mkdir(parents=True)
    save_weights(timm.create_model("mobilemamba_s6", num_classes=2), folder / "runs/default/best.safetensors", own)
    scenes = {"num_classes": 11, "class_names": FashionScenes.class_names, "task": "segmentation", "head": "pspnet"}
    segmenter = ModelCard("test_resnet", Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3, "bilinear"), **scenes)
    (folder / "runs/sem_fpn").mkdir()
    save_weights(build_network(segmenter), folder / "runs/sem_fpn/best.safetensors", segmenter)
    objects = {"num_classes": 10, "class_names": FashionObjects.class_names, "task": "detection", "head": "ssdlite"}
    detector = ModelCard("test_resnet", Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3, "bilinear"), **objects)
    (folder / "runs/ssdlite_320").mkdir()
    save_weights(build_network(detector), folder / "runs/ssdlite_320/best.safetensors", detector)
    return folder


@needs_native
@pytest.mark.parametrize(
    ("block", "printed"),
    [*zip(blocks("python"), ("[2, 10]", "('red', 'blue')", "stages.2 (3, 3) (64.0, 64.0)"), strict=True)],
)
def test_python_runs(
    block: str, printed: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    exec(compile(block, "README.md", "exec"), {})
    assert printed in capsys.readouterr().out


def test_model_table_is_counted() -> None:
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            found = complexity(timm.create_model(name), variant.img_size)
        row = f"| `{name}` | {variant.img_size} | {found.params:,} | {found.flops:,} | {variant.paper_top1} |"
        assert row in README.read_text()


def shortened(command: str) -> list[str]:
    if " erf " in command:
        return ["--pictures=1", "--size=64"]
    if "benchmark" not in command:
        return []
    if "plot" in command:  # which is of published sizes
        return SHORT_BENCHMARK
    size = "--size=32,64" if "--scaling" in command else "--size=64"
    if "--ops" in command:  # which measures no networks, so has neither mode nor layout
        return [size, *(option for option in SHORT_BENCHMARK if "mode" not in option and "layout" not in option)]
    if "--train" in command:  # whose norms need two pictures
        return [size, "--batch=2", *SHORT_BENCHMARK[1:]]
    return [size, *SHORT_BENCHMARK]


@pytest.mark.usefixtures("short_benchmarks")
@pytest.mark.parametrize("command", [pytest.param(c, marks=pytest.mark.slow) if "benchmark" in c else c for c in TOOLS])
def test_tools(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    tool = import_module("mobilemamba.tools.benchmark")  # the package has the function by that name
    for default in ("DEFAULT_MODELS", "SCALED_MODELS", "BACKBONES"):  # long lists, which have tests of their own
        monkeypatch.setattr(tool, default, ("mobilemamba_t2", "efficientvit_m2"))
    release_only = "convert" in command
    if release_only:
        command = command.replace("s6_imagenet", "converted")
    main(shlex.split(command)[1:] + shortened(command))
    assert capsys.readouterr().out.strip()
    assert not release_only or (folder / "converted.safetensors").exists()


def give(line: list[str]) -> None:
    main(line)
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.usefixtures("without_plots")
@pytest.mark.parametrize("command", FIT + VALIDATE)
def test_trains(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as written but short; a sweep's selection is cut to one row, as every row has a test of its own.

    The row is a stand-in that takes no time: a sweep of the same file is trained below.
    """
    monkeypatch.chdir(folder)
    if "ablation" in command:
        monkeypatch.setattr(row, "_command", fake_command)
    short = list(SHORT)
    if command.startswith("mobilemamba validate"):
        short = [option for option in short if "limit_train" not in option and "table" not in option]
        short = [option for option in short if "max_epochs" not in option]
    elif "sweep.grid" in command:
        short.append("--sweep.only=haar*=0")
    elif "sweep null" not in command and "ablation" in command:
        short.append("--sweep.only=xi_876_mu_223")
    number = commands().index(command)
    name = [] if command.startswith("mobilemamba validate") else [f"--name=readme-{number}"]
    give([*shlex.split(command)[1:], *short, *name])
    if "dry_run" not in command and not command.startswith("mobilemamba validate"):
        assert list((folder / "runs" / f"readme-{number}").rglob("results.json"))


@pytest.mark.slow
def test_after_a_sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    sweep = "mobilemamba fit --config experiments/ablation_xi.yaml --sweep.only xi_876_mu_223"
    for command in (" ".join([sweep, *SHORT]), *(c.replace("--config", f"{SHORT[2]} --config") for c in AFTER_SWEEP)):
        give(shlex.split(command)[1:])
    assert list((folder / "runs" / "report").glob("report.html"))


def test_the_example_of_a_sweep_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("yaml")
    Path("my_sweep.yaml").write_text(example)
    assert len(plan(["--config", "my_sweep.yaml"])) == 4


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in commands():
        if command.startswith("make"):
            assert re.search(rf"^{command.split()[1]}:", makefile, re.MULTILINE)


def test_make_ablation_is_the_sweep() -> None:
    planned = subprocess.run(["make", "-n", "ablation"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "mobilemamba fit --config experiments/ablation_xi.yaml" in planned


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "experiments/README.md", ROOT / "CONTRIBUTING.md"], ids=lambda p: p.stem
)
def test_links_lead_somewhere(page: Path) -> None:
    for target, heading in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not heading or heading in anchors(path), f"{target}#{heading}"


def anchors(page: Path) -> list[str]:
    """The headings of a page, as GitHub writes them in a link."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_the_readme_leads_to_every_page() -> None:
    linked = re.findall(r"\]\((docs/\w+\.md)\)", README.read_text())
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(linked)
