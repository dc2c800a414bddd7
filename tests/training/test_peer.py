"""A real peer's parts, without a network: what peers of one run must have in common."""

import json

import pytest
from tiny import save_tiny_llama

from fedloom.options.peer import PeerConfig
from fedloom.runs.inputs import Inputs
from fedloom.training.peer import agreement
from fedloom.training.setup_graph import build_one

PAIR = {"prompt": "Town?", "chosen": "Oslo", "rejected": "no"}
ANSWER = {"prompt": "Town?", "completion": "Oslo"}


@pytest.fixture(scope="module")
def digest(tmp_path_factory):
    """What a peer with such data, options and base agrees to."""
    folder = tmp_path_factory.mktemp("peers")
    made = {}

    def of(row, seed=0, **options):
        data = folder / f"{list(row)[1]}.jsonl"
        data.write_text(json.dumps(row) + "\n" + 19 * (json.dumps(row | {"prompt": "And this?"}) + "\n"))
        model = folder / f"model-{seed}"
        if not model.exists():
            save_tiny_llama(model, seed=seed)
        config = PeerConfig(
            model_checkpoint=str(model), dataset_type=str(data), num_clients=2, report_to="none", **options
        )
        key = json.dumps([row, seed, options])
        made[key] = made.get(key) or agreement(config, build_one(config, Inputs())[1])
        return made[key]

    return of


def test_beta_must_be_the_same_for_those_who_learn_preferences_and_is_nothing_to_others(digest):
    assert digest(PAIR, dpo_beta=0.5) != digest(PAIR)
    assert digest(ANSWER, dpo_beta=0.5) == digest(ANSWER)


def test_what_is_learned_and_of_which_model_must_be_the_same(digest):
    assert digest(PAIR) != digest(ANSWER)
    mine, other = (digest(ANSWER, seed=seed).split(".") for seed in (0, 1))
    assert other[1] != mine[1], "another model of the same shape"
    assert (other[0], other[2]) == (mine[0], mine[2]), "and it is that alone"
    assert digest(ANSWER, lora_dropout=0.3, lr=0.5) == digest(ANSWER), "training is a peer's own"
