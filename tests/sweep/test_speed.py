"""Rows are timed against each other once they are trained."""

import csv
import errno
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mobilemamba.analysis.machine import device_name
from mobilemamba.files import read_json, write_json
from mobilemamba.sweep import SweepFailedError, speed

ROOT = Path("runs/table")


@pytest.fixture
def sweep_here(sweep_faked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A sweep whose rows say that they have timed their networks on this machine's CPU, with more threads."""
    monkeypatch.setenv("FAKE_DEVICE", f"{device_name('cpu').partition(',')[0]}, 64 threads")
    return sweep_faked


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The pictures' sides of the networks that were timed together, for each time."""
    found, compare = [], speed.compare_throughputs

    def note(subjects: dict[str, Any], *options: Any) -> Any:
        found.append([subject.example for subject in subjects.values()])
        return compare(subjects, *options)

    monkeypatch.setattr(speed, "compare_throughputs", note)
    return found


def throughputs() -> dict[str, dict[str, str]]:
    with (ROOT / "results.csv").open() as file:
        return {line["run"]: line for line in csv.DictReader(file)}


def test_finished_rows_are_timed_in_common_rounds(
    sweep_here: Callable[..., Any], timed: list[list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_here("a", "bb")
    assert timed == [[32, 32]]
    assert "timing the networks of 2 rows in common rounds, about" in capsys.readouterr().out
    table = throughputs()
    for name, line in table.items():
        found = read_json(ROOT / name / "throughput.json")
        assert (found["rows"], found["batch_size"], found["rounds"]) == (["a", "bb"], 32, 2)
        assert float(line["throughput"]) == found["images_per_second"] > 0
        assert line["device"] == device_name("cpu")
        assert line["throughput_conditions"].endswith(", in rounds common to 2 rows")
    assert "in rounds common to 2 rows." in (ROOT / "results.md").read_text()
    sweep_here("a", "bb")
    assert len(timed) == 1
    sweep_here("a", "bb", "ccc")
    assert timed[1:] == [[32, 32, 32]]


def test_rows_with_one_network_share_its_time(sweep_here: Callable[..., Any], timed: list[list[int]]) -> None:
    sweep_here("a", "bb", grid={"seed_everything": [0, 1]})
    assert timed == [[32, 32]]
    assert len(throughputs()) == 4
    assert len({line["throughput"] for line in throughputs().values()}) == 2
    sweep_here("a", grid={"seed_everything": [0, 1]})
    assert len(timed) == 1, "it is one network"


@pytest.mark.parametrize("rows", [("a",), ("a", "bad")], ids=["one row", "one finished"])
def test_a_single_network_is_not_timed_again(
    sweep_here: Callable[..., Any], timed: list[list[int]], rows: tuple[str, ...]
) -> None:
    with pytest.raises(SweepFailedError) if "bad" in rows else nullcontext():
        sweep_here(*rows)
    assert not timed
    assert throughputs()["a"]["throughput"] == "10.0"


def test_rows_of_another_machine_keep_what_they_measured(sweep_faked: Callable[..., Any], timed: list[Any]) -> None:
    sweep_faked("a", "bb")
    assert not timed
    assert [line["throughput"] for line in throughputs().values()] == ["10.0", "20.0"]


def test_a_row_of_another_machine_does_not_keep_the_others_from_it(
    sweep_here: Callable[..., Any], timed: list[list[int]]
) -> None:
    sweep_here("a", "bb", "ccc")
    results = read_json(ROOT / "bb/results.json")
    results["measured"]["throughput"]["device"] = "Another CPU, 2 threads"
    write_json(ROOT / "bb/results.json", results)
    (ROOT / "bb/throughput.json").unlink()
    sweep_here("a", "bb", "ccc")
    assert len(timed) == 2
    assert read_json(ROOT / "a/throughput.json")["rows"] == ["a", "ccc"]
    assert throughputs()["bb"]["throughput"] == "20.0"
    assert "do not compare" in (ROOT / "results.md").read_text()


def test_a_row_with_another_network_is_timed_anew(sweep_here: Callable[..., Any], timed: list[list[int]]) -> None:
    sweep_here("a", "bb")
    write_json(ROOT / "a/throughput.json", read_json(ROOT / "a/throughput.json") | {"network": "another"})
    sweep_here("a", "bb")
    assert len(timed) == 2


@pytest.mark.parametrize("error", [RuntimeError("out of memory\nat 0x7f"), KeyError("a bug")], ids=repr)
def test_without_the_memory_for_it_each_row_s_own_number_stays(
    sweep_here: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(speed, "compare_throughputs", fail)
    with pytest.raises(SweepFailedError, match="bad"):
        sweep_here("a", "bb", "bad")
    said = str(error).partition("\n")[0]
    assert f"the networks could not be timed together ({said})\n" in capsys.readouterr().out
    assert [line["throughput"] for line in throughputs().values()] == ["10.0", "20.0", ""]


def test_a_network_that_fails_beside_others_keeps_its_own_number(
    sweep_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not that of an earlier time."""
    sweep_here("a", "bb")
    compare = speed.compare_throughputs

    def fail_first(subjects: dict[str, Any], *options: Any) -> Any:
        first, *others = subjects
        return compare({key: subjects[key] for key in others}, *options)[0], {first: RuntimeError("out of memory")}

    monkeypatch.setattr(speed, "compare_throughputs", fail_first)
    sweep_here("a", "bb", "ccc")
    assert "a: not timed with the others: out of memory" in capsys.readouterr().out
    assert throughputs()["a"]["throughput"] == "10.0"
    sweep_here("a", "bb", "ccc")
    assert "timing" not in capsys.readouterr().out, "it would fail again"


def test_a_folder_that_cannot_be_written_is_named(
    sweep_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(path: Path, content: Any) -> None:
        if path.parent.name == "a":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_json(path, content)

    monkeypatch.setattr(speed, "write_json", write)
    sweep_here("a", "bb")
    assert "a: not timed with the others: [Errno 28] No space left on device" in capsys.readouterr().out
    assert float(throughputs()["bb"]["throughput"]) != 20
