"""The page: one file, with all scores, charts that Vega-Lite draws, and nothing from elsewhere."""

import json
import math
import re
import shutil
import sys
from dataclasses import replace
from statistics import mean

import pytest
import vl_convert
from made_results import held_out, joint, made, many

from avalanche_mgem.report import folder as report_folder
from avalanche_mgem.report import html
from avalanche_mgem.report.charts import (
    history_chart,
    matrix_chart,
    tasks_chart,
    tradeoff_chart,
)
from avalanche_mgem.report.folder import write_report
from avalanche_mgem.report.html import html_page
from avalanche_mgem.results.histories import read_history
from avalanche_mgem.results.summary import HEADINGS, entries, summarise

LOG = (
    "metric,step,value\n"
    "ACC/eval_phase/test_stream,0,0.5\n"
    "Restriction_Cosine/train_phase/train_stream,10,0.25\n"
    "Restriction_Cosine/train_phase/train_stream/block0,10,nan\n"
    "Restriction_Cosine/train_phase/train_stream,20,0.75\n"
)


@pytest.fixture
def without_library(monkeypatch):
    """A page without the 0.9 MB of JavaScript."""
    monkeypatch.setattr(html, "javascript", lambda: "library</script>")


def histories(results, shift=0.1):
    return [{"Restriction_Cosine": [(10, i * shift), (20, 1.0)]} for i, _ in enumerate(results)]


def charts_of(page):
    return json.loads(re.search(r"const charts = (.*);\n", page)[1])


def test_every_chart_is_drawn():
    results = [*many(["naive", "gem"], 3), joint()]
    charts = [chart(results) for chart in (tradeoff_chart, tasks_chart, matrix_chart)]
    for chart in [*charts, history_chart(results, histories(results))]:
        assert vl_convert.vegalite_to_svg(chart).startswith("<svg")


def test_the_heat_map_holds_every_mean_accuracy():
    results = many(["naive", "gem"], 3)
    cells = tasks_chart(results)["data"]["values"]
    assert cells == matrix_chart(results)["data"]["values"]
    for cell in cells:
        place = cell["trained"] - 1, cell["tested"] - 1
        own = [run.accuracy[place] for run in results if run.method == cell["method"]]
        assert cell["accuracy"] == pytest.approx(mean(own), abs=1e-4)
    n_tasks = len(results[0].accuracy)
    n_measured = sum(
        all(math.isfinite(run.accuracy[i, j]) for run in results if run.method == method)
        for method in ("naive", "gem")
        for i in range(n_tasks)
        for j in range(n_tasks)
    )
    assert len(cells) == n_measured


def test_a_history_is_the_mean_over_the_seeds():
    results = many(["naive", "gem"], 2)
    rows = history_chart(results, histories(results))["data"]["values"]
    firsts = {row["method"]: row["mean"] for row in rows if row["iteration"] == 10}
    of_method = {
        name: [0.1 * i for i, r in enumerate(results) if r.method == name] for name in firsts
    }
    assert firsts == pytest.approx({name: mean(own) for name, own in of_method.items()})
    assert history_chart(results, [{} for _ in results]) is None


def test_the_log_of_a_run_is_read(tmp_path):
    file = tmp_path / "run.csv"
    assert read_history(file) == {}
    file.write_text(LOG)
    history = read_history(file)
    assert history["Restriction_Cosine"] == [(10, 0.25), (20, 0.75)]
    assert set(history) == {"Restriction_Cosine", "Restriction_Cosine/block0"}
    file.write_text("something,else\n1,2\n")
    with pytest.raises(ValueError, match="no log of scalar metrics"):
        read_history(file)


@pytest.mark.usefixtures("without_library")
def test_the_table_has_what_the_printed_one_has():
    results = [*many(["naive", "gem"], 3), *many(["ewc"], 2, stream="other")]
    page = html_page(results, [{} for _ in results])
    for stream in ("permuted-digits", "other"):
        for row in summarise([run for run in results if run.stream == stream]):
            assert list(row.intervals) == list(HEADINGS)
            for text, _ in entries(row, {}, " ± "):
                assert text in page
    assert page.count("<table>") == 2
    assert {name.rpartition("-")[2] for name in charts_of(page)} == {"0", "1"}


@pytest.mark.usefixtures("without_library")
def test_scores_on_validation_data_have_a_table_of_their_own():
    page = html_page([replace(made(), validation=held_out())], [{}])
    assert page.count("<table>") == 2
    assert "validation data</h3>" in page


@pytest.mark.usefixtures("without_library")
def test_names_are_text_and_no_markup():
    results = [made("</script><b>gem"), made('"quoted"')]
    page = html_page(results, histories(results))
    assert "<b>" not in page
    assert page.count("</script>") == 2
    assert charts_of(page)["tradeoff-0"]["data"]["values"][0]["method"] == "</script><b>gem"


@pytest.mark.usefixtures("without_library")
def test_seeds_that_diverged_leave_valid_json():
    diverged = replace(made(), diverged=1, accuracy=made().accuracy * math.nan)
    charts = charts_of(html_page([diverged], [{"Restriction_Cosine": [(1, math.nan)]}]))
    assert charts["tradeoff-0"]["data"]["values"] == []
    assert "history-0" not in charts


def test_the_page_asks_for_nothing_from_elsewhere():
    results = many(["naive"], 2)
    page = html_page(results, histories(results)).replace(html.javascript(), "")
    assert not re.search(r"https?://|src=|href=|@import|url\(", page)


@pytest.fixture
def drawn_quickly(monkeypatch):
    monkeypatch.setattr(report_folder, "_figures", lambda runs: {})


@pytest.mark.usefixtures("drawn_quickly", "without_library")
def test_a_report_has_the_page_where_it_is_asked_for(tmp_path):
    results, out, log = many(["gem"], 1), tmp_path / "out", tmp_path / "gem.csv"
    log.write_text(LOG)
    options = {"tensorboard": False, "html": True}
    assert out / "report.html" in write_report(results, out, metrics=[log], **options)
    assert "history-0" in charts_of((out / "report.html").read_text())
    write_report(results, out, tensorboard=False)
    assert not (out / "report.html").exists()
    with pytest.raises(ValueError, match="metrics must name 1 files"):
        write_report(results, out, metrics=[log, log], **options)


def test_without_the_extra_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(ImportError, match=r"avalanche-mgem\[html\]"):
        write_report(many(["gem"], 1), tmp_path / "out", html=True)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def browser():
    """A headless Chromium, where there are one, its driver and selenium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("needs Chromium and chromedriver")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as opened:
        yield opened


def test_a_browser_draws_the_charts_and_sorts_the_table(browser, tmp_path):
    from selenium.webdriver.support.wait import WebDriverWait

    results = many(["naive", "gem", "ewc"], 2)
    page = tmp_path / "report.html"
    page.write_text(html_page(results, histories(results)), encoding="utf-8")
    browser.get(page.as_uri())
    WebDriverWait(browser, 60).until(
        lambda shown: len(shown.find_elements("css selector", "[data-drawn=yes]")) == 4
    )
    assert browser.get_log("browser") == []
    accuracy = {row.method: row.intervals["acc"][0] for row in summarise(results)}
    button = browser.find_elements("css selector", "th button")[2]
    for order in (True, False):  # the first click: the largest first
        button.click()
        cells = browser.find_elements("css selector", "tbody tr td:first-child")
        assert [cell.text for cell in cells] == sorted(accuracy, key=accuracy.get, reverse=order)
    slider = browser.find_element("css selector", "#tasks-0 input[type=range]")
    before = browser.find_element("css selector", "#tasks-0").screenshot_as_png
    slider.send_keys("\ue012")  # the left arrow
    WebDriverWait(browser, 60).until(
        lambda shown: shown.find_element("css selector", "#tasks-0").screenshot_as_png != before
    )
