"""What devices are told of a question: a plan for all rounds, and each round's content.

    plan      once    kind, entries, how the tree is walked, or the models' specs; a device holds it
                      against its rules
    content   a round the words of the list, or the beginnings that are asked further, as JSON; or
                      the models' parameters

A device makes the round's query of both by itself, so a digest of the query binds everything that
it answers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from pfl_lm.dp.policy import Policy
from pfl_lm.queries.discover import Words
from pfl_lm.queries.groups import place_of
from pfl_lm.queries.prefix_tree import Tree, TreePlan
from pfl_lm.queries.two_models import (
    COMPARED,
    TwoModels,
    content_bytes,
    two_models,
    with_parameters,
)
from pfl_lm.queries.word_list import WordList
from pfl_lm.recipes import from_plain
from pfl_lm.validate import within

LISTED, OPEN = "words of a list", "words in no list"
# What a device answers at most; `pfl-lm words` asks for no more.
MOST_ENTRIES, MOST_CELLS, MOST_LETTERS = 1000, 1 << 22, 160
_MOST_CONTENT = 64 * MOST_CELLS  # bytes
_SOURCE = "the server's question"


Asked = Words | TwoModels  # what is known of a question, before a round


def plan_of(words: Asked) -> dict[str, Any]:
    """Return what devices are told before the first round, as plain values."""
    if isinstance(words, TwoModels):
        return words.plan()
    if isinstance(words, Tree):
        return {"kind": OPEN, **asdict(words.plan), "letters": list(words.plan.letters)}
    return {
        "kind": LISTED,
        "entries": words.entries,
        "false_positives": words.false_positives,
    }


def content_of(words: Asked, denied: Collection[str]) -> bytes:
    """Return what devices are told of the next round: JSON in UTF-8, or parameters."""
    if isinstance(words, TwoModels):
        return words.content()
    content: dict[str, Any]
    if isinstance(words, Tree):
        passed_over = sorted({*words.found, *denied})
        content = {
            "level": words.round,
            "prefixes": list(words.prefixes),
            "passed_over": passed_over,
        }
    else:
        content = {"words": list(words.words)}
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def check_plan(plan: Mapping[str, Any], vocabulary: int) -> None:
    """Refuse a plan that no honest server states, before any round.

    Args:
        vocabulary: words of the device's own vocabulary.

    Raises:
        ValueError: naming the field.
    """
    if plan.get("kind") == COMPARED:
        two_models(plan, vocabulary)
    else:
        plan_with(plan, ("",))


def check_groups(plan: Mapping[str, Any], policy: Policy, group: str | None) -> None:
    """Refuse a question by groups that the device's own policy does not permit, or does not know.

    Args:
        group: the device's own.

    Raises:
        ValueError: naming the field.
    """
    groups = tuple(plan.get("groups", ())) if plan.get("kind") == COMPARED else ()
    if groups and groups != policy.public_labels:
        raise ValueError(
            f"groups: {_SOURCE} is by {', '.join(groups)}, and this device's policy permits "
            f"{', '.join(policy.public_labels) or 'none'}; update the app"
        )
    if groups:
        place_of(group, groups, "--group")


def purpose_of(plan: Mapping[str, Any]) -> str:
    """Return what a ledger and a participation record call such a question."""
    return "comparison" if plan.get("kind") == COMPARED else "words"


def most_bytes(plan: Mapping[str, Any], vocabulary: int) -> int:
    """Return the bytes of a round's content, at most: a device reads no more."""
    if plan.get("kind") == COMPARED:
        return content_bytes(two_models(plan, vocabulary))
    return _MOST_CONTENT


def asked_of(
    plan: Mapping[str, Any], content: bytes, vocabulary: int
) -> tuple[Asked, frozenset[str]]:
    """Read what a round asks for, and which words are passed over.

    Raises:
        ValueError: the content is none of this plan, or asks for more than a device answers.
    """
    if plan.get("kind") == COMPARED:
        return with_parameters(two_models(plan, vocabulary), content), frozenset()
    return words_of(plan, content)


def plan_with(plan: Mapping[str, Any], words: tuple[str, ...]) -> Words:
    """Build what a plan says of the words of a list, or of the tree at its root."""
    numbers = {name: value for name, value in plan.items() if name != "kind"}
    if plan.get("kind") == LISTED and numbers.keys() == {"entries", "false_positives"}:
        listed = from_plain(WordList, {**numbers, "words": words}, _SOURCE)
        within(1, MOST_ENTRIES, entries=listed.entries)
        return listed
    letters = numbers.get("letters")
    if plan.get("kind") != OPEN or not isinstance(letters, list) or len(letters) > MOST_LETTERS:
        raise ValueError(f"kind = {plan.get('kind')!r}: {_SOURCE} is none that is known here")
    of_tree = from_plain(TreePlan, numbers, _SOURCE)
    within(1, MOST_ENTRIES, entries=of_tree.entries)
    within(1, MOST_CELLS, cells=of_tree.cells)
    return Tree(of_tree)


def words_of(plan: Mapping[str, Any], content: bytes) -> tuple[Words, frozenset[str]]:
    """Read what a round asks for, and which words are passed over.

    Raises:
        ValueError: the content is none of this plan, or asks for more cells than a device answers.
    """
    try:
        told = json.loads(content)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested too deep
        raise ValueError(f"{_SOURCE} cannot be read: {error}") from None
    if plan.get("kind") == LISTED:
        listed = _texts(told, "words")
        within(1, MOST_CELLS, cells=len(listed))
        return plan_with(plan, listed), frozenset()
    tree = plan_with(plan, ())
    assert isinstance(tree, Tree)
    prefixes, passed_over = _texts(told, "prefixes"), frozenset(_texts(told, "passed_over"))
    if type(level := told.get("level")) is not int:
        raise ValueError(f"{_SOURCE} cannot be read: level = {level!r} is no whole number")
    _check_prefixes(tree.plan, level, prefixes)
    return Tree(tree.plan, level, prefixes), passed_over


def _texts(told: Any, name: str) -> tuple[str, ...]:
    """Return a list of texts that a round's content holds.

    Raises:
        ValueError: there is none.
    """
    texts = told.get(name) if isinstance(told, dict) else None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{_SOURCE} cannot be read: {name} is no list of texts")
    return tuple(texts)


def _check_prefixes(plan: TreePlan, level: int, prefixes: tuple[str, ...]) -> None:
    """Refuse beginnings that no honest walk down the tree leads to."""
    within(0, plan.rounds - 1, level=level)
    within(1, plan.most_prefixes(level), prefixes=len(prefixes))
    length = plan.length(level - 1) if level else 0
    letters = set(plan.letters)
    for prefix in prefixes:
        if len(prefix) != length or not letters.issuperset(prefix):
            raise ValueError(
                f"prefixes: {prefix[:20]!r} is no beginning of {length} letters of the alphabet"
            )
