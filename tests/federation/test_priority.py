"""Gradient priority: the scores against plain dense formulas, and which layers they pick."""

import math
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import save_tiny_llama

from fedloom.federation import priority
from fedloom.federation.priority import GRAD_EVALS, Projection, layer_scores
from fedloom.model.base import load_base

RELATIVE = ("lora_per_l1", "lora_per_l2")
# Layer by layer the shapes of its projections: (d_out, d_in, rank).
SHAPES = [[(6, 8, 2), (3, 8, 2)], [(6, 8, 2)], [(12, 7, 4), (5, 12, 1), (9, 9, 3)]]


def example(seed=0, dtype=torch.float32, shapes=SHAPES):
    """An adapter, its gradient, the layers, and the frozen weight behind each projection."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    row, gradient, weights, layers = {}, {}, {}, []
    for number, projections in enumerate(shapes):
        layers.append([])
        for place, (d_out, d_in, rank) in enumerate(projections):
            a, b = (f"layers.{number}.{place}.lora_{factor}.weight" for factor in "AB")
            row |= {a: draw(rank, d_in), b: draw(d_out, rank)}
            gradient |= {a: draw(rank, d_in), b: draw(d_out, rank)}
            weights[a] = draw(d_out, d_in)
            layers[-1].append(Projection(a, b, 0.5 * (place + 1), lambda a=a: weights[a]))
    return row, gradient, layers, weights


def norm(values, order):
    return sum(abs(float(v)) ** order for v in np.ravel(values)) ** (1 / order)


def slow_scores(row, gradient, layers, weights, grad_eval):
    """The definition, one rank and one number at a time, in float64."""
    row, gradient, weights = (
        {n: t.double().cpu().numpy() for n, t in x.items()} for x in (row, gradient, weights)
    )
    order, scores = int(grad_eval[-1]), []
    for projections in layers:
        parts = []
        for p in projections:
            a, b, da, db = row[p.a], row[p.b], gradient[p.a], gradient[p.b]
            change, product = np.zeros((len(b), a.shape[1])), np.zeros((len(b), a.shape[1]))
            for k in range(len(a)):
                change += np.outer(b[:, k], da[k]) + np.outer(db[:, k], a[k])
                product += np.outer(b[:, k], a[k])
            if grad_eval in ("l1", "l2"):
                parts += [norm(da, order), norm(db, order)]
            elif grad_eval in ("lora_l1", "lora_l2"):
                parts.append(norm(change, order))
            else:
                parts.append(norm(change / (abs(weights[p.a] + p.scale * product) + 1e-8), order))
        scores.append(sum(parts) / len(parts))
    return scores


@pytest.mark.parametrize("block", [1, 20, 2**18])
@pytest.mark.parametrize("grad_eval", GRAD_EVALS)
def test_every_kind_of_score_is_its_dense_formula(grad_eval, block, monkeypatch):
    monkeypatch.setattr(priority, "_BLOCK", block)
    for seed in range(3):
        row, gradient, layers, weights = example(seed)
        scores = layer_scores(row, gradient, layers, grad_eval)
        assert scores.dtype == torch.float64 and scores.device.type == "cpu"
        assert scores.tolist() == pytest.approx(
            slow_scores(row, gradient, layers, weights, grad_eval), rel=1e-6
        )


@pytest.mark.parametrize("grad_eval", GRAD_EVALS)
def test_a_fresh_adapter_whose_b_is_zero_has_scores(grad_eval):
    row, gradient, layers, weights = example()
    row |= {name: torch.zeros_like(t) for name, t in row.items() if "lora_B" in name}
    scores = layer_scores(row, gradient, layers, grad_eval)
    assert scores.tolist() == pytest.approx(slow_scores(row, gradient, layers, weights, grad_eval), rel=1e-6)


@pytest.mark.parametrize("grad_eval", RELATIVE)
def test_a_weight_that_the_adapter_nearly_undoes_is_measured_exactly(grad_eval):
    """float32 would compute W + s·B·A as 0 or as noise here, and these entries are the score."""
    row, gradient, layers, weights = example()
    for p in (p for projections in layers for p in projections):
        weights[p.a] = (-p.scale * row[p.b].double() @ row[p.a].double()).float()
    scores = layer_scores(row, gradient, layers, grad_eval)
    assert scores.tolist() == pytest.approx(slow_scores(row, gradient, layers, weights, grad_eval), rel=1e-6)


@pytest.mark.parametrize("grad_eval", RELATIVE)
def test_a_weight_of_zero_leaves_the_score_finite(grad_eval):
    row, gradient, layers, weights = example()
    row |= {name: torch.zeros_like(t) for name, t in row.items() if "lora_B" in name}
    weights |= {name: torch.zeros_like(t) for name, t in weights.items()}
    absolute = layer_scores(row, gradient, layers, grad_eval.replace("per_", ""))
    relative = layer_scores(row, gradient, layers, grad_eval)
    torch.testing.assert_close(relative, absolute / priority.EPS, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("grad_eval", "order"), [("lora_l1", 1), ("lora_l2", 2)])
def test_the_lora_kinds_measure_how_the_product_changes_along_the_gradient(grad_eval, order):
    row, gradient, layers, _ = example(dtype=torch.float64, shapes=[[(6, 8, 2)]])
    (p,) = layers[0]

    def product(step):
        return (row[p.b] + step * gradient[p.b]) @ (row[p.a] + step * gradient[p.a])

    change = (product(0.1) - product(-0.1)) / 0.2  # a central difference is exact for a quadratic
    expected = torch.linalg.vector_norm(change, order)
    assert float(layer_scores(row, gradient, layers, grad_eval)) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("grad_eval", [kind for kind in GRAD_EVALS if kind not in RELATIVE])
def test_the_frozen_weight_is_not_asked_for_where_it_does_not_matter(grad_eval):
    def no_weight():
        raise AssertionError("dequantised for nothing")

    row, gradient, layers, _ = example()
    layers = [[Projection(p.a, p.b, p.scale, no_weight) for p in projections] for projections in layers]
    assert layer_scores(row, gradient, layers, grad_eval).isfinite().all()


@pytest.mark.parametrize("grad_eval", RELATIVE)
def test_one_frozen_weight_exists_at_a_time(grad_eval):
    row, gradient, layers, weights = example()
    given_out = []

    def dequantise(name):
        assert all(ref() is None for ref in given_out), "an earlier weight is still held"
        weight = weights[name].clone()
        given_out.append(weakref.ref(weight))
        return weight

    layers = [[Projection(p.a, p.b, p.scale, lambda p=p: dequantise(p.a)) for p in layer] for layer in layers]
    layer_scores(row, gradient, layers, grad_eval)
    assert len(given_out) == sum(map(len, SHAPES))


@settings(max_examples=20, deadline=None)
@given(grad_eval=st.sampled_from(GRAD_EVALS), factor=st.floats(1e-3, 1e3), sign=st.sampled_from([-1, 1]))
def test_scores_grow_with_the_gradient(grad_eval, factor, sign):
    row, gradient, layers, _ = example(dtype=torch.float64)
    larger = {name: sign * factor * t for name, t in gradient.items()}
    torch.testing.assert_close(
        layer_scores(row, larger, layers, grad_eval),
        factor * layer_scores(row, gradient, layers, grad_eval),
        rtol=1e-6,
        atol=0,
    )


@settings(max_examples=20, deadline=None)
@given(grad_eval=st.sampled_from(RELATIVE), factor=st.floats(0.1, 10))
def test_a_relative_score_does_not_see_in_which_unit_a_layer_is_measured(grad_eval, factor):
    row, gradient, layers, weights = example(dtype=torch.float64)
    expected = layer_scores(row, gradient, layers, grad_eval)
    for x in (row, gradient):
        x |= {name: factor * t for name, t in x.items() if "lora_B" in name}
    weights |= {name: factor * t for name, t in weights.items()}
    # EPS has a unit, hence the tolerance.
    torch.testing.assert_close(layer_scores(row, gradient, layers, grad_eval), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("grad_eval", GRAD_EVALS)
def test_without_a_gradient_the_score_is_zero(grad_eval):
    row, gradient, layers, _ = example()
    nothing = {name: torch.zeros_like(t) for name, t in gradient.items()}
    assert layer_scores(row, nothing, layers, grad_eval).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("grad_eval", GRAD_EVALS)
def test_a_gradient_that_is_not_finite_shows_in_its_layer_only(grad_eval):
    row, gradient, layers, _ = example()
    gradient[layers[1][0].a][0, 0] = math.nan
    assert layer_scores(row, gradient, layers, grad_eval).isfinite().tolist() == [True, False, True]


def test_scoring_changes_nothing_and_builds_no_graph():
    row, gradient, layers, _ = example()
    before = {name: t.clone() for name, t in row.items()}
    for t in row.values():
        t.requires_grad_()
    assert not any(layer_scores(row, gradient, layers, kind).requires_grad for kind in GRAD_EVALS)
    assert all(torch.equal(t, before[name]) for name, t in row.items())


def test_a_layer_without_adapted_projections_has_no_score():
    row, gradient, layers, _ = example()
    with pytest.raises(ValueError, match=r"layers\[1\] has no adapted projection"):
        layer_scores(row, gradient, [layers[0], [], layers[2]], "l1")
    assert layer_scores(row, gradient, [], "l1").shape == (0,)


def test_an_unknown_kind_is_an_error_that_names_the_known_ones():
    row, gradient, layers, _ = example()
    with pytest.raises(ValueError, match=r"grad_eval 'l3': must be one of l1, l2, lora_l1"):
        layer_scores(row, gradient, layers, "l3")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("grad_eval", GRAD_EVALS)
def test_scores_are_the_same_on_a_gpu(grad_eval):
    row, gradient, layers, weights = example()
    expected = slow_scores(row, gradient, layers, weights, grad_eval)
    row, gradient = ({name: t.cuda() for name, t in x.items()} for x in (row, gradient))
    weights |= {name: t.cuda() for name, t in weights.items()}
    scores = layer_scores(row, gradient, layers, grad_eval)
    assert scores.device.type == "cpu" and scores.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("grad_eval", RELATIVE)
def test_the_frozen_weight_may_be_one_of_4_bits(grad_eval, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from fedloom.model.adapters.lora import frozen_weight

    folder = str(save_tiny_llama(tmp_path, hidden_size=64, intermediate_size=128, initializer_range=0.05))
    loaded = load_base(folder, quantize="4bit", dtype="float32")
    module = loaded.model.model.layers[0].mlp.up_proj
    row, gradient, ((p,),), _ = example(shapes=[[(128, 64, 2)]])
    row, gradient = ({name: t.to(loaded.device) for name, t in x.items()} for x in (row, gradient))
    # What the layer makes of unit vectors is its weight, column by column.
    columns = module(torch.eye(64, device=loaded.device).requires_grad_()).detach()
    layers = [[Projection(p.a, p.b, p.scale, lambda: frozen_weight(module))]]
    expected = slow_scores(row, gradient, layers, {p.a: columns.T}, grad_eval)
    assert layer_scores(row, gradient, layers, grad_eval).tolist() == pytest.approx(expected, rel=1e-3)
