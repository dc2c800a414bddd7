"""The second text of a pair carries its type, packed or padded, as it does in transformers."""

import copy
import random

import pytest
import torch
from engine import make_stacked, start_bank
from peft import LoraConfig
from tiny import tiny_bert

from fedloom.data.encode import Tokens
from fedloom.model.layout import Batch
from fedloom.model.packing import build_pack


def pairs(count, seed):
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        ids = [rng.randrange(3, 90) for _ in range(rng.randrange(6, 14))]
        made.append(Tokens(ids, len(ids), rng.randrange(3), rng.randrange(2, len(ids) - 1)))
    return made


@pytest.mark.parametrize("packed", [True, False])
def test_losses_are_those_of_transformers_with_token_types(packed):
    base = tiny_bert(num_labels=3)
    model = make_stacked(base, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]), packed=packed)
    clients = [pairs(3, seed=1), pairs(2, seed=2)]
    pack = build_pack([[Batch(own, 1.0)] for own in clients], model.layout)
    ours = model.losses(start_bank(model, 2, torch.float32).tensors, pack).loss

    def loss(sequence, types):
        logits = copy.deepcopy(base)(torch.tensor([sequence.ids]), token_type_ids=types[None]).logits
        return torch.nn.functional.cross_entropy(logits, torch.tensor([sequence.label]))

    for k, own in enumerate(clients):
        theirs = sum(loss(s, (torch.arange(len(s.ids)) >= s.segment_start).long()) for s in own)
        torch.testing.assert_close(ours[k], theirs, rtol=1e-5, atol=1e-5)
        one_text = sum(loss(s, torch.zeros(len(s.ids), dtype=torch.long)) for s in own)
        assert abs(float(theirs - one_text)) > 1e-2, "without types it would be another loss"


def test_single_texts_need_no_types():
    model = make_stacked(tiny_bert(), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    assert build_pack([[Batch([Tokens([5, 6, 7], 3, 1)], 1.0)]], model.layout).types is None
