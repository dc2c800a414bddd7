"""The break-in into a federation over Flower, tried on what docs/deploy-flower.md sets up."""

import json
import re
import shutil
import subprocess
from importlib.util import find_spec
from urllib.parse import quote

import pytest

if find_spec("flwr") is None:
    pytest.skip("flwr is not installed", allow_module_level=True)

import httpx
from flower_loopback import NGINX, PAGE, Loopback, wait_until

from fedloom.runtimes.flower.signed import read_signing_key, sign_app

pytestmark = pytest.mark.deploy
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light")

SECRET = "what only this client may read"
PROJECT = """
[project]
name = "spy"
version = "1.0.0"
description = "Reads a file on every client"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "outsider"

[tool.flwr.app.components]
serverapp = "spy.app:server"
clientapp = "spy.app:client"

[tool.flwr.app.config]
path = {path}
"""
APP = '''
"""An app that shows the server a file of every client."""

import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

server = ServerApp()
client = ClientApp()


@client.query()
def look(message, context):
    found = Path(context.run_config["path"]).read_text()
    return Message(RecordDict({"found": ConfigRecord({"text": found})}), reply_to=message)


@server.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.1)
    questions = [Message(RecordDict(), node, MessageType.QUERY) for node in nodes]
    waiting = set(grid.push_messages(questions))
    until = time.monotonic() + 200
    while waiting and time.monotonic() < until:
        for answer in grid.pull_messages(waiting):
            waiting.discard(answer.metadata.reply_to_message_id)
            print("seen:", answer.content["found"]["text"] if answer.has_content() else answer.error)
        time.sleep(0.2)
'''


def write_spy(folder, secret):
    (folder / "spy").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT.format(path=json.dumps(str(secret))))
    (folder / "spy" / "__init__.py").write_text("")
    (folder / "spy" / "app.py").write_text(APP)
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A SuperLink, nginx and one client; the owner has signed the spy, so that it can be seen at work."""
    net = Loopback(tmp_path_factory.mktemp("site"))
    try:
        secret = net.folder / "client.txt"
        secret.write_text(SECRET)
        owners = write_spy(net.folder / "federation", secret)
        owner = read_signing_key(net.new_key("owner", "ed25519"))
        signed = sign_app(owners, owner, f"http://127.0.0.1:{net.hub}")
        if NGINX:
            net.start_nginx()
        net.start_superlink()
        key = net.new_key("client1")
        write_spy(net.folder / "outsiders", secret)
        wait_until(lambda: "startup complete" in net.said("superlink"), 200)
        net.flwr("supernode", "register", f"{key}.pub")
        net.start_supernode("node", "client=1", key=key, trusted=signed / "trusted-entities.yaml")
        wait_until(lambda: "SuperNode ID" in net.said("node"), 200)
        yield net
    finally:
        net.stop()


@needs_nginx
def test_an_app_that_the_owner_has_signed_runs(site):
    assert f"seen: {SECRET}" in site.flwr("run", "@outsider/spy==1.0.0", "--stream")


@needs_nginx
def test_who_has_the_certificate_alone_controls_nothing(site):
    site.new_home("outside", site.open_port)
    own = site.new_key("outsiders-key")
    for words in (
        ("supernode", "register", f"{own}.pub"),
        ("supernode", "list"),
        ("run", "outsiders"),
        ("ls",),
    ):
        status, said = site.try_flwr(*words, home="outside")
        assert status != 0 and "403 Forbidden" in said, said
    node = site.start_supernode("outsiders-node", "client=1", "--isolation", "process", key=own)
    wait_until(lambda: node.poll() is not None, 200)
    assert "SuperNode ID" not in site.said("outsiders-node")


@needs_nginx
def test_no_spelling_of_a_path_gets_past_nginx(site):
    places = [f"/v1/control/{what}" for what in ("start-run", "register-node", "list-runs", "stop-run")]
    places += ["/v1/runtime/acquire-task", "/v1/runtime/responses", "/docs", "/openapi.json", "/health", "/"]
    spelt = [
        spelling
        for path in places
        for inner in [path.removeprefix("/v1/")]
        for spelling in (
            path,
            path.upper(),
            quote(path, safe="/").replace("control", "%63ontrol"),
            f"/v1/fleet/../{inner}",
            f"/v1/fleet/%2e%2e/{inner}",
            f"/v1/fleet/..%2f{inner}",
            f"/v1/fleet//..//{inner}",
            f"/v1/fleet/x/../../{inner}",
            f"/v1/fleet/pull-messages/../../{inner}",
            f"/v1/fleet/pull-messages%0a/../{inner}",
            f"/v1/fleet/pull-messages?/../{inner}",
            f"//v1/fleet;/../{inner}",
        )
    ]
    before = site.said("superlink")
    with httpx.Client(verify=str(site.folder / "ca.crt")) as outsider:
        for spelling in spelt:
            request = httpx.Request("POST", f"https://127.0.0.1:{site.open_port}", content=b"")
            request.url = request.url.copy_with(raw_path=spelling.encode())
            assert outsider.send(request).status_code in (400, 401, 403, 404, 415, 422), spelling
    reached = re.findall(r'"\w+ ([^\s?]+)\S* HTTP', site.said("superlink").removeprefix(before))
    assert all(path.startswith("/v1/fleet/") and ".." not in path for path in reached), reached


def test_who_controls_the_superlink_cannot_run_an_app_of_their_own_on_a_client(site):
    said = site.flwr("run", "outsiders", "--stream")
    assert "The FAB could not be verified" in said and SECRET not in said
    if NGINX is None:
        return
    # The owner's signature over another app, and another's signature.
    signed = site.folder / "federation" / "signed"
    shutil.copytree(signed, site.folder / "before")
    (site.folder / "outsiders" / "spy" / "more.py").write_text("")
    stranger = read_signing_key(site.new_key("stranger", "ed25519"))
    forged = sign_app(site.folder / "outsiders", stranger, f"http://127.0.0.1:{site.hub}")
    shutil.copy(forged / "app.fab", signed)
    try:
        for claim in (signed, forged):
            shutil.copy(claim / "fetch-fab.json", site.folder / "said.json")
            shutil.copy(site.folder / "said.json", signed / "fetch-fab.json")
            said = site.flwr("run", "@outsider/spy==1.0.0", "--stream")
            assert "The FAB could not be verified" in said and SECRET not in said
    finally:
        shutil.copytree(site.folder / "before", signed, dirs_exist_ok=True)


def test_the_units_of_the_page_are_units(tmp_path):
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd is not installed")
    units = re.findall(
        r"^```ini\n# /etc/systemd/system/([\w.-]+).*?\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL
    )
    assert len(units) == 3
    for name, text in units:
        program = re.search(r"^ExecStart=(\S+)", text, re.MULTILINE)[1]
        (tmp_path / name).write_text(text.replace(program, "/bin/true").replace("User=fedloom", "User=root"))
    words = [verify, "verify", "--man=no", *(str(tmp_path / name) for name, _ in units)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    wrong = [line for line in done.stderr.splitlines() if "fedloom" in line]
    assert not wrong, wrong
