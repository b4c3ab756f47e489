"""Reads checkpoints: from a file to the tensors of one network, out of any wrappers."""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from mobilemamba.errors import WeightsError
from mobilemamba.files import why_no_plain_file
from mobilemamba.models.release_names import StateDict
from mobilemamba.models.runtime import runtime_of
from mobilemamba.text import printable

_CONTAINER_KEYS = ("net", "state_dict", "model", "state_dict_ema", "model_ema", "ema")
_WRAPPERS = re.compile(r"(?:(?:module|model|net|network|ema|_orig_mod)\.)+")
_NO_FILE_OF_TORCH = "it is no file of torch's, or a damaged one"
#: The end of every message about an unreadable file.
EXPECTED = "expected a .safetensors file or a .pth state dict of plain tensors"
#: Share of a network's names that must follow a prefix to be recognised; a network of another kind shares a few by
#: chance. It cannot be larger, because folding the norms leaves few names unchanged.
_LEAST_SHARE = 0.05


class _PassedOver:
    """Stands for any object that a file refers to by name, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


#: What training scripts save beside the weights: timm its arguments, in a class without behaviour; mmengine its log,
#: which needs NumPy's scalars and a class of its own to be read, and which we ignore.
_BESIDE_WEIGHTS: list[Any] = [
    argparse.Namespace,
    *(
        (_PassedOver, name)
        for name in (
            "__builtin__.getattr",
            "builtins.getattr",
            "mmengine.logging.history_buffer.HistoryBuffer",
            "numpy.dtype",
            "numpy.ndarray",
            *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
        )
    ),
]


@dataclass(frozen=True)
class FoundTensors:
    """The tensors of one network, by their names in the file."""

    state: StateDict  # the tensors, without the prefix
    where: str  # the source, as messages call it
    ema: bool  # whether they are an exponential moving average, judging by the name of their wrapper
    ordered: bool  # whether their order is that of the network's layers; a ``.safetensors`` file does not keep it
    begin: list[str]  # the first names in the file, for messages


def read_checkpoint(path: str | Path, *, mmap: bool = False) -> Mapping[str, Any]:
    """Reads a ``.safetensors`` file, or a file that torch wrote, to the CPU, without running any code in it.

    Args:
        path: The file.
        mmap: Whether to read tensors only when they are used.

    Raises:
        WeightsError: If the file cannot be read or does not hold a dictionary.
    """
    path = Path(path)
    if runtime_of(path):
        raise WeightsError(f"{printable(path)} is an exported network, which only its runtime reads; {EXPECTED}")
    try:
        if reason := why_no_plain_file(path):
            inside = sorted(path.glob("*.safetensors"))  # as in the folder of a run
            wanted = printable(inside[0]) if inside else "a .safetensors, .pth or .ckpt file"
            raise WeightsError(f"{printable(path)} is {reason}; give {wanted}")
        path.open("rb").close()
        if not path.stat().st_size:
            raise WeightsError(f"cannot read {printable(path)}: it is empty; {EXPECTED}")
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_BESIDE_WEIGHTS):
                content = torch.load(path, "cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except WeightsError:
        raise
    except FileNotFoundError:
        raise WeightsError(f"no weights at {printable(path)}: expected a .safetensors, .pth or .ckpt file") from None
    except pickle.UnpicklingError as error:  # torch's own message advises letting the file run its code
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds more than tensors ({found[1]})" if found else _NO_FILE_OF_TORCH
        raise WeightsError(f"cannot read {printable(path)}: {reason}; {EXPECTED}") from None
    except OSError as error:
        raise WeightsError(f"cannot read {printable(path)}: {error.strerror or error}; {EXPECTED}") from None
    except Exception as error:  # torch reads any file as a pickle, which can fail in any way
        words = first_line(error)  # for a text file, only a number or a letter
        reason = words if " " in words else _NO_FILE_OF_TORCH
        if "inline_container" in reason:
            reason = _NO_FILE_OF_TORCH
        if "PytorchStreamReader" in str(error):
            reason = "it is damaged, or only the beginning of a file"
        raise WeightsError(f"cannot read {printable(path)}: {reason}; {EXPECTED}") from None
    if not isinstance(content, Mapping):
        raise WeightsError(f"{printable(path)} holds a {type(content).__name__}; expected a state dict")
    return content


def find_tensors(
    source: str | Path | Mapping[str, Any], *spellings: Collection[str], ema: bool | None = None
) -> FoundTensors:
    """Finds the tensors of the network with these names, inside containers such as ``state_dict`` and after a prefix.

    Args:
        source: A file, or the content of one.
        spellings: The names of the network's tensors, in each convention that it has.
        ema: Whether to take the averaged weights (or the others) of a source that has both; by default what a Lightning
            checkpoint says under ``use_ema``, with a missing entry meaning false.

    Raises:
        WeightsError: If the source cannot be read, has several such networks, or lacks the kind asked for.
    """
    where = "the state dict" if isinstance(source, Mapping) else printable(source)
    content = source if isinstance(source, Mapping) else read_checkpoint(source)
    if ema is None and ("use_ema" in content or "pytorch-lightning_version" in content):
        ema = bool(content.get("use_ema", False))
    ordered = isinstance(source, Mapping) or Path(source).suffix != ".safetensors"

    def found(state: Mapping[Any, Any], container: str, prefix: str) -> FoundTensors:
        tensors = {k[len(prefix) :]: v for k, v in _tensors(state).items() if k.startswith(prefix)}
        begin = list(_tensors(state))[:3]
        return FoundTensors(tensors, where, _is_ema(f"{container}.{prefix}"), ordered, begin)

    containers = {"": content} | {k: content[k] for k in _CONTAINER_KEYS if isinstance(content.get(k), Mapping)}
    other_kind = False
    for container, state in containers.items():
        prefixes = _prefixes(_tensors(state), spellings)
        if ema is not None:
            of_kind = [prefix for prefix in prefixes if _is_ema(f"{container}.{prefix}") == ema]
            other_kind |= len(of_kind) < len(prefixes)
            prefixes = of_kind
        if len(prefixes) > 1:
            raise WeightsError(
                f"{where} holds several networks ({prefixes}); give a file or a state dict of one of them"
            )
        if prefixes:
            return found(state, container, prefixes[0])
    if other_kind:
        raise WeightsError(
            f"{where} holds {'no' if ema else 'only'} EMA weights; leave `ema` out to take what is there"
        )
    # No tensors with these names; perhaps with others, in the first container that holds tensors.
    container = next((name for name, state in containers.items() if _tensors(state)), None)
    if container is None:
        raise WeightsError(f"{where} holds no tensors; {EXPECTED}")
    state = containers[container]
    shared = {match[0] if (match := _WRAPPERS.match(name)) else "" for name in _tensors(state)}
    return found(state, container, shared.pop() if len(shared) == 1 else "")


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _tensors(state: Mapping[Any, Any]) -> StateDict:
    return {name: value for name, value in state.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _prefixes(state: StateDict, spellings: tuple[Collection[str], ...]) -> list[str]:
    """Returns the prefixes of the network's names, shortest first; several if there are several such networks."""
    names = set().union(*spellings)
    counts: Counter[str] = Counter()
    for name in state:
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        counts.update(name[:start] for start in starts if name[start:] in names)
    most = max(counts.values(), default=0)
    if most < max(1, _LEAST_SHARE * min(map(len, spellings))):
        return []
    found = sorted((prefix for prefix, count in counts.items() if count > most / 2), key=len)
    # Prefixes within a network do not count: blocks of another kind of network have similar names.
    return [prefix for index, prefix in enumerate(found) if not prefix.startswith(tuple(found[:index]))]


def _is_ema(place: str) -> bool:
    return re.search(r"(?:^|[._])ema(?:[._]|$)", place) is not None
