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

from pfl_lm.numbers import significant
from pfl_lm.text import wordfreq_list
from pfl_lm.text.normalisation import (
    NO_SEGMENTER,
    NUMBER,
    Normalisation,
    is_word,
    spaceless_share,
)
from pfl_lm.text.records import Malformed, Record

_SAMPLE = 200_000  # words that the language is told by
_TELLING = 2000  # most frequent words of a language, of which running text is full
_OF_ITS_LANGUAGE = 0.3  # of a text's words are among the commonest of its language, at least
_OF_BOTH = 0.75  # of the likeliest language's share has a second one that is mixed with it
_MOST_SPACELESS = 0.5  # of the words, in scripts that put no spaces between them
_DAMAGED = re.compile("\ufffd|Ã[\u0080-\u00bf©¨¼¤¶]|â€[™œ\u009d]|Â[\u0080-\u00bf ]")
_LONG = 2000  # characters of a message that no thumb typed
_ENTITY = re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|#\d{2,6}|#[xX][0-9a-fA-F]{2,5});")
# A date and a time before the text, as exports of chats write them: [12/1/24, 21:03:11] Name: …
_STAMP = re.compile(
    r"\W{0,3}(?:\d{1,2}[./-]\d{1,2}[./-]\d{2,4}|\d{4}[./-]\d{1,2}[./-]\d{1,2})[,T ]{1,3}"
    r"\d{1,2}[:.]\d\d"
)


@dataclass
class Survey:
    """What was counted; shares are of messages unless the name says otherwise."""

    locale: str
    messages: int = 0
    malformed: int = 0
    first_malformed: str = ""  # where it is, and why
    words: int = 0
    known_words: int = 0
    with_emoji: int = 0
    damaged: int = 0
    too_long: int = 0
    entities: int = 0
    stamped: int = 0
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
    rules = wordfreq_list.rules(locale, "drop", "placeholder", (NUMBER,))
    public = {word for word, _ in zip(_words_of(locale), range(vocabulary), strict=False)}
    counted, seen = Survey(locale), set[bytes]()
    for record in records:
        if isinstance(record, Malformed):
            counted.malformed += 1
            counted.first_malformed = counted.first_malformed or str(record)
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
    pieces = [p for p in everything if is_word(p) and rules.canonical(p) != NUMBER]
    counted.messages += 1
    counted.messages_of[user] += 1
    counted.words_of[user] += len(pieces)
    counted.words += len(pieces)
    counted.known_words += sum(piece in public for piece in pieces)
    counted.with_emoji += any(unicodedata.category(letter) == "So" for letter in text)
    counted.damaged += bool(_DAMAGED.search(text))
    counted.too_long += len(text) > _LONG
    counted.entities += bool(_ENTITY.search(text))
    counted.stamped += bool(_STAMP.match(text))
    digest = hashlib.blake2b(" ".join(everything).encode(), digest_size=8).digest()
    counted.repeated += len(pieces) > 3 and digest in seen
    seen.add(digest)
    if counted.sample.total() < _SAMPLE:
        counted.sample.update(pieces)


def oddities(counted: Survey) -> Iterator[str]:
    """Yield a sentence for each thing that a person should know before training on the text."""
    users, messages = counted.users, max(1, counted.messages)
    yield from _of_the_words(counted)
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
    yield from _of_the_letters(counted)
    if counted.malformed:
        yield f"malformed records: {counted.malformed:,}; the first: {counted.first_malformed}"


def _of_the_words(counted: Survey) -> Iterator[str]:
    """Say whose language the words are, where there are any."""
    language = wordfreq_list.language_of(counted.locale)
    shares = language_shares(counted.sample)
    likely = max(shares, key=lambda name: shares[name], default=language)
    if counted.messages and not counted.words:
        yield "no message holds a word: a keyboard has nothing to learn from it"
    elif likely != language and shares[likely] < _OF_ITS_LANGUAGE:
        yield (
            f"the text is like no public list (the commonest words of {likely!r}, the nearest, are "
            f"{shares[likely]:.0%} of it; those of {language!r} {shares.get(language, 0.0):.0%}): "
            "other letters than the language is written in, or several languages? A list of such "
            "words, or public text, makes a better vocabulary (docs/own_text.md)"
        )
    elif likely != language and shares.get(language, 0.0) > _OF_BOTH * shares[likely]:
        yield (
            f"the text looks like both {likely!r} and {language!r}: if people mix them, "
            "second_locale takes in both lists (docs/own_text.md)"
        )
    elif likely != language:
        yield f"the text looks like {likely!r}, not {language!r}: name its --locale"
    elif counted.words and counted.known_share < 0.8:
        yield (
            f"{1 - counted.known_share:.0%} of the words are unknown to the public list: another "
            "language, spelling or jargon; subwords or `pfl-lm words discover` can help"
        )


def _of_the_letters(counted: Survey) -> Iterator[str]:
    """Say what stands in messages that nobody typed."""
    messages = max(1, counted.messages)
    if counted.damaged:
        percent = significant(100 * counted.damaged / messages, 2)
        yield f"messages with letters of a wrong encoding (Ã©): {counted.damaged:,} ({percent}%)"
    if counted.entities / messages > 0.001:
        yield (
            f"messages with HTML entities (&amp;): {counted.entities:,}; their names would be "
            "learnt as words: decode them first"
        )
    if (share := counted.stamped / messages) > 0.2:
        yield (
            f"{share:.0%} of the messages begin with a date and a time, as a chat's export writes "
            "them: make a record of each message, under the user who wrote it, without them"
        )
    if counted.too_long / messages > 0.01:
        yield f"{counted.too_long:,} messages are longer than {_LONG:,} letters: were they typed?"


def language_shares(sample: Counter[str]) -> dict[str, float]:
    """Return what share of a text the commonest words of each language are; {} for too little."""
    from wordfreq import available_languages, top_n_list

    if sample.total() < 200:
        return {}
    return {
        language: sum(sample[word] for word in top_n_list(language, _TELLING)) / sample.total()
        for language in available_languages("best")
    }


def _words_of(locale: str) -> Iterator[str]:
    return (word for word, _ in wordfreq_list.entries(locale))
