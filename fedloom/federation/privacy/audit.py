"""A lower bound on ε, measured: what an attacker who sees a run's rounds can tell of who was in it.

    one run          Steinke, Nasr and Jagielski, 2023, arXiv:2305.08846
    white box        Nasr et al., 2023, arXiv:2302.07956: canaries whose gradients nobody else has

Of m canaries a fair coin puts each in or leaves it out. The attacker sees what is released and guesses of
r ≤ m of them which; v guesses are right. If the mechanism is (ε, δ)-differentially private, then, with
x = e^ε, q = x / (1 + x) and B ~ Binomial(r, q), so many right guesses, or more, have a probability of at most

    P(B ≥ v) + P(B < v) · m δ P(B ≥ v) / (v P(B = v))

For δ = 0 it is the paper's: each coin is told right with probability q, as by randomised response. For δ > 0
no bound is better, for there are mechanisms that come to it. Published code for the paper's Theorem 5.2 adds
2 m δ max_i P(v > B ≥ v − i) / i instead: more than that where v is a surprise, but too little where it is
none, since a mechanism may spend its δ just where its other guesses are wrong.

*Proof.* To rename canaries at random, and to swap in and out, keeps privacy and the number of right guesses,
so let a mechanism be one that says all guesses of which k are right with the same probability; P_k is that of
any k. Of the guesses that tell coin i right, among k right ones, the coins that differ in i make k − 1 right,
so that privacy is Σ_k max(0, k P_k − x (r − k + 1) P_{k−1}) ≤ m δ. With b_k = P(B = k), for which
k b_k = x (r − k + 1) b_{k−1}, let P_k / b_k rise by s_k at k: Σ_k max(0, s_k k b_k) ≤ m δ, and

    Σ_{k ≥ v} P_k = P(B ≥ v) + Σ_k s_k (P(B ≥ max(k, v)) − P(B ≥ k) P(B ≥ v))

which is the largest where all of δ is spent at k = v, as P(B ≥ k) / (k b_k) falls with k, and
P(B < k) / (k b_k) rises. P_0 ≥ 0 is P(B ≥ v) s_v ≤ 1; beyond that everything may be right.

The bound is the largest ε at which that is below a level. ε cannot be found larger than where q^m is a tenth
of 5 %, as ten numbers of guesses are tried: for δ = 0 that is 3.6 for 200 canaries and 6.8 for 5,000, for
another less.

A canary's score is the log-likelihood ratio of the rounds under the mechanism that is accounted for. With x_t
what a round shows of it, in units of the clip, 1 + z N(0, 1) where it took part (with probability q) and
z N(0, 1) where it did not:

    score = Σ_t log(1 − q + q exp((x_t − ½) / z²))

which by Neyman and Pearson no other function of the x_t betters: what is left between the bound and the
proven ε is then what m canaries cannot show. An adaptive clip tells a little more, how many were within it,
which this score leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logsumexp
from scipy.stats import binom

from fedloom.errors import UserError

LEVEL = 0.05
"""With what probability the bound may be above the true ε: it is one of 95 % confidence."""

_SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)
_LEAST_NOISE = 0.1
"""Least standard deviation, in units of the clip, that a score divides by: a run may have no noise."""


@dataclass(frozen=True)
class Audited:
    """What was found.

    Attributes:
        epsilon: The lower bound; 0 where nothing was.
        canaries: m.
        guesses: r.
        right: v.
    """

    epsilon: float
    canaries: int
    guesses: int
    right: int


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """How likely so many right guesses are at most, if the mechanism is (ε, δ)-private; see the module."""
    q = expit(epsilon)
    beta = float(binom.sf(right - 1, guesses, q))
    if delta == 0 or right == 0:
        return beta
    # P(B ≥ v) / P(B = v) by logarithms: both may be too small for a number, and their ratio too large.
    k = np.arange(right, guesses)
    ratio = logsumexp(np.cumsum(np.append(0.0, np.log((guesses - k) / (k + 1)) + epsilon)))
    return beta + (1 - beta) * math.exp(min(0.0, math.log(canaries * delta / right) + ratio))


def lower_bound(canaries: int, guesses: int, right: int, delta: float, level: float = LEVEL) -> float:
    """The largest ε that so many right guesses refute; 0 where they refute none.

    Args:
        canaries: m.
        guesses: r.
        right: v.
        delta: δ.
        level: With what probability the bound may be wrong.
    """

    def unlikely(epsilon: float) -> float:
        return level - p_value(canaries, guesses, right, epsilon, delta)

    if unlikely(0.0) <= 0:
        return 0.0
    high = 1.0
    while unlikely(high) > 0:
        high *= 2
    return float(brentq(unlikely, 0.0, high, xtol=1e-6))


def log_likelihood_ratio(seen: np.ndarray, rate: float, noise: float | np.ndarray) -> np.ndarray:
    """How much likelier a round is with a canary among those it is sampled from than without it.

    Args:
        seen: x, what the round shows of each canary, in units of the clip.
        rate: q, with which probability it takes part.
        noise: z, the standard deviation of x; one, or one for each canary.
    """
    exponent = (seen - 0.5) / np.maximum(noise, _LEAST_NOISE) ** 2
    return exponent if rate >= 1 else np.logaddexp(math.log1p(-rate), math.log(rate) + exponent)


def audit(scores: np.ndarray, included: np.ndarray, delta: float, level: float = LEVEL) -> Audited:
    """The best lower bound that guesses by scores come to.

    How many guesses are best depends on the mechanism: of few, the surest, more are right. So some numbers
    are tried, and each has its part of the level (Bonferroni): the largest of many bounds is no bound of one.

    Args:
        scores: Of each canary; above 0 it was rather in than out.
        included: Whether it was.
        delta: δ.
        level: With what probability the bound may be wrong.

    Raises:
        UserError: Scores are not finite.
    """
    if not np.isfinite(scores).all():
        raise UserError(
            f"canaries: the scores of {np.sum(~np.isfinite(scores)):,} of {len(scores):,} are not finite, "
            "and nothing follows from them; lower client_lr or lr, and audit again"
        )
    order = np.argsort(-scores, kind="stable")
    ways = list(_guesses(len(scores), int((scores > 0).sum())))
    found = []
    for high, low in ways:
        right = int(included[order[:high]].sum() + (~included[order[len(order) - low :]]).sum())
        bound = lower_bound(len(scores), high + low, right, delta, level / len(ways))
        found.append(Audited(bound, len(scores), high + low, right))
    return max(found, key=lambda one: one.epsilon)  # where all are 0 it is the first, with all guesses


def _guesses(canaries: int, above: int) -> Iterator[tuple[int, int]]:
    """How many of the highest scores are said to be in, and how many of the lowest to be out."""
    yield above, canaries - above
    for share in _SHARES:
        if half := int(canaries * share / 2):
            yield half, 0
            if share < 1:
                yield half, half
