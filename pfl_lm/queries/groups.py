"""Answers by public group: the cells of each group, and what their noisy sums say.

A group is the devices of one label that is public anyway: a locale, a class of phones. A policy
names the labels that figures may be given for. A device fills two blocks of cells with the same
answer, each √½ times as large, so the answer is as long as it is without groups:

    block of all         every device
    block of a group     the devices of that group

The sum over one group is then seen twice: in its own block, and in the block of all less the blocks
of the others. Generalised least squares joins the two. With a share a of the squared length in the
block of all, and in units of the noise that a question without groups has, it leaves

    variance of the sum over all devices     G ÷ (1 + (G − 1)a)
    variance of the sum over one group       (1 + (G − 2)a) ÷ ((1 − a)(1 + (G − 1)a))

The first falls with a and the second rises. They meet at a = ½, where both are 2G ÷ (G + 1): below
2, whatever G. No other share keeps the larger of the two as small. Without the block of all (a = 0)
the sum over all devices would have G times the variance.

Legend: G groups, c cells of a block, y₀ the block of all, y₁ … y_G those of the groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pfl_lm.dp.policy import Policy
from pfl_lm.dp.sampler.arrays import Doubles
from pfl_lm.queries.query import Answer

OTHER = "other"  # where a policy names it: the label of devices that have none


def permitted(policy: Policy) -> tuple[str, ...]:
    """Return the labels whose groups a policy permits; ValueError where it permits none."""
    if not policy.public_labels:
        raise ValueError(
            "--groups: the policy has no public_labels, so it permits none; its owner may name "
            'labels that are public anyway: public_labels = ["low", "middle", "high"]'
        )
    return policy.public_labels


def place_of(group: str | None, groups: Sequence[str], source: str) -> int:
    """Return the place of a device's group among those of a question.

    Args:
        group: None: the device has no label.
        source: of the label, for messages.

    Raises:
        ValueError: the group is none of them; or there is no label, and no group "other".
    """
    if group is None and OTHER not in groups:
        raise ValueError(
            f"{source}: no group is stated; state one of {', '.join(groups)}, or let the policy's "
            f'public_labels name "{OTHER}" for devices that have none'
        )
    if group is not None and group not in groups:
        raise ValueError(
            f"{source}: {group!r} is none of the policy's public_labels ({', '.join(groups)})"
        )
    return groups.index(OTHER if group is None else group)


def blocks(cells: int, groups: int) -> tuple[tuple[int, int], ...]:
    """Return the cells of each group's block, [begin, end): after the block of all."""
    return tuple((cells * (g + 1), cells * (g + 2)) for g in range(groups))


def in_group(answer: Answer, cells: int, group: int) -> Answer:
    """Return an answer within one block as that of a device in a group: as long, in two blocks.

    Args:
        cells: c.
        group: from 0.
    """
    values = (answer.values * math.sqrt(0.5)).astype(np.float32)
    places = np.concatenate([answer.cells, answer.cells + cells * (group + 1)])
    return Answer(places, np.concatenate([values, values]))


def noise_factor(groups: int) -> float:
    """Return the deviation of the noise on a sum of ``split``, in deviations of a cell's noise.

    It is the same for the sum over all devices and for that over a group; 1 without groups.
    """
    return math.sqrt(2 * groups / (groups + 1)) if groups else 1.0


def split(sums: Doubles, groups: int) -> tuple[Doubles, Doubles]:
    """Return the sums over all devices, float64[c], and over each group, float64[G, c].

    The sums over the groups add up to those over all devices. Without groups there are none.

    Args:
        sums: float64[c(1 + G)], the noisy answer.
    """
    if not groups:
        return sums, np.zeros((0, len(sums)))
    both = sums.reshape(groups + 1, -1)
    of_all, own = both[0], both[1:]
    # (1 + 11ᵀ)⁻¹ = 1 − 11ᵀ ÷ (G + 1), applied to y₀ + y_g
    by_group: Doubles = math.sqrt(2) * (own + (of_all - own.sum(axis=0)) / (groups + 1))
    return by_group.sum(axis=0), by_group
