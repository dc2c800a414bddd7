"""Packs: every token, label and weight of every sequence lies exactly where the pack says."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedloom.data.encode import Tokens
from fedloom.model.layout import Batch, Layout, labels_of, shared_prefix
from fedloom.model.packing import build_pack

PREFIX = [3, 7, 9, 11]  # all sequences below begin with it


@st.composite
def sequences(draw):
    ids = PREFIX + draw(st.lists(st.integers(1, 90), min_size=2, max_size=7))
    borders = st.lists(st.integers(len(PREFIX) + 1, len(ids) - 1), min_size=1, max_size=4, unique=True)
    first, *others = sorted(draw(borders))
    # Several answers: from every second border to the next, the last perhaps to the end.
    ends = [first, *others, *([] if len(others) % 2 else [len(ids)])]
    answers = tuple(zip(ends[::2], ends[1::2], strict=True)) if others else ()
    return Tokens(ids, first, draw(st.integers(0, 2)), answers=answers)


layouts = st.builds(
    Layout,
    packed=st.booleans(),
    causal=st.booleans(),
    classify=st.booleans(),
    virtual=st.sampled_from([0, 3]),
    prefix=st.integers(0, len(PREFIX)),
    pad_id=st.just(0),
)
batches = st.lists(sequences(), min_size=1, max_size=3)
waves = st.lists(st.lists(batches, max_size=3), min_size=1, max_size=3).filter(any)


def with_weights(wave, layout):
    """A mean's weights, and (round 0, client, number) as the batch's key."""
    return [
        [
            Batch(batch, 1 / sum(labels_of(s, layout) for s in batch), (0, client, number))
            for number, batch in enumerate(of_client)
        ]
        for client, of_client in enumerate(wave)
    ]


def flattened(wave):
    """Every sequence with its client and its batch, in the order of the pass."""
    return [(k, batch, s) for k, batches in enumerate(wave) for batch in batches for s in batch.sequences]


def places(pack, layout, wave):
    """For each sequence, where each of its virtual and real tokens stands among the flattened tokens."""
    found = []
    for i, (_, _, sequence) in enumerate(flattened(wave)):
        length = layout.virtual + len(sequence.ids)
        if layout.packed:
            before = range(pack.prefix_starts[i], pack.prefix_starts[i] + layout.shared)
            own = range(pack.starts[i], pack.starts[i] + pack.lengths[i])
            found.append([*before, *own])
            assert len(found[-1]) == length
        else:
            columns = pack.ids.shape[1]
            found.append(list(range(i * columns, i * columns + length)))
    return found


@settings(max_examples=150, deadline=None)
@given(layouts, waves)
def test_every_token_stands_where_the_pack_says(layout, wave):
    wave = with_weights(wave, layout)
    pack = build_pack(wave, layout)
    ids, position_ids = pack.ids.flatten().tolist(), pack.position_ids.flatten().tolist()
    where = places(pack, layout, wave)
    for (_, _, sequence), place in zip(flattened(wave), where, strict=True):
        assert [ids[i] for i in place[layout.virtual :]] == sequence.ids
        assert [position_ids[i] for i in place] == list(range(len(place)))
    covered = {i for place in where for i in place}
    assert len(covered) == sum(pack.client_tokens)
    if layout.packed:
        assert pack.mask is None and pack.real is None
        assert covered == set(range(pack.ids.numel())), "a token belongs to no sequence"
    else:
        assert pack.mask.flatten().nonzero()[:, 0].tolist() == sorted(covered) == pack.real.tolist()
        assert all(ids[i] == layout.pad_id for i in range(len(ids)) if i not in covered)


@settings(max_examples=100, deadline=None)
@given(layouts, waves)
def test_labels_are_predicted_by_the_token_before_them(layout, wave):
    wave = with_weights(wave, layout)
    pack = build_pack(wave, layout)
    sources, targets, weights, owners = [], [], [], []
    for (client, batch, s), place in zip(flattened(wave), places(pack, layout, wave), strict=True):
        if layout.classify:
            sources.append(place[-1] if layout.causal else place[0])
            targets.append(s.label)
        else:
            real = place[layout.virtual :]
            labelled = [i for first, end in s.spans for i in range(first, end)]
            sources += [real[i - 1] for i in labelled]
            targets += [s.ids[i] for i in labelled]
        weights += [batch.weight] * labels_of(s, layout)
        owners += [client] * labels_of(s, layout)
    assert pack.sources.tolist() == sources
    assert pack.targets.tolist() == targets
    assert pack.weights.tolist() == weights
    assert pack.label_clients.tolist() == owners
    assert pack.label_units == tuple(owners.count(k) for k in range(len(wave)))
    # Weights of 1 / labels make each batch count once.
    for client, batches in enumerate(wave):
        of_client = float(pack.weights[pack.label_clients == client].sum())
        assert of_client == pytest.approx(len(batches), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(layouts, waves)
def test_packed_and_padded_layouts_carry_the_same_labels(layout, wave):
    wave = with_weights(wave, layout)
    packed, padded = (build_pack(wave, dataclasses.replace(layout, packed=p)) for p in (True, False))
    for name in ("targets", "weights", "label_clients"):
        assert torch.equal(getattr(packed, name), getattr(padded, name))
    assert packed.label_units == padded.label_units
    assert packed.ids.flatten()[packed.sources].tolist() == padded.ids.flatten()[padded.sources].tolist()


@settings(max_examples=60, deadline=None)
@given(layouts, waves)
def test_units_share_the_pass_out_among_the_clients(layout, wave):
    wave = with_weights(wave, layout)
    pack = build_pack(wave, layout)
    lengths = [[len(s.ids) + layout.virtual for b in batches for s in b.sequences] for batches in wave]
    if layout.packed:
        # What is shared stands once per client that has any batch.
        tokens = [sum(own) - layout.shared * max(len(own) - 1, 0) for own in lengths]
        assert list(pack.units) == tokens == list(pack.client_tokens)
        assert pack.ids.shape == (1, sum(tokens))
    else:
        assert list(pack.units) == [len(own) for own in lengths]
        assert list(pack.client_tokens) == [sum(own) for own in lengths]
        assert pack.ids.shape == (sum(pack.units), max(map(max, filter(None, lengths))))


@settings(max_examples=60, deadline=None)
@given(layouts, waves)
def test_virtual_tokens_take_the_prompt_of_their_own_client(layout, wave):
    wave = with_weights(wave, layout)
    pack = build_pack(wave, layout)
    if not layout.virtual:
        assert pack.virtual is None
        return
    expected = {}
    for (client, _, _), place in zip(flattened(wave), places(pack, layout, wave), strict=True):
        for i in range(layout.virtual):
            expected[place[i]] = client * layout.virtual + i
    where, source = (t.tolist() for t in pack.virtual)
    assert len(where) == len(expected)
    assert dict(zip(where, source, strict=True)) == expected


@settings(max_examples=60, deadline=None)
@given(layouts, waves)
def test_runs_that_draw_dropout_are_the_batches_and_each_clients_prefix(layout, wave):
    wave = with_weights(wave, layout)
    pack = build_pack(wave, layout)
    keys = []
    for client, batches in enumerate(wave):
        prefix = [(0, client, -1)] if layout.shared and batches else []
        keys += prefix + [batch.key for batch in batches]
    assert list(pack.run_keys) == keys
    assert sum(pack.run_tokens) == sum(pack.client_tokens)
    assert sum(pack.run_labels) == len(pack.targets)
    batch_labels = [sum(labels_of(s, layout) for s in b.sequences) for batches in wave for b in batches]
    of_batches = [n for n, key in zip(pack.run_labels, pack.run_keys, strict=True) if key[-1] != -1]
    assert of_batches == batch_labels


def test_the_picture_of_the_module_a_prefix_stands_once_before_its_clients_sequences():
    wave = [
        [Batch([Tokens([1, 2, 30, 31], 3, 0), Tokens([1, 2, 40, 41, 42], 3, 0)], 1 / 3)],
        [],
        [Batch([Tokens([1, 2, 50, 51], 3, 0)], 1.0)],
    ]
    pack = build_pack(wave, Layout(packed=True, causal=True, prefix=2))
    assert pack.ids.tolist() == [[1, 2, 30, 31, 40, 41, 42, 1, 2, 50, 51]]
    assert pack.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4, 0, 1, 2, 3]]
    assert pack.starts == (2, 4, 9) and pack.lengths == (2, 3, 2) and pack.prefix_starts == (0, 0, 7)
    assert pack.units == (7, 0, 4) and pack.label_units == (3, 0, 1)
    assert pack.sources.tolist() == [2, 4, 5, 9] and pack.targets.tolist() == [31, 41, 42, 51]


def test_a_model_that_looks_ahead_shares_nothing():
    wave = [[Batch([Tokens([1, 2, 30], 2, 0), Tokens([1, 2, 40], 2, 0)], 0.5)]]
    assert build_pack(wave, Layout(packed=True, causal=False, prefix=2)).ids.tolist() == [
        [1, 2, 30, 1, 2, 40]
    ]


def test_padded_rows():
    wave = [[Batch([Tokens([1, 30], 1, 0), Tokens([1, 40, 41], 1, 0)], 0.5)]]
    pack = build_pack(wave, Layout(packed=False, causal=True, prefix=1, pad_id=9))
    assert pack.ids.tolist() == [[1, 30, 9], [1, 40, 41]]
    assert pack.mask.tolist() == [[True, True, False], [True, True, True]]


@pytest.mark.parametrize("clients", [[], [[]], [[], []]])
def test_a_pass_without_a_batch_is_an_error(clients):
    with pytest.raises(ValueError, match="at least one batch"):
        build_pack(clients, Layout(packed=True, causal=True))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 2), min_size=2, max_size=8), min_size=1, max_size=4), st.data())
def test_the_shared_prefix_is_the_longest_that_predicts_no_label(lists, data):
    given_ = [Tokens(ids, data.draw(st.integers(1, len(ids) - 1)), 0) for ids in lists]
    length = shared_prefix(given_)
    limit = min(s.answer_start - 1 for s in given_)
    agrees = [len({tuple(s.ids[:n]) for s in given_}) == 1 for n in range(limit + 1)]
    assert length == max(n for n in range(limit + 1) if agrees[n])


@pytest.mark.parametrize("ids, answer_start", [([1, 2, 4, 9], 3), ([1, 2, 3, 9], 2)])
def test_a_sequence_that_does_not_begin_with_the_shared_prefix_is_refused(ids, answer_start):
    layout = Layout(packed=True, causal=True, prefix=3)
    batch = Batch([Tokens([1, 2, 3, 8, 9], 4, -1), Tokens(ids, answer_start, -1)], 1.0, (0, 0, 0, 0))
    with pytest.raises(ValueError, match="client 0: a sequence does not begin with the 3 tokens"):
        build_pack([[batch]], layout)
