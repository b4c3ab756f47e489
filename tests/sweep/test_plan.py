import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mobilemamba.cli import plan
from mobilemamba.errors import ConfigError
from mobilemamba.sweep import Row, Sweep, expand, select
from mobilemamba.sweep.settings import differences, lookup
from mobilemamba_command import main

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


def test_rows_of_a_grid_of_seeds_are_one_group() -> None:
    rows = toy_rows(
        rows={"a": {}, "b": {"lr": 5}},
        grid={"seed_everything": [0, 1], "size": [3]},
        paper={"b,size=3": {"top1": 70}, "a,seed_everything=1,size=3": {"top1": 60}},
        notes={"a,size=3": "a guess"},
    )
    assert [row.name for row in rows] == [f"{r},seed_everything={s},size=3" for r in "ab" for s in (0, 1)]
    assert [row.group for row in rows] == ["a,size=3"] * 2 + ["b,size=3"] * 2
    assert [row.paper.get("top1") for row in rows] == [None, 60, 70, 70]
    assert [row.note for row in rows] == ["a guess", "a guess", "", ""]
    assert select(rows, "b,size=3") == rows[2:]


def test_a_grid_of_seeds_alone_repeats_the_base() -> None:
    assert [row.group for row in toy_rows(grid={"seed_everything": [0, 1]})] == ["base", "base"]


def test_the_command_line_adds_seeds_to_any_sweep(write: Write) -> None:
    rows = plan([*write({"a": {"model.lr": 0.1}}), "--sweep.grid", "{seed_everything: [3, 4]}"])
    assert [lookup(row.config, "seed_everything") for row in rows] == [3, 4]
    assert {row.group for row in rows} == {"a"}


def test_scaled_settings() -> None:
    rows = {"a": {"size": 192, "lr": 0.5}, "b": {"size": 1, "lr": 0.1}, "c": {"lr": 1}}
    scaled = toy_rows(rows=rows, scale={"size": 0.25, "lr": 0.5})
    assert [(row.config["size"], row.config["lr"]) for row in scaled] == [(48, 0.25), (1, 0.05), (2, 1)]
    assert [row.values["size"] for row in scaled] == [48, 1, 2], "the table shows what was trained"


@pytest.mark.parametrize("value", [0, -1])
def test_none_and_no_limit_stay_what_they_are(value: int) -> None:
    scaled = toy_rows(rows={"a": {"size": value}, "b": {"size": 8}}, scale={"size": 0.25})
    assert [row.config["size"] for row in scaled] == [value, 2]


def test_a_second_file_takes_the_scale_back(write: Write, tmp_path: Path) -> None:
    (tmp_path / "full.yaml").write_text("sweep: {scale: {}}")
    options = write({"a": {"data.img_size": 160}}, scale={"data.img_size": 0.25})
    assert plan(options)[0].config["data"]["init_args"]["img_size"] == 40
    assert plan([*options, "--config", "full.yaml"])[0].config["data"]["init_args"]["img_size"] == 160


def test_a_fused_row_is_its_parents_network() -> None:
    seeds = {"seed_everything": [0, 1]}
    rows = toy_rows(rows={"a": {"lr": 2}}, fused={"f": "a"}, paper={"f": {"flops_m": 648}}, grid=seeds)
    assert [row.name for row in rows[2:]] == ["f,seed_everything=0", "f,seed_everything=1"]
    assert [row.fused_of for row in rows] == [None, None, "a,seed_everything=0", "a,seed_everything=1"]
    assert [row.run_dir for row in rows[2:]] == [row.run_dir for row in rows[:2]]
    assert [(row.group, row.paper, row.values["lr"]) for row in rows[2:]] == [("f", {"flops_m": 648}, 2)] * 2


def test_an_option_inside_what_other_rows_leave_out() -> None:
    off = {"rows": {"plain": {"distillation": None}, "kd": {"lr": 2}}}
    assert [row.name for row in toy_rows(("distillation.weight",), **off)] == ["plain", "kd"]
    with pytest.raises(ConfigError, match="--distillation is given"):
        toy_rows(("distillation",), **off)
    other = {"rows": {"plain": {"distillation": None}, "kd": {"distillation": {"weight": 2}}}}
    with pytest.raises(ConfigError, match=r"--distillation.weight is given"):
        toy_rows(("distillation.weight",), **other)


@pytest.mark.parametrize("name", ["a/b", "..", ".lock", " ", "Hparams", "results.md", "a\nb", "a\0", " a", "é" * 101])
def test_row_names_are_folders(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be a folder's name: expected at most 200 bytes"):
        toy_rows(rows={name: {"lr": 2}})


@pytest.mark.parametrize("names", [("S6", "s6"), ("\u00e9", "e\u0301")])
def test_rows_of_one_folder_where_capitals_are_not_told_apart(names: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"rows '{names[0]}' and '{names[1]}' differ in capitals alone"):
        toy_rows(rows={name: {"lr": index} for index, name in enumerate(names)})
    with pytest.raises(ConfigError, match="differ in capitals alone"):
        toy_rows(rows={names[0]: {}}, fused={names[1]: names[0]})


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
        "--data=FashionScenes",
    ],
)
def test_an_option_may_not_lose_against_the_rows(write: Write, option: str) -> None:
    with pytest.raises(ConfigError, match="would win"):
        plan([*write({"a": {XI: [0.5] * 3, "data.class_path": "FashionMNISTSample"}}), option])


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
    changes = {"data": {"class_path": "ImageFolder", "init_args": {"root": str(tmp_path)}}}
    row = plan(write({"a": {**changes, "trainer.callbacks": [{"class_path": "StopEarly"}]}}))[0]
    assert lookup(row.config, "data.class_path").endswith("ImageFolder")
    assert row.values == {"data": "ImageFolder", "trainer.callbacks": ["StopEarly"]}


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
        ({"rows": {"a": {}}, "paper": {"b": {"top1": 1}}}, "no row 'b'"),
        ({"rows": {"a": {"lr": 2}}, "grid": {"lr": [1]}}, "both set lr"),
        ({"grid": {"a.x": [1, 1]}}, "two rows named"),
        ({"rows": {"a": {}}, "notes": {"b": "?"}}, "sweep.notes: no row 'b'"),
        ({"rows": {"a": {"lr": 2}}, "scale": {"size": 0.5}}, "no row sets size"),
        ({"rows": {"a": {"lr": 2}}, "scale": {"lr": float("inf")}}, "expected a factor above 0"),
        ({"rows": {"a": {"lr": 2}}, "scale": {"lr": 0}}, "expected a factor above 0"),
        ({"rows": {"a": {"lr": "x"}}, "scale": {"lr": 2}}, "lr is 'x' in row 'a'; only numbers"),
        ({"rows": {"a": {"lr": True}}, "scale": {"lr": 2}}, "only numbers"),
        ({"rows": {"a": {}}, "fused": {"f": "b"}}, "sweep.fused: f: b; expected a new name, and one of: a"),
        ({"rows": {"a": {}}, "fused": {"a": "a"}}, "expected a new name"),
        ({"rows": {"a": {}}, "fused": {"x/y": "a"}}, "cannot be a folder"),
    ],
)
def test_impossible_sweeps(sweep: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        toy_rows(**sweep)


def test_a_seed_of_the_data_that_is_left_out_is_that_of_everything() -> None:
    """Else a run that was begun with the seed given would not go on by a command that leaves it out."""
    given = {"seed_everything": 3, "data": {"init_args": {"seed": 3}}}
    left_out = {"seed_everything": 3, "data": {"init_args": {"seed": None}}}
    other = {"seed_everything": 4, "data": {"init_args": {"seed": None}}}
    assert differences(given, left_out) == differences(left_out, given) == []
    assert differences(given, other) == ["seed_everything: 3 -> 4", "data.seed: 3 -> null"]


def test_differences_read_like_settings() -> None:
    old = {"model": {"class_path": "X", "init_args": {"lr": 1}}, "gone": None}
    new = json.loads(json.dumps(old).replace("1", "2"))
    assert differences(old, new) == ["model.lr: 1 -> 2"]
    other = {**old, "data": {"seed": 1}, "model": {"init_args": {"lr": 3}}}
    assert differences(old, other, within=["data", "name"]) == ["data.seed: null -> 1"]
    assert "model.lr: 1 -> 3" not in differences(old, other, without=["model"])
