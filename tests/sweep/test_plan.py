import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mobilemamba.cli import main, plan
from mobilemamba.errors import ConfigError
from mobilemamba.sweep import Row, Sweep, expand, select
from mobilemamba.sweep.plan import differences, lookup

Write = Callable[..., list[str]]
XI = "model.arch.global_ratio"


def toy_resolve(overrides: dict[str, Any]) -> dict[str, Any]:
    return {"seed_everything": 0, "lr": 1, "size": 2, **overrides}


def toy_rows(given: tuple[str, ...] = (), **sweep: Any) -> list[Row]:
    return expand(Sweep(**sweep), Path("runs/toy"), toy_resolve, given)


def test_grid_crosses_rows() -> None:
    rows = toy_rows(rows={"a": {}, "b": {"lr": 5}}, grid={"size": [1, 2], "path": ["x/y"]})
    assert [row.name for row in rows] == [f"{r},size={s},path=x_y" for r in "ab" for s in (1, 2)]
    assert [row.values for row in rows][-1] == {"lr": 5, "size": 2, "path": "x/y"}
    assert rows[0].values["lr"] == 1, "a row shows the resolved value of what other rows sweep"


@pytest.mark.parametrize("name", ["a/b", "..", ".", "", " ", "hparams", "x" * 300])
def test_row_names_are_folders(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be a folder"):
        toy_rows(rows={name: {"lr": 2}})


def test_odd_row_names_survive(write: Write) -> None:
    rows = plan(write({"a b, c": {"model.lr": 0.1}, "xi=.5": {"model.lr": 0.2}}))
    assert [row.name for row in rows] == ["a b, c", "xi=.5"]
    assert rows[0].run_dir == Path("runs/table/a b, c")


def test_twin_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="'a' and 'b' have the same settings"):
        toy_rows(rows={"a": {"lr": 1}, "b": {}})


def test_a_link_target_shows_as_twins(write: Write) -> None:
    with pytest.raises(ConfigError, match="same settings"):
        plan(write({"a": {"model.num_classes": 3}, "b": {"model.num_classes": 4}}))


@pytest.mark.parametrize("key", ["trainer.default_root_dir", "name", "sweep.jobs", "ckpt_path"])
def test_reserved_settings_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="cannot be swept"):
        toy_rows(rows={"a": {key: 1}})


@pytest.mark.parametrize(
    "option",
    [
        "--model.arch.global_ratio=[.1,.1,.1]",
        "--model.init_args.arch.global_ratio=[.1]",
        "--model.arch={global_ratio: [1,0,0]}",
    ],
)
def test_an_option_may_not_lose_against_the_rows(write: Write, option: str) -> None:
    with pytest.raises(ConfigError, match="would win"):
        plan([*write({"a": {XI: [0.5] * 3}}), option])


def test_options_after_the_file_reach_every_row(write: Write) -> None:
    rows = plan([*write({"a": {XI: [0.5] * 3}, "b": {}}), "--trainer.max_epochs", "7", "--model.arch.depths=[1,1,2]"])
    assert [lookup(row.config, "trainer.max_epochs") for row in rows] == [7, 7]
    assert [lookup(row.config, "model.arch.depths") for row in rows] == [[1, 1, 2]] * 2


def test_a_second_file_reaches_every_row_and_the_name(write: Write, tmp_path: Path) -> None:
    (tmp_path / "long.yaml").write_text("trainer: {max_epochs: 300}")
    rows = plan([*write({"a": {"model.lr": 0.1}}), "--config", "long.yaml"])
    assert lookup(rows[0].config, "trainer.max_epochs") == 300
    assert rows[0].run_dir == Path("runs/table-long/a")


def test_long_and_short_keys_mix(write: Write) -> None:
    row = plan(write({"a": {XI: [0.5] * 3, "model.init_args.arch.d_state": 2}}))[0]
    assert lookup(row.config, XI) == [0.5] * 3
    assert lookup(row.config, "model.arch.d_state") == 2


def test_a_row_may_change_the_class_of_the_data(write: Write, tmp_path: Path) -> None:
    row = plan(write({"a": {"data": {"class_path": "ImageFolder", "init_args": {"root": str(tmp_path)}}}}))[0]
    assert lookup(row.config, "data.class_path").endswith("ImageFolder")
    assert row.values == {"data": "ImageFolder"}


def test_the_sweep_may_be_a_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "rows.yaml").write_text(yaml.safe_dump({"rows": {"a": {"model.lr": 0.5}}}))
    assert [row.name for row in plan([*write(), "--sweep", "rows.yaml"])] == ["a"]


def test_sweep_null_is_a_single_run(write: Write) -> None:
    assert [row.name for row in plan([*write({"a": {"model.lr": 0.5}}), "--sweep", "null"])] == ["base"]


def test_a_mistake_in_one_row_is_named_before_anything_starts(write: Write, tmp_path: Path) -> None:
    rows = {"good": {"model.lr": 0.1}, "seventh": {"model.arch.globl_ratio": [0.1] * 3}}
    with pytest.raises(ConfigError, match=r"row 'seventh': unknown setting model.arch.globl_ratio"):
        main(["fit", *write(rows)])
    rows["seventh"] = {XI: [2.0, 0.9, 0.9]}
    with pytest.raises(ConfigError, match=r"row 'seventh': global_ratio=2.0: expected 0 to 1"):
        main(["fit", *write(rows)])
    rows["seventh"] = {"model.label_smoothing": 3.0}
    with pytest.raises(ConfigError, match=r"row 'seventh': label_smoothing=3.0"):
        main(["fit", *write(rows)])
    assert not (tmp_path / "runs").exists()


def test_another_seed_for_each_row_is_refused(write: Write) -> None:
    with pytest.raises(ConfigError, match="seed_everything=True; give a number"):
        plan([*write({"a": {}}), "--seed_everything", "true"])


def test_a_fast_dev_run_makes_no_table(write: Write) -> None:
    with pytest.raises(ConfigError, match="fast_dev_run leaves no results"):
        plan([*write({"a": {}}), "--trainer.fast_dev_run", "true"])


def test_select() -> None:
    rows = toy_rows(rows={"xi_1": {"lr": 2}, "xi_2": {"lr": 3}, "a[b]": {"lr": 4}})
    assert [row.name for row in select(rows, "xi*")] == ["xi_1", "xi_2"]
    assert [row.name for row in select(rows, ["a[b]", "xi_2"])] == ["xi_2", "a[b]"]
    with pytest.raises(ConfigError, match=r"'z\*' fits no row; expected a name or pattern of: xi_1, xi_2"):
        select(rows, ["xi_1", "z*"])


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({}, "the sweep is empty"),
        ({"rows": {"a": {}}, "jobs": 0}, "sweep.jobs=0: expected 1 or more"),
        ({"grid": {"lr": []}}, "lr has no values"),
        ({"rows": {"a": {}}, "paper": {"a": {"speed": 1}}}, "unknown 'speed'"),
        ({"rows": {"a": {}}, "paper": {"b": {"top1": 1}}}, "no row 'b'"),
        ({"rows": {"a": {"lr": 2}}, "grid": {"lr": [1]}}, "both set lr"),
        ({"grid": {"a.x": [1, 1]}}, "two rows named"),
    ],
)
def test_impossible_sweeps(sweep: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        toy_rows(**sweep)


def test_differences_read_like_settings() -> None:
    old = {"model": {"class_path": "X", "init_args": {"lr": 1}}, "gone": None}
    new = json.loads(json.dumps(old).replace("1", "2"))
    assert differences(old, new) == ["model.lr: 1 -> 2"]
