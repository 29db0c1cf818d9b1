"""Sharing a device's secrets among their holders, and reading what others dealt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pfl_lm.secagg import keys, sharing
from pfl_lm.secagg.checks import KEYS, Peers
from pfl_lm.secagg.config import DevicePolicy, RoundConfig
from pfl_lm.secagg.errors import Refused
from pfl_lm.secagg.keys import Identity, KeyPair, Sealer
from pfl_lm.secagg.messages import MASK_SHARE, SELF_SHARE, AdvertiseKeys, SealedShares, ShareKeys
from pfl_lm.secagg.noise import NoiseChain
from pfl_lm.secagg.sharing import SHARE_BYTES, Entropy


@dataclass(frozen=True)
class Secrets:
    """Who a device is in a round, and its secrets."""

    config: RoundConfig
    index: int
    policy: DevicePolicy
    identity: Identity | None
    entropy: Entropy = field(repr=False)
    box_pair: KeyPair = field(repr=False)
    mask_pair: KeyPair = field(repr=False)
    seed: bytes = field(repr=False)
    noise: NoiseChain | None = field(repr=False)

    @classmethod
    def draw(
        cls,
        config: RoundConfig,
        index: int,
        policy: DevicePolicy,
        identity: Identity | None,
        entropy: Entropy,
    ) -> Secrets:
        """Fresh keys and seeds: 32 bytes of entropy each."""
        box, mask, seed, root = (entropy(keys.KEY_BYTES) for _ in range(4))
        noise = None
        if config.noise_levels:
            noise = NoiseChain(root, config.context, index, config.noise_levels)
        pairs = KeyPair.from_secret(box), KeyPair.from_secret(mask)
        return cls(config, index, policy, identity, entropy, *pairs, seed, noise)

    def advertise(self) -> AdvertiseKeys:
        """The public keys, signed where the round is."""
        if self.identity is None:
            return AdvertiseKeys(self.box_pair.public, self.mask_pair.public)
        public, certificate = self.identity.public, self.identity.certificate
        unsigned = AdvertiseKeys(self.box_pair.public, self.mask_pair.public, public, certificate)
        content = unsigned.signed_content(self.index)
        signature = self.identity.sign(self.config.context, KEYS, content)
        return AdvertiseKeys(unsigned.box_key, unsigned.mask_key, public, certificate, signature)


def agree_on_boxes(me: Secrets, peers: Peers) -> dict[int, bytes]:
    """The secret behind the boxes to and from each holder."""
    return {holder: me.box_pair.agree(peers.keys[holder].box_key) for holder in peers.holders}


def deal(me: Secrets, peers: Peers, agreed: Mapping[int, bytes]) -> ShareKeys:
    """Share the mask key, the self-mask seed and the noise secrets; seal one box per holder."""
    mine = (me.index, me.box_pair.public)
    context, threshold = me.config.context, me.config.graph.threshold
    secrets = [me.mask_pair.secret, me.seed, *(me.noise.secrets() if me.noise else [])]
    dealt = [sharing.share(secret, peers.holders, threshold, me.entropy) for secret in secrets]
    sealed = {}
    for holder in peers.holders:
        shares = [by_holder[holder] for by_holder in dealt]
        public = _commit_shares(context, me.index, holder, shares)
        theirs = (holder, peers.keys[holder].box_key)
        sealer = Sealer.between(agreed[holder], context, dealer=mine, holder=theirs)
        sealed[holder] = public + sealer.seal(b"".join(shares), public)
    return ShareKeys(
        seed_commitment=commit_seed(context, me.index, me.seed),
        noise_commitment=me.noise.commitment if me.noise else b"",
        shares=sealed,
    )


def open_box(
    me: Secrets, peers: Peers, agreed: Mapping[int, bytes], dealer: int, record: bytes
) -> list[bytes] | None:
    """The shares in a dealer's box, in the order of ``deal``; None where they are worthless.

    One bad dealer must not cost its neighbours the round, so this is no error.
    """
    context, sealed = me.config.context, SealedShares(record)
    mine, theirs = (me.index, me.box_pair.public), (dealer, peers.keys[dealer].box_key)
    try:
        sealer = Sealer.between(agreed[dealer], context, dealer=theirs, holder=mine)
        content = sealer.open(sealed.box, sealed.public)
    except Refused:
        return None
    shares = [content[at : at + SHARE_BYTES] for at in range(0, len(content), SHARE_BYTES)]
    return shares if _commit_shares(context, dealer, me.index, shares) == sealed.public else None


def _commit_shares(context: bytes, dealer: int, holder: int, shares: Sequence[bytes]) -> bytes:
    mask = keys.commit(context, MASK_SHARE, dealer, holder, shares[0])
    return mask + keys.commit(context, SELF_SHARE, dealer, holder, shares[1])


def commit_seed(context: bytes, device: int, seed: bytes) -> bytes:
    """Commitment to the self-mask seed itself: shares that disagree with it are a fraud."""
    return keys.commit(context, b"seed", device, device, seed)
