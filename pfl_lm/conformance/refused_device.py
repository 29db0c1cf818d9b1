"""The negative vectors of a message read, of a policy, and of the keys that a device is told."""

from __future__ import annotations

from collections.abc import Iterator

from pfl_lm.conformance import lies
from pfl_lm.conformance.damage import bodies
from pfl_lm.conformance.heard import ROSTER, SIGNED, SPARSE, UNSIGNED, Accepted, Heard, Mutate
from pfl_lm.conformance.lies import Forger, Lie
from pfl_lm.conformance.play import AUTHORITY_SECRET, NOW, VALIDITY, fixed, identity_of
from pfl_lm.conformance.vectors import Vector
from pfl_lm.secagg.keys import KeyPair
from pfl_lm.secagg.messages import AdvertiseKeys, Roster
from pfl_lm.secagg.wire import frame


def negative(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    """Yield the negative vectors of messages, promises and rosters."""
    yield from _readings(accepted, mutate)
    yield from _policies(accepted, mutate)
    yield from _rosters(accepted, mutate)
    yield from _signed_rosters(accepted, mutate)


def _readings(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    base = "read_roster_unsigned"
    for damage in bodies(bytes.fromhex(accepted[base].inputs["frame"])):
        yield mutate(
            accepted,
            base,
            damage.name,
            damage.rule,
            damage.code,
            damage.message,
            "frame",
            damage.content.hex(),
        )
    base, rule = "read_unmask_answer_noise", "a length (u32, 32)"
    whole = bytes.fromhex(accepted[base].inputs["frame"])
    at = whole.index((32).to_bytes(4, "little"), 52 + 8)
    body = whole[52:at] + (31).to_bytes(4, "little") + whole[at + 4 : -16]
    altered = frame(9, 0, whole[20:52], body).hex()
    yield mutate(
        accepted, base, "noise_secret_length", rule, "malformed", "noise", "frame", altered
    )


def _policies(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    rule = "holds it against its own `DevicePolicy`"
    for name, base, message, field, value in (
        ("least_reports", UNSIGNED, "min_reports is 3", "least_reports", 4),
        ("least_cohort", UNSIGNED, "the cohort is 5", "least_cohort", 6),
        ("least_neighbours", SPARSE, "4 neighbours", "least_neighbours", 5),
        ("adversary", UNSIGNED, "only with signed keys", "adversary", "active"),
        ("authority", SIGNED, "authority's public key", "authority", None),
    ):
        yield mutate(
            accepted, base, f"policy_{name}", rule, "refused", message, f"policy__{field}", value
        )


def _rosters(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    heard = Heard(accepted, UNSIGNED)
    own = AdvertiseKeys.decode(_own_keys(accepted, UNSIGNED), heard.config, 0)
    told = lies.rosters(heard.roster, heard.config, 0, own)
    yield from heard.refused(mutate, told, ROSTER, "roster_")
    yield from _too_few_holders(accepted, mutate)
    weak = [lies.small_order(heard.roster, 0)]
    yield from heard.refused(mutate, weak, ROSTER, "roster_")


def _too_few_holders(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    heard = Heard(accepted, "device_threshold_4_0")
    keys = heard.roster.keys
    roster = Roster(3, {1: keys[1], 2: keys[2]})
    lie = Lie("too_few_holders", "there are fewer than t holders", "3 holders", roster)
    yield from heard.refused(mutate, [lie], ROSTER, "roster_")


def _own_keys(accepted: Accepted, base: str) -> bytes:
    output = accepted[base].output
    assert output is not None
    return bytes.fromhex(output["messages"][0])


def _signed_rosters(accepted: Accepted, mutate: Mutate) -> Iterator[Vector]:
    heard = Heard(accepted, SIGNED)
    stranger = KeyPair.from_secret(fixed("stranger")).public
    forger = Forger(AUTHORITY_SECRET, identity_of, VALIDITY, NOW, stranger, fixed("another"))
    told = lies.signed_rosters(heard.roster, heard.config, 0, forger)
    yield from heard.refused(mutate, told, ROSTER, "signed_roster_")
