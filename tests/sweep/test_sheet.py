import csv
import io
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from mobilemamba.sweep.sheet import Sheet, cell, csv_text

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
        "| row | top-1 |\n| --- | ---: |\n| a\\|b [1] | 86.60 ± 0.35 |\n| <c> |  |\n\n"
        "- [1] 5 < 6 & {x}~y^z\\\n"
    )


def test_latex() -> None:
    text = SHEET.to_latex()
    assert r"\caption{10 \% of a\_b}" in text
    assert r"\begin{tabular}{lr}" in text
    assert r"a|b [1] & 86.60 $\pm$ 0.35 \\" in text
    assert r"[1] 5 < 6 \& \{x\}\textasciitilde{}y\textasciicircum{}z\textbackslash{}" in text


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
    assert [cell(None), cell(1234.5, 1), cell([0.8, 0.7]), cell(True), cell("x")] == [
        "",
        "1,234.5",
        "0.8, 0.7",
        "true",
        "x",
    ]
    assert cell({"kind": "soft", "weight": 5.0, "teacher": None}) == "kind soft, weight 5.0"
