"""The page of `fedloom report` in a browser: drawn, quiet, and fit for a phone and for the dark."""

import csv
import json
import re
from pathlib import Path
from urllib.parse import urlparse

import pytest
from browser import browser, colour_scheme, resize, screenshot, why_no_browser
from places import ROOT
from run_files import write_rows
from runs import leave_predictions, leave_run, rows_of
from tiny import save_tiny_bert, save_tiny_llama

from fedloom.commands.cli import main

pytest.importorskip("plotly")
WebDriverWait = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait
pytestmark = pytest.mark.skipif(why_no_browser() is not None, reason=why_no_browser() or "")

ARTEFACTS = ROOT / "build" / "report"
WIDTHS = {"desktop": 1280, "phone": 360}


def run(command: str, out_dir: Path, name: str, *flags: str) -> Path:
    common = f"--out_dir {out_dir} --exp_name {name} --dtype float32 --report_to none --wave_tokens 600"
    assert main([*command.split(), *common.split(), *flags]) == 0
    return out_dir / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Real runs of tiny models: peers with three seeds, gradient priority, one judged."""
    folder = tmp_path_factory.mktemp("runs")
    problems = folder / "problems"
    problems.mkdir()
    for part, count in (("train", 40), ("validation", 6), ("test", 2)):
        rows = [
            {"question": f"{part[0]} {i} and {i % 7}?", "answer": f"{i} + {i % 7}\n#### {i}"}
            for i in range(count)
        ]
        write_rows(problems / f"{part}.jsonl", rows)
    sentences = folder / "sentences"
    sentences.mkdir()
    for part, count in (("train", 60), ("validation", 8)):
        rows = [{"sentence": f"good or bad {i}", "label": i % 2} for i in range(count)]
        write_rows(sentences / f"{part}.jsonl", rows)
    llama = save_tiny_llama(folder / "llama")
    bert = save_tiny_bert(folder / "bert")
    fed = f"fed --model_name {llama} --data_name gsm8k --data_dir {problems} --client_num 4 --max_steps 4"
    fed += " --client_num_per_step 2 --client_batch_per_step 2 --val_steps 2 --lora_r 2 --client_lr 0.05"
    dfl = f"dfl --model_checkpoint {bert} --data_dir {sentences} --name link3 --num_rounds 3 --local_steps 1"
    dfl += " --batch_size 4 --lr 0.01 --partition dirichlet"
    one = ("--max_layer_num", "1", "--min_layer_num", "0")
    made = [
        run(fed, folder / "runs", "a-run-with-a-name-that-is-much-too-long-for-any-legend-on-a-phone", *one)
    ]
    made.append(run(fed, folder / "runs", "plain", "--train_mode", "fed"))
    made += [run(dfl, folder / "runs", f"peers-{seed}", "--seed", str(seed)) for seed in (1, 2, 3)]
    answer = {"adapter": "round-000004", "prompt": "1 and 1?", "output": "#### 2 " * 40, "expected": "2"}
    answers = [answer | {"extracted": "2", "right": True}, answer | {"extracted": None, "right": False}]
    scores = {"accuracy": 0.5, "low": 0.1, "high": 0.9, "without_number": 1}
    adapters = [{"name": "long/round-000004", "folder": None, **scores}]
    numbers = {"task": "gsm8k", "split": "test", "examples": 2, "adapters": adapters}
    leave_predictions(made[0], answers, numbers)
    return made


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["report", *map(str, runs), "-o", str(path)]) == 0
    return path.as_uri()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def desktop(driver, page):
    """The page in a wide window, opened once for tests that change nothing that others look at."""
    opened(driver, page, WIDTHS["desktop"])
    return driver


def opened(driver, page, width, scheme="light"):
    resize(driver, width, 900)
    colour_scheme(driver, scheme)
    driver.get_log("browser")
    driver.get_log("performance")
    driver.get(page)
    driver.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    # What is folded is drawn when it unfolds, which the page hears of a moment later.
    driver.set_script_timeout(30)
    driver.execute_async_script("setTimeout(() => requestAnimationFrame(arguments[0]), 100)")


def undrawn(driver):
    """Titles of figures without anything in them."""
    return driver.execute_script(
        """const marks = '.scatterlayer .trace, .barlayer .trace, .heatmaplayer .hm';
        return [...document.querySelectorAll('figure')]
          .filter((one) => !one.querySelector('.main-svg') || !one.querySelector(marks)
                           || one.querySelector('.main-svg').getBoundingClientRect().width < 200)
          .map((one) => one.querySelector('h3').textContent);"""
    )


def seen(driver):
    """A few colours: of the page, of a line, of an axis."""
    return driver.execute_script(
        """const line = document.querySelector('.plot .scatterlayer .js-line');
        const tick = document.querySelector('.plot .xtick text');
        return [getComputedStyle(document.body).backgroundColor, line.style.stroke, tick.style.fill];"""
    )


def test_nothing_is_asked_of_the_network(desktop, page):
    events = [json.loads(entry["message"])["message"] for entry in desktop.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert page in asked, "the log sees requests"
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert desktop.execute_script("return performance.getEntriesByType('resource').length") == 0


def saved(driver, selector):
    """What a button hands over as a file: its name and its text."""
    driver.execute_script(
        """window.files = [];
        URL.createObjectURL = (blob) => { blob.text().then((text) => files.push(text)); return 'blob:x'; };
        HTMLAnchorElement.prototype.click = function () { window.fileName = this.download; };
        document.querySelector(arguments[0]).click();""",
        selector,
    )
    driver.set_script_timeout(30)
    text = driver.execute_async_script(
        """const done = arguments[0];
        const wait = () => (files.length ? done(files[0]) : setTimeout(wait, 20));
        wait();"""
    )
    return driver.execute_script("return fileName"), text


def test_tables_are_saved_as_csv_and_latex_and_figures_as_svg(desktop):
    name, text = saved(desktop, "#results [data-export=CSV]")
    assert name == "Where-the-runs-ended.csv"
    head, *rows = csv.reader(text.splitlines())
    assert head[:2] == ["Run", "Right, fedloom eval"] and len(rows) == 3
    assert rows[1][1] == "not evaluated" and any("± " in cell and "n = 3" in cell for cell in rows[2])
    name, text = saved(desktop, "#results [data-export=LaTeX]")
    assert name == "Where-the-runs-ended.tex" and text.count("\\\\\n") == 4
    assert "50.0\\% 10.0\\% to 90.0\\%" in text and "$\\pm$" in text and "best" not in text
    name, text = saved(desktop, "[data-svg=figure-1]")
    assert name == "Validation-loss.svg" and text.startswith("<svg") and "rounds" in text


def test_bars_and_their_legend_are_striped_alike(desktop):
    alike = """const figure = [...document.querySelectorAll('figure')].find(
          (one) => one.querySelector('h3').textContent.startsWith('Labels per client'));
        const data = JSON.parse(figure.querySelector('script').textContent).data;
        return [data.map((trace) => trace.marker.pattern.shape !== ''),
                [...figure.querySelectorAll('.fill')].map((one) => one.classList.contains('striped'))];"""
    bars, legend = desktop.execute_script(alike)
    assert bars == legend and True in bars and False in bars


def test_the_switch_changes_the_axis_and_a_legend_hides_a_run(desktop):
    title = "return document.querySelector('#figure-1 .xtitle').textContent"
    lines = "return document.querySelectorAll('#figure-1 .scatterlayer .trace').length"
    assert desktop.execute_script(title) == "rounds"
    desktop.execute_script("document.querySelector('[data-axis=bytes]').click()")
    assert desktop.execute_script(title) == "bytes sent, up and down"
    assert (
        desktop.execute_script("return document.querySelector('#figure-1 .xtick:last-child').textContent")[-1]
        == "B"
    )
    before = desktop.execute_script(lines)
    desktop.execute_script("document.querySelector('[data-shows=figure-1]').click()")
    assert desktop.execute_script(lines) == before - 1


@pytest.mark.parametrize("size", WIDTHS)
def test_the_page_is_drawn_fits_is_quiet_and_follows_into_the_dark(driver, page, size):
    opened(driver, page, WIDTHS[size])
    screenshot(driver, ARTEFACTS / f"{size}-light.png")
    assert driver.execute_script("return document.documentElement.dataset.ready") == "true"
    assert driver.execute_script("return document.querySelectorAll('figure').length") >= 13
    assert undrawn(driver) == []
    wider = """return [...document.querySelectorAll('main *')].filter((one) =>
        !one.closest('.plot') && one.getBoundingClientRect().right > innerWidth + 0.5).length"""
    assert driver.execute_script("return document.documentElement.scrollWidth") <= WIDTHS[size]
    assert driver.execute_script(wider) == 0
    light = seen(driver)
    colour_scheme(driver, "dark")
    WebDriverWait(driver, 20, poll_frequency=0.05).until(
        lambda driver: all(before != after for before, after in zip(light, seen(driver), strict=True))
    )
    screenshot(driver, ARTEFACTS / f"{size}-dark.png")
    assert [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    made = [ARTEFACTS / f"{size}-{scheme}.png" for scheme in ("light", "dark")]
    assert all(path.stat().st_size > 10_000 for path in made)


def test_a_figure_left_empty_and_a_request_would_be_noticed(driver, page, tmp_path):
    html = Path(urlparse(page).path).read_text(encoding="utf-8")
    spoilt = re.sub(r'(data-of="figure-1">\{"data":)\[.*?\](,"layout")', r"\1[]\2", html, count=1)
    (tmp_path / "spoilt.html").write_text(spoilt + '<img src="http://localhost:9/x.png" alt="">')
    opened(driver, (tmp_path / "spoilt.html").as_uri(), 1280)
    assert undrawn(driver) == ["Validation loss"]
    assert any("Content Security Policy" in entry["message"] for entry in driver.get_log("browser"))


def test_it_prints_in_light_colours_with_figures_as_wide_as_paper(driver, page):
    opened(driver, page, 1280)
    light, width = seen(driver), "document.querySelector('.main-svg').getBoundingClientRect().width"
    before = driver.execute_script(f"return {width}")
    colour_scheme(driver, "dark")
    driver.execute_script(
        f"""matchMedia('print').addEventListener('change', (event) => {{
          const line = document.querySelector('.plot .scatterlayer .js-line').style.stroke;
          if (event.matches) window.printed = [line, {width}];
        }});"""
    )
    driver.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    line, printed_width = driver.execute_script("return window.printed")
    assert line == light[1] and before < printed_width < 8.27 * 96
    assert driver.execute_script(f"return {width}") == before, "afterwards all is as it was"
    assert seen(driver) != light


def test_a_phone_shows_first_what_came_out_of_many_runs(driver, tmp_path):
    for number in range(12):
        rows = rows_of([3, 2 - number / 100], val_answer_accuracy=[0.1, 0.3])
        leave_run(tmp_path / "runs" / f"a-run-with-quite-a-name-{number}", rows, lr=0.1 + number)
    path = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "runs"), "-o", str(path)]) == 0
    opened(driver, path.as_uri(), 390)
    top = "return document.querySelector(arguments[0]).getBoundingClientRect().top + scrollY"
    assert driver.execute_script("return document.querySelector('h1').textContent") == "12 runs"
    assert "30.0% of the validation answers right, 10.0% before" in driver.execute_script(
        "return document.querySelector('.headline').textContent"
    )
    assert driver.execute_script(top, ".headline") < 200 and driver.execute_script(top, "#results") < 700
    assert driver.execute_script(top, "#results") < driver.execute_script(top, "#learning")
    assert driver.execute_script(top, "#learning") < driver.execute_script(top, "#runs")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
    screenshot(driver, ARTEFACTS / "twelve-runs.png")


def test_marks_have_digits_enough(driver, tmp_path):
    rows = rows_of([3, 3, 3])
    for row, accuracy in zip(rows, (0.912, 0.913, 0.9145), strict=True):
        row["val_accuracy"] = accuracy
    path = tmp_path / "report.html"
    assert main(["report", str(leave_run(tmp_path / "narrow", rows)), "-o", str(path)]) == 0
    opened(driver, path.as_uri(), 1280)
    marks = driver.execute_script(
        "return [...document.querySelectorAll('#figure-2 .ytick text')].map((one) => one.textContent)"
    )
    assert len(marks) > 2 and len(set(marks)) == len(marks) and all(mark.endswith("%") for mark in marks)
