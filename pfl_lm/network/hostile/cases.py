"""The cases of the hostile server: what each of them does to the device, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from pfl_lm.secagg.config import MessageKind


class Stage(Enum):
    """Where the server lies."""

    NOWHERE = auto()  # the control: an honest round
    CERTIFICATE = auto()
    TASK = auto()  # the task configuration
    INVITATION = auto()
    MODEL = auto()
    FRAME = auto()  # a message of secure aggregation, in the place of the honest one
    AGAIN = auto()  # one more, after the device has sent a message


@dataclass(frozen=True)
class Case:
    """One attack.

    Attributes:
        name: as on the command line.
        sentence: what the server does.
        forbidden: kind of the first message (1 keys, 3 shares, 5 report, 7 confirmation, 9 answer)
            that a device sends only if the lie has cheated it.
        kind: of the frame that lies, or after which it comes.
        silent: the first message that one of the other devices does not send.
        strong: a lie about the policy, which devices in a trial believe.
        rounds: the adversary of the only rounds that have this lie: "active" where they are
            signed, "semi-honest" where they are not; None: all rounds.
    """

    name: str
    sentence: str
    stage: Stage
    forbidden: int = 1
    kind: int = 0
    silent: MessageKind | None = None
    strong: bool = False
    rounds: str | None = None

    @property
    def looks_at_answer(self) -> bool:
        """Whether the device may go on, and only its answer tells if it was cheated."""
        return self.forbidden == _NOTHING


_NOTHING = 10  # no message is forbidden

HONEST = Case(
    "honest", "Plays a round without a lie: the device must take part.", Stage.NOWHERE, _NOTHING
)
CERTIFICATE = Case(
    "another_certificate", "Shows another TLS certificate for the same host.", Stage.CERTIFICATE
)

_TASK_STRONG = {
    "enrolled": "States that only one cohort of devices is enrolled.",
    "enrolled_less": "States one enrolled device fewer than the policy's population.",
    "rounds": "States one round more than the policy's.",
    "semi_honest": "States that nobody signs: the server is to be trusted.",
    "no_adversary": "States no adversary.",
    "corrupt": "States that secure aggregation need withstand no corrupt device.",
    "smaller_cohort": "States a cohort smaller than the policy's report goal: noise falls short.",
    "larger_cohort": "States a cohort larger than the policy's report goal: noise is divided.",
    "seeded_noise": "States that noise comes from a seed that the server knows.",
    "no_aggregation": "States that reports are summed in the clear.",
    "dropout": "States more dropouts than the policy tolerates.",
    "trial": "States a trial, which protects nobody.",
    "small_payload": "States a payload with fewer coordinates than the policy's noise covers.",
}
_TASK = {
    "policy": "States another privacy policy.",
    "vocabulary": "States another vocabulary.",
    "vocabulary_size": "States a model with one word more, under the same vocabulary.",
    "run": "States a run without an id.",
    "clip_nan": "States a clip norm that is no number.",
    "clip_negative": "States a negative clip norm.",
    "rounds_zero": "States a run without rounds.",
    "unknown_field": "States a field that devices are not told.",
}
_INVITATION = {
    "place": "Gives the device another device's place.",
    "model": "States another model than it sends.",
    "payload": "States another payload than the round's seed gives.",
    "cohort": "States one invited device more.",
    "min_reports": "States that a sum of one report fewer may be opened.",
    "neighbours": "States fewer neighbours.",
    "threshold": "States that fewer shares recover a secret.",
    "corrupt": "States another number of corrupt devices.",
    "window_survivors": "States that fewer survivors may stand side by side.",
    "noise_levels": "States another number of removable noise components: weaker noise.",
    "noise_step": "States that a noise component covers more dropouts.",
    "dim": "States one coordinate more.",
    "bits": "States a narrower ring.",
    "adversary": "States another adversary.",
    "clip_norm": "States a thousand times the clip norm.",
    "uninvited": "Invites the device to a round to which the public rule invites others.",
    "after_the_last": "Invites the device to a round after the run's last.",
}
_MODEL = {
    "other_values": "Sends other values than those of the model that it states.",
    "too_short": "Sends a model that ends early.",
    "endless": "Sends a model that does not end.",
}
_DAMAGE = {
    "frame_magic": "Sends a roster that begins with other bytes.",
    "frame_old_version": "Sends a roster of an older version of the protocol.",
    "frame_reserved_bytes": "Sets reserved bytes of the roster's frame.",
    "frame_stated_length": "States another length than the roster has.",
    "frame_cut": "Cuts the roster's last byte.",
    "frame_longer": "Sends a byte more than the roster.",
    "frame_too_short": "Sends a frame that is shorter than any.",
    "frame_damaged_body": "Flips a bit of the roster.",
    "frame_damaged_checksum": "Flips a bit of the roster's checksum.",
    "frame_damaged_sender": "Flips a bit of the roster's sender.",
    "frame_context": "Replays a roster of another round.",
    "body_goes_on": "Sends a roster that goes on after its last record.",
    "body_ends_early": "Sends a roster that ends in the middle of a record.",
    "another_sender": "Sends a roster in the name of a device.",
    "another_kind": "Sends the inbox's kind in the place of the roster.",
    "huge": "Sends a roster of 80 MB.",
}
_ROSTER = {
    "too_few_members": "Lists one other device.",
    "too_many_members": "Counts more members than were invited.",
}
_UNSIGNED_ROSTER = {
    "neighbour_missing": "Leaves a neighbour out.",
    "neighbour_beside": "Lists a neighbour too many.",
    "its_own_neighbour": "Lists the device as its own neighbour.",
    "mask_key_twice": "Lists one device's mask key twice.",
    "box_key_twice": "Lists one device's box key twice.",
    "box_key_as_mask_key": "Lists a box key as another device's mask key.",
    "own_mask_key": "Lists the device's own mask key as another's.",
    "box_key_of_small_order": "Lists a key of small order.",
}
_SIGNED_ROSTER = {
    "record_missing": "Leaves a member out.",
    "own_keys": "Lists the device with keys that are not its own.",
    "itself_missing": "Leaves the device itself out.",
    "identity_twice": "Lists one identity twice.",
    "authority": "Lists a device that another authority certified.",
    "early": "Lists a certificate that is not valid yet.",
    "late": "Lists a certificate that has expired.",
    "signature": "Lists a key that its owner did not sign.",
    "server_keys": "Lists keys of its own in the place of every other device's.",
}
_INBOX = {
    "stranger": "Hands over shares of a device that is no holder.",
    "too_few": "Hands over shares of two dealers only.",
    "earlier_round": "Replays an inbox of another round.",
    "replayed_share": "Hands over one dealer's shares of another round, in a new frame.",
    "swapped_share": "Hands over shares that were dealt to another device.",
}
_SURVIVORS = {
    "overlap": "Lists a device as alive and dropped, to learn both of its secrets.",
    "itself_missing": "Lists the device itself as dropped.",
    "too_few": "Lists fewer survivors than the least number of reports.",
    "dealer_missing": "Leaves out a device that dealt shares.",
    "too_many": "Lists a device that advertised no keys.",
    "too_few_holders": "Lists too few of the device's holders as alive (sparse graphs).",
    "window": "Cuts the graph by dropouts side by side (sparse graphs).",
    "earlier_round": "Replays a survivor set of another round.",
}
_REQUEST = {
    "another_set": "Asks about another survivor set than the device signed.",
    "too_few": "Shows fewer signatures than the quorum.",
    "no_survivor": "Shows a signature of a device that did not survive.",
    "forged": "Shows one device's signature as another's.",
    "split": "Shows signatures of devices that were told another survivor set.",
}
_AGAIN = {
    "roster": (3, "Sends a second roster after the device has dealt its shares."),
    "inbox": (5, "Sends a second inbox after the report: two vectors under one mask."),
    "survivors": (7, "Asks for a second signature, over another survivor set."),
    "unconfirmed": (5, "Asks for shares before the survivors were signed."),
    "request": (9, "Asks once more, for the other secret of a device."),
    "invitation": (9, "Invites the device once more to the round that it took part in."),
    "separation": (9, "Invites the device again at once, inside min_separation."),
}


def _cases() -> Iterator[Case]:
    yield HONEST
    yield CERTIFICATE
    for name, sentence in _TASK_STRONG.items():
        yield Case(f"task_{name}", sentence, Stage.TASK, strong=True)
    for name, sentence in _TASK.items():
        yield Case(f"task_{name}", sentence, Stage.TASK)
    for name, sentence in _INVITATION.items():
        yield Case(f"invitation_{name}", sentence, Stage.INVITATION)
    for name, sentence in _MODEL.items():
        yield Case(f"model_{name}", sentence, Stage.MODEL)
    for prefix, kind, rounds, told in (
        ("roster", 2, None, {**_DAMAGE, **_ROSTER}),
        ("roster", 2, "semi-honest", _UNSIGNED_ROSTER),
        ("roster", 2, "active", _SIGNED_ROSTER),
        ("inbox", 4, None, _INBOX),
        ("survivors", 6, None, _SURVIVORS),
        ("request", 8, "active", _REQUEST),
    ):
        for name, sentence in told.items():
            full = f"{prefix}_{name}"
            silent = _SILENT.get(full)
            forbidden = _NOTHING if full in _UNREADABLE else kind + 1
            stage = Stage.FRAME
            yield Case(full, sentence, stage, forbidden, kind, silent, rounds=rounds)
    for name, (kind, sentence) in _AGAIN.items():
        forbidden = {"unconfirmed": 7, "invitation": 1, "separation": 1}.get(name, kind)
        rounds = "active" if name in ("survivors", "unconfirmed") else None
        yield Case(f"again_{name}", sentence, Stage.AGAIN, forbidden, kind, rounds=rounds)


_SILENT = {
    "survivors_too_many": MessageKind.KEYS,
    "request_no_survivor": MessageKind.INPUT,
}

_UNREADABLE = ("inbox_replayed_share", "inbox_swapped_share")

CASES = {case.name: case for case in _cases()}


def chosen(names: str) -> list[Case]:
    """Return the cases of a name, of several with commas between, or all of them.

    Raises:
        ValueError: no such case.
    """
    if names == "all":
        return list(CASES.values())
    wanted = [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in CASES]:
        raise ValueError(f"no case is called {unknown[0]!r}; --hostile list names all of them")
    return [CASES[name] for name in wanted]
