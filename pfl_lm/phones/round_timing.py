"""Who takes part in a round of a fleet, who is lost on the way, and how long it takes.

A round in simulated time: phones check in; those with the memory, idle, charging and on a network
that costs nothing are candidates; of them the server invites more than it needs; each downloads,
exchanges keys, trains and uploads in its own time, or is lost; the report goal, or the time-out,
closes the round. Where too few are free, the server waits and asks again.

Rounds are synchronous. Asynchronous arrival (buffered aggregation) is left out: the reports of
one sum would then come from models of different rounds, which neither the secure-aggregation
protocol here, bound to one round, nor the accounting of its participations covers.

How long a phone trains follows from the scenario's cap on tokens, not from how much its user
wrote: a phone with less text waits. Otherwise the moment of a report would tell of the text.

Source of the shape of a round: Bonawitz et al. 2019, "Towards federated learning at scale: system
design" (arXiv:1902.01046), sections 2 and 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pfl_lm.phones.fleet import Failures, Fleet, Phones
from pfl_lm.secagg.config import MessageKind
from pfl_lm.streams import stream, uniforms

EXCHANGE_SECONDS = 1.0  # of one step of the protocol with short messages, slowest phone included
RETRY_SECONDS = 600.0  # until phones are asked again
_ATTEMPTS = int(24 * 3600 / RETRY_SECONDS) + 1  # a whole day

# From which message of the protocol on a phone that is lost in a phase is silent.
_SILENT = {
    "download": MessageKind.KEYS,
    "keys": MessageKind.SHARES,
    "training": MessageKind.INPUT,
    "upload": MessageKind.INPUT,
    "answer": MessageKind.ANSWER,
}


@dataclass(frozen=True)
class Demand:
    """What a round asks of every phone; public, and the same for all.

    Attributes:
        memory_bytes: peak of training.
        flops: operations of training.
        download_bytes, upload_bytes: payload and protocol.
    """

    memory_bytes: int
    flops: float
    download_bytes: int
    upload_bytes: int


@dataclass(frozen=True)
class RoundTiming:
    """What became of a round's phones.

    Attributes:
        opened: simulated seconds from the run's start to the invitation.
        waited: seconds of them spent waiting for enough free phones.
        seconds: from the invitation to the opened sum, or to the time-out.
        invited: int64[n], places among the users that checked in, sorted.
        reporting: int64[r], places among the invited in the order of arrival, at most the goal.
        silent: place among the invited → the step from which on it is silent; the others take
            part to the end.
        rejected: phones that checked in and were not invited, by reason.
        lost: invited phones whose report is not in the sum, by reason.
        joules: spent by all invited phones.
        transferred_bytes: down and up, by all invited phones.
    """

    opened: float
    waited: float
    seconds: float
    invited: np.ndarray
    reporting: np.ndarray
    silent: dict[int, MessageKind]
    rejected: dict[str, int]
    lost: dict[str, int]
    joules: float
    transferred_bytes: int

    @property
    def closed(self) -> float:
        return self.opened + self.seconds


def able(fleet: Fleet, demand: Demand) -> dict[str, bool]:
    """Say for each profile whether its phones have the memory that training takes."""
    return {
        name: profile.training_memory_mb * 1e6 >= demand.memory_bytes
        for name, profile in fleet.profiles.items()
    }


@dataclass(frozen=True)
class Selection:
    """The phones that a server may invite to a round.

    Attributes:
        users: int64[n], who checked in; own: their phones.
        goal: the report goal.
    """

    fleet: Fleet
    users: np.ndarray
    own: Phones
    demand: Demand
    goal: int
    seed: int
    round: int

    def simulate_round(self, now: float) -> RoundTiming:
        """Gather the round: invite as soon as enough phones are free, and let them work.

        Args:
            now: simulated seconds since the run began, which was at midnight UTC.

        Raises:
            ValueError: no phone has the memory, or a whole day never has enough of them free.
        """
        wanted = math.ceil(self.goal * self.fleet.over_selection)
        memory = self.own.values(self.fleet, "training_memory_mb") * 1e6
        fits = memory >= self.demand.memory_bytes
        best = 0
        for attempt in range(_ATTEMPTS):
            opened = now + attempt * RETRY_SECONDS
            idle, free = self._availability(opened, attempt)
            candidates = np.flatnonzero(fits & idle & free)
            best = max(best, len(candidates))
            if len(candidates) >= wanted:
                break
        else:
            raise ValueError(
                f"round {self.round}: of {len(self.users)} phones that check in {int(fits.sum())} "
                f"have the {self.demand.memory_bytes / 1e6:.0f} MB that a round takes, and at no "
                f"hour of a day are more than {best} of them free, where {wanted} are invited; "
                "raise the fleet's check_in, lower the cohort, or choose a training or models "
                "that fit (pfl-lm device cost)"
            )
        order = stream(self.seed, "invitation", self.round).permutation(len(candidates))
        invited = np.sort(candidates[order[:wanted]])
        away = {
            "too little memory": int((~fits).sum()),
            "not idle": int((fits & ~idle).sum()),
            "metered network": int((fits & idle & ~free).sum()),
            "not needed": len(candidates) - len(invited),
        }
        return self._work(invited, away, opened, opened - now)

    def _availability(self, opened: float, attempt: int) -> tuple[np.ndarray, np.ndarray]:
        """Say who is idle and charging, and whose network costs nothing: bool[n] each."""
        hour = (opened / 3600 + self.own.zone) % 24
        chance = np.zeros(len(self.users))
        for place, profile in enumerate(self.fleet.profiles.values()):
            these = self.own.profile == place
            chance[these] = profile.idle(hour[these])
        labels = self.round, attempt
        idle = uniforms(self.users, self.seed, "idle", *labels) < chance
        unmetered = self.own.values(self.fleet, "unmetered")
        return idle, uniforms(self.users, self.seed, "network", *labels) < unmetered

    def _work(
        self, invited: np.ndarray, away: dict[str, int], opened: float, waited: float
    ) -> RoundTiming:
        """Let the invited phones work, each in its own time, until the goal or the time-out."""
        down, train, up = self._durations(invited)
        phase = self._lost_in(invited)
        arrival = down + 2 * EXCHANGE_SECONDS + train + up
        limit = self.fleet.time_out_minutes * 60
        sends = np.isin(phase, ("", "answer"))
        arrived = np.flatnonzero(sends & (arrival <= limit))
        order = arrived[np.argsort(arrival[arrived], kind="stable")]
        summed, late = order[: self.goal], order[self.goal :]
        slow = np.flatnonzero(sends & (arrival > limit))
        silent = {int(k): _SILENT[str(phase[k])] for k in np.flatnonzero(phase != "")}
        silent |= {int(k): MessageKind.INPUT for k in (*slow, *late)}
        lost = {name: int((phase == name).sum()) for name in _SILENT if name != "answer"}
        end = float(arrival[summed[-1]]) if len(summed) == self.goal else limit
        joules, moved = self._spent(invited, down, train, up, ~np.isin(phase, ("download", "keys")))
        return RoundTiming(
            opened,
            waited,
            end + 2 * EXCHANGE_SECONDS,
            invited,
            summed,
            silent,
            away,
            lost | {"time-out": len(slow), "after the goal": len(late)},
            joules,
            moved,
        )

    def _durations(self, invited: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return seconds of download, training and upload of each invited phone."""
        rate = {
            name: self.own.values(self.fleet, name)[invited]
            for name in ("download_mbps", "upload_mbps", "gflops")
        }
        network, speed = self.own.network[invited], self.own.speed[invited]
        return (
            self.demand.download_bytes * 8 / (rate["download_mbps"] * 1e6 * network),
            self.demand.flops / (rate["gflops"] * 1e9 * speed),
            self.demand.upload_bytes * 8 / (rate["upload_mbps"] * 1e6 * network),
        )

    def _lost_in(self, invited: np.ndarray) -> np.ndarray:
        """Draw the phase in which each invited phone is lost, by name; empty where it is not."""
        failures = [profile.failures for profile in self.fleet.profiles.values()]
        mine = [failures[place] for place in self.own.profile[invited]]
        lost = np.full(len(invited), "", dtype="<U8")
        for name in Failures().by_phase:
            chance = np.asarray([getattr(failure, name) for failure in mine])
            drawn = uniforms(self.users[invited], self.seed, "failure", name, self.round)
            lost[(lost == "") & (drawn < chance)] = name
        return lost

    def _spent(
        self,
        invited: np.ndarray,
        down: np.ndarray,
        train: np.ndarray,
        up: np.ndarray,
        worked: np.ndarray,
    ) -> tuple[float, int]:
        """Return joules and bytes; who is lost after the keys is counted as having done all."""
        training_watts = self.own.values(self.fleet, "training_watts")[invited]
        radio_watts = self.own.values(self.fleet, "radio_watts")[invited]
        joules = down * radio_watts + worked * (train * training_watts + up * radio_watts)
        moved = len(invited) * self.demand.download_bytes
        return float(joules.sum()), moved + int(worked.sum()) * self.demand.upload_bytes
