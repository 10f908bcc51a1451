"""The LaTeX table says what the others say, and is LaTeX whatever the names are."""

import re

from hypothesis import given
from hypothesis import strategies as st
from made_results import joint, made, many

from avalanche_mgem.report.latex import escape_latex, latex_table
from avalanche_mgem.report.markdown import markdown_table


def latex_cells(text):
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    return [row.removesuffix(r" \\").split(" & ") for row in rows]


def test_says_what_the_markdown_table_says():
    results = [*many(), joint()]
    markdown = [line for line in markdown_table(results).splitlines() if line.startswith("|")]
    expected = [[cell.strip() for cell in row.strip("|").split("|")] for row in markdown]
    rows = latex_cells(latex_table(results))
    assert len(rows) == 1 + 3
    for row, wanted in zip(rows[1:], expected[2:], strict=True):
        shown = [
            re.sub(r"^\$\\mathbf\{(.*)\}\$$", r"**\1**", cell).strip("$").replace(r"\pm", "±")
            for cell in row
        ]
        assert ["-" if cell == "--" else cell for cell in shown] == wanted


def test_is_a_booktabs_tabular_with_as_many_columns_as_it_says():
    text = latex_table(many())
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1]
    assert {len(row) for row in latex_cells(text)} == {len(columns)}
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}"):
        assert text.count(rule) == 1


@given(st.text(st.characters(codec="utf-8"), max_size=12))
def test_a_name_is_no_command_and_stays_in_its_row(name):
    body = escape_latex(name)
    assert len(body.splitlines()) <= 1
    known = r"\\(text\w+\{\}|[{}$&#_%])"
    assert not re.search(r"[\\$&#_%^~]", re.sub(known, "", body))
    assert not re.match(r"[\[*]", body)
    braces = re.sub(r"\\[{}]", "", body)
    assert braces.count("{") == braces.count("}")


def test_a_name_with_a_line_feed_does_not_leave_the_comment():
    text = latex_table([made(stream="a\n\\evil\r\u2028b")])
    assert text.splitlines()[0] == r"% Stream: a \evil b"


def test_best_is_bold():
    assert r"$\mathbf{0.900}$" in latex_table([joint(), made()])
