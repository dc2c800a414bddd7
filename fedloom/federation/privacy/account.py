"""What rounds with noise cost: (ε, δ) as dp-accounting bounds it, for one client more or less.

A round is the Poisson-sampled Gaussian mechanism, and a run is a composition of equal ones, so that its ε is
a function of how many there were and of what the options say. Two bounds, both from above:

    pld    privacy loss distributions    Doroshenko et al., 2022, arXiv:2207.04380
    rdp    Rényi differential privacy    Mironov et al., 2019, arXiv:1908.10530
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from fedloom.errors import UserError

_BLOCK = 32
_GRID = 2e-3
"""Of privacy losses, which are rounded so that ε comes out larger: by some 0.1 % where ε is above 1, by more
where it is small (7 % of 0.018). On dp-accounting's own grid, 20 times finer, a thousand rounds would take
minutes.
"""


@dataclass
class Account:
    """ε of any number of rounds; what has been computed is kept, so that the next round costs milliseconds.

    Attributes:
        rate: q, the probability with which a client takes part in a round.
        noise: z, the noise's standard deviation over the clip.
        delta: δ.
        kind: Which bound.
    """

    rate: float
    noise: float
    delta: float
    kind: Literal["pld", "rdp"] = "pld"
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    def epsilon(self, rounds: int) -> float:
        """ε after so many rounds; infinite without noise."""
        if rounds == 0:
            return 0.0
        if self.noise == 0:
            return math.inf
        return self._by_renyi(rounds) if self.kind == "rdp" else self._by_losses(rounds)

    def _by_renyi(self, rounds: int) -> float:
        from dp_accounting import rdp

        orders, of_one_round = _renyi(self.rate, self.noise)
        return float(rdp.compute_epsilon(orders, rounds * of_one_round, self.delta)[0])

    def _by_losses(self, rounds: int) -> float:
        """By blocks, so that the number is the same whether or not the rounds before were asked for."""
        blocks, rest = divmod(rounds, _BLOCK)
        whole, part = self._composed("block", blocks), self._composed("round", rest)
        both = part if whole is None else whole if part is None else whole.compose(part)
        return float(both.get_epsilon_for_delta(self.delta))

    def _composed(self, of: str, count: int) -> Any:
        """The privacy loss of so many rounds or blocks; None of none."""
        from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

        if count == 0:
            return None
        if (of, 1) not in self._known:
            # With little noise losses are large, and so is what the grid may leave out of them.
            self._known[of, 1] = (
                self._composed("round", _BLOCK)
                if of == "block"
                else from_gaussian_mechanism(
                    self.noise,
                    sampling_prob=self.rate,
                    value_discretization_interval=_GRID * max(1.0, self.noise**-2),
                )
            )
        last = max(n for kind, n in self._known if kind == of and n <= count)
        for n in range(last, count):
            self._known[of, n + 1] = self._known[of, n].compose(self._known[of, 1])
            if of == "block" and n > 1:
                del self._known[of, n]
        return self._known[of, count]


@functools.cache
def _renyi(rate: float, noise: float) -> tuple[Any, Any]:
    """Orders, and what one round costs at each; runs of one process that are alike share them."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, rdp

    accountant = rdp.RdpAccountant()
    # It says of every order whose bound it does not know that it does without.
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)))
    logger.setLevel(level)
    return accountant.orders, accountant.rdp


@functools.cache
def find_noise(
    target_epsilon: float, rounds: int, rate: float, delta: float, kind: Literal["pld", "rdp"]
) -> float:
    """The least noise, to four digits, with which rounds cost no more than a target.

    Raises:
        UserError: No noise does, or next to none would.
    """

    def enough(noise: float) -> bool:
        return Account(rate, noise, delta, kind).epsilon(rounds) <= target_epsilon

    high = low = 1.0
    while not enough(high):
        low, high = high, 2 * high
        if high > 1e5:
            raise UserError(
                f"target_epsilon: {target_epsilon:g} cannot be reached in {rounds} rounds, however much "
                "noise there is; raise it, or lower max_steps"
            )
    while low == high or enough(low):
        high, low = (high, low / 2) if low == high else (low, low / 2)
        if low < 0.05:
            raise UserError(
                f"target_epsilon: {target_epsilon:g} is so large that {rounds} rounds need next to no noise; "
                "lower it, or give --noise_multiplier"
            )
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    digits = 3 - math.floor(math.log10(high))
    return math.ceil(high * 10**digits) / 10**digits
