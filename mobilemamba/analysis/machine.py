"""Choice of a device, and descriptions of the conditions of a measurement."""

from __future__ import annotations

import contextlib
import platform
import re
from importlib import metadata
from pathlib import Path

import timm
import torch

from mobilemamba.errors import ConfigError
from mobilemamba.text import printable
from mobilemamba.version import __version__


def choose_device(name: str) -> torch.device:
    """Returns the device with a name; for ``auto`` a GPU if there is one, else the CPU.

    Raises:
        ConfigError: If there is no such device, or it is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:  # whose message lists all kinds of devices that there are
        raise ConfigError(
            f"device {printable(name)}: torch has none of that name; use auto or cpu, or cuda for a GPU"
        ) from None
    try:
        torch.zeros(1, device=device).cpu()
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's, by kind of device and build
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"device {printable(name)}: {reason}; use auto or cpu") from None


def device_name(device: torch.device | str) -> str:
    """Returns the product name of a device; for a CPU with torch's number of threads."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return str(device)
    threads = torch.get_num_threads()
    return f"{_cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"


def _cpu_name() -> str:
    with contextlib.suppress(OSError):  # platform.processor() is empty on most Linux systems
        if found := re.search(r"^model name\s*:\s*(.*\S)", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return found[1]
    return platform.processor() or platform.machine() or "CPU"


def rounds_to_tf32(device: torch.device | str) -> tuple[bool, bool]:
    """Whether CUDA rounds fp32 matrix products and convolutions to TF32; never on other devices."""
    if torch.device(device).type != "cuda":
        return False, False
    matmul = torch.backends.cuda.matmul.fp32_precision
    convolution = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # not in its stubs
    return matmul == "tf32", convolution == "tf32"


def versions(*packages: str) -> str:
    """Lists the versions of the software that a measurement depends on, and of further ``packages``."""
    found = {"mobilemamba": __version__, "torch": torch.__version__, "timm": timm.__version__}
    if torch.version.cuda:
        found["CUDA"] = torch.version.cuda
    found["Python"] = platform.python_version()
    found |= {name.replace("_", "-"): metadata.version(name) for name in packages}
    return ", ".join(f"{name} {number}" for name, number in found.items())
