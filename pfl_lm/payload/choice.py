"""Which coordinates travel in a round, from public information alone.

The choice follows from the plan, the model's shape, the public unigram and the round's number,
never from what a device typed. The whole cohort shares it, and the server may know it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import numpy as np

from pfl_lm.payload.directions import Directions
from pfl_lm.payload.layout import Floats, IDs, ParameterRole, Payload, Segment
from pfl_lm.payload.plan import DENSE_KINDS, DenseKind, PayloadPlan
from pfl_lm.payload.rows import draw_rows
from pfl_lm.streams import stream


def choose(
    plan: PayloadPlan,
    roles: Mapping[str, ParameterRole],
    unigram: Floats,
    specials: Sequence[int],
    seed: int,
    round: int,
) -> Payload:
    """Choose what travels in a round, from public information alone.

    Args:
        plan: what may travel.
        roles: parameters of the model, in the order in which they are laid out.
        unigram: float64[V] public word probabilities, all positive.
        specials: words whose rows always travel.
        seed, round: name the random stream of the draw; nothing else enters it.

    Raises:
        ValueError: the plan does not fit the model; the message says what would.

    Guarantees:
        The result is a function of the arguments, none of which a device's text can touch.
    """
    _check(plan, roles, len(unigram), specials)
    rows, inclusion = _rows(plan, unigram, specials, seed, round)
    kinds = DENSE_KINDS[plan.dense]
    layers = travelling_layers(plan, roles, seed, round)
    segments: list[Segment] = []
    offset = reach = 0
    for name, role in roles.items():
        start, whole = reach, int(np.prod(role.shape))
        if role.kind == "rows" and plan.rows != "none":
            shape = role.shape if rows is None else (len(rows), *role.shape[1:])
            segment = Segment(name, shape, rows, offset, int(np.prod(shape)), start)
        elif role.kind in kinds:
            segment = Segment(name, role.shape, None, offset, whole, start)
        else:
            continue
        reach += whole
        if role.kind == "rows" or _layer(name) in layers:
            segments.append(segment)
            offset += segment.size
    directions = None
    if plan.directions is not None:
        directions = Directions(plan.directions, offset, seed, round)
    fewest = _fewest(plan, roles, segments)
    return Payload(round, tuple(segments), rows, inclusion, plan.outside, directions, reach, fewest)


def _fewest(
    plan: PayloadPlan, roles: Mapping[str, ParameterRole], segments: Sequence[Segment]
) -> int:
    """Return a number of coordinates that no round of the plan has fewer of.

    Rows are as many in every round. A round in which one turn of the layers ends and the next
    begins may meet a layer twice: at least half as many different ones travel.
    """
    sizes = dict.fromkeys(dense_layers(roles), 0)
    for name, role in roles.items():
        if role.kind in DENSE_KINDS[plan.dense]:
            sizes[_layer(name)] += int(np.prod(role.shape))
    different = len(sizes)
    if plan.layers is not None and plan.layers < len(sizes):
        different = -(-plan.layers // (2 if len(sizes) % plan.layers else 1))
    of_rows = sum(segment.size for segment in segments if roles[segment.name].kind == "rows")
    return plan.directions or of_rows + sum(sorted(sizes.values())[:different])


def _rows(
    plan: PayloadPlan, unigram: Floats, specials: Sequence[int], seed: int, round: int
) -> tuple[IDs | None, Floats | None]:
    """Return the round's rows int64[k] with their inclusion probabilities; None for all rows."""
    if plan.rows == "all":
        return None, None
    if plan.rows == "none":
        return np.empty(0, np.int64), np.empty(0)
    weights = unigram ** (plan.temper if plan.draw == "unigram" else 0.0)
    return draw_rows(plan.rows, weights, specials, seed, round)


def travelling_layers(
    plan: PayloadPlan, roles: Mapping[str, ParameterRole], seed: int, round: int
) -> set[str]:
    """Return the layers whose parameters may travel this round: all, or their turn's.

    Layers take turns in an order that is drawn again each time all of them have had theirs.
    """
    names = dense_layers(roles)
    if plan.layers is None or plan.layers >= len(names):
        return set(names)
    first = round * plan.layers
    places = range(first, first + plan.layers)
    turns = {place // len(names) for place in places}
    order = {t: stream(seed, "layers", t).permutation(len(names)) for t in turns}
    return {names[order[place // len(names)][place % len(names)]] for place in places}


def dense_layers(roles: Mapping[str, ParameterRole]) -> list[str]:
    """Name the layers that take turns: all but the word tables."""
    return list(dict.fromkeys(_layer(n) for n, role in roles.items() if role.kind != "rows"))


def _layer(name: str) -> str:
    """The layer that a parameter belongs to: a matrix, its bias and its factors are one."""
    return name.removesuffix(".lora_a").removesuffix(".lora_b").removesuffix("_bias")


def _check(
    plan: PayloadPlan,
    roles: Mapping[str, ParameterRole],
    vocabulary_size: int,
    specials: Sequence[int],
) -> None:
    _check_dense(plan.dense, {role.kind for role in roles.values()})
    if not isinstance(plan.rows, int):
        return
    least = len(set(specials)) + 1
    if not least <= plan.rows < vocabulary_size:
        raise ValueError(
            f"rows = {plan.rows}: must be at least {least} (the specials and one word) and below "
            f'the vocabulary\'s {vocabulary_size}; for every row state "all"'
        )


def _check_dense(dense: str, held: set[str]) -> None:
    """Refuse a choice of dense parameters that names kinds nobody knows, or the model lacks."""
    kinds = DENSE_KINDS[dense]
    known = get_args(DenseKind)
    if not isinstance(kinds, tuple | list | set) or not set(kinds) <= set(known):
        raise ValueError(
            f"DENSE_KINDS[{dense!r}] = {kinds!r}: name kinds of dense parameters in a tuple, of "
            f"{', '.join(known)}"
        )
    if "dense" in kinds and "lora_b" in held:
        raise ValueError(
            f'dense = "{dense}" trains the matrices themselves, so the LoRA factors would be paid '
            'for twice; leave LoRA out of the model or choose dense = "lora"'
        )
    lacking = set[str]() if dense == "all" else set(kinds) - held
    if lacking & {"lora_a", "lora_b"}:
        raise ValueError(f'dense = "{dense}" needs a model with LoRA factors: state its rank')
    if "side_branch" in lacking:
        raise ValueError(
            f'dense = "{dense}" needs a model with a side branch: state model.side_branch'
        )
