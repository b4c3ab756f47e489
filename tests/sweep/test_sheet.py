import csv
import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobilemamba.sweep.sheet import Sheet, cell, csv_text, markdown_text

SHEET = Sheet(
    "10 % of a_b", ["row", "top-1"], [["a|b [1]", "86.60 ± 0.35"], ["<c>", ""]], ["[1] 5 < 6 & {x}~y^z\\"], {1}
)


class Cells(HTMLParser):
    """Collects what stands in the cells of a page's tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("td", "th"):
            self.inside = True
            self.found.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1] += data


def test_markdown() -> None:
    assert SHEET.to_markdown() == (
        "# 10 % of a_b\n\n"
        "| row | top-1 |\n| --- | ---: |\n| a\\|b [1] | 86.60 ± 0.35 |\n| \\<c> |  |\n\n"
        "- [1] 5 < 6 & {x}~y^z\\\\\n"
    )


@pytest.mark.parametrize("name", ["[a](b)", "*a*", "_a_", "`a`", "<b>", "&lt;", ":smile:", "~~a~~", "a|b", "a\\|b"])
def test_a_name_is_no_markup_in_markdown(name: str) -> None:
    (line,) = Sheet("t", ["row", name], [[name, ""]]).to_markdown().splitlines()[4:5]
    escaped = line.removeprefix("| ").removesuffix(" |  |")
    assert re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", escaped) == name
    assert escaped != name
    assert markdown_text("mobilemamba_s6, d_state: 16 (5 < 6) [1]") == "mobilemamba_s6, d_state: 16 (5 < 6) [1]"


def test_a_line_of_latex_does_not_begin_with_an_option() -> None:
    assert "\n{[}2em] & 1 \\\\" in Sheet("t", ["row", "x"], [["a", "1"], ["[2em]", "1"]]).to_latex()


def test_latex() -> None:
    text = SHEET.to_latex()
    assert r"\caption{10 \% of a\_b}" in text
    assert r"\begin{tabular}{lr}" in text
    assert r"a\textbar{}b [1] & 86.60 $\pm$ 0.35 \\" in text
    assert r"{[}1] 5 \textless{} 6 \& \{x\}\textasciitilde{}y\textasciicircum{}z\textbackslash{}" in text


def test_html() -> None:
    text = SHEET.to_html()
    assert Cells(text).found == ["row", "top-1", "a|b [1]", "86.60 ± 0.35", "<c>", ""]
    assert '<td class="number">86.60' in text
    assert "5 &lt; 6 &amp; {x}" in text


@given(st.lists(st.text(st.characters(exclude_characters="\r\0", exclude_categories=["Cs"])), min_size=2, max_size=2))
def test_any_text_survives(texts: list[str]) -> None:
    sheet = Sheet("t", ["a", "b"], [texts])
    assert Cells(sheet.to_html()).found[2:] == texts
    assert list(csv.reader(io.StringIO(sheet.to_csv(), newline="")))[1] == texts


def test_csv_has_the_columns_of_all_rows() -> None:
    assert csv_text([{"a": 1}, {"b": [1, (2, 3)], "a": None}]) == 'a,b\n1,\n,"1, (2, 3)"\n'


def test_cells() -> None:
    assert [cell(float("nan")), cell(float("nan"), 2)] == ["", ""]
    assert [cell(None), cell(1234.5, 1), cell([0.8, 0.7]), cell(True), cell("x")] == [
        "",
        "1,234.5",
        "0.8, 0.7",
        "true",
        "x",
    ]
    assert cell({"kind": "soft", "weight": 5.0, "teacher": None}) == "kind soft, weight 5.0"
