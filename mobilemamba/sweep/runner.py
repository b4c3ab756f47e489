"""Runs a sweep: checks all rows, starts those that are not finished, and keeps the table up to date."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from filelock import AcquireReturnProxy, FileLock, Timeout

from mobilemamba.errors import ConfigError, MobileMambaError
from mobilemamba.files import make_folder, read_json, remove_unfinished, write_text_atomic
from mobilemamba.signals import stop_on_signals
from mobilemamba.sweep import speed
from mobilemamba.sweep.evaluate import (
    Command,
    Run,
    evaluate_here,
    evaluates_here,
    evaluation_sheet,
    evaluator,
)
from mobilemamba.sweep.hparams import write_hparams
from mobilemamba.sweep.launchers import Event, Launch, launcher
from mobilemamba.sweep.live import Display
from mobilemamba.sweep.network import check_and_count, complete
from mobilemamba.sweep.plan import PLACE, SEED, select
from mobilemamba.sweep.record import FUSED_FILE, Record, record, state
from mobilemamba.sweep.row import FitRow, Row, fit_row, has_begun, is_finished, is_locked
from mobilemamba.sweep.saved import SavedSweep, save_plan, write_tables
from mobilemamba.sweep.section import Sweep
from mobilemamba.sweep.settings import differences, lookup, short_key
from mobilemamba.text import abridged


class SweepFailedError(MobileMambaError):
    """Raised when some rows have failed; the others are finished and in the table."""

    exit_code = 1


class SweepRunner:
    """Replaces the trainer in a sweep: ``fit`` trains its rows, ``validate`` and ``test`` evaluate their networks.

    Attributes:
        rows: All rows.
        selected: Rows that this command runs, including those whose networks a selected row evaluates with folded
            norms.
    """

    def __init__(
        self,
        sweep: Sweep,
        rows: list[Row],
        root: Path,
        options: Sequence[str] = (),
        fit: FitRow = fit_row,
        run: Run | None = None,
    ) -> None:
        """Sets what to run and where.

        Args:
            sweep: Settings of the sweep.
            rows: All rows.
            root: The sweep's folder, with the table and one folder per row.
            options: Options by which ``validate`` and ``test`` override each row's settings.
            fit: Trains the row of a run folder.
            run: Runs a command line in this process; None to evaluate every row in a separate process.

        Raises:
            ConfigError: If ``sweep.only`` matches no row.
        """
        self.sweep, self.rows, self.root, self.options, self.fit_row, self.run = sweep, rows, root, options, fit, run
        chosen = select(rows, sweep.only)
        folded = {row.fused_of for row in chosen}
        self.selected = [row for row in rows if row in chosen or row.name in folded]
        self.swept = list(rows[0].values)
        self.counts: dict[str, dict[str, float]] = {}
        self._running: set[str] = set()
        self._unstarted: set[str] = set()  # rows that this command starts, and none that was stopped before
        self._failures: dict[str, str] = {}
        self._drawn: dict[str, Record] = {}

    def fit(self, **_: Any) -> None:
        """Runs all selected rows that are not finished.

        Raises:
            ConfigError: If a row is invalid or its settings have changed; raised before any row starts.
            SweepFailedError: If a row has failed; raised after the others are done.
        """
        launch = launcher(self.sweep, self.selected[0].config)
        changed = self._changed()
        for row in self.rows:
            complete(row)
        self.counts = check_and_count(self.rows)
        display = Display(self.root.name, self.swept)
        if self.sweep.dry_run:
            self._print_plan(display, changed)
            return
        display.say(f"sweep folder: {self.root}")
        with self._lock(), stop_on_signals(), display:
            self._prepare(changed)
            self._run(display, launch)

    def validate(self, **_: Any) -> None:
        """Validates the network of every selected row that is finished.

        Raises:
            ConfigError: If no row is finished, or an option does not apply.
            SweepFailedError: If a row has failed; raised after the others are done.
        """
        self._evaluate("validate")

    def test(self, **_: Any) -> None:
        """Tests the network of every selected row that is finished; raises the same errors as :meth:`validate`."""
        self._evaluate("test")

    def _evaluate(self, command: Command) -> None:
        rows = [row for row in self.selected if not row.fused_of and is_finished(row.run_dir)]
        if not rows:
            raise ConfigError(
                f"no row in {self.root} is finished; train with the same options by mobilemamba fit first"
            )
        launch, display = launcher(self.sweep, rows[0].config), Display(self.root.name, self.swept)
        here, rows = rows, [_as_started(row) for row in rows]  # the file may have other settings by now
        given = [short_key(option.removeprefix("--").partition("=")[0]) for option in self.options]
        for row, now in zip(rows, here, strict=True):
            complete(row)
            parts = ("trainer", "model", "data", SEED)
            if lines := differences(row.config, now.config, parts, without=(*PLACE, *given)):
                display.say(f"{row.name}: evaluated as it was trained, other settings are ignored: {abridged(lines)}")
        names = {row.run_dir: row.name for row in rows}
        self._failures = {}
        with self._lock(), stop_on_signals():
            events = self._evaluations(launch, list(names), command, f"{command}.json", self.options)
            self._follow(display, names, events, table=False)
        sheet = evaluation_sheet(f"{self.root.name}: {command}", rows, self.swept, command)
        write_text_atomic(self.root / f"{command}.csv", sheet.to_csv())
        write_text_atomic(self.root / f"{command}.md", sheet.to_markdown())
        display.console.print(sheet.to_rich(display.console.width))
        if waiting := len(self.selected) - len([row for row in self.selected if is_finished(row.run_dir)]):
            display.say(f"{waiting} rows are not finished and were left out")
        display.say(f"table: {self.root / f'{command}.md'}")
        self._raise_failures()

    def _lock(self) -> AcquireReturnProxy:
        make_folder(self.root, "the sweep folder")
        remove_unfinished(self.root / "*")
        try:
            return FileLock(self.root / ".lock", timeout=0).acquire()
        except Timeout:
            raise ConfigError(
                f"this sweep is being run already, in {self.root}; wait for it or stop it first"
            ) from None

    def records(self) -> list[Record]:
        """Returns the records of the table: selected rows, and others that were started before."""
        shown = [row for row in self.rows if row in self.selected or (row.run_dir / "run.yaml").exists()]
        records = [record(row, self.counts[row.name], row.name in self._running) for row in shown]
        for entry in records:
            if entry["run"] in self._failures:  # known here even if a full disk kept the row from writing its status
                entry |= {"status": "failed", "reason": self._failures[entry["run"]]}
            elif entry["status"] == "stopped" and entry["run"] in self._unstarted:
                entry["status"] = "running"  # it has written so itself before its launcher said that it started
        return records

    def _run(self, display: Display, launch: Launch) -> None:
        trained = {row.run_dir: row.name for row in self.selected if not row.fused_of}
        for run_dir, name in trained.items():
            if is_locked(run_dir):
                display.say(f"{name}: still being trained by a process of an earlier command, which is waited for")
        self._failures = {}
        self._refresh(display)
        try:
            pending = {run_dir: name for run_dir, name in trained.items() if not is_finished(run_dir)}
            self._unstarted = {name for run_dir, name in pending.items() if state(run_dir) != "stopped"}
            self._follow(display, pending, launch(list(pending), self.fit_row))
            folds = {row.run_dir: row.name for row in self.selected if row.fused_of and is_finished(row.run_dir)}
            pending = {run_dir: name for run_dir, name in folds.items() if not read_json(run_dir / FUSED_FILE)}
            self._follow(display, pending, self._evaluations(launch, list(pending), "validate", FUSED_FILE, []))
            self._compare_speed(display)
        finally:
            self._running.clear()
            self._unstarted.clear()
            self._refresh(display)
        display.say(f"table: {self.root / 'results.md'}")
        self._raise_failures()

    def _compare_speed(self, display: Display) -> None:
        rows = speed.uncompared(self.rows)
        if not rows:
            return
        display.say(f"timing the networks of {len(rows)} rows in common rounds, about {speed.seconds(rows):.0f} s")
        try:
            for name, reason in speed.compare(rows).items():
                display.say(f"{name}: not timed with the others: {reason}")
        except Exception as error:  # of a network or a lack of memory: all rows are trained, and are to be told of
            display.say(f"the networks could not be timed together ({speed.in_one_line(error)})")

    def _evaluations(
        self, launch: Launch, run_dirs: list[Path], command: Command, file: str, options: Sequence[str]
    ) -> Generator[Event]:
        if self.run and evaluates_here(self.sweep.launcher, self.sweep.jobs, self.selected[0].config):
            return evaluate_here(run_dirs, command, file, [*options], self.run)
        return launch(run_dirs, evaluator(command, file, [*options]))

    def _follow(self, display: Display, names: dict[Path, str], events: Generator[Event], table: bool = True) -> None:
        """Updates the table while rows run, or without a table prints a line for each row that is done."""
        with contextlib.closing(events):
            for event, run_dir, reason in events:
                if event == "said":
                    display.say(str(reason))
                elif event == "started":
                    self._running.add(names[run_dir])
                elif event == "done":
                    self._running.discard(names[run_dir])
                    if reason is not None:
                        self._failures[names[run_dir]] = reason
                    if not table:
                        display.say(f"{names[run_dir]}: {reason or 'done'}")
                if table:
                    self._refresh(display, write=event == "done")

    def _raise_failures(self) -> None:
        failed = [(row, self._failures[row.name]) for row in self.selected if row.name in self._failures]
        if failed:
            reasons = "; ".join(f"{row.name}: {reason} (see {row.run_dir / 'log.txt'})" for row, reason in failed)
            raise SweepFailedError(
                f"{len(failed)} of {len(self.selected)} rows failed: {reasons}. The same command tries them again"
            )

    def _refresh(self, display: Display, write: bool = True) -> None:
        """Redraws the table and, with ``write``, writes the sweep's files."""
        records = self.records()
        trained = [entry for entry in records if not entry["fused_of"]]
        display.update(
            records, {entry["run"]: read_json(Path(entry["run_dir"]) / "progress.json") for entry in trained}
        )
        if not write:
            return
        try:
            save_plan(self.root, self.rows, self.counts, self.sweep.paper_note)
            write_tables(self.root, SavedSweep(self.root.name, self.swept, self.sweep.paper_note, records))
            for entry in records:
                if entry["status"] == "finished" and self._drawn.get(entry["run"]) != entry:
                    write_hparams(self.root / "hparams" / entry["run"], entry, self.swept)
                    self._drawn[entry["run"]] = entry
        except OSError as error:  # the rows' own results are safe, and the table can be made from them again
            display.say(f"the table could not be written ({error.strerror or error}); the same command will make it")

    def _changed(self) -> dict[str, list[str]]:
        """Returns row name -> differences from the settings that the row was started with, if it has begun.

        Raises:
            ConfigError: If there are differences and ``sweep.changed`` is ``stop``.
        """
        changed: dict[str, list[str]] = {}
        for row in self.rows:
            started = _as_started(row)
            if lines := differences(started.config, row.config, without=PLACE):
                if self.sweep.changed == "keep" or row not in self.selected:
                    row.config, row.values = started.config, started.values
                if row in self.selected and not row.fused_of and has_begun(row.run_dir):
                    changed[row.name] = lines
        if changed and self.sweep.changed == "stop" and not self.sweep.dry_run:
            shown = "; ".join(f"row {name!r}: {abridged(lines)}" for name, lines in list(changed.items())[:2])
            more = f" (and {len(changed) - 2} more rows)" if len(changed) > 2 else ""
            raise ConfigError(
                f"settings changed since these rows were started in {self.root}: {shown}{more}. Use another --name, or "
                "--sweep.changed rerun to train them afresh, or --sweep.changed keep for their former settings"
            )
        return changed

    def _prepare(self, changed: dict[str, list[str]]) -> None:
        for row in self.selected:
            if row.fused_of:
                continue
            if row.name in changed and self.sweep.changed == "rerun":
                if is_locked(row.run_dir):
                    raise ConfigError(
                        f"row {row.name!r} is still being trained with its former settings; stop it first"
                    )
                shutil.rmtree(row.run_dir)
                shutil.rmtree(self.root / "hparams" / row.name, ignore_errors=True)
            if not ((row.run_dir / "run.yaml").exists() and has_begun(row.run_dir)):
                row.run_dir.mkdir(parents=True, exist_ok=True)
                text = yaml.safe_dump(row.config, sort_keys=False, allow_unicode=True)
                write_text_atomic(row.run_dir / "run.yaml", text)

    def _print_plan(self, display: Display, changed: dict[str, list[str]]) -> None:
        display.console.print(display.table(self.records(), {}))
        for name, lines in changed.items():
            display.say(f"row {name!r}: settings changed since it was started: {abridged(lines)}")
        display.say(
            f"{len(self.selected)} of {len(self.rows)} rows, in {self.root}; dry run: nothing was run or written"
        )


def _as_started(row: Row) -> Row:
    """Returns a row with the settings that it was started with, which are in its folder if it was."""
    path = row.run_dir / "run.yaml"
    if not path.exists():
        return row
    former = yaml.safe_load(path.read_text(encoding="utf-8"))
    former = former if isinstance(former, dict) else {}
    return replace(row, config=former, values={key: lookup(former, key) for key in row.values})
