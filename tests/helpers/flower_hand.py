"""Flower's grid as a test needs it: nodes are ClientApps in this process, whose answers may be spoiled."""

import time
import tomllib
from types import SimpleNamespace
from unittest import mock

from flwr.app import Context, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity

from fedloom.commands.cli import main
from fedloom.runtimes.flower import connected_clients, messenger
from fedloom.training.flower import server
from fedloom.training.flower.client import app as client_app

KEYS = [public_key_to_bytes(generate_key_pairs()[1]) for _ in range(5)]


def written(folder, *words):
    """The run config of the app that `fedloom flower` writes."""
    assert main(["flower", *words, "--output_path", str(folder)]) == 0
    return tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


class Hand(Grid):
    """A grid whose nodes are ClientApps in this process; a test may spoil what they answer.

    Its nodes count from 11, and each has a key of its own, or the one of `keys`.
    """

    def __init__(self, run_config, configs, spoil=lambda node, reply: reply, keys=()):
        self.keys = dict(enumerate([*keys, *KEYS[len(keys) :]], 11))
        self.contexts = {
            node: Context(1, node, config, RecordDict(), run_config)
            for node, config in enumerate(configs, 11)
        }
        self.spoil, self.waiting, self.count = spoil, [], 0
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1

    def get_nodes(self):
        return [NodeInfo(node_id=node, public_key=self.keys[node]) for node in self.contexts]

    def get_node_ids(self):
        raise NotImplementedError

    set_run = create_message = send_and_receive = run = get_node_ids

    def push_messages(self, messages):
        for message in messages:
            self.count += 1
            message.metadata.__dict__["_message_id"] = str(self.count)
            node = message.metadata.dst_node_id
            reply = client_app(message, self.contexts[node])
            if (reply := self.spoil(node, reply)) is not None:
                self.waiting.append(reply)

    def pull_messages(self, ids):
        found = [m for m in self.waiting if m.metadata.reply_to_message_id in ids]
        self.waiting = [m for m in self.waiting if m not in found]
        for message in found:
            if isinstance(message.content, Exception):  # as Flower's own reader raises
                raise message.content
        return found


def serve(grid, run_config):
    """A server among these nodes: what it waits for them is over at once, since they answer when asked."""
    waited = 0.0

    def sleep(seconds):
        nonlocal waited
        waited += seconds

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + waited, sleep=sleep)
    with mock.patch.object(connected_clients, "time", clock), mock.patch.object(messenger, "time", clock):
        server.serve(grid, run_config)


def nodes(count=3):
    return [{"partition-id": k, "num-partitions": count} for k in range(count)]
