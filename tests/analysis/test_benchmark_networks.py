"""Measuring: what is run under which conditions. Networks are tiny and nothing depends on speed."""

import functools
import json
import sys
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mobilemamba.analysis import complexity
from mobilemamba.analysis.benchmark import networks, workload
from mobilemamba.analysis.benchmark.cases import Case
from mobilemamba.analysis.benchmark.memory import CpuMeter, can_measure_cpu
from mobilemamba.analysis.benchmark.networks import measure
from mobilemamba.analysis.benchmark.workload import Workshop, create
from mobilemamba.analysis.timing import Timings
from mobilemamba.models.card import CARD_KEY, ModelCard, Preprocessing
from mobilemamba.models.runtime import PRECISION_KEY, RUNNERS, RUNTIMES, RuntimeNetwork
from mobilemamba.version import __version__

contiguous = functools.partial(Case, layout="contiguous")
TINY = contiguous("test_efficientnet", 64, 2)


@pytest.fixture
def clockwork(monkeypatch):
    """Every case takes 4 ms, every product 2 s, in the common rounds; layouts are tried for real."""
    real = networks.interleave

    def interleave(clocks, rounds, *args, **kwargs):
        if not any(isinstance(key, tuple) for key in clocks):
            return real(clocks, 1, 0.001, 0.001)
        for clock in clocks.values():
            clock(1)
        seconds = {key: 2.0 if isinstance(key, tuple) else 0.004 for key in clocks}
        return {key: Timings((seconds[key],) * rounds, 1) for key in clocks}, {}

    monkeypatch.setattr(networks, "interleave", interleave)


def test_rates_and_the_share_of_the_ceiling(short_benchmarks, clockwork):
    (found,) = measure([TINY], rounds=3, memory=False)
    macs = complexity(create(TINY), 64).macs
    assert (found.latency_ms, found.latency_q1_ms, found.latency_q3_ms) == pytest.approx((4, 4, 4))
    assert found.images_per_second == pytest.approx(2 / 0.004)
    assert found.macs == macs
    assert found.gmacs_per_second == pytest.approx(macs * 2 / 0.004 / 1e9)
    assert found.ceiling_gmacs_per_second == pytest.approx(16**3 / 2 / 1e9)
    assert found.ceiling_fraction == pytest.approx((macs * 2 / 0.004) / (16**3 / 2))
    assert (found.rounds, found.calls_per_round, found.threads) == (3, 1, torch.get_num_threads())
    assert found.peak_memory_mib is None
    assert found.versions.startswith(f"mobilemamba {__version__}, torch {torch.__version__}, ")


def test_training_counts_three_forward_passes(short_benchmarks, clockwork):
    case = Case("test_efficientnet", 64, 2, layout="contiguous", fused=False, train=True)
    (found,) = measure([case], rounds=1, memory=False)
    assert found.macs == 3 * complexity(create(case), 64).macs
    assert found.batch_norms > 0


def test_one_that_fails_is_recorded_and_the_others_go_on(short_benchmarks, clockwork, monkeypatch):
    build = Workshop.build

    def out_of_memory(self, case):
        if case.batch == 7:
            raise torch.OutOfMemoryError("tried to allocate everything")
        return build(self, case)

    monkeypatch.setattr(Workshop, "build", out_of_memory)
    monkeypatch.setattr(networks, "can_measure_cpu", lambda: True)
    monkeypatch.setattr(networks, "CpuMeter", lambda threads: meter)
    meter = SimpleNamespace(peak=lambda case: "ValueError: no" if case.batch == 9 else 2**20, close=lambda: None)
    found = measure([Case("test_efficientnet", 64, 7), Case("test_efficientnet", 64, 9), TINY], rounds=1)
    assert [record.error for record in found] == ["out of memory", "ValueError: no", ""]
    assert found[0].latency_ms is None
    assert found[2].images_per_second
    assert found[2].peak_memory_mib == 1


def test_auto_measures_both_layouts_and_keeps_one(short_benchmarks, clockwork):
    (found,) = measure([Case("test_efficientnet", 64, 2)], rounds=1, memory=False)
    assert found.layout in ("contiguous", "channels_last")
    assert found.layout_chosen


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_inference_runs_on_what_is_described(layout):
    case = Case("mobilemamba_t2", 64, 2, dtype="bfloat16", layout=layout, scan_backend="chunked")
    workload = Workshop().build(case)
    logits = workload.run()
    assert (logits.shape, logits.dtype, logits.is_inference()) == ((2, 1000), torch.bfloat16, True)
    assert workload.batch_norms == 0
    assert not workload.network.training
    convolution = next(m for m in workload.network.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[2] > 1)
    expected = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert convolution.weight.is_contiguous(memory_format=expected)


@pytest.mark.parametrize(
    ("options", "laid_out"),
    [
        ({"layout": "channels_last"}, True),
        ({"layout": "channels_last", "scan_backend": "native"}, True),
        ({"layout": "channels_last", "scan_backend": "chunked"}, False),
        ({"layout": "channels_last", "fused": False}, False),
        ({"layout": "contiguous"}, False),
        ({"layout": "channels_last", "model": "test_resnet"}, False),
    ],
)
def test_ours_are_laid_out_for_kernels_unless_asked_otherwise(options, laid_out, monkeypatch):
    calls = []
    monkeypatch.setattr(workload, "create", lambda case: nn.Identity())
    monkeypatch.setattr(workload, "for_inference", lambda network, *how: (calls.append(how), (network, ""))[1])
    Workshop().build(Case(**{"model": "mobilemamba_t2", "size": 64, **options}))
    assert calls == [(torch.device("cpu"), torch.float32)] * laid_out


@pytest.mark.parametrize("model", ["test_efficientnet", "ssdlite+test_resnet"])
def test_norms_of_timm_s_networks_are_folded(model):
    fused = Workshop().build(contiguous(model, 64))
    plain = Workshop().build(contiguous(model, 64, fused=False))
    assert plain.batch_norms > 0
    assert fused.batch_norms == 0


def test_batches_share_a_network_but_dtypes_do_not():
    workshop = Workshop()
    first, second = (workshop.build(contiguous("test_efficientnet", 64, batch)) for batch in (1, 2))
    other = workshop.build(contiguous("test_efficientnet", 64, dtype="bfloat16"))
    assert first.network is second.network
    assert first.network is not other.network
    assert (first.run().shape, second.run().shape) == ((1, 1000), (2, 1000))


def test_an_exported_network_gives_the_same():
    workshop = Workshop()
    eager, exported = (
        workshop.build(contiguous("mobilemamba_t2", 64, 2, mode=mode)).run() for mode in ("eager", "exported")
    )
    torch.testing.assert_close(exported, eager, atol=1e-5, rtol=1e-5)


def test_another_runtime_is_given_a_network_once_for_all_batches(short_benchmarks, clockwork, monkeypatch):
    given = []
    monkeypatch.setitem(RUNTIMES, ".npy", SimpleNamespace(name="numpy", reads=("numpy",)))
    monkeypatch.setitem(RUNNERS, "numpy", lambda network: (given.append(network), network)[1])
    cases = [Case("test_resnet", 32, batch, mode="numpy", layout="contiguous") for batch in (1, 2)]
    records = measure(cases, rounds=1, seconds=0.01, memory=False)
    assert [record.error for record in records] == ["", ""]
    assert len(given) == 1
    assert all(f"numpy {np.__version__}" in record.versions for record in records)


def test_an_exported_file_has_the_precision_that_it_says(short_benchmarks, clockwork, monkeypatch):
    card = ModelCard("test_resnet", Preprocessing((32, 32), (0.5,) * 3, (0.5,) * 3), 3)
    said = {CARD_KEY: json.dumps(card.as_dict()), PRECISION_KEY: "int8"}
    network = RuntimeNetwork(lambda x: x.mean((2, 3)), (None, 3, 32, 32), "")
    runtime = SimpleNamespace(name="numpy", reads=("numpy",), metadata=lambda _: said, load=lambda _: network)
    monkeypatch.setitem(RUNTIMES, ".own", runtime)
    monkeypatch.setitem(RUNNERS, "numpy", lambda network: network)
    cases = [Case(model, 32, 2, mode="numpy", layout="contiguous") for model in ("x.own", "test_resnet")]
    records = measure(cases, rounds=1, seconds=0.01, memory=False)
    assert [record.dtype for record in records] == ["int8", "float32"]
    assert [record.ceiling_gmacs_per_second is None for record in records] == [True, False]


def test_compiled_networks_of_one_class_do_not_use_up_each_other_s_cache(monkeypatch):
    """The cache holds what was traced; the eager backend spares compiling it."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    counters = torch._dynamo.utils.counters
    counters.clear()
    workshop = Workshop()
    with torch._dynamo.config.patch(recompile_limit=2):
        for batch in range(1, 5):
            case = contiguous("test_byobnet", 32, batch, mode="compiled")
            assert workshop.build(case).run().shape == (batch, 1000)
    assert counters["stats"]["unique_graphs"] == 4


def test_a_training_step_moves_the_weights_and_lowers_the_loss():
    workload = Workshop().build(Case("test_efficientnet", 64, 4, fused=False, train=True, layout="channels_last"))
    before = [parameter.clone() for parameter in workload.network.parameters()]
    losses = [workload.run().item() for _ in range(8)]
    assert losses[-1] < losses[0]
    assert all(not torch.equal(a, b) for a, b in zip(before, workload.network.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in workload.network.parameters())


def test_training_in_bfloat16_keeps_weights_in_float32():
    workload = Workshop().build(contiguous("test_efficientnet", 64, 2, dtype="bfloat16", train=True))
    assert torch.isfinite(workload.run())
    assert {parameter.dtype for parameter in workload.network.parameters()} == {torch.float32}


def test_what_is_held_is_weights_pictures_and_the_optimiser_s_state():
    inference = Workshop().build(TINY)
    weights = sum(t.nbytes for t in (*inference.network.parameters(), *inference.network.buffers()))
    assert inference.held_bytes == weights + 2 * 3 * 64 * 64 * 4
    training = Workshop().build(contiguous("test_efficientnet", 64, 2, train=True))
    training.run()
    trained = sum(parameter.nbytes for parameter in training.network.parameters())
    assert training.held_bytes >= weights + 2 * trained  # AdamW's two averages


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")
def test_peak_memory_of_known_tensors():
    """resnet18 peaks where its first norm reads and writes 64 channels at half the size, if there are several pictures.

    For a single one it is later, where oneDNN rearranges large weights.
    """
    assert can_measure_cpu()
    with closing(CpuMeter(1)) as meter:
        small, large = (meter.peak(contiguous("resnet18", 224, batch)) for batch in (4, 8))
        assert meter.peak(contiguous("resnet18", 224, 10**8)) == "out of memory"
        assert str(meter.peak(contiguous("test_vit", 100))).startswith("AssertionError: Input height (100)")
        again = meter.peak(contiguous("resnet18", 224, 4))  # the process goes on after failures
    weights = sum(tensor.nbytes for tensor in create(Case("resnet18", 224)).parameters())
    pictures, stem = 3 * 224 * 224 * 4, 64 * 112 * 112 * 4
    assert small == pytest.approx(weights + 4 * (pictures + 2 * stem), rel=0.05)
    assert large - small == pytest.approx(4 * (pictures + 2 * stem), rel=0.05)
    assert again == pytest.approx(small, abs=2**21)


@pytest.mark.parametrize(("mode", "peak"), [("eager", 5), ("graph", None)])
def test_the_memory_of_a_cuda_graph_is_not_measured(
    mode: str, peak: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there before a call and after it, so the peak of a call would leave out most of it."""
    monkeypatch.setattr(networks, "cuda_peak", lambda *_: 5)
    candidate = networks._Candidate(Case("mobilemamba_t2", 64, device="cuda", mode=mode, layout="channels_last"))
    networks._prepare(candidate, SimpleNamespace(build=lambda case: SimpleNamespace(run=list)), None, memory=True)
    assert (candidate.peak_bytes, candidate.error) == (peak, "")
