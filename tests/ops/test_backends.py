"""One way to choose for every operation: by name, by itself, or PyTorch's own operators alone."""

import sys
from contextlib import ExitStack
from typing import Any
from unittest.mock import MagicMock

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mobilemamba.errors import BackendUnavailableError, ConfigError
from mobilemamba.layers.kernels import use_scan_backend
from mobilemamba.layers.wavelet_mamba import WaveletConv
from mobilemamba.models import MobileMamba, optimize_for_inference
from mobilemamba.models.fuse import fuse_norms
from mobilemamba.ops import jit, standard_operators, wavelet
from mobilemamba.ops.backends import forget_choices, standard_only
from mobilemamba.ops.kernels import INFERENCE, NETWORK
from mobilemamba.ops.native import library
from tests.ops.scans import needs_native
from tests.pretended import needs_no_driver

CPU = torch.device("cpu")
TABLES = pytest.mark.parametrize("table", [*NETWORK, *INFERENCE], ids=lambda table: table.op)


def t2(**choices: Any) -> MobileMamba:
    """Small enough for tests, and no branch of it is zero."""
    network = timm.create_model("mobilemamba_t2", num_classes=3, depths=(1, 1, 1), **choices).eval()
    for p in network.parameters():
        if p.ndim == 1:
            nn.init.normal_(p, std=0.3)
    return network


# By name


@pytest.mark.kernels
@TABLES
def test_a_name_is_taken_at_its_word_or_refused(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "why_not", lambda: "switched off")
    assert table.choose("reference", CPU, torch.float32).name == "reference"
    assert table.choose("auto", CPU, torch.float32).name in ("chunked", "reference", "onednn")
    if "native" in table.names:
        with pytest.raises(BackendUnavailableError, match=f"^{table.op} backend 'native' cannot run .*: switched off."):
            table.choose("native", CPU, torch.float32)
    with pytest.raises(ConfigError, match=f"^unknown {table.op} backend 'fast'; expected one of auto, "):
        table.choose("fast", CPU, torch.float32)


@needs_native
def test_a_kernel_that_was_asked_for_is_not_replaced_for_want_of_haar_s_wavelet() -> None:
    conv, x = WaveletConv(4, 3, "db2"), torch.randn(1, 4, 6, 6)
    conv.backend = "native"
    with pytest.raises(BackendUnavailableError, match="cannot run here: its kernel is for Haar's wavelet alone"):
        conv(x)


@needs_native
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_reference_calls_no_kernel_anywhere(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    kernel = library.call
    monkeypatch.setattr(library, "call", lambda name, *args: called.append(name) or kernel(name, *args))
    network, x = t2(), torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    expected = network(x)
    use_scan_backend(network, backend)
    called.clear()
    torch.testing.assert_close(network(x), expected, rtol=1e-3, atol=1e-4)
    network.train()(x).sum().backward()
    assert bool(called) == (backend == "auto")


@pytest.mark.kernels
def test_a_network_s_choice_reaches_its_layers() -> None:
    assert {m.backend for m in t2(scan_backend="reference").modules() if hasattr(m, "backend")} == {"reference"}
    chunked = {type(m).__name__: m.backend for m in t2(scan_backend="chunked").modules() if hasattr(m, "backend")}
    assert chunked == {"SS2D": "chunked", "WaveletConv": "auto", "BatchNorm2d": "auto"}


# On a device


class OneDevice(TorchDispatchMode):
    """Fails where a tensor of another device takes part."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
        assert devices <= {"meta"}, f"{func} on {devices}"
        return result


@pytest.mark.parametrize(
    "choices",
    [
        *({"scan_backend": name} for name in ("auto", "reference")),
        {"directions": 4},
        {"wavelet": "db2"},
        *({"global_mixer": name} for name in ("ttt", "mlstm", "rwkv6")),
    ],
    ids=str,
)
def test_nothing_is_copied_from_host_to_device(choices: dict[str, Any]) -> None:
    network = t2(drop_path_rate=0.1, **choices).to("meta")
    with OneDevice():
        network(torch.empty(2, 3, 64, 64, device="meta"))
        network.train()(torch.empty(2, 3, 64, 64, device="meta")).sum().backward()


@pytest.mark.parametrize("directions", [1, 2, 4])
def test_no_backend_of_the_scan_makes_a_tensor_elsewhere(directions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an operator does inside cannot be seen on the meta device: its parts are called themselves."""
    from mobilemamba.ops.scan_norm_gate import triton as fused_scan
    from mobilemamba.ops.selective_scan import ScanInputs, chunked, definition, triton

    kernels = MagicMock(), MagicMock()
    monkeypatch.setattr(triton, "_kernels", lambda: kernels)
    x = torch.empty(2, 6, 4, device="meta")
    per_channel, state = x.new_empty(directions, 4), x.new_empty(2, directions, 6, 1)
    dt = x.new_empty(2, directions, 6, 4)
    inputs = ScanInputs(x, dt, per_channel[..., None], state, state, per_channel, per_channel)
    with OneDevice():
        for scan in (chunked.forward, definition.forward, triton.forward):
            assert scan(inputs, (2, 3)).shape == x.shape
        for gradients in (chunked.backward, triton.backward):
            assert [g.shape for g in gradients(x, inputs, (2, 3))] == [x.shape for x in inputs]
    for kernel in kernels:
        (launch,) = kernel.__getitem__.return_value.call_args_list  # all directions at once
        assert all(v.device.type == "meta" for v in launch.args if isinstance(v, Tensor))
    monkeypatch.setattr(fused_scan, "_kernels", MagicMock())
    maps, projected = x.unflatten(1, (2, 3)), x.new_empty(2, 2, 3, directions * 3)
    weights = per_channel[:, None], per_channel[..., None], per_channel, per_channel, x.new_empty(4), x.new_empty(4)
    with OneDevice():
        assert fused_scan.compute(maps, projected, maps, *weights, 1e-5).shape == maps.shape


class OnDevice(FakeTensorMode):
    """Tensors without numbers: to wait for one fails, and so does a tensor on another device. Lists the operators.

    As it is not on while a network runs, the network takes it for no tracer, and its choices are those of a GPU.
    """

    def __init__(self, device: str):
        super().__init__()
        self.device, self.operators = device, set[str]()

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().dispatch(func, types, args, kwargs)
        self.operators.add(func.__name__)
        devices = {x.device.type for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)}
        assert devices <= {self.device}, f"{func} on {devices}"
        return result

    def on_it(self, network: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
        """The network there, and pictures for it."""
        with self:
            network._apply(
                lambda x: torch.empty_strided(
                    x.shape, x.stride(), dtype=dtype if x.is_floating_point() else x.dtype, device=self.device
                )
            )
            return network, torch.empty(2, 3, 64, 64, dtype=dtype, device=self.device)


@pytest.fixture
def triton_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which Triton runs on any device, the CPU apart."""
    monkeypatch.setattr(jit, "why_not_on", lambda device, dtype: "no" if device.type == "cpu" else None)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", None)
    forget_choices()


@needs_no_driver
@pytest.mark.usefixtures("triton_anywhere")
@pytest.mark.parametrize(
    ("size", "fused", "dtype"),
    [
        ("t2", False, torch.float32),
        ("t2", True, torch.float16),
        ("s6", True, torch.bfloat16),
        ("b1", False, torch.float16),
        ("b1", True, torch.float32),
    ],
    ids=str,
)
def test_a_gpu_is_never_waited_for(size: str, fused: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[Tensor] = []
    monkeypatch.setattr(wavelet, "_looks_haar", lambda filters: not looked_at.append(filters))
    # PyTorch asks the driver which of its own batch norms there is.
    monkeypatch.setattr(torch, "batch_norm", lambda x, *numbers: torch.native_batch_norm(x, *numbers[:-1])[0])
    gpu, network = OnDevice("cuda"), timm.create_model(f"mobilemamba_{size}").eval()
    network, x = gpu.on_it(fuse_norms(network) if fused else network, dtype)
    branches = sum(isinstance(layer, WaveletConv) for layer in network.modules())
    with torch.no_grad():
        for _ in "12":
            assert network(x).shape == (2, 1000)
            assert len(looked_at) == 2 * branches  # of which the first run knows nothing
    assert {"selective_scan.default", "haar_conv.default"} <= gpu.operators


@pytest.mark.usefixtures("triton_anywhere")
def test_nor_in_a_training_step() -> None:
    """On the meta device, as autograd asks the driver of a GPU."""
    device = OnDevice("meta")
    network, x = device.on_it(timm.create_model("mobilemamba_s6", drop_path_rate=0.1).train(), torch.bfloat16)
    F.cross_entropy(network(x), x.new_zeros(2, dtype=torch.int64)).backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    backward = {"selective_scan_backward.default", "haar_conv.default", "haar_conv_weight.default"}
    assert backward <= device.operators


# PyTorch's own operators alone


def operators_of(program: torch.export.ExportedProgram) -> set[str]:
    targets = {n.target for n in program.graph.nodes if n.op == "call_function"}
    return {t.namespace for t in targets if isinstance(t, torch._ops.OpOverload)}


@needs_native
@pytest.mark.parametrize("part", ["network", "optimized block"])
def test_an_export_in_standard_operators(part: str) -> None:
    network, x = t2(), torch.randn(2, 3, 32, 64)
    if part == "optimized block":
        optimized = optimize_for_inference(t2(directions=4, d_state=2))
        network, x = optimized.stages[1].blocks, torch.randn(2, 272, 2, 3)
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    with torch.no_grad():
        with standard_operators():
            program = torch.export.export(network, (x,), dynamic_shapes=(batch,))
        assert operators_of(program) == {"aten"}
        for maps in (x, torch.randn(5, *x.shape[1:])):
            torch.testing.assert_close(program.module()(maps), network(maps), rtol=1e-4, atol=1e-4)


@needs_native
def test_standard_operators_end_with_the_last_thread_that_wants_them() -> None:
    first, second = ExitStack(), ExitStack()
    for thread in (first, second):
        thread.enter_context(standard_operators())
    first.close()
    assert standard_only()
    second.close()
    assert not standard_only()


def test_standard_operators_have_all_derivatives() -> None:
    network, x = t2(), torch.randn(1, 3, 32, 32)
    v = torch.randn_like(x)
    with torch.no_grad():
        numeric = (network(x + 1e-2 * v) - network(x - 1e-2 * v)) / 2e-2
    with standard_operators():
        tangent = torch.func.jvp(network, (x,), (v,))[1]
    torch.testing.assert_close(tangent, numeric, rtol=5e-2, atol=5e-3)
    with pytest.raises(ConfigError, match="standard_operators"):
        torch.func.jvp(network, (x,), (v,))


@needs_native
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_a_network_under_vmap() -> None:
    network, x = t2(), torch.randn(3, 2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.func.vmap(network)(x), torch.stack([network(one) for one in x]))
