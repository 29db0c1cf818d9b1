"""The options that describe rounds of a mechanism: noise, sampling, adjacency, δ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pfl_lm.cli.bounds import number

if TYPE_CHECKING:
    from pfl_lm.dp.events import RoundEvent


class Sampling(StrEnum):
    """How a round's devices are chosen."""

    none, poisson, fixed, rotation = "none", "poisson", "fixed", "rotation"


class Adjacency(StrEnum):
    """How two data sets differ by one user."""

    add_remove, zero_out, replace_one = "add_remove", "zero_out", "replace_one"


class Mechanism(StrEnum):
    """The kinds of noise that the verbs compute for."""

    gaussian, skellam, discrete_gaussian = "gaussian", "skellam", "discrete_gaussian"
    blt, banded, tree = "blt", "banded", "tree"
    banded_inverse_root = "banded_inverse_root"


@dataclass(frozen=True)
class Rounds:
    """Rounds of a mechanism whose noise may still be open, and the δ to state ε at.

    Attributes:
        count: of the rounds, those that one user may be in; all, where the noise is one stream.
    """

    event: RoundEvent
    rounds: int
    count: int
    delta: float
    as_json: bool


def rounds_of(
    sampling: Annotated[
        Sampling,
        typer.Option(
            help="none: a user may be in every round. poisson: each user tosses a coin "
            "in each round. "
            "fixed: a uniform subset of fixed size. "
            "rotation: a user's rounds lie --min-separation apart.",
        ),
    ],
    rounds: Annotated[int, number(0, 10**9, "Number of rounds whose sum is opened.")],
    delta: Annotated[float, number(1e-300, 1 - 1e-9, "Target δ; at most 1/population.")],
    adjacency: Annotated[
        Adjacency,
        typer.Option(
            help="How neighbouring data sets differ. The sensitivity is one clip norm, under "
            "replace_one two."
        ),
    ],
    rate: Annotated[float | None, number(0, 1, "Probability that a user is in a round.")] = None,
    population: Annotated[
        int | None, number(1, 10**12, "Number of users; with --cohort, instead of --rate.")
    ] = None,
    cohort: Annotated[int | None, number(0, 10**12, "Users in a round; with --population.")] = None,
    min_separation: Annotated[
        int | None,
        number(1, 10**9, "Rotation: smallest difference r₂ − r₁ of two rounds of a user."),
    ] = None,
    max_participations: Annotated[
        int | None,
        number(1, 10**9, "Rotation: most rounds of a user [as many as the separation leaves]."),
    ] = None,
    mechanism: Annotated[
        Mechanism,
        typer.Option(
            help="Kind of noise on the sum. That of blt, banded, banded_inverse_root and tree is "
            "correlated between rounds and needs --sampling rotation."
        ),
    ] = Mechanism.gaussian,
    dim: Annotated[
        int, number(1, 10**12, "Discrete noise: number of coordinates on the grid.")
    ] = 1024,
    grid_steps: Annotated[
        float, number(1e-6, 1e9, "Discrete noise: clip norm in grid units ÷ √dim.")
    ] = 8.0,
    shares: Annotated[
        int,
        number(1, 10**7, "Discrete Gaussian noise: number of shares that the noise is the sum of."),
    ] = 1,
    as_json: Annotated[
        bool, typer.Option("--json", help='One JSON object; an infinite ε is "inf".')
    ] = False,
) -> Rounds:
    """Read the options that both verbs share.

    Raises:
        ValueError: options that contradict each other, or that no accountant has a proof for.
    """
    from pfl_lm.dp.accounting.accountant import unsupported_reason
    from pfl_lm.dp.events import RoundEvent

    joined = _participations(sampling, rounds, min_separation, max_participations)
    event = RoundEvent(
        mechanism=mechanism.value,
        neighboring=adjacency.value,
        sampling=sampling.value,
        noise_multiplier=0.0,
        rate=_rate(sampling, rate, population, cohort),
        min_separation=min_separation or 1,
        max_participations=max_participations,
        dim=dim,
        grid_steps=grid_steps,
        reports=shares,
    )
    event = _with_stream(event, rounds, joined)
    if (reason := unsupported_reason([event])) is not None:
        raise ValueError(f"refused: {reason}")
    if rounds < 0:
        raise ValueError(f"--rounds must be at least 0, got {rounds}")
    if not 0 < delta < 1:
        raise ValueError(f"--delta must lie strictly between 0 and 1, got {delta}")
    if population is not None and delta > 1 / population:
        typer.echo(
            f"δ = {delta:g} is above 1/population = {1 / population:g}, too weak: at such a δ a "
            "mechanism may publish one user's whole text and still keep its ε",
            err=True,
        )
    return Rounds(event, rounds, joined if event.stream is None else rounds, delta, as_json)


def _participations(
    sampling: str, rounds: int, min_separation: int | None, most: int | None
) -> int:
    """Return in how many of the rounds one user may be."""
    if sampling is not Sampling.rotation:
        if min_separation is not None or most is not None:
            raise ValueError("--min-separation and --max-participations need --sampling rotation")
        return rounds
    if min_separation is None:
        raise ValueError("--sampling rotation needs --min-separation")
    separated = 1 + (rounds - 1) // min_separation if rounds else 0
    return min(separated, most or separated)


def _with_stream(event: RoundEvent, rounds: int, participations: int) -> RoundEvent:
    """Return the event with the numbers of its stream, where its noise is correlated."""
    from pfl_lm.dp.correlated.mechanism import Correlated
    from pfl_lm.dp.mechanisms import MECHANISMS

    mechanism = MECHANISMS[event.mechanism]
    if not isinstance(mechanism, Correlated):
        return event
    if event.sampling != Sampling.rotation or not rounds:
        raise ValueError(
            f"--mechanism {event.mechanism} is correlated between rounds: it needs --sampling "
            "rotation with --min-separation, and at least one round"
        )
    plan = mechanism.planned(rounds, event.min_separation, participations)
    return replace(event, stream=plan)


def _rate(sampling: str, rate: float | None, population: int | None, cohort: int | None) -> float:
    """Return the chance of a user to be in a round from whichever way it was stated."""
    stated = [value is not None for value in (rate, population, cohort)]
    if sampling in (Sampling.none, Sampling.rotation):
        if any(stated):
            raise ValueError("--rate, --population and --cohort need --sampling poisson or fixed")
        return 1.0
    if stated not in ([True, False, False], [False, True, True]):
        raise ValueError(f"--sampling {sampling} needs --rate, or --population and --cohort")
    if population is not None and cohort is not None:
        if not 0 <= cohort <= population or population < 1:
            raise ValueError(
                f"--cohort must lie between 0 and the population, got {cohort} of {population}"
            )
        return cohort / population
    if rate is None or not 0 <= rate <= 1:
        raise ValueError(f"--rate must lie between 0 and 1, got {rate}")
    return rate
