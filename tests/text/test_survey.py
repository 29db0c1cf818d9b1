"""What is odd about a text is said, and nothing is said about sound text."""

from __future__ import annotations

import pytest

from pfl_lm.text.records import Malformed, Message
from pfl_lm.text.survey import language_shares, oddities, survey

ENGLISH = (
    "the dog is in the garden and i will be late for dinner tonight",
    "what do you think about the new house that they have found",
    "can we go to the beach on sunday if it is not raining again",
    "she said that her brother had a good time at the party",
    "please call me when you are home because we need to talk",
)
GERMAN = (
    "ich weiß nicht ob wir das heute noch schaffen",
    "das ist doch nicht so schlimm wie du sagst",
)


def messages(texts=ENGLISH, users=120, each=4):
    return [
        Message(f"u{user}", f"{texts[(user + n) % len(texts)]} {user} times {n}", "train")
        for user in range(users)
        for n in range(each)
    ]


def told(records, locale="en_US") -> str:
    return " | ".join(oddities(survey(records, locale, 30_000)))


def test_sound_text_is_counted_and_nothing_is_odd():
    counted = survey(messages(), "en_US", 30_000)
    assert (counted.users, counted.messages) == (120, 480)
    assert counted.known_share > 0.95
    assert list(oddities(counted)) == []


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        (messages(users=20), "20 users: too few"),
        (messages(GERMAN), "the text looks like 'de', not 'en': name its --locale"),
        (messages(each=1), "100% of the users wrote one message"),
        ([*messages(), *[Message("bot", ENGLISH[0] + f" {n}", "train") for n in range(300)]],
         "one user wrote 39% of the words"),
        (messages() + messages(), "50% of the messages repeat another one"),
        ([*messages(), Message("u1", "cafÃ© and naÃ¯ve", "train")],
         "letters of a wrong encoding (Ã©): 1 (0.21%)"),
        ([*messages(), Malformed("f", 3, "no user")], "malformed records: 1; the first: f:3: no"),
        (messages(tuple(f"{text} qzx wvk plof grnt brrt zzk" for text in ENGLISH)),
         "of the words are unknown to the public list"),
        ([*messages(), Message("u1", "this &amp; that, I&#39;m", "train")],
         "HTML entities (&amp;): 1;"),
        (messages(tuple(f"[12/1/24, 21:03:11] Anna: {text}" for text in ENGLISH)),
         "100% of the messages begin with a date and a time"),
        (messages(tuple(f"2024-01-12 21:03 - Anna: {text}" for text in ENGLISH)),
         "100% of the messages begin with a date and a time"),
        ([Message(f"u{n}", "🎉 👍", "train") for n in range(200)],
         "no message holds a word"),
        (messages(tuple(text * 40 for text in ENGLISH)), "longer than 2,000 letters"),
    ],
)  # fmt: skip
def test_what_is_odd_is_said(records, sentence):
    assert sentence in told(records)


def test_a_language_without_a_list_is_refused():
    with pytest.raises(ValueError, match="locale"):
        survey([], "xx", 30_000)


@pytest.mark.parametrize("text", ["今日は天気がいいですね", "我今天很开心", "วันนี้อากาศดีมาก"])
def test_text_without_spaces_is_refused(text):
    with pytest.raises(ValueError, match=r"75% of the words .* Chinese, Japanese, Thai"):
        survey(messages((f"{text} {text} {text}",), users=2), "en_US", 30_000)


def test_too_little_text_tells_no_language():
    assert language_shares(survey(messages(users=3, each=1), "en_US", 100).sample) == {}


def test_emoji_are_counted_by_message():
    records = [Message("a", "so good 🎉🎉", "train"), Message("a", "plain", "train")]
    assert survey(records, "en_US", 1000).with_emoji == 1


def test_numbers_are_no_unknown_words():
    records = [Message("a", "at 10:30 on 12/01/24 it was 2.5 and 3,000 then", "train")]
    counted = survey(records, "en_US", 1000)
    assert (counted.words, counted.known_words) == (6, 6)  # at, on, it, was, and, then


def test_what_sound_text_has_is_not_called_odd():
    texts = ("AT&T & co; R&D; it is", "on 12/1 at 9 we meet &amp", "21:03 is late")
    assert "entities" not in told(messages(texts))
    assert "date" not in told(messages(texts))


HINDI_IN_LATIN = (
    "kya haal hai bhai main theek hoon tum kaise ho",
    "aaj kal kaam bahut hai yaar chalo milte hain sham ko ghar pe",
    "mujhe pata nahi tha acha theek hai baad mein kar lenge",
)
SPANISH = (
    "no sé qué hacer con esto pero me gusta mucho la casa que tienen",
    "mañana vamos a la playa si no hace frío y después a comer con ellos",
)


@pytest.mark.parametrize("locale", ["hi_IN", "en_US"])
def test_letters_of_another_script_look_like_no_language(locale):
    said = told(messages(HINDI_IN_LATIN), locale)
    assert "the text is like no public list" in said
    assert "name its --locale" not in said


def test_two_languages_are_called_two():
    mixed = messages((ENGLISH[0], SPANISH[0], ENGLISH[1], SPANISH[1]))
    assert "looks like both" in told(mixed, "en_US") + told(mixed, "es_ES")
    assert "the text looks like 'es', not 'en'" in told(messages(SPANISH), "en_US")


def test_korean_is_parted_by_spaces_and_its_list_is_not():
    with pytest.raises(ValueError, match=r"pieces of what people write .*word_list"):
        survey([], "ko_KR", 30_000)
