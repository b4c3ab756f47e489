"""`import mobilemamba` loads no lightning, says nothing and leaves torch as it was."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.kernels

CODE = """
import gc, sys, warnings
gc.disable()  # what is imported is no garbage
import timm, torch

def state():
    return {
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "rng": torch.get_rng_state().tolist(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "cuda": torch.cuda.is_initialized(),
        "filters": list(warnings.filters),
    }

before, loaded_before = state(), set(sys.modules)
import mobilemamba
after = state()
changed = [key for key in before if before[key] != after[key]]
assert not changed, f"changed: {changed}"
timm.create_model("mobilemamba_t2")
# timm may load some of them itself, triton for one; here it matters what comes on top.
unwanted = {"lightning", "pytorch_lightning", "triton", "mamba_ssm", "selective_scan_cuda", "mobilemamba.data"}
loaded = unwanted & (set(sys.modules) - loaded_before)
assert not loaded, f"loaded: {loaded}"
import mobilemamba.cli, mobilemamba.cli.tool, mobilemamba.tools.prediction
assert not {"lightning", "matplotlib"} & (set(sys.modules) - loaded_before), "predict starts without them"
"""


def test_import_is_silent_and_without_effects() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
