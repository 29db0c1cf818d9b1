"""The phones of a population: what they hold, how fast they are, and when they are free.

Everything here is PUBLIC: a phone's class, its time zone, whether it charges. Who may take part
never depends on what somebody typed. A fleet changes a privacy guarantee only where its server asks
so many users that they come again sooner than the policy says (``run.simulated_rule``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import numpy as np

from pfl_lm.streams import uniforms
from pfl_lm.validate import at_least, below_one, in_unit, positive, within

_TIME_ZONES = 24


@dataclass(frozen=True)
class Failures:
    """The chance that a device which came as far as a phase is lost in it.

    Attributes:
        download: never says its keys: the connection or the application went away.
        keys: never deals its shares.
        training: picked up, unplugged, or the system took its memory.
        upload: the masked report never arrives.
        answer: does not help to open the sum; its own report still counts.
    """

    download: float = 0.0
    keys: float = 0.0
    training: float = 0.0
    upload: float = 0.0
    answer: float = 0.0

    def __post_init__(self) -> None:
        below_one(**self.by_phase)

    @property
    def by_phase(self) -> dict[str, float]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


@dataclass(frozen=True)
class Profile:
    """A class of phones.

    Attributes:
        share: of the population.
        training_memory_mb: memory (10^6 bytes) that training may take at its peak.
        gflops: sustained, in training, 10^9 operations per second.
        download_mbps, upload_mbps: median rates, 10^6 bits per second.
        unmetered: chance that a phone which is idle is on a network that costs its user nothing.
        idle_from, idle_to: local hours between which it usually lies idle and charges.
        idle_inside, idle_outside: chance that it does so at an hour inside and outside of them.
        training_watts, radio_watts: what training and transmission draw.
        failures: by phase.

    Raises:
        ValueError: a value out of range.
    """

    share: float
    training_memory_mb: float
    gflops: float
    download_mbps: float
    upload_mbps: float
    unmetered: float = 0.8
    idle_from: float = 23.0
    idle_to: float = 7.0
    idle_inside: float = 0.6
    idle_outside: float = 0.15
    training_watts: float = 2.0
    radio_watts: float = 1.0
    failures: Failures = field(default_factory=Failures)

    def __post_init__(self) -> None:
        positive(
            training_memory_mb=self.training_memory_mb,
            gflops=self.gflops,
            download_mbps=self.download_mbps,
            upload_mbps=self.upload_mbps,
            training_watts=self.training_watts,
            radio_watts=self.radio_watts,
        )
        in_unit(
            share=self.share,
            unmetered=self.unmetered,
            idle_inside=self.idle_inside,
            idle_outside=self.idle_outside,
        )
        within(0, 24, idle_from=self.idle_from, idle_to=self.idle_to)

    def idle(self, hour: np.ndarray) -> np.ndarray:
        """Return the chance that a phone is idle and charging at a local hour, float64[n]."""
        after, before = hour >= self.idle_from, hour < self.idle_to
        inside = (after & before) if self.idle_from <= self.idle_to else (after | before)
        return np.where(inside, self.idle_inside, self.idle_outside)


@dataclass(frozen=True)
class Fleet:
    """The mix of profiles, and how the server gathers a round from it.

    Attributes:
        source: where the numbers come from, for people.
        description: one line for people.
        profiles: by name; the shares sum to 1.
        check_in: phones asked per round, as a multiple of the report goal. Those of them that
            can take part are the candidates.
        over_selection: phones invited, as a multiple of the report goal: some always get lost.
        time_out_minutes: after the invitation, reports are no longer waited for.
        pause_minutes: between the end of a round and the next.
        speed_spread, network_spread: standard deviation of the logarithm of a phone's speed and
            of its connection's, about the medians of its profile.
        time_zones: share of the users at each whole hour from UTC, starting at UTC+0; a single
            number puts everybody at UTC.
        text_relation: share of the users whose class of phone follows from their group (with
            invented users: what they like to talk about) instead of from chance. Then a class
            that cannot take part is a way of talking that the model never hears.
    """

    source: str
    profiles: dict[str, Profile]
    description: str = ""
    check_in: float = 10.0
    over_selection: float = 1.3
    time_out_minutes: float = 10.0
    pause_minutes: float = 1.0
    speed_spread: float = 0.3
    network_spread: float = 0.8
    time_zones: tuple[float, ...] = (1.0,)
    text_relation: float = 0.0

    def __post_init__(self) -> None:
        if not self.profiles:
            raise ValueError("profiles is empty; describe at least one class of phones")
        total = sum(profile.share for profile in self.profiles.values())
        if not abs(total - 1) <= 1e-6:
            raise ValueError(f"the shares of the profiles sum to {total:g}; they must sum to 1")
        if not 1 <= self.over_selection <= self.check_in < math.inf:
            raise ValueError(
                f"over_selection = {self.over_selection} must be at least 1 and at most "
                f"check_in = {self.check_in}"
            )
        at_least(
            0,
            time_out_minutes=self.time_out_minutes,
            speed_spread=self.speed_spread,
            network_spread=self.network_spread,
        )
        within(0, 24 * 60, pause_minutes=self.pause_minutes)
        if not 1 <= len(self.time_zones) <= _TIME_ZONES or not (
            abs(sum(self.time_zones) - 1) <= 1e-6
        ):
            raise ValueError("time_zones must hold 1 to 24 shares that sum to 1")
        in_unit(text_relation=self.text_relation)
        in_unit(**{f"time_zones[{place}]": share for place, share in enumerate(self.time_zones)})

    @property
    def planned_dropout(self) -> float:
        """Share of the invited without which a round with a tenth of its goal missing opens."""
        return 1 - 0.9 / self.over_selection

    @property
    def names(self) -> list[str]:
        return list(self.profiles)


@dataclass(frozen=True)
class Phones:
    """Some users' phones: arrays of one entry per user.

    Attributes:
        profile: int64[n], place in ``fleet.names``.
        zone: int64[n], hours ahead of UTC.
        speed, network: float64[n], this phone's rates as multiples of its profile's.
    """

    profile: np.ndarray
    zone: np.ndarray
    speed: np.ndarray
    network: np.ndarray

    def values(self, fleet: Fleet, name: str) -> np.ndarray:
        """Return an attribute of each phone's profile, float64[n]."""
        table = [getattr(profile, name) for profile in fleet.profiles.values()]
        return np.asarray(table, np.float64)[self.profile]


def phones(
    fleet: Fleet,
    seed: int,
    split: str,
    users: np.ndarray,
    groups: np.ndarray | None = None,
) -> Phones:
    """Say which phone each user has: a property of the user, drawn once and for ever.

    Args:
        users: int64[n].
        groups: float64[n] in [0, 1), a public attribute of each user; needed where
            ``fleet.text_relation`` is above 0.

    Raises:
        ValueError: the fleet relates phones to groups and there are none.
    """

    def drawn(label: str) -> np.ndarray:
        return uniforms(users, seed, "phone", split, label)

    place = drawn("profile")
    if fleet.text_relation > 0:
        if groups is None:
            raise ValueError(
                f"text_relation = {fleet.text_relation}, but this population has no groups of "
                "users; set it to 0, or use invented users"
            )
        place = np.where(drawn("relation") < fleet.text_relation, groups, place)
    shares = np.cumsum([profile.share for profile in fleet.profiles.values()])
    profile = np.minimum(np.searchsorted(shares, place, side="right"), len(shares) - 1)
    zones = np.cumsum(fleet.time_zones)
    zone = np.minimum(np.searchsorted(zones, drawn("zone"), side="right"), len(zones) - 1)
    return Phones(
        profile,
        zone,
        np.exp(fleet.speed_spread * _normal(drawn("speed a"), drawn("speed b"))),
        np.exp(fleet.network_spread * _normal(drawn("network a"), drawn("network b"))),
    )


def _normal(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Box and Muller: two uniforms give a standard normal."""
    return np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)
