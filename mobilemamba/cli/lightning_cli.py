"""LightningCLI with run folders, defaults that need no configuration, and sweeps."""

from __future__ import annotations

import contextlib
import os
import pkgutil
from collections.abc import Iterator, Mapping
from functools import partial, partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from mobilemamba.cli.checks import (
    check_norms,
    check_num_classes,
    check_pictures,
    check_report,
    check_settings,
    check_targets,
)
from mobilemamba.cli.classes import DEFAULTS
from mobilemamba.cli.parser import Parser, given_settings, plain
from mobilemamba.cli.report import print_evaluation
from mobilemamba.cli.resume import check_data, check_fits, without_searches
from mobilemamba.cli.rows import passed_on, read_rows
from mobilemamba.cli.run_folder import RunFolder
from mobilemamba.cli.save_config import SaveFitConfig
from mobilemamba.cli.shorthand import expand_options
from mobilemamba.cli.start import is_run
from mobilemamba.cli.stopping import add_hint_to_continue
from mobilemamba.cli.trainer_defaults import trainer_callbacks, trainer_options
from mobilemamba.cli.weights import (
    cards,
    check_against_card,
    check_checkpoint,
    check_class_count,
    check_classes,
    fill_classes,
    fill_preprocessing,
    kind_of,
    misfit_remedy,
    parse_with_card,
    read_evaluated,
    scale_as_weights,
    use_trained,
)
from mobilemamba.data import DataModule
from mobilemamba.errors import ConfigError, MisfitError, WeightsError, user_error
from mobilemamba.sweep import Config, Row, Sweep, SweepRunner
from mobilemamba.tasks import ClassificationTask
from mobilemamba.text import printable
from mobilemamba.training.contract import TaskContract

#: Our own options: name -> type, default and help.
_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "name": (str | None, None, "Folder under runs/; default: the names of the config files."),
    "table_size": (
        int | None,
        224,
        "Picture size in pixels for which FLOPs and throughput are measured; null: not measured.",
    ),
    "per_class": (str | None, None, "CSV file for scores of all classes (validate, test)."),
    "worst_first": (bool, False, "List the worst classes of a segmentation or detection first (validate, test)."),
    "plots": (
        str | None,
        None,
        "Folder for a confusion matrix and, for detection, precision over recall (validate, test).",
    ),
    "window": (int | None, None, "Side in pixels of sliding windows for segmentation (validate, test)."),
    "tta": (
        bool,
        False,
        "Average a segmentation over flipped pictures at 0.5 to 1.75 times their size (validate, test).",
    ),
}


class MobileMambaCLI(LightningCLI):
    """LightningCLI with run folders under ``runs/``, defaults that need no configuration, and sweeps.

    Attributes:
        rows: The rows of the sweep, None for a single run.
        sweep: Settings of the sweep, None for a single run.
        checkpoint: Content of the checkpoint to resume from or to evaluate, None without one.
    """

    rows: list[Row] | None = None
    sweep: Sweep | None = None
    checkpoint: Mapping[str, Any] | None = None

    def __init__(self, args: list[str], resources: contextlib.ExitStack) -> None:
        """Parses the arguments, builds the objects and runs the command.

        Args:
            args: Subcommand and options.
            resources: Holds the run folder's lock until its owner closes it.
        """
        self.typed_args = args
        args = [*args[:1], *expand_options(args[1:])]
        self.given_args = args
        self.resources = resources
        resources.push(partial(add_hint_to_continue, self))
        super().__init__(
            LightningModule,
            DataModule,
            save_config_callback=SaveFitConfig,
            save_config_kwargs={"overwrite": True},  # for resumed runs; the lock and checks protect the folder
            trainer_defaults={"max_epochs": 10, "deterministic": "warn"},
            seed_everything_default=0,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds our own options, the default task and data, and the link between them."""
        for name, (kind, default, text) in _OPTIONS.items():
            parser.add_argument(f"--{name}", type=kind, default=default, help=text)
        parser.add_argument(
            "--sweep", type=Sweep | None, default=None, sub_configs=True, help="Rows of a table; null: a single run."
        )
        parser.set_defaults(
            {
                "model": {"class_path": "mobilemamba.tasks.ClassificationTask", "init_args": {**DEFAULTS}},
                "data": {"class_path": "mobilemamba.data.FashionMNISTSample"},
            }
        )
        parser.link_arguments("data", "model.init_args.num_classes", self._count_classes, apply_on="instantiate")

    def _count_classes(self, data: DataModule) -> int:
        """Returns the data's number of classes, after checking that the data are for the task and the weights.

        Otherwise the error would be that a network with so many classes does not fit the weights.
        """
        check_targets(kind_of(self.settings), data, {path: card.task for path, card in cards(self.settings)})
        if self.command != "fit":
            check_class_count(self.settings, data)
        return data.num_classes

    @property
    def command(self) -> str:
        """``fit``, ``validate`` or ``test``."""
        return str(self.config.subcommand)

    @property
    def settings(self) -> Any:
        """Settings of the command."""
        return self.config[self.command]

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the arguments, names the run folder, and resolves every row of a sweep."""
        assert isinstance(parser, Parser)
        self.config = parse_with_card(parser.parse, args)
        chosen = self.settings.model.class_path
        # Our defaults of the model's arguments are only for classification.
        if not issubclass(pkgutil.resolve_name(chosen), ClassificationTask):
            self._parser(self.command).set_defaults({"model": {"class_path": chosen}})
            self.config = parse_with_card(parser.parse, args)
        config, given = self.settings, given_settings(self.given_args)
        check_settings(self.command, config)
        if self.command != "fit" and {"model.weights", "ckpt_path"} <= set(given):
            raise ConfigError(f"--weights with --ckpt_path: both say what to {self.command}; give one of them")
        if self.command != "fit" and config.sweep is None:
            use_trained(self.command, config, given)
        self.folder = RunFolder(config, given, single=config.sweep is None)
        if config.sweep is not None:
            own = self._parser(self.command)
            assert isinstance(own, Parser)
            self.sweep, self.rows = read_rows(own, config, given)

    def resolved(self) -> Config:
        """Returns this run's configuration as plain values, without its sweep."""
        return plain(self._parser(self.command), self.settings)

    def before_instantiate_classes(self) -> None:
        """Completes the data's settings, and locks the run folder, so that no other process trains in it."""
        config, fits = self.settings, self.command == "fit"
        for row in self.rows or []:
            check_settings("fit", row.config)
        if self.rows is not None and fits and is_run(self.folder.path):
            raise ConfigError(f"{self.folder.path} holds a single run already; choose another --name for the sweep")
        if self.rows is None:
            check_checkpoint(self.command, config)
            check_against_card(config)
            fill_preprocessing(config)
            if not fits:
                fill_classes(config)
        check_report(self.command, config)
        if not fits:
            config.verbose = False  # our own table replaces Lightning's
        elif self.rows is None:
            start = self.folder.choose(self.resolved(), self._saved_config)
            self.checkpoint = start.checkpoint
            if is_first_process():
                self.folder.lock(self.resources)
            rank_zero_info(printable(start.said))

    def _saved_config(self, file: Path | str) -> Config:
        assert isinstance(self.parser, Parser)
        return plain(self._parser("fit"), self.parser.parse(["fit", "--config", str(file)]).fit)

    def _parse_ckpt_path(self) -> None:
        """Uses the settings of a checkpoint that is to be evaluated; a training uses only the given settings."""
        path = self.settings.ckpt_path
        if self.command == "fit" or path is None:
            return
        check_checkpoint(self.command, self.settings)
        self.checkpoint = read_evaluated(path)
        assert isinstance(self.parser, Parser)
        try:
            with self.parser.short_errors():
                super()._parse_ckpt_path()
        except ConfigError as error:
            said, task = str(error).partition(";")[0], self.settings.model.class_path
            raise ConfigError(f"ckpt_path={path} is of another task than {task}: {said}; name it by --model") from error

    def instantiate_classes(self) -> None:
        """Builds data, task and trainer; for a sweep, the runner instead of the trainer."""
        if self.rows is not None and self.sweep is not None:
            self.config_init, self.model, self.datamodule = self.config, None, None
            options = passed_on(self.given_args[1:]) if self.command != "fit" else []
            runner = SweepRunner(self.sweep, self.rows, self.folder.path, options, run=_run_here)
            self.trainer = runner  # type: ignore[assignment]  # has the methods fit, validate and test of a trainer
            return
        try:
            with self._without_weights():
                super().instantiate_classes()
        except Exception as error:  # jsonargparse wraps the exceptions of constructors in its own ValueError
            found = user_error(error)
            if isinstance(found, MisfitError):
                found = WeightsError(f"{found.reason}; {misfit_remedy(self.command, self.settings, found.fits)}")
            if found:
                raise found from None
            raise
        if self.checkpoint is not None:
            check_fits(self.settings.ckpt_path, self.checkpoint, self.model)
        if self.command != "fit":
            check_classes(self.settings, tuple(self.datamodule.class_names))
            scale_as_weights(self.settings, self.datamodule)
            if isinstance(self.model, TaskContract):
                self.model.look_closely(self.settings.window, self.settings.tta)
        else:
            check_num_classes(self.model, self.settings, self.datamodule)
            if self.checkpoint is not None:
                check_data(self.settings.ckpt_path, self.checkpoint, self.datamodule)
        check_pictures(self.model, self.datamodule)
        check_norms(self.settings, self.trainer)

    @contextlib.contextmanager
    def _without_weights(self) -> Iterator[None]:
        """Removes the initial weights from the settings of a resumed training, as the file may no longer exist."""
        model = self.settings.model.get("init_args", {})
        weights = model.get("weights")
        if self.command != "fit" or self.checkpoint is None or weights is None:
            yield
            return
        model["weights"] = None
        try:
            yield
        finally:
            model["weights"] = weights

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds our loggers, if the user chose none, and our callbacks."""
        config = self.config_init[self.command]
        kwargs |= trainer_options(self.command, config.trainer)
        show_bar = kwargs.get("enable_progress_bar", config.trainer.enable_progress_bar) is not False
        callbacks = trainer_callbacks(self.command, config.trainer, self.model, show_bar, config.table_size)
        if self.command == "fit" and self.checkpoint is not None:
            callbacks = without_searches(callbacks, self.checkpoint, self.datamodule)
        return super().instantiate_trainer(**kwargs, callbacks=callbacks)

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning asks an object, not the class
        """Returns only the current command, as creating the parsers of the others would take longer than parsing."""
        command = self.given_args[0]
        return {command: LightningCLI.subcommands()[command]}

    def _report(self, split: str) -> None:
        if self.rows is None and self.trainer.is_global_zero:
            print_evaluation(self.trainer, self.model, self.datamodule, split, self.settings)

    after_validate = partialmethod(_report, "val")
    after_test = partialmethod(_report, "test")


class Planner(MobileMambaCLI):
    """Parses the options of ``fit`` without building anything."""

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None:
        self.config_init, self.model, self.datamodule = self.config, None, None
        self.trainer = SimpleNamespace(fit=lambda **_: None)  # type: ignore[assignment]  # all that LightningCLI uses


def _run_here(args: list[str]) -> None:
    with contextlib.ExitStack() as resources:
        MobileMambaCLI(args, resources)


def is_first_process() -> bool:
    """Whether this is the one process of a training, on any machine, that manages the run folder."""
    return getattr(rank_zero_only, "rank", 0) == 0 and os.environ.get("NODE_RANK", "0") == "0"
