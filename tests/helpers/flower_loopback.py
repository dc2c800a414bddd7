"""Flower's processes on loopback, for tests: as docs/deploy-flower.md has them, on ports that are free.

Where nginx is not installed SuperNodes speak to the SuperLink itself, and apps are not signed.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from counted_ports import CountedPort
from places import ROOT
from typer.testing import CliRunner

BIN = Path(sys.executable).parent
PAGE = (ROOT / "docs" / "deploy-flower.md").read_text(encoding="utf-8")
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Loopback:
    """A SuperLink that knows the keys it is told, and SuperNodes; `stop` ends all that was started.

    Attributes:
        port: The SuperLink's, with all its APIs.
        open_port: What the network reaches: nginx, where there is one.
        counted: The port that SuperNodes dial, which passes on to it and counts bytes.
        hub: Where the SuperLink fetches signed apps.
    """

    def __init__(self, folder):
        self.folder, self.started = folder, []
        self.port, self.hub = free_port(), free_port()
        self.open_port = free_port() if NGINX else self.port
        self.counted = CountedPort(self.open_port)
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3",
            "FLWR_SUPERGRID_API_URL": f"http://127.0.0.1:{self.hub}",
        }
        make_certificates(folder)
        self.new_home("flwr", self.port)

    def new_home(self, name, port):
        """A FLWR_HOME that knows a port, and the certificate."""
        home = self.folder / name
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "mine"\n\n[superlink.mine]\naddress = "127.0.0.1:{port}"\n'
            f'root-certificates = "{self.folder}/ca.crt"\n'
        )
        return home

    def start(self, name, *words):
        with (self.folder / f"{name}.log").open("w") as said:
            process = subprocess.Popen(
                [words[0] if os.path.isabs(words[0]) else str(BIN / words[0]), *words[1:]],
                stdout=said,
                stderr=said,
                env=self.environment,
                cwd=self.folder,
            )
        self.started.append(process)
        return process

    def start_superlink(self):
        words = f"""
            flower-superlink --enable-supernode-auth --disable-runtime-dependency-installation
            --host 127.0.0.1 --port {self.port}
            --ssl-ca-certfile ca.crt --ssl-certfile server.pem --ssl-keyfile server.key
        """
        return self.start("superlink", *words.split())

    def start_nginx(self):
        """The one of the page, with other ports."""
        text = re.search(r"^```nginx\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1]
        ports = {"0.0.0.0:9443": self.open_port, "127.0.0.1:8000": self.port, "127.0.0.1:8001": self.hub}
        for documented, here in ports.items():
            assert documented in text
            text = text.replace(documented, f"127.0.0.1:{here}")
        # As root it would change to a user that cannot read a test's folder.
        user = "user root;\n" if os.getuid() == 0 else ""
        (self.folder / "nginx.conf").write_text(f"daemon off;\n{user}{text}")
        return self.start("nginx", NGINX, "-p", str(self.folder), "-c", "nginx.conf")

    def start_supernode(self, name, node_config, *more, key=None, tls=True, trusted=None):
        words = (
            f"flower-supernode --superlink 127.0.0.1:{self.counted.port} --port {free_port()} --max-retries 2"
        )
        secure = ["--root-certificates", "ca.crt"] if tls else ["--insecure"]
        known = ["--auth-supernode-private-key", str(key)] if key else []
        known += ["--trusted-entities", str(trusted)] if trusted else []
        return self.start(name, *words.split(), *secure, *known, *more, "--node-config", node_config)

    def new_key(self, name, kind="ecdsa"):
        path, bits = self.folder / name, ["-b", "384"] if kind == "ecdsa" else []
        ssh = ["ssh-keygen", "-q", "-t", kind, *bits, "-N", "", "-f", str(path)]
        subprocess.run(ssh, check=True, timeout=200)
        return path

    def try_flwr(self, *words, home="flwr"):
        """The command of that name: its status and what it says.

        In this process: to import Flower takes longer than what it does.
        """
        with pytest.MonkeyPatch.context() as patch:
            for name in ("FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"):
                patch.setenv(name, self.environment[name])
            patch.setenv("FLWR_HOME", str(self.folder / home))
            patch.chdir(self.folder)
            from flwr.cli.app import app

            done = CliRunner().invoke(app, [str(word) for word in words])
        return done.exit_code, done.output

    def flwr(self, *words):
        status, said = self.try_flwr(*words)
        assert status == 0, said
        return said

    def said(self, name):
        return (self.folder / f"{name}.log").read_text()

    def stop(self):
        for process in self.started:
            kill_tree(process)
        self.counted.close()


def kill_tree(process):
    """SIGKILL a process and those that it started."""
    try:
        tree = [psutil.Process(process.pid)]
        tree += tree[0].children(recursive=True)
    except psutil.NoSuchProcess:
        tree = []
    for one in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.send_signal(signal.SIGKILL)
    process.wait(timeout=30)


def wait_until(condition, seconds, still_well=lambda: True):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until and still_well()
        time.sleep(0.05)


def make_certificates(folder):
    """An authority of one's own, and a server certificate of it for 127.0.0.1."""
    (folder / "server.ext").write_text("subjectAltName = DNS:localhost, IP:127.0.0.1\n")
    for words in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.crt",
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext "
        "-out server.pem",
    ):
        subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True, timeout=200)
