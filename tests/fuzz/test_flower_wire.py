"""What clients behind Flower answer: it is read, refused or its client's failure, and the others' counts."""

import json
from importlib.util import find_spec

import pytest

if find_spec("flwr") is None:
    pytest.skip("flwr is not installed", allow_module_level=True)

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from fuzzing import NASTY_TEXT, VALUES, damaged, fuzzed
from hypothesis import strategies as st

from fedloom.errors import UserError, is_plain
from fedloom.federation.algorithm import Algorithm
from fedloom.runtimes.flower.answers import read_update
from fedloom.runtimes.flower.connected_clients import ConnectedClients
from fedloom.runtimes.flower.content import Content
from fedloom.runtimes.flower.messages import from_records, to_records
from fedloom.runtimes.flower.messenger import Delivery, RoundMessenger
from fedloom.runtimes.flower.post import Post
from fedloom.runtimes.flower.rows import Unfit, chosen_by, pack

LIKE = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
GOOD = {"round": 0, "client": 0, "examples": 4, "loss": 1.5, "correct": 0, "labels": 9, "tokens": 40}
FACTS = st.dictionaries(st.sampled_from([*GOOD, "lacks", "mistake"]) | NASTY_TEXT, VALUES, max_size=4)
TENSORS = st.binary(max_size=200) | damaged(pack(LIKE)) | st.just(pack(LIKE))
TEXT = st.builds(lambda facts: json.dumps(GOOD | {"client": 1} | facts), FACTS) | damaged(
    json.dumps(GOOD).encode()
).map(lambda raw: raw.decode("utf-8", "replace"))


@fuzzed(facts=FACTS, tensors=TENSORS)
def test_an_update(folder, facts, tensors):
    try:
        found = read_update(Content(GOOD | facts, tensors), 0, 0, LIKE, 4, Algorithm(0.1), {})
    except Unfit:
        return
    assert 0 < found.examples <= 4 and found.payload.keys() == LIKE.keys() and not found.loss < 0


@fuzzed(text=TEXT | NASTY_TEXT, tensors=TENSORS, name=st.sampled_from(["all", "b", "é"]))
def test_records(folder, text, tensors, name):
    array = Array(dtype="uint8", shape=(len(tensors),), stype="safetensors", data=tensors)
    records = {"fedloom": ConfigRecord({"json": text}), "fedloom-tensors": ArrayRecord({name: array})}
    try:
        found = from_records(RecordDict(records))
    except ValueError as error:
        assert len(str(error)) < 500 and is_plain(str(error))
        return
    assert isinstance(found.facts, dict) and isinstance(found.tensors, bytes)


@fuzzed(mask=NASTY_TEXT | st.text("0123456789abcdefx_-+ ", max_size=12))
def test_a_mask(folder, mask):
    try:
        assert chosen_by(mask, sorted(LIKE)) <= LIKE.keys()
    except Unfit as error:
        assert len(str(error)) < 200


class Answering(Grid):
    """Two nodes: the first is a good client, the second answers as it is told."""

    def __init__(self, introduction, text, tensors):
        self.sent, self.count = {}, 0
        self.texts = {11: (json.dumps({"client": 0}), json.dumps(GOOD)), 12: (introduction, text)}
        self.tensors = {11: pack(LIKE), 12: tensors}
        TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1

    def get_nodes(self):
        return [NodeInfo(node_id=node, public_key=bytes([node])) for node in self.texts]

    def get_node_ids(self):
        raise NotImplementedError

    set_run = create_message = send_and_receive = run = get_node_ids

    def push_messages(self, messages):
        for message in messages:
            self.count += 1
            message.metadata.__dict__["_message_id"] = str(self.count)
            self.sent[str(self.count)] = message

    def pull_messages(self, ids):
        (message,) = [self.sent[id_] for id_ in ids]
        node, train = message.metadata.dst_node_id, message.metadata.message_type == "train"
        content = to_records(Content({}, self.tensors[node] if train else b""))
        content["fedloom"] = ConfigRecord({"json": self.texts[node][train]})
        return [Message(content, reply_to=message)]


@fuzzed(introduction=st.just(json.dumps({"client": 1})) | TEXT, text=TEXT, tensors=TENSORS)
def test_whatever_a_client_answers_the_other_ones_update_comes(folder, introduction, text, tensors):
    def admit(content_):
        client = content_.facts.get("client")
        if type(client) is not int or not 0 <= client < 2:
            raise UserError("not a client")
        return client

    connected = ConnectedClients(Post(Answering(introduction, text, tensors)), Content(), admit, 0.1, None)
    connected.look()
    assert 0 in connected.clients
    messenger, delivery = RoundMessenger(connected, 0.2, 4, Algorithm(0.1)), Delivery()
    came = list(messenger.train(0, connected.clients, LIKE, {}, {}, [0, 0], delivery))
    assert came[0].client == 0 and not {0} & {*delivery.lost, *delivery.refused}
    assert len(came) + len(delivery.lost) + len(delivery.refused) == (
        2 if 1 in [*connected.clients, *delivery.lost] else 1
    )
