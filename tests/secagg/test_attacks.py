"""Attacks, one test each, named after what the attacker does."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from pfl_lm.secagg.config import DevicePolicy
from pfl_lm.secagg.device import KeysAdvertised
from pfl_lm.secagg.errors import (
    MalformedMessage,
    Refused,
    SecaggError,
    SumLost,
    TooFewReports,
    WrongState,
)
from pfl_lm.secagg.keys import ALWAYS, KeyPair, Validity, certify, pair_mask_seed, public_key
from pfl_lm.secagg.masks import add_masks
from pfl_lm.secagg.messages import (
    COMMITMENT,
    MASK_SHARE,
    AdvertiseKeys,
    MaskedInput,
    Roster,
    SealedShares,
    ShareInbox,
    ShareKeys,
    SurvivorSet,
    UnmaskAnswer,
    UnmaskRequest,
)
from pfl_lm.secagg.parameters import Adversary
from pfl_lm.secagg.server import CollectingKeys
from pfl_lm.secagg.sharing import PRIME
from pfl_lm.secagg.wire import frame

ACTIVE = {"adversary": Adversary.ACTIVE}
AUTHORITY_SECRET = b"a" * 32  # of the rounds that the fixture makes


def rejected_dealers(device) -> list[int]:
    """Dealers whose box did not open or did not hold what they committed to."""
    return sorted(device._dealers - device._held.keys())


def rewrite(message, kind, config, sender, **changes):
    """Read a message, change fields, and write it with a sound checksum."""
    return replace(kind.decode(message, config, sender), **changes).encode(config, sender)


# What the server tells devices at the end


def test_a_device_listed_as_both_alive_and_dropped(make_round, adversary):
    """Flower 1.41 answers with both shares, and the server recovers that device's update."""
    lab = make_round(adversary=adversary).advertise().share().mask()
    everybody = frozenset(range(5))
    outcome = SurvivorSet(everybody, frozenset({3}))
    if adversary is Adversary.ACTIVE:
        with pytest.raises(Refused, match="both alive and dropped"):
            lab.devices[0].confirm(outcome.encode_from_server(lab.config))
    else:
        with pytest.raises(Refused, match="both alive and dropped"):
            lab.devices[0].unmask(UnmaskRequest(outcome, {}).encode_from_server(lab.config))


def test_both_secrets_of_a_device_asked_one_after_the_other(make_round):
    lab = make_round().advertise().share().mask()
    device, honest = lab.devices[0], lab.to_devices[0]
    device.unmask(honest)
    outcome = SurvivorSet(frozenset({0, 1, 2, 4}), frozenset({3}))
    for request in (UnmaskRequest(outcome, {}).encode_from_server(lab.config), honest):
        with pytest.raises(WrongState):
            device.unmask(request)


def test_a_device_that_saw_a_lie_answers_nothing_more(make_round):
    lab = make_round().advertise().share().mask()
    lie = UnmaskRequest(SurvivorSet(frozenset(range(5)), frozenset({3})), {})
    with pytest.raises(Refused):
        lab.devices[0].unmask(lie.encode_from_server(lab.config))
    with pytest.raises(WrongState):
        lab.devices[0].unmask(lab.to_devices[0])


@pytest.mark.parametrize(
    ("survivors", "dropped", "match"),
    [
        ({1, 2, 3, 4}, {0}, "own report"),
        ({0}, {1, 2, 3, 4}, "fewer than 2"),
        ({0, 1}, {2, 3, 4}, "fewer neighbours survive"),
        ({0, 1, 2, 3}, set(), "not those who shared"),
    ],
)
def test_a_false_survivor_set(make_round, survivors, dropped, match):
    lab = make_round().advertise().share().mask()
    outcome = SurvivorSet(frozenset(survivors), frozenset(dropped))
    with pytest.raises(Refused, match=match):
        lab.devices[0].unmask(UnmaskRequest(outcome, {}).encode_from_server(lab.config))


def test_survivors_that_do_not_exist_raise_the_count(make_round):
    lab = make_round(cohort=12, neighbours=6).advertise(silent={10, 11}).share().mask()
    outcome = SurvivorSet(frozenset(range(12)), frozenset())
    with pytest.raises(Refused, match="more devices"):
        lab.devices[0].unmask(UnmaskRequest(outcome, {}).encode_from_server(lab.config))


def test_different_survivor_sets_for_different_devices(make_round):
    """Neither set finds a quorum, because an honest device signs once."""
    lab = make_round(cohort=6, **ACTIVE).advertise().share().mask()
    half = SurvivorSet(frozenset({0, 1, 2, 3}), frozenset({4, 5}))
    other = SurvivorSet(frozenset({0, 3, 4, 5}), frozenset({1, 2}))
    signed = {i: lab.devices[i].confirm(half.encode_from_server(lab.config)) for i in (0, 1, 2)}
    signed |= {i: lab.devices[i].confirm(other.encode_from_server(lab.config)) for i in (3, 4, 5)}
    signatures = {i: state.message[-80:-16] for i, state in signed.items()}
    too_few = UnmaskRequest(half, {i: signatures[i] for i in (0, 1, 2)})
    with pytest.raises(Refused, match="quorum"):
        signed[0].unmask(too_few.encode_from_server(lab.config))
    borrowed = UnmaskRequest(half, {i: signatures[i] for i in (0, 1, 2, 3)})
    with pytest.raises(Refused, match="does not verify"):
        signed[1].unmask(borrowed.encode_from_server(lab.config))
    with pytest.raises(Refused, match="another survivor set"):
        signed[2].unmask(UnmaskRequest(other, {}).encode_from_server(lab.config))
    with pytest.raises(WrongState):
        lab.devices[0].confirm(other.encode_from_server(lab.config))


def test_a_quorum_filled_up_by_devices_that_did_not_survive(make_round):
    lab = make_round(cohort=6, **ACTIVE).advertise().share().mask(silent={5})
    lab.devices.pop(5)
    signed = {i: lab.devices[i].confirm(m) for i, m in lab.to_devices.items()}
    outcome = SurvivorSet.decode_from_server(lab.to_devices[0], lab.config)
    signatures = {i: state.message[-80:-16] for i, state in signed.items()}
    signatures[5] = signatures.pop(4)
    with pytest.raises(Refused, match="did not survive"):
        signed[0].unmask(UnmaskRequest(outcome, signatures).encode_from_server(lab.config))


def test_the_consistency_check_skipped(make_round):
    lab = make_round(**ACTIVE).advertise().share().mask()
    outcome = SurvivorSet.decode_from_server(lab.to_devices[0], lab.config)
    with pytest.raises(WrongState, match="confirmed"):
        lab.devices[0].unmask(UnmaskRequest(outcome, {}).encode_from_server(lab.config))


def test_a_small_group_cut_off_by_well_chosen_dropouts(make_round):
    """All devices between two cuts of the cycle: their sum would carry no other's mask."""
    lab = make_round(cohort=16, neighbours=8, window=2, min_reports=2, **ACTIVE).advertise()
    lab.share()
    keys_shared = lab.devices
    lab.mask()
    cycle = keys_shared[0]._peers.graph.cycle
    cut = {cycle[at] for at in (0, 1, 2, 3)}
    outcome = SurvivorSet(frozenset(range(16)) - cut, frozenset(cut))
    victim = lab.devices[cycle[8]]  # far from the cut: its own neighbours all survive
    with pytest.raises(Refused, match="consecutive"):
        victim.confirm(outcome.encode_from_server(lab.config))


# Keys and rosters


def test_a_man_in_the_middle_swaps_a_neighbours_key(make_round):
    lab = make_round(**ACTIVE).advertise()
    honest = Roster.decode_from_server(lab.to_devices[0], lab.config)
    swapped = replace(honest.keys[3], mask_key=KeyPair.from_secret(os.urandom(32)).public)
    roster = Roster(honest.members, {**honest.keys, 3: swapped})
    with pytest.raises(Refused, match="does not verify"):
        lab.devices[0].share_keys(roster.encode_from_server(lab.config))


def test_a_sybil_cohort_of_identities_that_nobody_certified(make_round):
    lab = make_round(**ACTIVE).advertise()
    honest = Roster.decode_from_server(lab.to_devices[0], lab.config)
    config, keys = lab.config, dict(honest.keys)
    for index in range(1, 5):
        identity = certify(b"x" * 32, os.urandom(32))  # by an authority of the attacker's own
        sybil = KeysAdvertised.join(config, index, lab.policy, identity)
        keys[index] = AdvertiseKeys.decode(sybil.message, config, index)
        with pytest.raises(Refused, match="does not verify"):
            lab_server = make_round(**ACTIVE).server
            lab_server.receive(index, sybil.message)
    with pytest.raises(Refused, match="does not verify"):
        lab.devices[0].share_keys(Roster(5, keys).encode_from_server(config))


def test_the_same_device_twice_in_a_cohort(make_round, adversary):
    lab = make_round(adversary=adversary)
    first, copy = lab.devices[0].message, lab.devices[0]._me
    lab.server.receive(0, first)
    with pytest.raises(Refused, match="spoken"):
        lab.server.receive(0, first)
    again = copy.advertise().encode(lab.config, 1)
    with pytest.raises(Refused, match="advertised before"):
        lab.server.receive(1, again)


def test_the_same_device_twice_on_a_roster(make_round, adversary):
    lab = make_round(adversary=adversary).advertise()
    honest = Roster.decode_from_server(lab.to_devices[0], lab.config)
    doubled = Roster(5, {**honest.keys, 2: honest.keys[1]})
    with pytest.raises(Refused, match="twice"):
        lab.devices[0].share_keys(doubled.encode_from_server(lab.config))


@pytest.mark.parametrize("field", ["box_key", "mask_key"])
@pytest.mark.parametrize("copied", ["box_key", "mask_key"])
def test_a_key_twice_on_a_roster(make_round, field, copied):
    """Under other identities too: a copied key of any kind is refused by the device itself."""
    lab = make_round().advertise()
    honest = Roster.decode_from_server(lab.to_devices[0], lab.config)
    copy = replace(honest.keys[2], **{field: getattr(honest.keys[1], copied)})
    doubled = Roster(5, {**honest.keys, 2: copy})
    with pytest.raises(Refused, match="a key is listed twice"):
        lab.devices[0].share_keys(doubled.encode_from_server(lab.config))


@pytest.mark.parametrize(
    ("now", "message"),
    [(5_000.0, "expired"), (-5_000.0, "valid only from"), (1_500.0, ""), (-1_500.0, "")],
    ids=["expired", "not yet", "late within the leeway", "early within the leeway"],
)
def test_devices_check_the_dates_of_everybodys_certificate(make_round, monkeypatch, now, message):
    lab = make_round(**ACTIVE)
    authority = public_key(AUTHORITY_SECRET)
    lab.policy = replace(lab.policy, clock=lambda: 10_000.0 + now)
    lab.server = CollectingKeys(lab.config, None, authority, clock=lambda: 10_000.0)
    for index in range(5):
        validity = Validity(9_000, 11_000) if index == 3 else ALWAYS
        identity = certify(AUTHORITY_SECRET, bytes([index]) * 32, validity)
        lab.devices[index] = KeysAdvertised.join(lab.config, index, lab.policy, identity)
    lab.advertise()
    if not message:
        lab.devices[0].share_keys(lab.to_devices[0])
        return
    with pytest.raises(Refused, match=message):
        lab.devices[0].share_keys(lab.to_devices[0])


@pytest.mark.parametrize(("now", "message"), [(11_001.0, "expired"), (8_999.0, "valid only from")])
def test_the_server_refuses_a_certificate_outside_its_dates(make_round, now, message):
    lab = make_round(**ACTIVE)
    identity = certify(AUTHORITY_SECRET, bytes([1]) * 32, Validity(9_000, 11_000))
    device = KeysAdvertised.join(lab.config, 1, lab.policy, identity)
    server = CollectingKeys(lab.config, None, public_key(AUTHORITY_SECRET), clock=lambda: now)
    with pytest.raises(Refused, match=message):
        server.receive(1, device.message)
    other = certify(AUTHORITY_SECRET, bytes([1]) * 32, Validity(0, 1 << 40))
    swapped = replace(identity, certificate=other.certificate[:16] + identity.certificate[16:])
    device = KeysAdvertised.join(lab.config, 1, lab.policy, swapped)
    with pytest.raises(Refused, match="does not verify"):
        server.receive(1, device.message)


def test_a_cohort_of_one(make_round, make_config):
    with pytest.raises(ValueError, match="cohort"):
        make_config(cohort=1)
    lab = make_round().advertise()
    for members, keys in ((1, {}), (0, {})):
        lab = make_round().advertise()
        with pytest.raises(Refused, match="advertised keys"):
            lab.devices[0].share_keys(Roster(members, keys).encode_from_server(lab.config))


def test_a_neighbourhood_smaller_than_the_graph_or_picked_by_the_server(make_round):
    lab = make_round(cohort=12, neighbours=6).advertise()
    honest = Roster.decode_from_server(lab.to_devices[0], lab.config)
    fewer = honest.only(sorted(honest.keys)[:4])
    with pytest.raises(Refused, match="4 neighbours"):
        lab.devices[0].share_keys(fewer.encode_from_server(lab.config))

    lab = make_round(cohort=12, neighbours=6, **ACTIVE).advertise()
    everybody = Roster.decode_from_server(lab.to_devices[0], lab.config)
    with pytest.raises(Refused, match="everybody once"):
        lab.devices[0].share_keys(everybody.only(range(7)).encode_from_server(lab.config))


def test_the_graph_of_a_signed_round_follows_from_the_whole_roster(make_round):
    """Nobody picks neighbours: one other key anywhere gives an unrelated graph."""
    cycles = []
    for _ in range(2):
        lab = make_round(cohort=12, neighbours=6, **ACTIVE).advertise().share()
        graphs = {device._peers.graph.cycle for device in lab.devices.values()}
        assert len(graphs) == 1
        cycles += graphs
    assert cycles[0] != cycles[1]


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31)])
def test_a_public_key_of_small_order(make_round, point):
    lab = make_round()
    genuine = AdvertiseKeys.decode(lab.devices[1].message, lab.config, 1)
    weak = replace(genuine, mask_key=point).encode(lab.config, 1)
    with pytest.raises(Refused, match="small order"):
        lab.server.receive(1, weak)
    with pytest.raises(Refused, match="small order"):
        KeyPair.from_secret(os.urandom(32)).agree(point)


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        (DevicePolicy(4, 3, 2), "min_reports"),
        (DevicePolicy(2, 6, 2), "cohort"),
        (DevicePolicy(2, 3, 2, Adversary.ACTIVE, bytes(32)), "signed keys"),
    ],
)
def test_a_round_that_promises_less_than_the_device_demands(make_config, policy, match):
    with pytest.raises(Refused, match=match):
        KeysAdvertised.join(make_config(), 0, policy)


def test_a_graph_too_thin_for_the_device(make_config):
    with pytest.raises(Refused, match="neighbours"):
        KeysAdvertised.join(make_config(cohort=12, neighbours=4), 0, DevicePolicy(2, 3, 6))


# Different rounds and different broadcasts


@pytest.mark.parametrize(
    "change",
    [
        {"round": 8},
        {"model": b"n" * 32},
        {"payload": b"q" * 32},
        {"bits": 21},
        {"dim": 12},
        {"min_reports": 3},
        {"adversary": Adversary.ACTIVE},
        {"threshold": 4},
    ],
)
def test_different_broadcasts_to_different_devices(make_config, make_round, change):
    """Whatever differs, the context does: messages are refused and masks do not cancel."""
    ours, theirs = make_config(), make_config(**change)
    assert ours.context != theirs.context
    lab = make_round()
    if not theirs.signed:
        stranger = KeysAdvertised.join(theirs, 1, lab.policy)
        with pytest.raises(Refused, match="another round"):
            lab.server.receive(1, stranger.message)
    a, b = (KeyPair.from_secret(os.urandom(32)) for _ in range(2))
    total = np.zeros(100, dtype=np.uint32)
    add_masks(
        ours.ring,
        total,
        [pair_mask_seed(a, b.public, ours.context, 0, 1)],
        [pair_mask_seed(b, a.public, ours.context, 1, 0)],
    )
    assert not total.any()
    add_masks(
        ours.ring,
        total,
        [pair_mask_seed(a, b.public, ours.context, 0, 1)],
        [pair_mask_seed(b, a.public, theirs.context, 1, 0)],
    )
    assert np.count_nonzero(total) > 95


def test_shares_of_mixed_rounds(make_round):
    """Boxes of an earlier round do not open, whoever reframes them."""
    earlier = make_round(round=6).advertise().share()
    now = make_round().advertise().share()
    box = ShareInbox.decode_from_server(earlier.to_devices[0], earlier.config).shares[1]
    inbox = ShareInbox.decode_from_server(now.to_devices[0], now.config)
    mixed = ShareInbox({**inbox.shares, 1: box}).encode_from_server(now.config)
    masked = now.devices[0].mask_input(mixed, now.vectors[0])
    assert rejected_dealers(masked) == [1]


def test_a_message_replayed_in_a_later_round(make_round):
    earlier, now = make_round(round=6), make_round(round=7)
    with pytest.raises(Refused, match="another round"):
        now.server.receive(0, earlier.devices[0].message)


def test_a_message_under_another_devices_name(make_round):
    lab = make_round()
    with pytest.raises(Refused, match="comes from 1"):
        lab.server.receive(2, lab.devices[1].message)


def test_a_message_in_the_wrong_phase(make_round):
    lab = make_round()
    early = lab.devices[0].message
    lab.advertise()
    with pytest.raises(WrongState, match="kind 1"):
        lab.server.receive(0, early)
    shared = lab.devices[1].share_keys(lab.to_devices[1])
    with pytest.raises(WrongState, match="kind 2"):
        shared.mask_input(lab.to_devices[1], lab.vectors[1])


def test_a_retry_sends_the_same_bytes_and_never_new_ones(make_round):
    lab = make_round().advertise().share()
    device, inbox = lab.devices[0], lab.to_devices[0]
    masked = device.mask_input(inbox, lab.vectors[0])
    first = bytes(masked.message)
    with pytest.raises(WrongState, match="sent again"):
        device.mask_input(inbox, lab.vectors[1])  # two vectors under one mask: their difference
    assert masked.message == first


# Shares


@pytest.mark.parametrize("secret", ["self_shares", "mask_shares"])
def test_wrong_bit_flipped_or_out_of_range_shares(make_round, secret):
    lab = make_round(cohort=6).advertise().share().mask(silent={5})
    lab.devices.pop(5)
    message = lab.devices[0].unmask(lab.to_devices[0]).message
    answer = UnmaskAnswer.decode(message, lab.config, 0)
    dealer, share = next(iter(getattr(answer, secret).items()))
    flipped = bytes([share[0] ^ 1]) + share[1:]
    for wrong in (flipped, PRIME.to_bytes(33, "little"), b"\xff" * 33):
        changed = {**getattr(answer, secret), dealer: wrong}
        sent = replace(answer, **{secret: changed}).encode(lab.config, 0)
        with pytest.raises((Refused, MalformedMessage), match="share"):
            lab.server.receive(0, sent)
    lab.server.receive(0, message)  # the genuine answer still counts


def test_a_truncated_or_duplicate_share(make_round):
    lab = make_round().advertise().share().mask()
    message = lab.devices[0].unmask(lab.to_devices[0]).message
    body = message[52:-16]
    for wrong in (body[:-1], body[:41] + body[4:41] + body[78:], body + b"\0"):
        with pytest.raises(MalformedMessage):
            lab.server.receive(0, frame(9, 0, lab.config.context, wrong))


def test_a_share_that_was_not_asked_for(make_round):
    lab = make_round(cohort=6).advertise().share().mask(silent={5})
    lab.devices.pop(5)
    answer = UnmaskAnswer.decode(lab.devices[0].unmask(lab.to_devices[0]).message, lab.config, 0)
    swapped = replace(
        answer, self_shares={**answer.self_shares, 5: answer.mask_shares[5]}, mask_shares={}
    )
    with pytest.raises(Refused, match="not asked"):
        lab.server.receive(0, swapped.encode(lab.config, 0))


@pytest.mark.parametrize("victims", [{0, 1}, {0, 1, 3, 4, 5}])
def test_a_dealer_whose_boxes_are_rubbish(make_round, adversary, victims):
    """A few worthless boxes cost nothing; where too many are, the round aborts with its name."""
    lab = make_round(cohort=6, adversary=adversary).advertise()
    lab.devices = {i: lab.devices[i].share_keys(m) for i, m in lab.to_devices.items()}
    dealt = ShareKeys.decode(lab.devices[2].message, lab.config, 2)
    sealed = {holder: SealedShares(dealt.shares[holder]) for holder in victims}
    rubbish = {holder: it.public + os.urandom(len(it.box)) for holder, it in sealed.items()}
    message = replace(dealt, shares={**dealt.shares, **rubbish}).encode(lab.config, 2)
    lab.devices[2].message = message
    lab.deliver()
    lab.mask()
    assert rejected_dealers(lab.devices[0]) == [2]
    lab.confirm()
    if len(victims) == 2:
        assert np.array_equal(lab.unmask().vector, lab.sum_of(range(6)))
    else:
        with pytest.raises(SumLost, match="device 2 dealt 5 holders shares") as lost:
            lab.unmask()
        assert lost.value.spoiler == 2


@pytest.mark.parametrize(("liars", "spoiler"), [((0, 1), None), ((0, 1, 3), 2)])
def test_as_many_holders_as_may_be_corrupt_cannot_make_a_dealer_look_guilty(
    make_round, liars, spoiler
):
    """Two of six may be corrupt: two who hide the shares of a dealer prove nothing, three do."""
    lab = make_round(cohort=6, corrupt=2, threshold=5).advertise().share().mask()
    for index in range(6):
        answer = lab.devices[index].unmask(lab.to_devices[index]).message
        if index in liars:
            kept = UnmaskAnswer.decode(answer, lab.config, index).self_shares
            hidden = {dealer: share for dealer, share in kept.items() if dealer != 2}
            answer = rewrite(answer, UnmaskAnswer, lab.config, index, self_shares=hidden)
        lab.server.receive(index, answer)
    with pytest.raises(SumLost, match="device 2") as lost:
        lab.server.close()
    assert lost.value.spoiler == spoiler


def test_a_dealer_whose_shares_belong_to_another_secret_is_named(make_round):
    lab = make_round().advertise()
    cheat = lab.devices[3]
    cheat._me = replace(cheat._me, seed=os.urandom(32))
    genuine = cheat.share_keys(lab.to_devices[3])
    message = rewrite(genuine.message, ShareKeys, lab.config, 3, seed_commitment=os.urandom(32))
    for index, roster in lab.to_devices.items():
        if index != 3:
            lab.devices[index] = lab.devices[index].share_keys(roster)
            lab.server.receive(index, lab.devices[index].message)
    lab.server.receive(3, message)
    lab.devices[3] = genuine
    lab.server, lab.to_devices = lab.server.close()
    lab.mask().confirm()
    with pytest.raises(SumLost, match="device 3 dealt shares of another seed") as lost:
        lab.unmask()
    assert (lost.value.spoiler, lost.value.reports) == (3, len(lab.devices))


def test_a_box_given_to_another_holder_or_its_commitments_exchanged(make_round):
    lab = make_round().advertise().share()
    inboxes = {i: ShareInbox.decode_from_server(m, lab.config) for i, m in lab.to_devices.items()}
    genuine = inboxes[0].shares
    misdirected = inboxes[2].shares[1]
    exchanged = genuine[4][COMMITMENT[MASK_SHARE]] + genuine[3][32:]
    inbox = ShareInbox({**genuine, 1: misdirected, 3: exchanged})
    masked = lab.devices[0].mask_input(inbox.encode_from_server(lab.config), lab.vectors[0])
    assert rejected_dealers(masked) == [1, 3]


def test_shares_dealt_to_others_than_the_holders(make_round):
    lab = make_round(cohort=12, neighbours=6).advertise()
    state = lab.devices[0].share_keys(lab.to_devices[0])
    dealt = ShareKeys.decode(state.message, lab.config, 0)
    fewer = dict(sorted(dealt.shares.items())[:-1])
    with pytest.raises(Refused, match="holders"):
        lab.server.receive(0, replace(dealt, shares=fewer).encode(lab.config, 0))


def test_too_few_neighbours_or_strangers_in_the_inbox(make_round):
    """A device with masks towards corrupt devices alone would be bare."""
    lab = make_round(cohort=12, neighbours=6).advertise().share()
    inbox = ShareInbox.decode_from_server(lab.to_devices[0], lab.config)
    few = ShareInbox(dict(sorted(inbox.shares.items())[:3]))
    with pytest.raises(Refused, match="3 neighbours"):
        lab.devices[0].mask_input(few.encode_from_server(lab.config), lab.vectors[0])
    lab = make_round(cohort=12, neighbours=6).advertise().share()
    inbox = ShareInbox.decode_from_server(lab.to_devices[0], lab.config)
    stranger = next(i for i in range(1, 12) if i not in inbox.shares)
    padded = ShareInbox({**inbox.shares, stranger: next(iter(inbox.shares.values()))})
    with pytest.raises(Refused, match="no neighbour"):
        lab.devices[0].mask_input(padded.encode_from_server(lab.config), lab.vectors[0])


def test_a_survivor_hidden_from_one_device_until_the_end(make_round, adversary):
    """Otherwise two honest neighbours would lack the mask between them."""
    lab = make_round(cohort=6, adversary=adversary).advertise().share()
    inbox = ShareInbox.decode_from_server(lab.to_devices[0], lab.config)
    hidden = ShareInbox({d: s for d, s in inbox.shares.items() if d != 4})
    lab.to_devices[0] = hidden.encode_from_server(lab.config)
    lab.mask()
    step = lab.devices[0].confirm if adversary is Adversary.ACTIVE else lab.devices[0].unmask
    with pytest.raises(Refused, match="not those who shared"):
        step(lab.to_devices[0])


# Vectors


def test_a_late_vector_and_a_second_one(make_round):
    lab = make_round().advertise().share()
    collecting = lab.server
    lab.mask(silent={4})
    with pytest.raises(WrongState, match="after its phase"):
        collecting.receive(4, lab.devices[4].message)
    lab = make_round().advertise().share()
    state = lab.devices[0].mask_input(lab.to_devices[0], lab.vectors[0])
    lab.server.receive(0, state.message)
    with pytest.raises(Refused, match="spoken"):
        lab.server.receive(0, state.message)


def test_a_report_past_the_goal(make_round):
    lab = make_round(goal=3).advertise().share()
    states = {i: lab.devices[i].mask_input(m, lab.vectors[i]) for i, m in lab.to_devices.items()}
    for index in (0, 1, 2):
        lab.server.receive(index, states[index].message)
    with pytest.raises(Refused, match="goal"):
        lab.server.receive(3, states[3].message)
    assert lab.server.full


@pytest.mark.parametrize(
    "vector",
    [
        np.full(11, np.nan),
        np.full(11, np.inf),
        np.full(11, -0.0),
        np.zeros(11, dtype=np.int16),
        np.zeros(10, dtype=np.int64),
        np.zeros((1, 11), dtype=np.int64),
    ],
)
def test_vectors_that_are_no_integers_of_the_payload(make_round, vector):
    lab = make_round().advertise().share()
    with pytest.raises(ValueError, match=r"int64|shape"):
        lab.devices[0].mask_input(lab.to_devices[0], vector)
    lab.devices[0].mask_input(lab.to_devices[0], lab.vectors[0])  # a mistake costs no round


def test_a_vector_of_another_length_or_encoding(make_round):
    lab = make_round().advertise().share()
    state = lab.devices[0].mask_input(lab.to_devices[0], lab.vectors[0])
    body = state.message[52:-16]
    for wrong in (body[:-1], body + b"\0", b"", body[:-1] + bytes([body[-1] | 0xF0])):
        with pytest.raises(MalformedMessage):
            lab.server.receive(0, frame(5, 0, lab.config.context, wrong))
    assert MaskedInput.decode(state.message, lab.config, 0).packed == body


# Secrets in texts


def test_no_secret_appears_in_a_text(make_round):
    lab = make_round(noise_levels=3).advertise().share()
    me = lab.devices[0]._me
    secrets = [me.seed, me.mask_pair.secret, me.box_pair.secret, me.noise.first]
    texts = [repr(me), repr(me.mask_pair), repr(me.noise), repr(lab.devices[0])]
    for failing in (
        lambda: lab.devices[0].mask_input(b"", lab.vectors[0]),
        lambda: lab.server.receive(0, b"rubbish"),
    ):
        with pytest.raises(SecaggError) as caught:
            failing()
        texts.append(str(caught.value))
    for secret in secrets:
        for text in texts:
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text


def test_a_round_below_its_threshold_is_erased_unopened(make_round):
    lab = make_round(min_reports=4).advertise().share()
    collecting = lab.server
    with pytest.raises(TooFewReports):
        lab.mask(silent={0, 1})
    assert not collecting._total.any()
