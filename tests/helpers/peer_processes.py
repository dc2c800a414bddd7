"""Peers over libp2p, each a process of its own on this machine."""

import json
import socket
import time

import yaml
from counted_ports import CountedPort
from processes import CONTEXT, PRELOADED, start

CONTEXT.set_forkserver_preload([*PRELOADED, "fedloom.training.peer", "hivemind.p2p"])


def free_ports(count):
    """Ports that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Federation:
    """Peers on a graph in a folder: their keys, neighbour files, commands and processes.

    With ``counted`` neighbours reach each other through ports that count bytes; nobody may be killed then,
    since these go on listening.
    """

    def __init__(self, folder, graph, common, counted=False):
        self.folder, self.common, self.processes = folder, common, {}
        self.ports = dict(zip([*graph, "stranger"], free_ports(len(graph) + 1), strict=True))
        self.ids = {number: self.identity(number) for number in graph}
        self.counted = {n: CountedPort(self.ports[n]) for n in graph if counted}
        for number, near in graph.items():
            self.write_neighbors(f"neighbors-{number}", near)

    def identity(self, name):
        from fedloom.runtimes.libp2p.identity import make_identity

        return make_identity(self.folder / f"{name}.key")

    def write_neighbors(self, name, near):
        reached = self.ports | {n: port.port for n, port in self.counted.items()}
        entries = [
            {"client": n, "id": self.ids[n], "addresses": [f"/ip4/127.0.0.1/tcp/{reached[n]}"]} for n in near
        ]
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(entries))

    def run(self, name):
        return self.folder / "runs" / f"peer-{name}"

    def words(self, name, *more, client=None, common=None):
        return [
            *f"peer --exp_name peer-{name} --client {client or name}".split(),
            *f"--out_dir {self.folder}/runs --listen /ip4/127.0.0.1/tcp/{self.ports[name]}".split(),
            *f"--identity {self.folder}/{name}.key --neighbors {self.folder}/neighbors-{name}.yaml".split(),
            *(common or self.common).split(),
            *more,
        ]

    def start(self, name, *more, **how):
        self.processes[name] = start(self.words(name, *more, **how), self.folder / f"{name}.log")

    def rows(self, name):
        path = self.run(name) / "metrics.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def summary(self, name):
        return json.loads((self.run(name) / "summary.json").read_text())

    def wait_for_round(self, name, round_, seconds=800):
        """Until this peer has done a round."""
        ends = time.monotonic() + seconds
        while not any(row["round"] >= round_ for row in self.rows(name)):
            assert self.processes[name].is_alive(), self.said(name)
            assert time.monotonic() < ends, f"peer {name} does not get to round {round_}: {self.said(name)}"
            time.sleep(0.05)

    def wait(self, seconds=800):
        """Until all have ended; returns their exit statuses."""
        ends = time.monotonic() + seconds
        for process in self.processes.values():
            process.join(max(0.1, ends - time.monotonic()))
        return {name: process.exitcode for name, process in self.processes.items()}

    def said(self, name):
        log = self.folder / f"{name}.log"
        return log.read_text()[-2000:] if log.exists() else ""

    def bytes_at_the_sockets(self):
        """What peers have sent each other so far: encrypted, and with all that it takes."""
        return sum(port.sent + port.answered for port in self.counted.values())

    def kill_all(self):
        for port in self.counted.values():
            port.close()
        for process in self.processes.values():
            process.kill()
            process.join()
