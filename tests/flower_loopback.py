"""Flower's processes on loopback, for tests: certificates, keys, a SuperLink and SuperNodes with TLS."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Loopback:
    """A SuperLink that knows the keys it is told, and SuperNodes; `stop` ends all that was started."""

    def __init__(self, folder):
        self.folder, self.port, self.started = folder, free_port(), []
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        }
        make_certificates(folder)
        (folder / "flwr").mkdir()
        (folder / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "loopback"\n\n[superlink.loopback]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{folder}/ca.crt"\n'
        )

    def start(self, name, *words):
        with (self.folder / f"{name}.log").open("w") as said:
            process = subprocess.Popen(
                [str(BIN / words[0]), *words[1:]],
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

    def start_supernode(self, name, node_config, *, key=None, tls=True):
        words = f"flower-supernode --superlink 127.0.0.1:{self.port} --port {free_port()} --max-retries 2"
        secure = ["--root-certificates", "ca.crt"] if tls else ["--insecure"]
        known = ["--auth-supernode-private-key", str(key)] if key else []
        return self.start(name, *words.split(), *secure, *known, "--node-config", node_config)

    def new_key(self, name):
        path = self.folder / name
        ssh = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", str(path)]
        subprocess.run(ssh, check=True, timeout=30)
        return path

    def flwr(self, *words):
        """The command of that name, in this process: to import Flower takes longer than what it does."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("FLWR_HOME", "FLWR_TELEMETRY_ENABLED", "FLWR_DISABLE_UPDATE_CHECK"):
                patch.setenv(name, self.environment[name])
            patch.chdir(self.folder)
            from flwr.cli.app import app

            done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.output

    def said(self, name):
        return (self.folder / f"{name}.log").read_text()

    def stop(self):
        for process in self.started:
            kill_tree(process)


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
        subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True, timeout=60)
