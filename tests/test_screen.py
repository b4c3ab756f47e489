"""Tables on narrow screens, and text that is no markup."""

import pytest
from rich.console import Console

from mobilemamba.screen import fit_table, say
from mobilemamba.text import shorten

HEADER = ["row", "d_state", "FLOPs (M)", "top-1 (%)", "status"]
LINES = [
    ["mobilemamba[red]_with_a_long_name", "16", "652.3", "81.25 ± 0.35", "failed: ValueError: [/] is :smile: no tag"],
    ["b", "8", "652.3", "", "finished"],
]


def shown(width: int, **options: object) -> str:
    console = Console(width=width, record=True, force_terminal=True)
    console.print(fit_table(width, HEADER, LINES, **options))  # type: ignore[arg-type]
    return console.export_text()


@pytest.mark.parametrize("width", [400, 120, 80, 48])
def test_nothing_is_cut_and_no_line_is_too_long(width: int) -> None:
    text = shown(width, title="[b]title", notes=["[1] a note"], numeric=[1, 2, 3], spare=[1, 2])
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for part in ("[b]title", "[1] a note", "failed:", "[/]", ":smile:", "finished", "81.25", "0.35"):
        assert part in text


def test_what_is_left_out_is_named() -> None:
    assert "not shown" not in shown(120, spare=[1, 2])
    assert "not shown on 54 columns: FLOPs (M) 652.3 in all\n" in shown(54, spare=[1, 2]), "the same in all rows first"
    text = shown(44, spare=[1, 2])
    assert "not shown on 44 columns: d_state, FLOPs (M) 652.3" in " ".join(text.split())
    assert "mobilemamba[red]_wit" in text


def test_words_are_whole_where_there_is_room() -> None:
    lines = shown(80, spare=[1, 2]).splitlines()
    assert any("mobilemamba[red]_with" in line for line in lines)
    assert any("81.25" in line for line in lines)


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=20, record=True)
    say("[bold]:smile: [/] a line longer than the screen", console)
    say("[bold]:smile:")
    assert capsys.readouterr().out.endswith("\n[bold]:smile:\n")
    assert console.export_text() == "[bold]:smile: [/] a line longer than the screen\n"


@pytest.mark.parametrize("text", ["two\nlines", "tab\there", "caf\udce9", "\x1b[31mred", "a\u202eb"])
def test_a_cell_stays_in_its_line_whatever_is_in_it(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=60, record=True)
    console.print(fit_table(60, ["name", text], [[text, "1"], ["b", "2"]], title=text, notes=[text]))
    printed = console.export_text().splitlines()
    plain = text.encode("unicode_escape").decode().replace("\\udce9", "\\xe9")
    assert sum(plain in line for line in printed) == 4
    assert len(printed) == 8
    say(text)
    assert plain in capsys.readouterr().out


def test_a_long_name_keeps_both_ends() -> None:
    assert [shorten("abcdefghijkl", most) for most in (12, 8, 7)] == ["abcdefghijkl", "abcd…jkl", "abc…kl"]
