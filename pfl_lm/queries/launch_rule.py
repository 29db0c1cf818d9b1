"""The rule by which a comparison of two models decides, stated before anybody is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy.special import ndtr, ndtri

from pfl_lm.dp.policy import Policy
from pfl_lm.phones.fleet import Fleet
from pfl_lm.queries.comparison import (
    PRIMARY,
    RANGES,
    Estimate,
    Measured,
    error_of,
    least_phones,
    users_needed,
)
from pfl_lm.queries.groups import noise_factor, permitted
from pfl_lm.secagg.rounds import Kind
from pfl_lm.validate import at_least, below_one, positive, within

Verdict = Literal["launch", "do not launch", "not enough phones"]


@dataclass(frozen=True)
class LaunchQuestion:
    """The rule, and whom it asks.

    Args:
        split: whose users compare the models; none of them should have trained either.
        alpha: chance to launch a model that is no better, at most; and to reject one that is
            better by ``gain`` or more.
        gain: mean gain of log-loss, in nats a prediction, that is worth a launch; 0.01 is 1% of
            perplexity. At most 0.5: a phone's difference is clipped to that.
        power: chance to launch a model that is better by ``gain``, which phones are counted for.
        spread: public guess of how much users differ in this gain, in nats; used before asking.
        tokens_per_user: a phone scores this much of its text at most.
        window: tokens that a model sees at once.
        by_group: give figures by the policy's public labels too.
        no_group_worse: reject a candidate that is shown to lose log-loss in one of the groups.
        cohort, aggregation, dropout, seed, fleet: as for any question.
    """

    split: Literal["train", "validation", "test"] = "test"
    alpha: float = 0.05
    gain: float = 0.01
    power: float = 0.9
    spread: float = 0.1
    tokens_per_user: int = 200
    window: int = 20
    by_group: bool = False
    no_group_worse: bool = False
    cohort: int | None = None
    aggregation: Kind = "ideal"
    dropout: float = 0.0
    seed: int | None = None
    fleet: Fleet | None = None

    def __post_init__(self) -> None:
        within(1e-6, 0.5, alpha=self.alpha)
        within(0.5, 1 - 1e-6, power=self.power)
        positive(gain=self.gain, spread=self.spread)
        if self.gain > (most := RANGES[PRIMARY]):
            raise ValueError(
                f"gain = {self.gain:g}: a phone's difference in {PRIMARY} is clipped to {most:g} "
                f"nats, so no mean gain is seen to exceed that; state {most:g} or less"
            )
        at_least(2, tokens_per_user=self.tokens_per_user)
        at_least(1, window=self.window)
        below_one(dropout=self.dropout)
        if self.no_group_worse and not self.by_group:
            raise ValueError("no_group_worse: state whose groups: --groups")

    def groups(self, policy: Policy) -> tuple[str, ...]:
        """Return the groups of which figures are asked; ValueError where the policy has none."""
        return permitted(policy) if self.by_group else ()


@dataclass(frozen=True)
class Decision:
    """What the rule says.

    Attributes:
        verdict: of the rule.
        reason: in a sentence.
        phones_needed: how many phones tell a gain of ``gain`` with the stated chances, from what
            was measured; None where they suffice or nothing could be measured.
    """

    verdict: Verdict
    reason: str
    phones_needed: int | None = None


def plan(question: LaunchQuestion, users: int, deviation: float, groups: Sequence[str] = ()) -> str:
    """Say before anybody is asked how often the rule will be wrong.

    Args:
        deviation: of the noise on the sum over all devices.
        groups: of which figures are asked.
    """
    needed = users_needed(question.spread, question.gain, deviation, _deviations(question))
    power, alpha = _percent(question.power), _percent(question.alpha)
    least = least_phones(deviation)
    if users < least:
        return (
            f"{users:,} phones are too few to measure anything under this policy's noise: their "
            f"count alone takes about {least:,}. A chance of {power} to launch a model that is "
            f"better by {question.gain:g} nats takes {needed:,} phones, if users differ by "
            f"{question.spread:g} nats." + _plan_of_groups(question, deviation, groups)
        )
    error = error_of(question.spread, users, deviation)
    chance = ndtr(question.gain / error + ndtri(question.alpha))
    return (
        f"{users:,} phones: a model that is no better is launched with chance {alpha} at most; one "
        f"that is better by {question.gain:g} nats is launched with chance {chance:.0%} and "
        f"rejected with {alpha} at most, if users differ by {question.spread:g} nats. A chance of "
        f"{power} takes {needed:,} phones." + _plan_of_groups(question, deviation, groups)
    )


def _plan_of_groups(question: LaunchQuestion, deviation: float, groups: Sequence[str]) -> str:
    """Say before anybody is asked what the groups change."""
    if not groups:
        return ""
    more, least = noise_factor(len(groups)) - 1, least_phones(deviation)
    text = (
        f" Figures by group ({', '.join(groups)}) make the noise on every figure {more:.0%} "
        f"larger, which is counted here; a group of fewer than about {least:,} phones tells nothing"
    )
    if not question.no_group_worse:
        return f"{text}. The rule looks at all phones together."
    return (
        f"{text}. A candidate that is shown to lose log-loss in one of them is not launched, and "
        "what is said of rejections holds for one that is worse in none."
    )


def decide(question: LaunchQuestion, measured: Measured, deviation: float) -> Decision:
    """Apply the rule to what was measured.

    With G groups if ``no_group_worse``, else 0, and k = M − 1 + G bounds beside the gain's:

    | one-sided bound | verdict |
    |---|---|
    | another measure's upper bound at 1 − alpha ÷ 2k is below 0 | do not launch |
    | with ``no_group_worse``, a group's upper bound of the gain at 1 − alpha ÷ 2k is | the same |
    | the gain's lower bound at 1 − alpha is above 0 | launch |
    | the gain's upper bound at 1 − alpha ÷ 2 is below ``gain`` | do not launch |
    | else | not enough phones, and how many it would take |

    Args:
        deviation: of the noise on the sum over all devices.

    Guarantees:
        A model whose mean gain is 0 or less is launched with chance at most alpha. One whose gain
        is ``gain`` or more and that is worse by no other measure, and with ``no_group_worse`` in no
        group, is rejected with chance at most alpha (a union bound over the 1 + k bounds). Both as
        far as the estimates are normal, with an error that errs upward.
    """
    found = measured.whole
    if found is None:
        return Decision("not enough phones", "Too few phones have text to measure anything.")
    main, alpha = found[PRIMARY], question.alpha
    if worse := _worse(question, found, measured):
        return Decision("do not launch", f"The candidate is worse {worse}.")
    low, high = main.bound(alpha), main.bound(1 - alpha / 2)
    if low > 0:
        gains = f"The candidate gains at least {low:.4f} nats a prediction."
        return Decision("launch", gains + _unknown(question, measured))
    if high < question.gain:
        worth = f"{question.gain:g} are worth a launch"
        return Decision("do not launch", f"It gains at most {high:.4f} nats, and {worth}.")
    text = f"The gain lies between {low:.4f} and {high:.4f} nats: these phones cannot tell"
    if main.error * _deviations(question) <= question.gain:
        chance = f"a gain of {question.gain:g} nats with a chance of {_percent(question.power)}"
        return Decision("not enough phones", f"{text}, though so many tell {chance}.")
    needed = users_needed(main.spread, question.gain, deviation, _deviations(question))
    return Decision("not enough phones", f"{text}.", needed)


def _worse(question: LaunchQuestion, found: Mapping[str, Estimate], measured: Measured) -> str:
    """Return by what, or for whom, the candidate is shown to be worse; "" for nothing."""
    groups = measured.groups if question.no_group_worse else {}
    others = {f"by {name}": each for name, each in found.items() if name != PRIMARY}
    others |= {f"for the group {name}": each[PRIMARY] for name, each in groups.items() if each}
    reach = 1 - question.alpha / (2 * (len(found) - 1 + len(groups)))
    return next((name for name, each in others.items() if each.bound(reach) < 0), "")


def _unknown(question: LaunchQuestion, measured: Measured) -> str:
    """Say of which groups the rule could not tell whether they get worse."""
    names = [name for name, found in measured.groups.items() if found is None]
    if not names or not question.no_group_worse:
        return ""
    return f" Too few phones tell whether it is worse for {', '.join(names)}."


def _percent(chance: float) -> str:
    """Return a stated chance as it was stated: 5%, 0.1%, 99.9999%."""
    return f"{100 * chance:.8g}%"


def _deviations(question: LaunchQuestion) -> float:
    """Standard errors between 0 and the gain at which both stated chances hold."""
    return float(ndtri(question.power) - ndtri(question.alpha))
