"""A look at text by user before anything is built: how much there is, and what is odd.

One pass, in memory that grows with the number of users and of different messages. The figures come
from private text and are under no guarantee: they are for the person who holds the text.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pfl_lm.text import wordfreq_list
from pfl_lm.text.normalisation import NO_SEGMENTER, Normalisation, is_word, spaceless_share
from pfl_lm.text.records import Malformed, Record

_SAMPLE = 200_000  # words that the language is told by
_TELLING = 2000  # most frequent words of a language, of which running text is full
_MOST_SPACELESS = 0.5  # of the words, in scripts that put no spaces between them
_DAMAGED = re.compile("\ufffd|Ã[\u0080-\u00bf©¨¼¤¶]|â€[™œ\u009d]|Â[\u0080-\u00bf ]")
_LONG = 2000  # characters of a message that no thumb typed


@dataclass
class Survey:
    """What was counted; shares are of messages unless the name says otherwise."""

    locale: str
    messages: int = 0
    malformed: int = 0
    words: int = 0
    known_words: int = 0
    with_emoji: int = 0
    damaged: int = 0
    too_long: int = 0
    repeated: int = 0
    words_of: Counter[str] = field(default_factory=Counter)  # by user
    messages_of: Counter[str] = field(default_factory=Counter)
    sample: Counter[str] = field(default_factory=Counter)  # running words, lower-cased

    @property
    def users(self) -> int:
        return len(self.messages_of)

    @property
    def known_share(self) -> float:
        """Share of the words that the public list of the locale has."""
        return self.known_words / self.words if self.words else 0.0

    def largest_share(self, users: int) -> float:
        """Share of all words that the users who wrote most have written."""
        return sum(n for _, n in self.words_of.most_common(users)) / max(1, self.words)


def survey(records: Iterable[Record], locale: str, vocabulary: int) -> Survey:
    """Count messages by user.

    Args:
        records: as ``readers.read_messages`` yields them.
        locale: whose public word list the text is held against.
        vocabulary: how many of its words.

    Raises:
        ValueError: there is no list for the locale, or the text cannot be cut into words.
    """
    wordfreq_list.check(locale)
    rules = wordfreq_list.rules(locale, "drop", "keep", ())
    public = {word for word, _ in zip(_words_of(locale), range(vocabulary), strict=False)}
    counted, seen = Survey(locale), set[bytes]()
    for record in records:
        if isinstance(record, Malformed):
            counted.malformed += 1
        else:
            _count(counted, record.user, record.text, rules, public, seen)
    if (share := spaceless_share(counted.sample)) > _MOST_SPACELESS:
        raise ValueError(
            f"{share:.0%} of the words are in a script that puts no spaces between words; "
            f"{NO_SEGMENTER}"
        )
    return counted


def _count(
    counted: Survey, user: str, text: str, rules: Normalisation, public: set[str], seen: set[bytes]
) -> None:
    everything = rules.pieces(text)
    pieces = [piece for piece in everything if is_word(piece) and not piece.isdigit()]
    counted.messages += 1
    counted.messages_of[user] += 1
    counted.words_of[user] += len(pieces)
    counted.words += len(pieces)
    counted.known_words += sum(piece in public for piece in pieces)
    counted.with_emoji += any(unicodedata.category(letter) == "So" for letter in text)
    counted.damaged += bool(_DAMAGED.search(text))
    counted.too_long += len(text) > _LONG
    digest = hashlib.blake2b(" ".join(everything).encode(), digest_size=8).digest()
    counted.repeated += len(pieces) > 3 and digest in seen
    seen.add(digest)
    if counted.sample.total() < _SAMPLE:
        counted.sample.update(pieces)


def oddities(counted: Survey) -> Iterator[str]:
    """Yield a sentence for each thing that a person should know before training on the text."""
    users, messages = counted.users, max(1, counted.messages)
    language = wordfreq_list.language_of(counted.locale)
    likely = likeliest_language(counted.sample)
    if likely is not None and likely != language:
        yield f"the text looks like {likely!r}, not {language!r}: name its --locale"
    elif counted.known_share < 0.8:
        yield (
            f"{1 - counted.known_share:.0%} of the words are unknown to the public list: another "
            "language, spelling or jargon; subwords or `pfl-lm words discover` can help"
        )
    if users < 100:
        yield f"{users} users: too few to hold some out and to train on the others"
    once = sum(n == 1 for n in counted.messages_of.values()) / max(1, users)
    if once > 0.3:
        yield f"{once:.0%} of the users wrote one message: is the user column the right one?"
    if (share := counted.largest_share(1)) > 0.05:
        yield f"one user wrote {share:.0%} of the words: a bot, or a default id?"
    elif (share := counted.largest_share(max(1, users // 100))) > 0.5:
        yield f"1% of the users wrote {share:.0%} of the words: training.max_tokens evens that out"
    if (share := counted.repeated / messages) > 0.05:
        yield f"{share:.0%} of the messages repeat another one: templates, forwards, two exports?"
    if counted.damaged:
        share = counted.damaged / messages
        yield f"{counted.damaged:,} messages ({share:.1%}) hold letters of a wrong encoding (Ã©)"
    if counted.too_long / messages > 0.01:
        yield f"{counted.too_long:,} messages are longer than {_LONG:,} letters: were they typed?"
    if counted.malformed:
        yield f"{counted.malformed:,} records are malformed: no user, no text, or unreadable"


def likeliest_language(sample: Counter[str]) -> str | None:
    """Return the language whose frequent words a text is fullest of; None for too little text."""
    from wordfreq import available_languages, top_n_list

    if sample.total() < 200:
        return None
    shares = {
        language: sum(sample[word] for word in top_n_list(language, _TELLING)) / sample.total()
        for language in available_languages("best")
    }
    return max(shares, key=lambda language: shares[language])


def _words_of(locale: str) -> Iterator[str]:
    return (word for word, _ in wordfreq_list.entries(locale))
