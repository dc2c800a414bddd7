"""docs/deploy-flower.md as a newcomer types it, in an empty folder: what comes before anything listens."""

import os
import re
import subprocess
from importlib.util import find_spec

import pytest

if find_spec("flwr") is None:
    pytest.skip("flwr is not installed", allow_module_level=True)

import tomllib

from flower_loopback import BIN, NGINX, PAGE
from flwr.common.config import parse_config_args

BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [text for language, text in BLOCKS if not language]


def block(language):
    (text,) = [text for kind, text in BLOCKS if kind == language]
    return text


@pytest.fixture(scope="module")
def typed(tmp_path_factory):
    """The folder after every command of the page that ends by itself and asks no SuperLink, in its order."""
    folder = tmp_path_factory.mktemp("typed")
    (folder / "federation.yaml").write_text(block("yaml"))
    (folder / "nginx.conf").write_text(block("nginx"))
    words = re.compile(r"(fedloom|openssl|ssh-keygen|cp) ")
    commands = [text for text in COMMANDS if words.match(text)]
    assert len(commands) == 7
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    said = ""
    for text in commands:
        bash = ["bash", "-e", "-c", text]
        done = subprocess.run(bash, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        said += done.stdout
    return folder, said


def test_the_app_is_called_what_the_page_runs(typed):
    folder, said = typed
    app = re.search(r"flwr run (@\S+) mine", said)[1]
    runs = [text for text in COMMANDS if text.startswith("flwr run @")]
    assert runs and all(text.startswith(f"flwr run {app} mine ") for text in runs)
    project = tomllib.loads((folder / "federation" / "pyproject.toml").read_text())
    options = project["tool"]["flwr"]["app"]["config"]
    registered = {
        name for text in COMMANDS for name in re.findall(r"flwr supernode register (\S+) mine", text)
    }
    keys = [options["client_keys"].replace("{i}", str(i + 1)) for i in range(options["client_num"])]
    assert {os.path.basename(key) for key in keys} == registered
    assert all((folder / name).is_file() for name in registered)


def test_what_the_supernodes_are_told_is_there(typed):
    folder, _ = typed
    starts = [text for text in COMMANDS if "flower-supernode " in text]
    ports = set()
    for number, text in enumerate(starts, start=1):
        told = re.search(r'--node-config "(.*?)"', text)[1].replace("$PWD", str(folder))
        node = parse_config_args([told])
        assert node["client"] == number and os.path.isdir(node["data-path"])
        files = re.findall(r"--(?:root-certificates|auth-supernode-private-key|trusted-entities) (\S+)", text)
        assert len(files) == 3 and all((folder / name).is_file() for name in files)
        ports |= set(re.findall(r"--port (\d+)", text))
    assert len(ports) == len(starts) == len(os.listdir(folder / "clients")) - 3 == 2


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")
def test_nginx_takes_what_the_folder_has(typed):
    folder, _ = typed
    words = [NGINX, "-t", "-p", str(folder), "-c", "nginx.conf"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    # Whether the ports of the page are free here is no matter of the page.
    assert "syntax is ok" in done.stderr, done.stderr
