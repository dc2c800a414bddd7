"""What the page of `fedloom report` says: groups, bands, bests, sections, and what a user's mistakes get."""

import builtins
import json
import os
import re
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest
from runs import leave_predictions, leave_run, rows_of

from fedloom.commands.cli import main
from fedloom.commands.report import plotly_script
from fedloom.report.clients import client_figures
from fedloom.report.curves import MOST_POINTS, band, cumulative, quantile
from fedloom.report.figure import COLOURS, compact, look
from fedloom.report.groups import group_runs
from fedloom.report.headline import headline
from fedloom.report.layers import MOST_COLUMNS, layer_figures
from fedloom.report.learning import consensus_figure, learning_figures
from fedloom.report.page import page
from fedloom.report.peers import accuracies, graph
from fedloom.report.results import MORE_METRICS, duration, results
from fedloom.report.tables import differing
from fedloom.runs.record import read_run, read_runs


def grouped(*folders):
    return group_runs(read_runs([str(folder) for folder in folders]))


# Groups.


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path):
    for seed in (1, 2, 3):
        leave_run(tmp_path / f"slow-seed{seed}", rows_of([3, 2]), seed=seed, wave_tokens=100 * seed)
        leave_run(tmp_path / f"fast-{seed}", rows_of([3, 2]), seed=seed, lr=0.1)
    slow, fast = grouped(*sorted(tmp_path.iterdir(), reverse=True))
    assert (slow.label, slow.seeds) == ("slow", ["3", "2", "1"])
    assert (fast.label, fast.seeds) == ("fast", ["3", "2", "1"])


def test_repetitions_with_one_seed_stay_apart(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        leave_run(tmp_path / name, rows_of([3, 2]), seed=seed)
    assert [group.label for group in grouped(*sorted(tmp_path.iterdir()))] == ["a", "b", "c"]


def test_names_without_a_common_beginning_and_names_used_twice_are_told_apart(tmp_path):
    left = leave_run(tmp_path / "here" / "twin", rows_of([3, 2]), lr=0.1)
    right = leave_run(tmp_path / "there" / "twin", rows_of([3, 2]), lr=0.2)
    one = leave_run(tmp_path / "one", rows_of([3, 2]), seed=1)
    two = leave_run(tmp_path / "two", rows_of([3, 2]), seed=2)
    labels = [group.label for group in grouped(left, right, one, two)]
    assert labels == ["twin (here/twin)", "twin (there/twin)", "one and 1 more"]


# Curves.


def test_bytes_and_seconds_add_up_round_by_round():
    rows = [{"round": 0}, {"round": 1, "bytes_up": 3, "bytes_down": 4}, {"round": 2, "bytes_up": 5}]
    assert cumulative(rows, "bytes_up", "bytes_down") == [0, 7, 12]
    assert cumulative(rows, "seconds") == [0, 0, 0]


def test_a_band_is_mean_lowest_and_highest_of_the_rounds_that_all_have(tmp_path):
    leave_run(tmp_path / "s1", rows_of([4, 3, 1]), seed=1)
    leave_run(tmp_path / "s2", rows_of([2, 1]), seed=2)
    (group,) = grouped(tmp_path / "s1", tmp_path / "s2")
    found = band(group, "val_loss")
    assert (found.rounds, found.mean, found.low, found.high) == ([0, 1], [3, 2], [2, 1], [4, 3])
    assert (found.bytes, found.seconds) == ([0, 15], [0, 2])
    assert band(group, "consensus_error") is None


def test_a_long_curve_is_thinned_to_means(tmp_path):
    run = leave_run(tmp_path / "long", rows_of([float(n) for n in range(2 * MOST_POINTS)]))
    (group,) = grouped(run)
    found = band(group, "val_loss")
    assert len(found.mean) == MOST_POINTS and found.mean[:2] == [0.5, 2.5] and found.rounds[0] == 0.5
    assert "A point is the mean of up to 2 rounds." in learning_figures([group])[0].note


def test_a_number_that_was_not_finite_leaves_a_gap(tmp_path):
    rows = rows_of([4, 3, 2])
    rows[1]["val_loss"] = None
    (group,) = grouped(leave_run(tmp_path / "a", rows))
    assert band(group, "val_loss").rounds == [0, 2]


def test_quantiles_lie_between_neighbours():
    assert [quantile([1.0, 2.0, 4.0], share) for share in (0.0, 0.25, 0.5, 1.0)] == [1, 1.5, 2, 4]


def test_consensus_error_has_a_logarithmic_axis_where_it_spans_decades(tmp_path):
    even = leave_run(tmp_path / "a", rows_of([3, 2], consensus_error=[None, 0.5]), name="ring")
    steep = rows_of([3, 2, 1, 1], consensus_error=[None, 1.0, 1e-3, 0.0])
    steep_run = leave_run(tmp_path / "b", steep, name="ring", lr=0.5)
    assert "type" not in consensus_figure(grouped(even)).layout["yaxis"]
    figure = consensus_figure(grouped(steep_run))
    assert figure.layout["yaxis"]["type"] == "log" and figure.traces[-1]["y"] == [1.0, 1e-3, None]


# Results.


def seeds(folder, *endings, **options):
    """A run per ending, of seeds 1, 2, …; returns their folders."""
    return [
        leave_run(folder.with_name(f"{folder.name}-s{seed}"), rows_of([3, ending]), seed=seed, **options)
        for seed, ending in enumerate(endings, start=1)
    ]


def test_the_best_is_marked_among_finished_runs_of_one_model_and_data(tmp_path):
    folders = [
        *seeds(tmp_path / "good", 1.0, 1.2),
        *seeds(tmp_path / "bad", 2.5, 2.6, lr=0.1),
        *seeds(tmp_path / "open", 0.4, 0.5, lr=0.2, finished=False),
        *seeds(tmp_path / "other-data", 0.1, 0.1, data_name="arithmetic"),
    ]
    table = results(grouped(*folders))
    assert [cell.text for cell in table["Validation loss, final"]] == ["1.1", "2.55", "0.45", "0.1"]
    assert [cell.best for cell in table["Validation loss, final"]] == [True, False, False, False]
    assert table["Validation loss, final"][0].spread == "± 0.1414, n = 2"
    assert [cell.best for cell in table["Accuracy, final"]] == [True, False, False, False]
    more = results(grouped(*folders), MORE_METRICS)
    assert more["Peak memory"][2].text == "–" and not any(cell.best for cell in more["Tokens"])
    assert "Consensus error" not in more and "Answers right" not in table


def test_nobody_is_best_where_intervals_overlap_or_a_seed_is_alone(tmp_path):
    good, bad = seeds(tmp_path / "good", 1.0, 2.0), seeds(tmp_path / "bad", 1.4, 2.4, lr=0.1)
    alone = seeds(tmp_path / "alone", 9.0, lr=0.2)
    assert not any(cell.best for cell in results(grouped(*good, *bad))["Validation loss, final"])
    far = seeds(tmp_path / "far", 5.0, 5.1, lr=0.3)
    (first, *_) = results(grouped(*good, *far))["Validation loss, final"]
    assert first.best
    assert not any(cell.best for cell in results(grouped(*good, *far, *alone))["Validation loss, final"])
    counted = results(
        grouped(*seeds(tmp_path / "one", 1.0), leave_run(tmp_path / "long", rows_of([3, 2, 1]), lr=9.0))
    )
    assert [cell.best for cell in counted["Bytes sent"]] == [True, False], "what is counted needs no seeds"


def test_eval_of_single_runs_is_best_by_its_interval(tmp_path):
    found = []
    for name, (accuracy, low, high) in {
        "a": (0.8, 0.7, 0.9),
        "b": (0.5, 0.4, 0.6),
        "c": (0.5, 0.0, 1.0),
    }.items():
        run = leave_run(tmp_path / name, rows_of([3, 2]), lr=0.1 + ord(name))
        leave_predictions(run, [], verdict(f"{name}/round-000001", accuracy=accuracy, low=low, high=high))
        found.append(run)
    table = results(grouped(*found[:2]))["Right, fedloom eval"]
    assert [(cell.text, cell.spread, cell.best) for cell in table] == [
        ("80.0%", "70.0% to 90.0%", True),
        ("50.0%", "40.0% to 60.0%", False),
    ]
    assert not any(cell.best for cell in results(grouped(*found))["Right, fedloom eval"])


def test_runs_that_nobody_evaluated_are_listed(tmp_path):
    judged = leave_run(tmp_path / "judged", rows_of([3, 2]))
    leave_predictions(judged, [], verdict("judged/round-000001", accuracy=0.5, low=0.4, high=0.6))
    other = leave_run(tmp_path / "other", rows_of([3, 2]), lr=0.5)
    table = results(grouped(judged, other))["Right, fedloom eval"]
    assert [cell.text for cell in table] == ["50.0%", "not evaluated"]
    html = page(grouped(judged, other), "")
    assert f"Not evaluated: other. For answers to the test split: fedloom eval --adapter {other}" in html
    assert "Not evaluated: other." in headline(grouped(judged, other))
    assert "Not evaluated" not in page(grouped(judged), "")


def test_the_headline_says_what_came_out_what_it_was_before_and_what_was_sent(tmp_path):
    rows = rows_of([3, 2, 1], val_answer_accuracy=[0.1, None, 0.46])
    run = leave_run(tmp_path / "mine", rows)
    assert headline(grouped(run)) == "46.0% of the validation answers right, 10.0% before, 30 bytes sent."
    adapters = [{"name": "base", "accuracy": 0.2}, {"name": "mine/round-000002", "accuracy": 0.5}]
    leave_predictions(run, [], {"task": "t", "split": "test", "examples": 9, "adapters": adapters})
    assert headline(grouped(run)) == "50.0% right, 20.0% before, 30 bytes sent."
    far = [*seeds(tmp_path / "good", 1.0, 1.1), *seeds(tmp_path / "bad", 2.0, 2.1, lr=0.1)]
    assert headline(grouped(*far)).startswith(
        "good: 73.8% of the validation tokens or classes right, 25.0% before"
    )
    assert headline(grouped(*far)).endswith("Best of those it compares with.")
    near = [*seeds(tmp_path / "left", 1.0, 2.1), *seeds(tmp_path / "right", 1.1, 2.0, lr=0.1)]
    assert headline(grouped(*near)).endswith("intervals overlap, or there is one seed alone.")


def test_what_eval_found_is_that_of_the_last_round_judged(tmp_path):
    run = leave_run(tmp_path / "a", rows_of([3, 2]))
    accuracies = {
        "base": 0.9,
        "a/round-000002/peer-0001": 0.2,
        "a/round-000002/peer-0002": 0.4,
        "a/round-000001": 1,
    }
    adapters = [{"name": name, "accuracy": accuracy} for name, accuracy in accuracies.items()]
    leave_predictions(run, [], {"task": "t", "split": "test", "examples": 9, "adapters": adapters})
    (cell,) = results(grouped(run))["Right, fedloom eval"]
    assert cell.text == "30.0%"


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.25, "4.25 s"), (59.96, "60 s"), (61.0, "1 min 1 s"), (7260.0, "2 h 1 min")]
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_options_that_differ_stand_in_front(tmp_path):
    fed = [leave_run(tmp_path / f"f{lr}", rows_of([3, 2]), lr=lr, seed=int(lr * 10)) for lr in (0.1, 0.2)]
    assert re.findall(r'<th scope="col">([\w.]+)</th>', differing(grouped(*fed))) == ["Run", "lr"]
    peers = leave_run(tmp_path / "peers", rows_of([3, 2]), name="ring", lr=0.1)
    table = differing(grouped(*fed, peers))
    named = re.findall(r'<th scope="row">(\w+)</th>', table)
    assert "lr" in named and "fed_alg" not in named, (
        "an option that one command alone has differs from nothing"
    )
    assert differing(grouped(fed[0])) == ""


# Figures.


def test_no_two_of_the_first_looks_are_the_same():
    looks = [look(number) for number in range(4 * COLOURS)]
    assert len(set(looks)) == len(looks)
    assert all(a.dash != b.dash and a.colour != b.colour for a, b in pairwise(looks))


def test_peers_have_lines_and_many_peers_have_bands(tmp_path):
    few = rows_of([3, 2], peer_val_accuracy=[[0.1] * 30, [0.2] * 29 + [None]])
    many = rows_of([3, 2], peer_val_accuracy=[[n / 100 for n in range(101)], [0.5] * 101])
    (lines,) = accuracies(read_run(leave_run(tmp_path / "few", few, name="ring", num_clients=30)))
    assert len(lines.traces) == 30 and lines.traces[29]["y"] == [0.1, None]
    (bands,) = accuracies(read_run(leave_run(tmp_path / "many", many, name="ring", num_clients=101)))
    outer, inner, median = bands.traces
    assert (outer["y"], median["y"]) == ([1.0, 0.5, 0.5, 0.0], [0.5, 0.5])
    assert inner["y"] == pytest.approx([0.75, 0.5, 0.5, 0.25])


def test_layers_show_scores_of_the_rounds_highest_and_selections(tmp_path):
    rows = rows_of([3, 2, 1])
    rows[1] |= {"layer_scores": [1.0, 4.0, None], "selected_layers": [1]}
    rows[2] |= {"layer_scores": [2.0, 1.0, None], "selected_layers": [0]}
    scores, selected = layer_figures(read_run(leave_run(tmp_path / "a", rows)))
    assert scores.traces[0]["z"] == [[0.25, 1.0], [1.0, 0.5], [None, None]]
    assert selected.traces[0]["z"] == [[0, 1], [1, 0], [0, 0]]
    assert "2 of 3 layers were selected at least once" in selected.note
    long = [{"round": n, "selected_layers": [n % 5]} for n in range(1, 2 * MOST_COLUMNS)]
    (only,) = layer_figures(read_run(leave_run(tmp_path / "b", long)))
    assert len(only.traces[0]["z"][0]) == MOST_COLUMNS and "rounds are shown" in only.note


def test_the_rarest_of_many_labels_are_joined(tmp_path):
    labels = {f"label {n}": [n, 1] for n in range(12)}
    clients = {"examples": [66, 12], "labels": labels, "validation": [5], "server": 3}
    (figure,) = client_figures(read_run(leave_run(tmp_path / "a", rows_of([3, 2]), clients=clients)))
    assert len(figure.traces) == COLOURS and figure.legend[-1].label == "others"
    assert [sum(trace["y"][0] for trace in figure.traces), figure.traces[0]["y"]] == [66, [11, 1]]
    assert "The server keeps 3" in figure.note


@pytest.mark.parametrize(
    ("name", "peers", "traces", "told"),
    [
        ("ring", 5, 2, "5 peers, 5 links, 2 for a peer. Spectral gap"),
        ("one_peer_exponential", 8, 4, "repeats after 3 rounds"),
        ("random_pairs", 5, 4, "is shown for its first 3 rounds"),
        ("complete", 100, 1, "too many links to draw"),
    ],
)
def test_the_graph_is_drawn_and_told(tmp_path, name, peers, traces, told):
    run = read_run(leave_run(tmp_path / "a", rows_of([3, 2]), name=name, num_clients=peers))
    (figure,) = graph(run)
    assert len(figure.traces) == traces and told in figure.note


def test_a_graph_whose_file_is_gone_is_left_out(tmp_path):
    run = leave_run(tmp_path / "a", rows_of([3, 2]), name="file:gone.txt", num_clients=3)
    assert graph(read_run(run)) == []


def test_every_figure_is_one_that_plotly_takes(tmp_path):
    go = pytest.importorskip("plotly.graph_objects")
    clients = {"examples": [2, 1], "labels": {"a": [2, 1], "b": [0, 0]}, "validation": [5], "server": 0}
    more = {"peer_val_accuracy": [[0.1, 0.2], [0.2, 0.3]], "consensus_error": [None, 1.0]}
    for seed in (1, 2):
        rows = rows_of([3, 2], **more, layer_scores=[None, [1.0, 2.0]], selected_layers=[None, [1]])
        leave_run(tmp_path / f"s{seed}", rows, name="ring", num_clients=2, seed=seed, clients=clients)
    groups = grouped(tmp_path / "s1", tmp_path / "s2")
    run = groups[0].first
    figures = [*learning_figures(groups), consensus_figure(groups)]
    figures += [*accuracies(run), *graph(run), *layer_figures(run), *client_figures(run)]
    assert len(figures) == 9
    for figure in figures:
        plain = [
            trace | ({"x": trace["x"]["rounds"]} if isinstance(trace["x"], dict) else {})
            for trace in figure.traces
        ]
        # A token is no colour until the page puts one in its place.
        text = re.sub(r"@\w+(/[\d.]+)?", "#000000", json.dumps({"data": plain, "layout": figure.layout}))
        go.Figure(json.loads(text))


def test_numbers_are_as_short_as_a_screen_shows_them():
    assert compact({"a": [1 / 3, 2.0, float("nan"), None, "x", 123456789]}) == {
        "a": [0.333333, 2, None, None, "x", 123456789]
    }


def test_figures_that_show_the_same_name_all_their_runs(tmp_path):
    for lr in (1, 2, 3, 4):
        leave_run(tmp_path / f"run{lr}", rows_of([3, 2]), name="ring", num_clients=4, lr=float(lr))
    html = page(grouped(*sorted(tmp_path.iterdir())), "")
    assert re.findall(r">(Graph [^<]*)</h3>", html) == ["Graph ring, 4 peers: run1, run2, run3 and 1 more"]


# The page.

SCRIPT = "<script>alert('x')</script>"


def verdict(name, **scores):
    """What stands in eval.json for one adapter."""
    return {
        "task": "t",
        "split": "test",
        "examples": 9,
        "adapters": [{"name": name, "folder": None, **scores}],
    }


@pytest.fixture
def suspicious(tmp_path):
    """A run whose name and whose model's outputs are HTML."""
    run = leave_run(tmp_path / "run", rows_of([3, 2]), exp_name=f"{SCRIPT}<b>&amp;")
    answer = {
        "prompt": SCRIPT,
        "output": f"\ud800{SCRIPT}",
        "extracted": None,
        "expected": "<i>4",
        "right": False,
    }
    leave_predictions(run, [{"adapter": SCRIPT, **answer}], verdict(SCRIPT, accuracy=0.5, low=0.2, high=0.8))
    return run


def test_what_runs_wrote_is_never_html(suspicious):
    html = page(grouped(suspicious), "")
    html.encode("utf-8")
    scripts = re.findall(r"<script[^>]*>", html)
    assert scripts == re.findall(r'<script(?: type="application/json" data-of="[\w-]+")?>', html)
    assert "<script>alert" not in html and "<b>&amp;" not in html and "<i>4" not in html
    assert html.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;") >= 6
    figures = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html)
    names = {trace["name"] for text in figures for trace in json.loads(text)["data"] if "name" in trace}
    assert names == {"&lt;script&gt;alert('x')&lt;/script&gt;&lt;b&gt;&amp;amp;"}, (
        "plotly reads HTML in names"
    )


def test_answers_show_their_numbers_and_the_first_wrong_and_right_ones(tmp_path):
    run = leave_run(tmp_path / "run", rows_of([3, 2]))
    rows = [
        {
            "adapter": "run/round-000001",
            "prompt": f"sum {n}",
            "output": f"{n}!",
            "extracted": f"{n}",
            "expected": "1",
            "right": n == 1,
        }
        for n in range(9)
    ]
    scores = {"accuracy": 1 / 9, "low": 0.02, "high": 0.435, "without_number": 3}
    leave_predictions(run, rows, verdict("run/round-000001", **scores))
    html = page(grouped(run), "")
    assert "<h2>Answers</h2>" in html and "2.0% to 43.5%" in html and ">11.1%<" in html
    assert ">No number</th>" in html and ">F1</th>" not in html
    assert re.findall(r"sum \d", html) == ["sum 0", "sum 2", "sum 3", "sum 1"]
    assert html.count('class="card wrong"') == 3 and html.count('class="card right"') == 1


def test_sections_without_data_do_not_appear(tmp_path):
    html = page(grouped(leave_run(tmp_path / "a", rows_of([3, 2]))), "")
    assert re.findall(r"<h2>(.*?)</h2>", html) == ["Results", "Learning", "What was run", "All options"]
    assert "not finished" not in html


def test_a_run_that_goes_on_is_said_to_be_unfinished(tmp_path):
    html = page(grouped(leave_run(tmp_path / "a", rows_of([3, 2]), finished=False)), "")
    assert "not finished" in html


def test_a_thousand_peers_and_many_rounds_make_a_small_page(tmp_path):
    peers, rounds = 1000, 256
    accuracy = [[((n * 37 + peer) % 100) / 100 for peer in range(peers)] for n in range(rounds)]
    rows = rows_of([3.0] * rounds, peer_val_accuracy=accuracy, consensus_error=[0.1 / 3] * rounds)
    clients = {
        "examples": [8] * peers,
        "labels": {"a": [3] * peers, "b": [5] * peers},
        "validation": [9],
        "server": 0,
    }
    run = leave_run(tmp_path / "a", rows, name="random_regular:d=4", num_clients=peers, clients=clients)
    assert len(page(grouped(run), "")) < 300_000


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_colours_stand_out_from_the_page_in_light_and_dark():
    css = files("fedloom.report").joinpath("page.css").read_text()
    themes = [dict(re.findall(r"--(\w+): (#\w{6});", part)) for part in css.split("@media screen")[:2]]
    assert [len(theme) for theme in themes] == [17, 17]
    for theme in themes:
        for name, least in [(f"c{n}", 3.0) for n in range(COLOURS)] + [
            (name, 4.5) for name in ("ink", "muted", "accent", "good", "bad")
        ]:
            for ground in ("surface", "page"):
                # Lines need 3 to 1, text 4.5 to 1 (WCAG 2.1); only text stands on the page itself.
                if least == 4.5 or ground == "surface":
                    assert _contrast(theme[name], theme[ground]) >= least, (name, ground)


# The command.


@pytest.fixture
def report(capsys):
    """Runs `fedloom report`; returns the exit status, and what it said on stdout and on stderr."""
    pytest.importorskip("plotly")

    def run(*words):
        status = main(["report", *map(str, words)])
        return status, *capsys.readouterr()

    return run


def test_the_command_writes_one_page_with_plotly_once(report, tmp_path):
    for name in ("a", "b"):
        leave_run(tmp_path / name, rows_of([3, 2]), lr=0.1 + ord(name))
    status, out, _ = report(tmp_path / "a", tmp_path / "b", "-o", tmp_path / "page.html")
    assert status == 0 and f"{tmp_path}/page.html" in out
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.count("plotly.js v") == 1 and len(html) < 6_000_000
    assert not re.search(r'(?:src|href)="(?!#)', html.replace(plotly_script(), "")), "nothing is fetched"


def test_mistakes_are_told(report, tmp_path):
    good = leave_run(tmp_path / "runs" / "good", rows_of([3, 2]))
    empty = leave_run(tmp_path / "runs" / "empty", rows_of([3]))
    (empty / "metrics.jsonl").write_text("")
    broken = leave_run(tmp_path / "runs" / "broken", rows_of([3]))
    (broken / "summary.json").write_text("{")
    torn = leave_run(tmp_path / "runs" / "torn", rows_of([3]))
    (torn / "metrics.jsonl").write_text("{}}\n")
    strange = leave_run(tmp_path / "runs" / "strange", [{"round": 1}])
    (strange / "config.yaml").write_text("a: 1\n")
    roundless = leave_run(tmp_path / "runs" / "roundless", [{"round": 1}])
    (roundless / "metrics.jsonl").write_text('{"val_loss": 1}\n')
    for words, parts in [
        ([tmp_path / "nothing"], ["nothing is not the folder of a run", "does not exist", "fedloom dfl"]),
        ([tmp_path / "runs", good], ["is given twice"]),
        ([empty], ["metrics.jsonl has no rows", "wait for its first round"]),
        ([broken], ["summary.json is not as fedloom wrote it"]),
        ([torn], ["metrics.jsonl is not as fedloom wrote it"]),
        ([strange], ["config.yaml is not as fedloom wrote it", "are missing"]),
        ([roundless], ["metrics.jsonl is not as fedloom wrote it", "no row with a round"]),
        ([good, f"{good}/"], ["is given twice"]),
        ([good, "-o", tmp_path / "no" / "page.html"], ["there is no folder", "make it"]),
        ([good, "-o", tmp_path], ["is a folder", "report.html"]),
        ([good, "--outptu", "x"], ["unknown flag --outptu", "--output"]),
    ]:
        status, out, err = report(*words)
        assert status == 2 and out == "" and err.startswith("fedloom: error: ") and err.count("\n") == 1, (
            words
        )
        assert all(part in err for part in parts), err
    status, out, err = report()
    assert (status, out) == (2, "") and "runs: none given" in err.splitlines()[-1] and "runs/demo" in err


def test_a_folder_stands_for_the_runs_in_it_and_what_cannot_be_shown_is_left_out(report, tmp_path, caplog):
    for name in ("a", "b"):
        leave_run(tmp_path / "runs" / name, rows_of([3, 2]), lr=0.1 + ord(name))
    begun = leave_run(tmp_path / "runs" / "begun", rows_of([3]))
    (begun / "metrics.jsonl").write_text("")
    (tmp_path / "runs" / "notes").mkdir()
    status, _, _ = report(tmp_path / "runs", "-o", tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert status == 0 and "<h1>a, b</h1>" in html and f"left out: {begun}" in caplog.text
    (tmp_path / "empty").mkdir()
    begun.rename(tmp_path / "empty" / "begun")
    status, _, err = report(tmp_path / "empty", "-o", tmp_path / "page.html")
    assert status == 2 and "can be shown" in err


def test_predictions_that_are_none_are_named(report, tmp_path):
    run = leave_run(tmp_path / "a", rows_of([3, 2]))
    leave_predictions(run, [{"adapter": "x"}], {"adapters": [{}]})
    status, _, err = report(run, "-o", tmp_path / "page.html")
    assert status == 2 and "eval.json is not as fedloom wrote it (a task" in err
    (run / "eval" / "eval.json").unlink()
    status, _, err = report(run, "-o", tmp_path / "page.html")
    assert status == 2 and "predictions.jsonl is not as fedloom wrote it (line 1" in err


def test_without_plotly_the_extra_is_named(report, tmp_path, monkeypatch):
    run = leave_run(tmp_path / "a", rows_of([3, 2]))
    real = builtins.__import__

    def missing(name, *rest, **more):
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    status, _, err = report(run, "-o", tmp_path / "page.html")
    assert status == 2 and "pip install 'fedloom[report]'" in err


# Where the page goes.


@pytest.mark.parametrize("what", ["folder", "pipe", "device", "link"])
def test_the_page_replaces_ordinary_files_only(tmp_path, capsys, what):
    run = leave_run(tmp_path / "run", rows_of([3, 2]))
    (tmp_path / "mine.txt").write_text("mine")
    make = {
        "folder": lambda path: path.mkdir(),
        "pipe": os.mkfifo,
        "device": lambda path: None,
        "link": lambda path: path.symlink_to(tmp_path / "mine.txt"),
    }
    page = Path("/dev/null") if what == "device" else tmp_path / "page.html"
    make[what](page)
    before = page.lstat()
    assert main(["report", str(run), "-o", str(page)]) == 2
    assert str(page) in capsys.readouterr().err and page.lstat() == before
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_page_is_replaced_and_is_for_this_user_alone(tmp_path):
    run = leave_run(tmp_path / "run", rows_of([3, 2]))
    page = tmp_path / "page.html"
    page.write_text("an older page")
    assert main(["report", str(run), "-o", str(page)]) == 0
    assert page.read_text().startswith("<!DOCTYPE html>") and page.stat().st_mode & 0o777 == 0o600
