"""The pages say what the program does: flags, commands, code, configs, tables. Their links lead somewhere."""

import re
import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest
from places import ROOT
from tiny import save_tiny_llama

import fedloom
from fedloom.commands.cli import COMMANDS, read_config
from fedloom.commands.reference import reference
from fedloom.options.compare import read_plan
from fedloom.options.methods import METHODS

PAGES = {
    path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]
}
README = PAGES["README.md"]
COMMAND_LINE = re.compile(r"^(?:\$ )?fedloom ([\w-]+) ((?:[^\n]*\\\n)*[^\n]*)$", re.MULTILINE)
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)

SHOWN = {"my_methods.py": "extending.md", "federation.yaml": "deploy-flower.md"}
"""Files of the user's, which a page shows in full."""


def command_lines(page):
    """The commands in a page's blocks of code, each as its name and the words after it."""
    return [found for block in BLOCK.findall(page) for found in COMMAND_LINE.findall(block)]


COMMAND_LINES = [found for page in PAGES.values() for found in command_lines(page)]


def test_the_page_of_flags_is_the_programs():
    assert PAGES["flags.md"] == reference(), (
        "make it again: python -m fedloom.commands.reference > docs/flags.md"
    )
    assert {f"## fedloom {name}" for name in COMMANDS} <= set(PAGES["flags.md"].splitlines())


@pytest.mark.parametrize("command, words", COMMAND_LINES)
def test_every_command_of_the_pages_parses(command, words, tmp_path, monkeypatch):
    for name, page in SHOWN.items():
        if name in words:
            monkeypatch.chdir(tmp_path)
            (shown,) = re.findall(rf"^# {re.escape(name)}$\n(.*?)^```", PAGES[page], re.M | re.S)
            Path(name).write_text(shown)
    read_config(COMMANDS[command], shlex.split(words.replace("\\\n", " "), comments=True), prog="fedloom")


def test_the_readme_shows_commands():
    assert len(command_lines(README)) >= 3


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_parses_with_the_command_that_it_names(path):
    named = re.search(r"fedloom (\w+) --config configs/([\w.-]+)", path.read_text(encoding="utf-8"))
    assert named is not None and named[2] == path.name
    read_config(COMMANDS[named[1]], ["--config", str(path)], prog="fedloom")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "compare").glob("*.yaml")), ids=lambda path: path.name
)
def test_every_comparison_is_a_plan_of_runs(path):
    plan = read_plan(path)
    for run in plan.runs:
        options = [f"--{name}={value}" for name, value in run.options.items()]
        read_config(COMMANDS[plan.command], options, prog="fedloom")


def test_benchmark_tables_are_those_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from render import RESULTS, fill

    for name, page in PAGES.items():
        assert fill(page, RESULTS) == page, name


def anchors(page):
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.*)$", BLOCK.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_link_inside_the_project_leads_somewhere():
    links = [(page, link) for page, text in PAGES.items() for link in LINK.findall(BLOCK.sub("", text))]
    for page, link in links:
        if link.startswith("https://"):
            continue
        folder = ROOT if page == "README.md" else ROOT / "docs"
        path, _, anchor = link.partition("#")
        target = folder / path if path else folder / page
        assert target.exists(), f"{page} links to {link}"
        if page != "README.md":
            assert target.resolve().is_relative_to(ROOT / "docs"), f"{link} leads out of the site"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page} links to {link}"


def test_every_page_is_in_the_sites_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES.keys() - {"README.md"}:
        assert f": {page}\n" in navigation


@pytest.mark.skipif(find_spec("material") is None, reason="mkdocs-material is not installed")
def test_the_site_builds_without_a_warning(tmp_path):
    """With what `make` installs; without mkdocstrings the page of the API has names alone."""
    config = ROOT / "mkdocs.yml"
    if find_spec("mkdocstrings") is None:
        config = tmp_path / "mkdocs.yml"
        config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {ROOT / 'docs'}\nplugins: [search]\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config)]
    command += ["--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "concepts" / "index.html").is_file()
    assert "figures/regimes.svg" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert "pre-wrap" in (tmp_path / "site" / "stylesheets" / "site.css").read_text(encoding="utf-8")


def test_the_page_of_the_api_has_every_public_name():
    names = re.findall(r"^::: fedloom\.(\w+)$", PAGES["api.md"], re.MULTILINE)
    assert names == fedloom.__all__


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/figures/*.svg")), ids=lambda path: path.name)
def test_every_picture_is_whole(path):
    assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


EXTRAS = {"report": "report", "peer": "p2p", "identity": "p2p", "flower": "flower"}
"""What the work of a command needs beside a plain install; commands that write pictures need `plots`."""


def test_pages_name_the_extras_that_their_commands_need():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for page, text in PAGES.items():
        named = {extra for words in re.findall(r"'\.\[([\w,]+)\]'", text) for extra in words.split(",")}
        assert named <= known.keys(), page
        needed = {EXTRAS[command] for command, _ in command_lines(text) if command in EXTRAS}
        needed |= {
            "plots" for _, words in command_lines(text) if re.search(r"--output \S+\.(png|svg)", words)
        }
        assert needed <= named, page
        assert "'fedloom[" not in text, f"{page} asks an index for fedloom"


def test_commands_of_the_pages_fit_a_terminal():
    wide = [
        line
        for command, words in COMMAND_LINES
        for line in f"fedloom {command} {words}".splitlines()
        if len(line.partition("  #")[0]) > 100
    ]
    assert wide == []


@pytest.mark.usefixtures("few_problems")
@pytest.mark.parametrize("page", ["index.md", "extending.md"])
def test_the_code_of_a_page_runs_and_what_it_quotes_is_there(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = save_tiny_llama(tmp_path / "model")
    blocks, scope = CODE.findall(PAGES[page]), {}
    assert len(blocks) >= 3
    for block in blocks:
        if quoted := re.match(r"# (fedloom/\S+\.py)\n", block):
            assert block[quoted.end() :] in (ROOT / quoted[1]).read_text(encoding="utf-8")
        else:
            exec(compile(block.replace("smollm2-135m", str(model)), page, "exec"), scope)


def test_every_test_that_the_threat_model_names_is_there():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)`", text)
    assert len(set(named)) > 5 and all((ROOT / name).is_file() for name in named)
    assert all((ROOT / path.partition("#")[0]).exists() for path in LINK.findall(text))


def test_every_module_that_a_page_names_is_there():
    for name, page in PAGES.items():
        for path in re.findall(r"`((?:fedloom/)?(?:\w+/)+\w+\.py)`", page):
            found = [ROOT / "fedloom" / path, ROOT / path]
            assert any(place.is_file() for place in found), f"{name} names {path}"


def test_the_page_of_methods_has_every_row_of_the_table():
    table = PAGES["methods.md"].partition("\n## ")[0].splitlines()
    for row in METHODS:
        (line,) = [line for line in table if line.startswith(f"| `{row.name}` |")]
        places = {"a server": row.server, "a graph": row.graph}
        where = [place for place, settings in places.items() if settings is not None]
        assert line.split("|")[3].strip() == ", ".join(where), row.name
