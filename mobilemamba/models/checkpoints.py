"""Loading, saving and converting weights of any timm model; of ours also in the authors' format, norms folded too."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import nn

from mobilemamba.errors import ConfigError, MisfitError, WeightsError
from mobilemamba.files import write_atomic
from mobilemamba.models.card import CARD_KEY, ModelCard, Preprocessing, read_card
from mobilemamba.models.create import check_model_name, create_model
from mobilemamba.models.matching import LoadReport, classes_of, head_names, match, spellings
from mobilemamba.models.mobilemamba import MobileMamba
from mobilemamba.models.release_names import StateDict
from mobilemamba.models.runtime import RuntimeNetwork, runtime_of
from mobilemamba.models.weights_file import find_tensors
from mobilemamba.text import printable

#: The remedy when weights do not fit the network that their own card describes.
NOT_AS_IT_SAYS = "the file's description of its network does not match its tensors: write it again"


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    partial: bool = False,
    new_head: bool = False,
    ema: bool | None = None,
    verbose: bool = True,
) -> LoadReport:
    """Loads a checkpoint into a network and reports what happened to each tensor.

    Tensors are matched by name; failing that, through timm's ``checkpoint_filter_fn`` for the model's older files;
    failing that, by order, if all names differ but the number, order and every shape agree. The last two ways are used
    only if they match every tensor.

    Args:
        model: Any timm model. A MobileMamba takes the release's names too. A checkpoint with folded norms fits a
            MobileMamba with folded norms, and one whose norms then become neutral (outputs equal up to rounding).
        source: A ``.safetensors``, ``.pth`` or Lightning ``.ckpt`` file, or a state dict; possibly inside ``net``,
            ``state_dict`` and the like; possibly under a prefix such as ``module.``. Files are read with
            ``weights_only=True``.
        partial: Whether to accept missing, unexpected and wrongly shaped tensors.
        new_head: Whether a classifier with another number of classes may start afresh, at zero.
        ema: Whether to take the averaged weights (or the others) of a source with both; by default, as its ``use_ema``
            says.
        verbose: Whether to print the report.

    Returns:
        The report.

    Raises:
        WeightsError: If the file cannot be read or holds no such network, or if a tensor has no match and ``partial``
            is false. The model is then unchanged.
    """
    found = find_tensors(source, *spellings(model), ema=ema)
    matched = match(model, found, new_head=new_head)
    report = matched.report
    if not report.loaded:
        raise MisfitError(
            f"{found.where} holds no {type(model).__name__}: its keys begin {found.begin}, and the model's "
            f"{list(model.state_dict())[:3]}",
            "nothing",
        )
    if not (partial or report.complete):
        backbone_fits = not new_head and match(model, found, new_head=True).report.complete
        raise MisfitError(f"{found.where} does not fit: {report.counts}", "backbone" if backbone_fits else "some")
    if spoilt := [name for name, value in matched.fitting.items() if value.isnan().any()]:
        raise WeightsError(
            f"{found.where}: {len(spoilt)} of its tensors hold NaN, {spoilt[0]} for one; take weights from before that"
        )
    model.load_state_dict(matched.fitting, strict=False)
    start: Callable[[nn.Module], None] = getattr(model, "start_afresh", _start_at_zero)
    for head in matched.fresh:
        start(model.get_submodule(head))
    if verbose:
        print(report)
    return report


def _start_at_zero(head: nn.Module) -> None:
    """Sets a classifier to zero, as in Big Transfer (Kolesnikov et al., 2020); a norm before it is left as it is.

    timm initialises some classifiers with weights that grow as classes get fewer, and would drown what was learned.
    """
    for module in head.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for parameter in module.parameters(recurse=False):
                nn.init.zeros_(parameter)


def load_network(
    path: str | Path, model: str | None = None, *, verbose: bool = True, option: str = "--model"
) -> tuple[nn.Module, ModelCard]:
    """Builds the network of a weights file, with all its weights, in evaluation mode.

    The random state is left unchanged.

    Args:
        path: A file as for ``source`` of :func:`load_weights`, or an exported network, which then runs in its runtime.
        model: timm's name of the model, required if the file has no card. The file's tensors then tell the number of
            classes and whether there is a second classifier; timm's configuration tells the preprocessing.
        verbose: Whether to print the report.
        option: What error messages call ``model``.

    Returns:
        The network and its card.

    Raises:
        ConfigError: If neither a card nor ``model`` names the model, or they disagree, or there is no such model.
        WeightsError: If the file cannot be read, or any tensor does not fit the network.
    """
    if runtime := runtime_of(path):
        card = read_card(path)
        assert card is not None  # a file without a card was refused above
        _check_name(model, card, printable(path), option)
        in_runtime = runtime.load(Path(path))
        if card.task in IN_RUNTIME:
            in_runtime = IN_RUNTIME[card.task](in_runtime, runtime.metadata(Path(path)))
        return in_runtime, card
    network, card, _ = _load(path, model, option, verbose=verbose)
    return network, card


def convert(
    source: str | Path, target: str | Path, model_name: str | None = None, *, verbose: bool = True
) -> LoadReport:
    """Rewrites a checkpoint in our format with its card, after loading it completely into its model.

    Args:
        source: As for :func:`load_weights`, with any number of classes.
        target: ``.safetensors`` file to write.
        model_name: timm's name of the model, e.g. ``"mobilemamba_s6"``; required if the source has no card.
        verbose: Whether to print the report.

    Raises:
        ConfigError: As in :func:`load_network`.
        WeightsError: As in :func:`load_network`; or if ``target`` does not end in ``.safetensors``, or is the source.
    """
    if Path(target).suffix != ".safetensors":
        raise WeightsError(f"cannot write {printable(target)}: expected a name that ends in .safetensors")
    if os.path.realpath(source) == os.path.realpath(target):
        raise WeightsError(f"cannot write {printable(target)}: it is the source; give another name")
    network, card, report = _load(source, model_name, "--model", verbose=verbose)
    save_weights(network, target, card)
    return report


def save_weights(model: nn.Module, path: str | Path, card: ModelCard | None = None) -> None:
    """Writes the model's tensors, bit for bit, under its own names.

    Args:
        model: The network.
        path: A ``.safetensors`` file, replaced as a whole.
        card: The card for :func:`~mobilemamba.models.card.read_card` to read from the file.

    Raises:
        WeightsError: If the file cannot be written.
    """
    # Clones, because the format takes neither tensors that share memory nor non-contiguous ones.
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    metadata = {"format": "pt"} | ({} if card is None else {CARD_KEY: json.dumps(card.as_dict())})
    try:
        # Not written by safetensors itself, which makes the file readable by its owner only.
        write_atomic(path, save(state, metadata=metadata))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", error)
        raise WeightsError(
            f"cannot write {printable(path)}: {reason}; choose a folder that exists and has room"
        ) from None


def _load(path: str | Path, name: str | None, option: str, *, verbose: bool) -> tuple[nn.Module, ModelCard, LoadReport]:
    if name is not None:
        check_model_name(name)
    card, shown = read_card(path), printable(path)
    if card is None and name is None:
        find_tensors(path, ())  # raises if there are none
        raise ConfigError(
            f"{shown} does not say which network it is of; give {option}, e.g. mobilemamba_s6 or another of timm's"
        )
    if card is not None:
        _check_name(name, card, shown, option)
    remedy = f"it is of another model than {name}: give that as {option}" if card is None else NOT_AS_IT_SAYS
    # Loading a teacher, for example, must not change the random numbers that its student is initialised from.
    with torch.random.fork_rng(devices=[]):
        if card is None:
            assert name is not None
            card = _card_of_tensors(path, name)
        network = build_network(card, shown)
    try:
        report = load_weights(network, path, verbose=verbose)
    except MisfitError as error:
        raise MisfitError(error.reason, error.fits, remedy) from None
    return network.eval(), card, report


def _check_name(name: str | None, card: ModelCard, shown: str, option: str) -> None:
    """Refuses a model name that contradicts the card."""
    if name not in (None, card.model):
        raise ConfigError(f"{shown} is of a {card.model}, and the model named is {name}; leave {option} out")


def build_network(card: ModelCard, source: str = "the card") -> nn.Module:
    """Builds the network of a card, freshly initialised.

    Args:
        card: A card of any task.
        source: What error messages call the card.

    Raises:
        WeightsError: As in :func:`check_task`.
    """
    check_task(card, source)
    return BUILDERS[card.task](card)


def check_task(card: ModelCard, source: str) -> None:
    """Refuses a card of a task for which there is no network.

    Raises:
        WeightsError: If there is none; its message calls the card ``source``.
    """
    if card.task not in BUILDERS:
        raise WeightsError(f"{source} is of a network for {card.task}; expected one for {' or '.join(BUILDERS)}")


def _build_classifier(card: ModelCard) -> nn.Module:
    return create_model(
        card.model, card.overrides, num_classes=card.num_classes, in_chans=card.in_chans, distilled=card.distilled
    )


#: Task, as cards name it, to a function that builds the network of a card.
BUILDERS: dict[str, Callable[[ModelCard], nn.Module]] = {"classification": _build_classifier}

#: Task, as cards name it, to a function that makes a network for the task of an exported one and the metadata of its
#: file; only for tasks whose networks have more methods than ``forward``, or take pictures of every size.
IN_RUNTIME: dict[str, Callable[[RuntimeNetwork, Mapping[str, str]], RuntimeNetwork]] = {}

#: Task, as cards name it, to the import path of its predictor's class, which is imported when first needed.
PREDICTORS: dict[str, str] = {"classification": "mobilemamba.models.predictor.ClassificationPredictor"}

#: (tensors of a file without a card, timm's name of the network or its backbone) -> card; None for other files.
RECOGNISERS: list[Callable[[StateDict, str], ModelCard | None]] = []


def _card_of_tensors(path: str | Path, name: str) -> ModelCard:
    state = find_tensors(path, ()).state
    for recognise in RECOGNISERS:
        if card := recognise(state, name):
            return card
    card = ModelCard(name, Preprocessing.of_model(name))
    probe = create_model(name)
    state = match(probe, find_tensors(path, *spellings(probe)), new_head=True).state
    classes = [classes_of(state, head) for head in head_names(probe)]
    distilled = isinstance(probe, MobileMamba) and any(tensor.startswith("head_dist.") for tensor in state)
    return replace(card, num_classes=max(classes, default=0), distilled=distilled)
