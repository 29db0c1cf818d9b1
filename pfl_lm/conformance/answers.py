"""The reference's own answers: one function for each kind of vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pfl_lm.conformance import device_answers, encoding_answers
from pfl_lm.conformance.plain import bytes_of, config_of, hexes, indexed, indexed_hexes
from pfl_lm.conformance.vectors import code_of
from pfl_lm.secagg import keys, masks, sharing, wire
from pfl_lm.secagg.graph import draw_graph
from pfl_lm.secagg.keys import Identity, KeyPair, Sealer
from pfl_lm.secagg.noise import NoiseChain
from pfl_lm.secagg.ring import Ring

Inputs = Mapping[str, Any]
Output = dict[str, Any]


def answer(kind: str, inputs: Inputs) -> dict[str, Any]:
    """Answer one request: {"output": …}, {"refused": code} or {"unsupported": kind}."""
    function = KINDS.get(kind)
    if function is None:
        return {"unsupported": kind}
    try:
        return {"output": function(inputs)}
    except ValueError as error:
        return {"refused": code_of(error), "message": str(error)}


def _context(inputs: Inputs) -> Output:
    return {"context": config_of(inputs["config"]).context.hex()}


def _hkdf(inputs: Inputs) -> Output:
    secret, context, info = bytes_of(inputs, "secret", "context", "info")
    label = inputs["label"].encode()
    return {"key": keys.derive(secret, context, label, info).hex()}


def _public_key(inputs: Inputs) -> Output:
    (secret,) = bytes_of(inputs, "secret")
    agreement, identity = KeyPair.from_secret(secret).public, keys.public_key(secret)
    return {"x25519": agreement.hex(), "ed25519": identity.hex()}


def _agree(inputs: Inputs) -> Output:
    secret, public = bytes_of(inputs, "secret", "public")
    return {"agreed": KeyPair.from_secret(secret).agree(public).hex()}


def _pair_mask_seed(inputs: Inputs) -> Output:
    secret, theirs, context = bytes_of(inputs, "secret", "theirs", "context")
    pair = KeyPair.from_secret(secret)
    seed = keys.pair_mask_seed(pair, theirs, context, inputs["me"], inputs["other"])
    return {"seed": seed.hex()}


def _self_mask_seed(inputs: Inputs) -> Output:
    secret, context = bytes_of(inputs, "secret", "context")
    return {"seed": keys.self_mask_seed(secret, context, inputs["device"]).hex()}


def _mask(inputs: Inputs) -> Output:
    vector = np.array([int(entry) for entry in inputs["vector"]], dtype=np.int64)
    plus, minus = ([bytes.fromhex(seed) for seed in inputs[sign]] for sign in ("plus", "minus"))
    return {"packed": masks.mask(Ring(inputs["bits"]), vector, plus, minus).hex()}


def _unpack(inputs: Inputs) -> Output:
    ring, (packed,) = Ring(inputs["bits"]), bytes_of(inputs, "packed")
    words = ring.unpack(packed, inputs["dim"])
    return {"centred": [str(entry) for entry in ring.centre(words).tolist()]}


def _share(inputs: Inputs) -> Output:
    secret, entropy = bytes_of(inputs, "secret", "entropy")
    dealt = sharing.share(secret, inputs["holders"], inputs["threshold"], lambda count: entropy)
    return {"shares": indexed_hexes(dealt)}


def _recover(inputs: Inputs) -> Output:
    return {"secret": sharing.recover(indexed(inputs["shares"])).hex()}


def _graph(inputs: Inputs) -> Output:
    (seed,) = bytes_of(inputs, "seed")
    graph = draw_graph(seed, inputs["members"], inputs["degree"])
    neighbours = {str(device): graph.neighbours(device) for device in inputs["members"]}
    holders = {str(device): graph.holders(device) for device in inputs["members"]}
    return {"cycle": list(graph.cycle), "neighbours": neighbours, "holders": holders}


def _frame(inputs: Inputs) -> Output:
    context, body = bytes_of(inputs, "context", "body")
    return {"frame": wire.frame(inputs["kind"], inputs["sender"], context, body).hex()}


def _unframe(inputs: Inputs) -> Output:
    frame, context = bytes_of(inputs, "frame", "context")
    kind, sender, body = wire.unframe(frame, context)
    return {"kind": kind, "sender": sender, "body": body.hex()}


def _write_records(inputs: Inputs) -> Output:
    return {"body": wire.write_records(indexed(inputs["records"])).hex()}


def _read_records(inputs: Inputs) -> Output:
    reader = wire.Reader(memoryview(bytes.fromhex(inputs["body"])))
    records = reader.records(inputs["size"], inputs["cohort"])
    reader.end()
    return {"records": indexed_hexes(records)}


def _write_bitmap(inputs: Inputs) -> Output:
    return {"bitmap": wire.write_bitmap(inputs["members"], inputs["cohort"]).hex()}


def _read_bitmap(inputs: Inputs) -> Output:
    reader = wire.Reader(memoryview(bytes.fromhex(inputs["bitmap"])))
    members = reader.bitmap(inputs["cohort"])
    reader.end()
    return {"members": sorted(members)}


def _sealer(inputs: Inputs) -> tuple[Sealer, bytes]:
    secret, theirs, context, public = bytes_of(inputs, "secret", "theirs", "context", "public")
    pair = KeyPair.from_secret(secret)
    me, other = inputs["me"], inputs["other"]
    mine, their = (me, pair.public), (other, theirs)
    dealer, holder = (mine, their) if inputs["deals"] else (their, mine)
    return Sealer.between(pair.agree(theirs), context, dealer, holder), public


def _seal(inputs: Inputs) -> Output:
    sealer, public = _sealer(inputs)
    return {"box": sealer.seal(bytes.fromhex(inputs["content"]), public).hex()}


def _open(inputs: Inputs) -> Output:
    sealer, public = _sealer(inputs)
    return {"content": sealer.open(bytes.fromhex(inputs["box"]), public).hex()}


def _commit(inputs: Inputs) -> Output:
    context, value = bytes_of(inputs, "context", "value")
    purpose = inputs["purpose"].encode()
    digest = keys.commit(context, purpose, inputs["dealer"], inputs["holder"], value)
    return {"commitment": digest.hex()}


def _sign(inputs: Inputs) -> Output:
    secret, context, content = bytes_of(inputs, "secret", "context", "content")
    identity = Identity(secret, b"")
    return {"signature": identity.sign(context, inputs["purpose"].encode(), content).hex()}


def _check_signature(inputs: Inputs) -> Output:
    names = ("identity", "signature", "context", "content")
    identity, signature, context, content = bytes_of(inputs, *names)
    keys.check_signature(identity, signature, context, inputs["purpose"].encode(), content)
    return {"signature": signature.hex()}


def _certify(inputs: Inputs) -> Output:
    authority, device = bytes_of(inputs, "authority_secret", "device_secret")
    validity = keys.Validity(int(inputs["not_before"]), int(inputs["not_after"]))
    return {"certificate": keys.certify(authority, device, validity).certificate.hex()}


def _check_certificate(inputs: Inputs) -> Output:
    authority, identity, certificate = bytes_of(inputs, "authority", "identity", "certificate")
    keys.check_certificate(authority, identity, certificate, inputs["now"], inputs["leeway"])
    return {"certificate": certificate.hex()}


def _noise_chain(inputs: Inputs) -> Output:
    first, context = bytes_of(inputs, "first", "context")
    chain = NoiseChain(first, context, inputs["device"], inputs["levels"], inputs["start"])
    seeds = indexed_hexes(chain.seeds())
    return {
        "secrets": hexes(chain.secrets()),
        "seeds": seeds,
        "commitment": chain.commitment.hex(),
    }


KINDS: dict[str, Callable[[Inputs], Output]] = {
    "context": _context,
    "hkdf": _hkdf,
    "public_key": _public_key,
    "agree": _agree,
    "pair_mask_seed": _pair_mask_seed,
    "self_mask_seed": _self_mask_seed,
    "mask": _mask,
    "unpack": _unpack,
    "share": _share,
    "recover": _recover,
    "graph": _graph,
    "frame": _frame,
    "unframe": _unframe,
    "write_records": _write_records,
    "read_records": _read_records,
    "write_bitmap": _write_bitmap,
    "read_bitmap": _read_bitmap,
    "seal": _seal,
    "open": _open,
    "commit": _commit,
    "sign": _sign,
    "check_signature": _check_signature,
    "certify": _certify,
    "check_certificate": _check_certificate,
    "noise_chain": _noise_chain,
    **encoding_answers.KINDS,
    **device_answers.KINDS,
}
