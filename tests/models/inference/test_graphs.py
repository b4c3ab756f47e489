"""Calls by CUDA graphs: when they are captured, replayed, forgotten; on a CPU that plays a GPU."""

import copy
import io
import pickle
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mobilemamba.errors import ConfigError
from mobilemamba.models import MobileMamba, fuse_norms, inference, optimize_for_inference
from mobilemamba.models.inference import graphs as module
from mobilemamba.models.inference import with_graphs
from mobilemamba.models.inference.graphs import CudaGraphs
from mobilemamba.ops.backends import standard_operators
from tests.models.fake_cuda import FakeCuda, FakeStream

Build = Callable[..., MobileMamba]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(module, "cuda", fake)
    return fake


def square(x: Tensor) -> dict[str, Tensor]:
    return {"square": x * x, "sum": (x + 1).sum()}


def test_the_first_call_of_a_size_captures_and_later_ones_replay(gpu: FakeCuda) -> None:
    graphs, calls = CudaGraphs(), []

    def function(x: Tensor) -> dict[str, Tensor]:
        calls.append(gpu.current.name)
        return square(x)

    for number in range(4):
        x = torch.full((2, 3), float(number))
        found = graphs(function, x)
        assert torch.equal(found["square"], x * x)
        assert found["sum"] == 6 * (number + 1)
    assert calls == ["side"] * 4  # three to warm up and one to capture, none on the stream in use
    assert [graph.replays for graph in gpu.captured] == [4]
    assert gpu.log == ["new pool", "side waits for main", "main waits for side"]


def test_an_output_is_not_overwritten_by_the_next_call(gpu: FakeCuda) -> None:
    graphs = CudaGraphs()
    first, second = (graphs(square, torch.full((2,), value))["square"] for value in (2.0, 3.0))
    assert (first.tolist(), second.tolist()) == ([4, 4], [9, 9])
    assert not first.is_inference()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_in_every_mode(gpu: FakeCuda, mode: Any) -> None:
    graphs = CudaGraphs()
    graphs(square, torch.ones(2))
    with mode():
        assert graphs(square, torch.full((2,), 2.0))["square"].tolist() == [4, 4]


def test_each_shape_and_dtype_has_its_own_and_memory_format_does_not_matter(gpu: FakeCuda) -> None:
    graphs, x = CudaGraphs(), torch.randn(4, 3, 6, 6)
    for pictures in (x, x[:3], x.bfloat16(), x, x.contiguous(memory_format=torch.channels_last), x[:3], x[1:]):
        assert torch.equal(graphs(square, pictures)["square"], pictures * pictures)
    assert len(gpu.captured) == len(graphs) == 3
    assert [graph.replays for graph in gpu.captured] == [3, 3, 1]
    assert graphs(square, x[:0])["square"].shape == (0, 3, 6, 6)  # nothing to capture
    assert len(graphs) == 3


def test_the_one_that_was_not_used_for_the_longest_goes(gpu: FakeCuda) -> None:
    graphs = CudaGraphs(limit=2)
    for size in (1, 2, 1, 3, 1, 2):
        graphs(square, torch.ones(size))
    assert [len(graph.calls[0][3]) for graph in gpu.captured] == [1, 2, 3, 2]
    assert len(graphs) == 2
    assert gpu.log.count("synchronize") == 2
    assert gpu.log.count("new pool") == 1


def test_a_pool_without_graphs_is_not_used_again(gpu: FakeCuda) -> None:
    graphs = CudaGraphs(limit=1)
    for size in (1, 2):
        graphs(square, torch.ones(size))
    assert gpu.log.count("new pool") == 2


def test_another_stream_waits_for_the_last_one(gpu: FakeCuda) -> None:
    graphs = CudaGraphs()
    graphs(square, torch.ones(2))
    gpu.current = FakeStream(gpu.log, "other")
    graphs(square, torch.ones(2))
    graphs(square, torch.ones(2))
    assert [entry for entry in gpu.log if "other" in entry] == ["other waits for main"]


def test_gradients_are_refused(gpu: FakeCuda) -> None:
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ConfigError, match=r"a CUDA graph has no gradients; call it under torch\.no_grad\(\)"):
        CudaGraphs()(square, x)
    with torch.no_grad():
        assert CudaGraphs()(square, x)["square"].tolist() == [1, 1]


def waits(x: Tensor) -> Tensor:
    return x if len(x.relu().nonzero()) else -x


def test_what_cannot_be_captured_is_refused_in_one_line(gpu: FakeCuda) -> None:
    with pytest.raises(ConfigError, match=r"batch \(2,\) cannot be captured.*: operation not .*; leave") as caught:
        CudaGraphs()(waits, torch.ones(2))
    assert "\n" not in str(caught.value)


def test_by_itself_it_captures_the_second_of_two_alike_or_says_why_not(gpu: FakeCuda) -> None:
    graphs = CudaGraphs(at_once=False)
    for size in (4, 4, 4, 1):  # a last batch that is smaller comes once
        graphs(square, torch.ones(size))
    assert [graph.replays for graph in gpu.captured] == [2]
    graphs = CudaGraphs(at_once=False)
    with pytest.warns(UserWarning, match="runs without CUDA graphs: operation not permitted") as warned:
        answers = [graphs(waits, torch.full((2,), -1.0)).tolist() for _ in range(4)]
    assert answers == [[1, 1]] * 4
    assert len(warned) == 1
    assert gpu.current.name == "main"  # where the caller's work goes on


@pytest.mark.parametrize("again", [copy.deepcopy, lambda graphs: pickle.loads(pickle.dumps(graphs))])
def test_copies_start_without_graphs(gpu: FakeCuda, again: Callable[[CudaGraphs], CudaGraphs]) -> None:
    graphs = CudaGraphs(limit=3, at_once=False)
    for _ in range(2):
        graphs(square, torch.ones(2))
    copied = again(graphs)
    assert (len(graphs), len(copied), copied.limit, copied.at_once) == (1, 0, 3, False)


def test_threads_get_their_own_answers(gpu: FakeCuda) -> None:
    graphs, wrong = CudaGraphs(), []

    def ask(value: float) -> None:
        answers = [graphs(square, torch.full((3,), value))["square"].tolist() for _ in range(20)]
        wrong.extend(answer for answer in answers if answer != [value**2] * 3)

    threads = [threading.Thread(target=ask, args=(value,)) for value in (2.0, 3.0, 5.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(gpu.captured) == 1


@pytest.fixture
def network(gpu: FakeCuda, tiny: Build) -> MobileMamba:
    return with_graphs(fuse_norms(tiny()), CudaGraphs())


def pickled(network: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, pickled])
def test_a_network_keeps_its_interface_and_can_be_copied(
    gpu: FakeCuda, network: MobileMamba, again: Callable[[nn.Module], Any]
) -> None:
    x = torch.randn(2, 3, 64, 64)
    with standard_operators():
        expected = network.forward_head(network.forward_features(x))
    logits = [network(x), network(x)]
    assert [graph.replays for graph in gpu.captured] == [2]
    copied = again(network)
    logits.append(copied(x))
    assert len(gpu.captured) == 2
    for found in logits:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert isinstance(copied, MobileMamba)
    assert not any(parameter.requires_grad for parameter in copied.parameters())


def test_a_network_follows_its_weights(gpu: FakeCuda, network: MobileMamba) -> None:
    x = torch.randn(2, 3, 64, 64)
    before = network(x)
    with torch.no_grad():
        network.head.bias += 1  # in place
    torch.testing.assert_close(network(x), before + 1)
    assert len(gpu.captured) == 1
    state = {name: value.clone() for name, value in network.state_dict().items()}
    state["head.bias"] -= 1
    network.load_state_dict(state, assign=True)
    torch.testing.assert_close(network(x), before)
    network.to(torch.float64)
    assert network(x.double()).dtype == torch.float64
    network.to(torch.float32).reset_classifier(3)
    assert network(x).shape == (2, 3)


def test_folding_or_laying_out_once_more_leaves_the_graphs_behind(gpu: FakeCuda, network: MobileMamba) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where there are no kernels
        plain = optimize_for_inference(network)
    assert not hasattr(plain, "graphs")
    assert not gpu.captured
    plain(torch.randn(2, 3, 64, 64))
    assert not gpu.captured


def test_without_cuda_they_are_refused(tiny: Build) -> None:
    with pytest.raises(ConfigError, match="cuda_graph with the model on cpu; move it to cuda first"):
        optimize_for_inference(tiny(), cuda_graph=True)


def test_on_a_gpu_one_is_asked_for_by_an_argument(gpu: FakeCuda, tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are no kernels: the plain network is captured."""
    monkeypatch.setattr(inference, "_device_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr(inference, "_why_not", lambda *_: "no Triton")
    monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: self)
    model, x = tiny(), torch.randn(1, 3, 64, 64)
    with pytest.warns(UserWarning, match="norms are folded, and no more: no Triton"):
        optimized = optimize_for_inference(model, cuda_graph=True)
    torch.testing.assert_close(optimized(x), model(x), rtol=1e-4, atol=1e-4)
    assert len(gpu.captured) == 1
    with pytest.raises(ConfigError, match="has no gradients"):
        optimized(x.requires_grad_())
