"""What is odd about a text is said, and nothing is said about sound text."""

from __future__ import annotations

import pytest

from pfl_lm.text.records import Malformed, Message
from pfl_lm.text.survey import likeliest_language, oddities, survey

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
         "1 messages (0.2%) hold letters"),
        ([*messages(), Malformed("f", 3, "no user")], "1 records are malformed"),
        (messages(tuple(f"{text} qzx wvk plof grnt brrt zzk" for text in ENGLISH)),
         "of the words are unknown to the public list"),
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
    assert likeliest_language(survey(messages(users=3, each=1), "en_US", 100).sample) is None


def test_emoji_are_counted_by_message():
    records = [Message("a", "so good 🎉🎉", "train"), Message("a", "plain", "train")]
    assert survey(records, "en_US", 1000).with_emoji == 1
