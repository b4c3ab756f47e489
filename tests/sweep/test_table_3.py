"""Table 3 as a sweep: our rows are the recipes, and every row counts as printed, or says why not."""

from dataclasses import replace
from pathlib import Path

import pytest

from mobilemamba.cli import plan
from mobilemamba.models import VARIANTS
from mobilemamba.sweep import Row
from tests.sweep.counting import counts_of

FOLDER = Path(__file__).resolve().parents[2] / "experiments/imagenet"


def rows_of(name: str, *options: str) -> dict[str, Row]:
    return {row.name: row for row in plan(["--config", str(FOLDER / name), "--data.root", "imagenet", *options])}


@pytest.fixture(scope="module")
def table() -> dict[str, Row]:
    return rows_of("table_3.yaml", "--model.distillation.weights", "tresnet_v2_l.pth")


def test_our_rows_are_the_recipes_with_and_without_a_teacher(table: dict[str, Row]) -> None:
    assert sum(name.startswith("mobilemamba") for name in table) == 2 * len(VARIANTS)
    for name, variant in VARIANTS.items():
        for row, recipe in ((name, "mobilemamba"), (f"{name}_taught", "mobilemamba_kd")):
            (expected,) = rows_of(f"{recipe}.yaml", "--model", name).values()
            model, found = (config["model"]["init_args"] for config in (expected.config, table[row].config))
            if recipe == "mobilemamba_kd":
                model["distillation"]["weights"] = "tresnet_v2_l.pth"
            assert found == model
            expected.config["data"]["init_args"]["img_size"] = variant.img_size  # which the recipe leaves to the model
            assert table[row].config["data"] == expected.config["data"]
            assert table[row].config["table_size"] == variant.img_size
            lengths = [config["trainer"]["max_epochs"] for config in (expected.config, table[row].config)]
            assert lengths == [1000 if row.endswith("taught") else 300] * 2
        assert table[name].paper["top1"] == variant.paper_top1


def test_the_other_networks_train_without_a_teacher_at_their_sizes(table: dict[str, Row]) -> None:
    others = [row for name, row in table.items() if not name.startswith("mobilemamba")]
    assert len(others) == 23
    for row in others:
        assert row.config["model"]["init_args"]["distillation"] is None
        assert row.config["data"]["init_args"]["img_size"] == row.config["table_size"]


@pytest.mark.slow
def test_rows_count_as_printed_or_say_why_not(table: dict[str, Row]) -> None:
    sample = {"class_path": "FashionMNISTSample", "init_args": {}}  # as ImageNet is not here
    rows = [replace(row, config={**row.config, "data": sample}) for row in table.values()]
    for name, counts in counts_of(rows).items():
        printed, note = table[name].paper, table[name].note
        # Some papers count multiply-adds alone, and many cut digits off.
        flops = [counts[key] == pytest.approx(printed["flops_m"], rel=0.015, abs=0.6) for key in ("flops_m", "macs_m")]
        params = counts["params_m"] == pytest.approx(printed["params_m"], abs=0.101)
        assert (any(flops) and params) or note, (name, counts)
        if "256 px" in note:
            assert counts["flops_m"] * (256 / 224) ** 2 == pytest.approx(printed["flops_m"], rel=0.015)
        if name.startswith("mobilemamba"):
            assert round(counts["flops_m"]) == printed["flops_m"]
            assert round(counts["params_m"], 1) == printed["params_m"]
