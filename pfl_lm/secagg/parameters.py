"""How many neighbours and which threshold: exact tail bounds over a random graph.

Each of n devices exchanges masks and shares with k neighbours, half on either side of it on a
cycle in secret-independent random order; t shares recover a secret. At most a fraction γ is
corrupt and, when nobody interferes, at most a fraction δ drops out. With X the hypergeometric
number of corrupt (surviving) devices among the k neighbours of a device, the published
conditions are, each by a union bound over the devices:

    connected  n (γ + δ)^(k/2)           <= 2^-σ   no k/2 consecutive devices are all gone
    secret     n P[X_corrupt > c]        <= 2^-σ   t > c (semi-honest), t > (k + c)/2 (active)
    correct    n P[X_surviving < t]      <= 2^-η   the survivors can always be unmasked

Source: Bell, Bonawitz, Gascón, Lepoint, Raykova 2020, "Secure single-server aggregation with
(poly)logarithmic overhead", Section 3; Bonawitz et al. 2017, "Practical secure aggregation for
privacy-preserving machine learning", Section 6, for the complete graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from pfl_lm.validate import at_least, below_one, positive

_MAX_NEIGHBOURS = 1000  # beyond it the graph saves little over the complete one
_LN2 = math.log(2)


class Adversary(Enum):
    """Who attacks beside the corrupt devices."""

    SEMI_HONEST = "semi-honest"  # the server follows the protocol and looks at all it sees
    ACTIVE = "active"  # the server sends whatever it likes


@dataclass(frozen=True)
class GraphParameters:
    """Neighbours k of each device and shares t that recover a secret.

    ``window_survivors`` counts the survivors that a device demands among any k/2 consecutive
    devices (0: it demands none); ``complete`` tells that everybody is everybody's neighbour.
    """

    neighbours: int
    threshold: int
    corrupt: int
    window_survivors: int = 0
    complete: bool = False

    def __str__(self) -> str:
        graph = "complete graph" if self.complete else f"{self.neighbours} neighbours"
        return f"{graph}, any {self.threshold} shares recover a secret"


def required(
    cohort: int,
    corrupt: float,
    dropout: float,
    adversary: Adversary,
    sigma: float = 40,
    eta: float = 30,
    grinding_bits: float = 48,
    least_neighbours: int = 0,
) -> GraphParameters:
    """What a round runs with: the least graph that meets the published conditions, and hardening.

    * ``t > k/2`` whatever the adversary, so that no two disjoint sets of holders can recover two
      secrets of one device.
    * Against the active server, secrecy at ``sigma + grinding_bits``: the graph is the hash of
      the roster, and a server that tries ``2^grinding_bits`` rosters sees as many graphs.
    * Against the active server, a device answers only if any k/2 consecutive devices hold at
      least w survivors, where w corrupt ones are too many to be likely. The server chooses who
      drops out after it saw the graph, so the random dropout behind "connected" proves nothing
      against it; this does, because the corrupt devices are fixed before the graph.

    Args:
        cohort: devices in the round, n >= 3.
        corrupt: largest fraction of corrupt devices, γ, in [0, 1).
        dropout: largest fraction of devices that drop out, δ, in [0, 1).
        adversary: the server's powers.
        sigma: secrecy fails with probability at most ``2^-sigma``.
        eta: a round with tolerated dropout fails with probability at most ``2^-eta``.
        grinding_bits: rosters that an active server may try, as a power of two.
        least_neighbours: devices insist on as many, or on all others in a smaller cohort.

    Raises:
        ValueError: a number outside its range, or no graph, not even the complete one, gives
            both secrecy and the tolerated dropout.
    """
    hardened = adversary is Adversary.ACTIVE
    demand = Demand(
        cohort,
        corrupt,
        dropout,
        adversary,
        sigma + (grinding_bits if hardened else 0),
        eta,
        majority=True,
        windows=hardened,
        least_neighbours=least_neighbours,
    )
    chosen = least_graph(demand)
    if chosen.complete and demand.survivors - 1 < chosen.threshold:
        raise ValueError(
            f"corrupt {corrupt:g} and dropout {dropout:g} of {cohort} devices leave too few "
            f"shares: {chosen.threshold} are needed and {demand.survivors - 1} may be left"
        )
    return chosen


def at_best(
    cohort: int, corrupt: float, dropout: float, adversary: Adversary, least_neighbours: int = 0
) -> GraphParameters:
    """``required`` where that exists, else the complete graph, as secret but likelier to abort.

    In a very small cohort no threshold that keeps the secrets survives the tolerated dropout.
    Secrecy does not suffer from dropouts, so the round may run: it opens if enough devices stay.
    """
    try:
        return required(cohort, corrupt, dropout, adversary, least_neighbours=least_neighbours)
    except ValueError:
        demand = Demand(cohort, corrupt, dropout, adversary, 40, 30, majority=True)
        threshold = demand.threshold(cohort, demand.corrupt)
        return GraphParameters(cohort - 1, threshold, demand.corrupt, complete=True)


@dataclass(frozen=True)
class Bounds:
    """What can go wrong in a round, as -log2 of its probability over all devices; inf: cannot.

    Attributes:
        connected: k/2 consecutive devices are all corrupt or gone (the sum falls into parts).
        secret: some device's secret is in the hands of its corrupt neighbours.
        correct: some secret cannot be recovered though no more devices dropped out than planned.
    """

    connected: float
    secret: float
    correct: float


def bounds(graph: GraphParameters, cohort: int, dropout: float, adversary: Adversary) -> Bounds:
    """State the exact tail bounds of a graph: what ``required`` held against σ and η."""
    k, t, n = graph.neighbours, graph.threshold, cohort
    lost = _count(dropout, n)
    if graph.complete or k >= n - 1:
        return Bounds(math.inf, math.inf, math.inf if n - lost >= t else 0.0)
    gone = (graph.corrupt + lost) / n
    harmful = t if adversary is Adversary.SEMI_HONEST else max(0, 2 * t - k)
    return Bounds(
        _bits(n, k / 2 * math.log(gone) if gone else -math.inf),
        _bits(n, log_tail(n - 1, graph.corrupt, k, harmful)),
        _bits(n, log_tail(n - 1, lost, k, k - t + 1)),
    )


def _bits(cohort: int, log_probability: float) -> float:
    """Union bound over the devices, as -log2; never below 0."""
    return max(0.0, -(math.log(cohort) + log_probability) / _LN2)


@dataclass(frozen=True)
class Demand:
    """What a graph of neighbours must bear.

    Attributes:
        cohort: invited devices.
        corrupt_fraction, dropout_fraction: of them, at most.
        sigma, eta: the chances that privacy, or the sum, is lost are below 2^-sigma and 2^-eta.
        majority: the threshold lies above half of the neighbours.
        windows: no window of consecutive devices may lose its survivors either.
        least_neighbours: fewer are not asked for.
    """

    cohort: int
    corrupt_fraction: float
    dropout_fraction: float
    adversary: Adversary
    sigma: float
    eta: float
    majority: bool = False
    windows: bool = False
    least_neighbours: int = 0

    def __post_init__(self) -> None:
        at_least(3, cohort=self.cohort)
        below_one(corrupt_fraction=self.corrupt_fraction, dropout_fraction=self.dropout_fraction)
        positive(sigma=self.sigma, eta=self.eta)

    @property
    def corrupt(self) -> int:
        return _count(self.corrupt_fraction, self.cohort)

    @property
    def survivors(self) -> int:
        return self.cohort - _count(self.dropout_fraction, self.cohort)

    def threshold(self, neighbours: int, worst: int) -> int:
        """The least t that keeps secrets when ``worst`` of the neighbours are corrupt."""
        least = worst + 1
        if self.adversary is Adversary.ACTIVE:
            least = (neighbours + worst) // 2 + 1
        return max(least, neighbours // 2 + 1) if self.majority else least

    def fails(self, log_probability: float, bits: float) -> bool:
        """Does an event of one device, over all devices, exceed ``2^-bits``?"""
        return math.log(self.cohort) + log_probability > -bits * _LN2


def least_graph(demand: Demand) -> GraphParameters:
    """Return the fewest neighbours that bear the demand, with the threshold; else all of them."""
    n = demand.cohort
    gone = demand.corrupt_fraction + demand.dropout_fraction
    log_gone = math.log(gone) if gone > 0 else -math.inf
    worst = 0  # corrupt neighbours that are never exceeded; grows with k
    first = max(2, demand.least_neighbours + demand.least_neighbours % 2)
    for k in range(first, min(n - 1, max(first, _MAX_NEIGHBOURS) + 1), 2):
        if demand.fails(k / 2 * log_gone, demand.sigma):
            continue
        while demand.fails(log_tail(n - 1, demand.corrupt, k, worst + 1), demand.sigma):
            worst += 1
        t = demand.threshold(k, worst)
        # n - 1 others, of whom all survivors but the device itself answer.
        lost = log_tail(n - 1, n - demand.survivors, k, k - t + 1)
        if t > k or demand.fails(lost, demand.eta):
            continue
        window = _window_survivors(demand, k // 2) if demand.windows else 0
        if window is not None:
            return GraphParameters(k, t, demand.corrupt, window)
    # In the published complete graph a device holds a share of its own secrets too: n holders.
    t = demand.threshold(n, demand.corrupt)
    return GraphParameters(n - 1, t, demand.corrupt, complete=True)


def _window_survivors(demand: Demand, width: int) -> int | None:
    """The least w such that no ``width`` consecutive devices hold w corrupt ones (or None)."""
    w = 1
    while demand.fails(log_tail(demand.cohort, demand.corrupt, width, w), demand.sigma):
        w += 1
    dropped = demand.cohort - demand.survivors
    lost = log_tail(demand.cohort, dropped, width, width - w + 1)
    return None if w > width or demand.fails(lost, demand.eta) else w


def log_tail(population: int, marked: int, draws: int, least: int) -> float:
    """ln P[X >= least] for X hypergeometric, summed term by term: exact up to rounding.

    Args:
        population: items in all.
        marked: items that count.
        draws: items drawn without replacement.
        least: the smallest count of the tail.
    """
    first = max(least, draws - (population - marked), 0)
    last = min(draws, marked)
    if first > last:
        return -math.inf
    if first == max(draws - (population - marked), 0):
        return 0.0
    log_first = (
        _log_choose(marked, first)
        + _log_choose(population - marked, draws - first)
        - _log_choose(population, draws)
    )
    # Terms relative to the first. A tail that begins left of the mode grows before it falls; what
    # is e^-60 of the largest term, and falling, is below the last bit of the sum.
    logs, log_term, top = [0.0], 0.0, 0.0
    for i in range(first, last):
        up = (marked - i) * (draws - i)
        down = (i + 1) * (population - marked - draws + i + 1)
        log_term += math.log(up / down)
        logs.append(log_term)
        top = max(top, log_term)
        if log_term < top - 60:
            break
    return min(0.0, log_first + top + math.log(math.fsum(math.exp(x - top) for x in logs)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _count(fraction: float, cohort: int) -> int:
    """``ceil(fraction * cohort)``, without the last bit of a product like 0.05 * 100."""
    return math.ceil(fraction * cohort - 1e-9)
