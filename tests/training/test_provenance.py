"""What a run says about its network, its memory and its source."""

import contextlib
import json
import subprocess

import pytest
import torch

from mobilemamba.analysis import complexity
from mobilemamba.models.config import ArchOverrides
from mobilemamba.ops.backends import forget_choices
from mobilemamba.ops.native import library
from mobilemamba.tasks import ClassificationTask
from mobilemamba.training import provenance

pytestmark = pytest.mark.kernels


@pytest.mark.parametrize(
    ("name", "arch", "norms_left"),
    [("mobilemamba_t2", ArchOverrides(depths=(1, 1, 1)), 0), ("test_efficientnet", ArchOverrides(), None)],
)
def test_network_is_measured_as_in_the_tables_whatever_the_task_has(name, arch, norms_left):
    task = ClassificationTask(name, arch, num_classes=7, in_chans=1)
    state = torch.get_rng_state()
    measured = provenance.measure_network(task.build_model, 64, torch.device("cpu"), budget_s=0.01)
    assert torch.equal(torch.get_rng_state(), state)
    assert json.loads(json.dumps(measured))["num_classes"] == 1000
    model = ClassificationTask(name, arch).model
    assert measured["params"] == sum(parameter.numel() for parameter in model.parameters())
    counts = complexity(model, 64)
    assert (measured["flops"], measured["macs"]) == (counts.flops, counts.macs)
    left = sum(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    assert measured["throughput"]["batch_norms"] == (left if norms_left is None else norms_left)
    assert measured["throughput"]["batch_size"] == 32


def test_the_speed_says_in_which_form_the_network_was_timed(monkeypatch):
    def text():
        task = ClassificationTask("mobilemamba_t2", ArchOverrides(depths=(1, 1, 1)))
        return provenance.measure_network(task.build_model, 64, torch.device("cpu"), budget_s=0.01)["throughput"][
            "text"
        ]

    fast = "optimized for inference" if library.why_not() is None else "norms folded, not optimized for inference"
    assert f"no batch norms, {fast}" in text()

    monkeypatch.setattr(library, "why_not", lambda: "no kernels here")
    forget_choices()
    assert "no batch norms, norms folded, not optimized for inference: no kernels here, " in text()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("warns", [False, True])
def test_the_speed_is_that_of_the_usual_kernels_whatever_a_training_uses(fails, warns):
    deterministic = []

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(3, 2)

        def forward(self, x):
            if torch.is_inference_mode_enabled():  # timed, not counted
                deterministic.append(torch.are_deterministic_algorithms_enabled())
                if fails:
                    raise RuntimeError
            return self.head(x.mean((2, 3)))

    torch.use_deterministic_algorithms(True, warn_only=warns)
    try:
        with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
            provenance.measure_network(lambda **_: Network(), 8, torch.device("cpu"), budget_s=0.01)
        assert set(deterministic) == {False}
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == warns
    finally:
        torch.use_deterministic_algorithms(False)


def test_peak_memory_of_the_training_process():
    cpu = torch.device("cpu")
    provenance.reset_peak_memory(cpu)
    block = torch.ones(100, 2**20)  # 0.39 GiB, touched
    peak, what = provenance.peak_memory_gib(cpu)
    del block
    assert peak > 0.39
    assert what == "resident memory of the training process"


def test_the_peak_is_forgotten_where_the_system_can(monkeypatch):
    forgotten = []
    monkeypatch.setattr(provenance, "forget_peak", lambda: forgotten.append(True))
    provenance.reset_peak_memory(torch.device("cpu"))
    assert forgotten == [True]

    def cannot():
        raise PermissionError

    monkeypatch.setattr(provenance, "forget_peak", cannot)
    provenance.reset_peak_memory(torch.device("cpu"))


def test_git_revision_is_the_package_s_own(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    source = tmp_path / "pkg" / "provenance.py"
    source.parent.mkdir()
    source.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(source))
    assert provenance.git_revision() is None  # no repository
    git("init")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "-m", "x")
    assert provenance.git_revision() is None  # in somebody else's repository
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "y")
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    revision = provenance.git_revision()
    assert len(revision) >= 7
    assert head.startswith(revision)
    source.write_text("# changed")
    assert provenance.git_revision() == f"{revision}-dirty"
