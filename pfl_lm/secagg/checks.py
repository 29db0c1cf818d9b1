"""What a device checks before it goes on: each rule, and the attack that it stops."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pfl_lm.secagg import keys
from pfl_lm.secagg.config import DevicePolicy, RoundConfig
from pfl_lm.secagg.errors import Refused
from pfl_lm.secagg.graph import Graph, draw_graph
from pfl_lm.secagg.messages import (
    AdvertiseKeys,
    Roster,
    SurvivorSet,
    UnmaskRequest,
)
from pfl_lm.secagg.wire import LABEL

KEYS = b"advertised keys"  # purposes of signatures: one cannot stand for the other
SURVIVORS = b"survivor set"
CLOCK_LEEWAY = 3600.0  # seconds by which a device's clock may differ from the server's


@dataclass(frozen=True)
class Peers:
    """The other devices as one device knows them.

    ``keys`` holds its neighbours and itself, or everybody in signed rounds, where the ``graph``
    is known too; ``holders`` get shares of its secrets, ``neighbours`` share masks with it.
    """

    members: int
    keys: Mapping[int, AdvertiseKeys]
    neighbours: list[int]
    holders: list[int]
    graph: Graph | None = None


def check_roster(
    roster: Roster, config: RoundConfig, policy: DevicePolicy, index: int, mine: AdvertiseKeys
) -> Peers:
    """Accept the keys of others, or raise ``Refused``.

    Stops a cohort of one, a cohort padded with invented or repeated devices, keys that the
    server made up, and a neighbourhood that the server picked.
    """
    if not max(policy.least_cohort, config.min_reports) <= roster.members <= config.cohort:
        raise Refused(f"{roster.members} devices advertised keys, of a cohort of {config.cohort}")
    peers = (
        _signed_peers(roster, config, policy, index, mine)
        if config.signed
        else _peers(roster, config, index, mine)
    )
    _check_distinct([k for known in peers.keys.values() for k in (known.box_key, known.mask_key)])
    if config.graph.threshold > len(peers.holders):
        raise Refused(
            f"{len(peers.holders)} holders cannot hold {config.graph.threshold}-of-n shares"
        )
    return peers


def _peers(roster: Roster, config: RoundConfig, index: int, mine: AdvertiseKeys) -> Peers:
    neighbours = sorted(roster.keys)
    if index in roster.keys:
        raise Refused("a device is not its own neighbour")
    if len(neighbours) != min(config.graph.neighbours, roster.members - 1):
        raise Refused(f"{len(neighbours)} neighbours where the graph has {config.graph.neighbours}")
    complete = len(neighbours) == roster.members - 1
    holders = sorted((*neighbours, index)) if complete else neighbours
    return Peers(roster.members, {**roster.keys, index: mine}, neighbours, holders)


def _signed_peers(
    roster: Roster, config: RoundConfig, policy: DevicePolicy, index: int, mine: AdvertiseKeys
) -> Peers:
    if len(roster.keys) != roster.members or roster.keys.get(index) != mine:
        raise Refused("the roster does not list everybody once, this device with its own keys")
    _check_distinct([advertised.identity for advertised in roster.keys.values()])
    assert policy.authority is not None  # DevicePolicy.check
    now = policy.clock()
    for advertised in roster.keys.values():
        keys.check_certificate(
            policy.authority, advertised.identity, advertised.certificate, now, CLOCK_LEEWAY
        )
    graph = draw_graph(graph_seed(roster, config), sorted(roster.keys), config.graph.neighbours)
    neighbours = graph.neighbours(index)
    for other in neighbours:
        check_advertised(roster.keys[other], config, other)
    return Peers(roster.members, roster.keys, neighbours, graph.holders(index), graph)


def graph_seed(roster: Roster, config: RoundConfig) -> bytes:
    """The signed round's graph follows from its roster, so nobody picks neighbours."""
    text = LABEL + b"roster" + config.context + roster.body(config)
    return hashlib.sha256(text).digest()


def check_advertised(advertised: AdvertiseKeys, config: RoundConfig, index: int) -> None:
    """Raise ``Refused`` unless the keys are signed by the identity that they name."""
    keys.check_signature(
        advertised.identity,
        advertised.signature,
        config.context,
        KEYS,
        advertised.signed_content(index),
    )


def check_inbox(dealers: Collection[int], peers: Peers, config: RoundConfig) -> None:
    """Accept the set of those who dealt shares, or raise ``Refused``.

    Stops shares from strangers, and a device left with so few masks, or holders, that corrupt
    ones could be all of them.
    """
    if not set(dealers) <= set(peers.holders):
        raise Refused("shares came from a device that is no neighbour")
    if len(dealers) < config.graph.threshold:
        raise Refused(f"{len(dealers)} neighbours shared keys, fewer than {config.graph.threshold}")


def check_outcome(
    outcome: SurvivorSet,
    peers: Peers,
    dealers: Collection[int],
    config: RoundConfig,
    index: int,
) -> None:
    """Accept a survivor set, or raise ``Refused``.

    Stops a device listed as both alive and dropped (whose two secrets would bare its vector), a
    sum of too few, a survivor whose mask this device was not told to add, and, against the
    active server, a group cut off from the others.
    """
    survivors, dropped = outcome.survivors, outcome.dropped
    if survivors & dropped:
        raise Refused("a device is listed as both alive and dropped")
    if index not in survivors:
        raise Refused("this device's own report is not among the survivors")
    if len(survivors) < config.min_reports:
        raise Refused(f"a sum of {len(survivors)} reports, fewer than {config.min_reports}")
    if len(survivors | dropped) > peers.members:
        raise Refused("more devices are listed than advertised keys")
    listed = {other for other in peers.holders if other in survivors or other in dropped}
    if listed != set(dealers):
        raise Refused("the neighbours listed are not those who shared keys")
    if len(listed & survivors) < config.graph.threshold:
        raise Refused("fewer neighbours survive than shares are needed")
    if peers.graph is not None:
        if not survivors | dropped <= peers.keys.keys():
            raise Refused("a device is listed that is not on the roster")
        _check_windows(peers.graph, survivors, config)


def _check_windows(graph: Graph, survivors: frozenset[int], config: RoundConfig) -> None:
    least = config.graph.window_survivors
    if not graph.complete and graph.least_in_a_window(survivors) < least:
        raise Refused(f"{graph.degree // 2} consecutive devices hold fewer than {least} survivors")


def check_quorum(request: UnmaskRequest, peers: Peers, config: RoundConfig) -> None:
    """Accept the signatures over the survivor set, or raise ``Refused``.

    Stops a server that tells different survivor sets to different devices.
    """
    if not request.signatures.keys() <= request.outcome.survivors:
        raise Refused("a device signed that did not survive")
    needed = config.quorum(peers.members)
    if len(request.signatures) < needed:
        raise Refused(f"{len(request.signatures)} signatures, fewer than the quorum of {needed}")
    content = request.outcome.body(config)
    for other, signature in request.signatures.items():
        identity = peers.keys[other].identity
        keys.check_signature(identity, signature, config.context, SURVIVORS, content)


def _check_distinct(values: list[bytes]) -> None:
    if len(set(values)) != len(values):
        raise Refused("a key is listed twice: every device has its own keys")
