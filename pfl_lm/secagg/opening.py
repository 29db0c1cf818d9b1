"""Opening a round: from shares to seeds, from seeds to masks, from masked to plain sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pfl_lm.secagg import dealing, keys
from pfl_lm.secagg.config import RoundConfig
from pfl_lm.secagg.errors import Refused, TooFewAnswers, WrongShares
from pfl_lm.secagg.graph import Graph
from pfl_lm.secagg.ideal import OpenedSum
from pfl_lm.secagg.keys import KeyPair, pair_mask_seed, self_mask_seed
from pfl_lm.secagg.masks import add_masks
from pfl_lm.secagg.messages import (
    COMMITMENT,
    MASK_SHARE,
    SELF_SHARE,
    AdvertiseKeys,
    ShareKeys,
    SurvivorSet,
    UnmaskAnswer,
)
from pfl_lm.secagg.noise import NoiseChain
from pfl_lm.secagg.packing import Words
from pfl_lm.secagg.sharing import recover


@dataclass(frozen=True)
class Registry:
    """What the server keeps of the first two phases."""

    advertised: Mapping[int, AdvertiseKeys]
    dealt: Mapping[int, ShareKeys]
    graph: Graph


@dataclass(frozen=True)
class OpenedRound(OpenedSum):
    """The sum of a round, whose reports are in it, and what removes superfluous noise.

    ``noise_secrets`` holds, by survivor, the secret of the first level to be removed; it is empty
    where no level is, and a survivor may be missing (see ``noise.superfluous``).
    """

    survivors: frozenset[int]
    noise_secrets: Mapping[int, bytes]


def check_answer(
    answer: UnmaskAnswer,
    sender: int,
    outcome: SurvivorSet,
    registry: Registry,
    config: RoundConfig,
) -> None:
    """Raise ``Refused`` unless every share is one that ``sender`` was dealt and asked for."""
    holders = set(registry.graph.holders(sender))
    for shares, asked, kind in (
        (answer.self_shares, outcome.survivors, SELF_SHARE),
        (answer.mask_shares, outcome.dropped, MASK_SHARE),
    ):
        if not shares.keys() <= asked & holders:
            raise Refused(f"device {sender} revealed a share that it was not asked for")
        commit, place = keys.committer(config.context, kind), COMMITMENT[kind]
        for dealer, share in shares.items():
            if commit(dealer, sender, share) != registry.dealt[dealer].shares[sender][place]:
                raise Refused(f"device {sender} revealed a wrong share of device {dealer}")
    if config.noise_levels:
        _check_noise(answer, sender, outcome, registry, config)


def _check_noise(
    answer: UnmaskAnswer,
    sender: int,
    outcome: SurvivorSet,
    registry: Registry,
    config: RoundConfig,
) -> None:
    removes = config.noise_level(len(outcome.survivors)) < config.noise_levels
    if not removes and (answer.noise_secret or answer.noise_shares):
        raise Refused(f"device {sender} revealed noise that stays in the sum")
    holders = set(registry.graph.holders(sender))
    if not (answer.noise_shares or {}).keys() <= outcome.survivors & holders:
        raise Refused(f"device {sender} revealed a share that it was not asked for")
    if answer.noise_secret and not _leads_to_commitment(
        answer.noise_secret, sender, outcome, registry, config
    ):
        raise Refused(f"device {sender} revealed another noise secret than it committed to")


def open_round(
    total: Words,
    answers: Mapping[int, UnmaskAnswer],
    outcome: SurvivorSet,
    registry: Registry,
    config: RoundConfig,
) -> OpenedRound:
    """Remove all masks from ``total``, in place, and centre the sum.

    The survivors' own masks come off with their self-mask seeds; a mask that a survivor shares
    with a dropped device was not cancelled by it and comes off with that device's mask key.

    Raises:
        TooFewAnswers: too few answers for some device's secret.
        WrongShares: a dealer's shares belong to another secret than it committed to, or more
            holders than may be corrupt answered without its share: an honest one among them got a
            box that it could not use.
    """
    self_shares = _by_dealer({h: answer.self_shares for h, answer in answers.items()})
    mask_shares = _by_dealer({h: answer.mask_shares for h, answer in answers.items()})
    minus = [
        self_mask_seed(
            _recover_seed(device, self_shares, answers, registry, config), config.context, device
        )
        for device in sorted(outcome.survivors)
    ]
    plus: list[bytes] = []
    for device in sorted(outcome.dropped):
        orphans = [o for o in registry.graph.neighbours(device) if o in outcome.survivors]
        if not orphans:
            continue
        pair = _recover_mask_pair(device, mask_shares, answers, registry, config)
        for other in orphans:
            theirs = registry.advertised[other].mask_key
            seed = pair_mask_seed(pair, theirs, config.context, device, other)
            (minus if other < device else plus).append(seed)
    secrets = _noise_secrets(answers, outcome, registry, config)
    add_masks(config.ring, total, plus, minus)
    vector = config.ring.centre(config.ring.reduce(total))
    return OpenedRound(vector, len(outcome.survivors), outcome.survivors, secrets)


def _recover_seed(
    device: int,
    shares: Mapping[int, Mapping[int, bytes]],
    answers: Mapping[int, UnmaskAnswer],
    registry: Registry,
    config: RoundConfig,
) -> bytes:
    seed = _recover(device, shares, answers, registry, config)
    if dealing.commit_seed(config.context, device, seed) != registry.dealt[device].seed_commitment:
        raise WrongShares(device, "dealt shares of another seed than it committed to")
    return seed


def _recover_mask_pair(
    device: int,
    shares: Mapping[int, Mapping[int, bytes]],
    answers: Mapping[int, UnmaskAnswer],
    registry: Registry,
    config: RoundConfig,
) -> KeyPair:
    pair = KeyPair.from_secret(_recover(device, shares, answers, registry, config))
    if pair.public != registry.advertised[device].mask_key:
        raise WrongShares(device, "dealt shares of another key than it advertised")
    return pair


def _recover(
    device: int,
    shares: Mapping[int, Mapping[int, bytes]],
    answers: Mapping[int, UnmaskAnswer],
    registry: Registry,
    config: RoundConfig,
) -> bytes:
    threshold = config.graph.threshold
    mine = shares.get(device, {})
    if len(mine) < threshold:
        without = sum(h in answers and h not in mine for h in registry.graph.holders(device))
        if without > config.graph.corrupt:
            raise WrongShares(device, f"dealt {without} holders shares that they could not use")
        raise TooFewAnswers(
            f"{len(mine)} shares of device {device} were revealed and {threshold} are needed"
        )
    try:
        return recover({holder: mine[holder] for holder in sorted(mine)[:threshold]})
    except Refused:
        raise WrongShares(device, "dealt shares that belong to no secret") from None


def _by_dealer(by_holder: Mapping[int, Mapping[int, bytes]]) -> dict[int, dict[int, bytes]]:
    turned: dict[int, dict[int, bytes]] = {}
    for holder, shares in by_holder.items():
        for dealer, share in shares.items():
            turned.setdefault(dealer, {})[holder] = share
    return turned


def _noise_secrets(
    answers: Mapping[int, UnmaskAnswer],
    outcome: SurvivorSet,
    registry: Registry,
    config: RoundConfig,
) -> dict[int, bytes]:
    """Each survivor's own answer, or, where it fell silent, what its holders' shares give.

    A secret that cannot be recovered leaves its noise in the sum: too much of it, never too
    little, so this is no reason to lose the round.
    """
    if not config.noise_levels:
        return {}
    shares = _by_dealer({h: answer.noise_shares or {} for h, answer in answers.items()})
    opened = {}
    for device in sorted(outcome.survivors):
        if device in answers and answers[device].noise_secret:
            opened[device] = answers[device].noise_secret
        elif len(shares.get(device, {})) >= config.graph.threshold:
            try:
                secret = _recover(device, shares, answers, registry, config)
            except Refused:
                continue
            if _leads_to_commitment(secret, device, outcome, registry, config):
                opened[device] = secret
    return opened


def _leads_to_commitment(
    secret: bytes, device: int, outcome: SurvivorSet, registry: Registry, config: RoundConfig
) -> bool:
    start = config.noise_level(len(outcome.survivors)) + 1
    chain = NoiseChain(secret, config.context, device, config.noise_levels, start)
    return chain.commitment == registry.dealt[device].noise_commitment
