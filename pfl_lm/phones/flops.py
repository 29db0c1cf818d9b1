"""What training costs a phone in operations: counted from the shapes, products of matrices only.

Everything between the products (gates, exponentials, sums) is left out: it is linear where they
are quadratic, a few per cent at the widths of a keyboard's model.

Legend: T target tokens of a window, D width of a word's row, P width of hidden vectors, R rank of
LoRA, C words that a prediction is scored against.
"""

from __future__ import annotations

from pfl_lm.devices.local_losses import LOSSES
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.models.lora import is_layer
from pfl_lm.models.models import ModelSpec, body_of, roles
from pfl_lm.payload.layout import Payload
from pfl_lm.phones.method_costs import METHOD_COSTS, Products


def scored_words(spec: ModelSpec, payload: Payload, training: LocalTraining) -> int:
    """Return C: every word for the exact softmax, else the candidates of a step."""
    rows = 0 if payload.rows is None else len(payload.rows)
    return LOSSES[training.loss].scored(rows or spec.vocabulary_size, training.negatives)


def passes_through(payload: Payload) -> bool:
    """Whether a gradient goes through the model, not only to what lies behind or beside it."""
    beside = {"output", "output_bias", "side_branch.down", "side_branch.up"}
    return any(segment.name not in beside for segment in payload.segments)


def tokens_trained(training: LocalTraining, tokens: int) -> int:
    """Return over how many target tokens a device with ``tokens`` of text trains in a round."""
    capped = min(tokens, training.max_tokens or tokens)
    if training.steps is not None:
        return training.steps * min(capped, training.batch_size * training.window)
    return capped * (training.epochs or 1)


def training_flops(
    spec: ModelSpec, payload: Payload, training: LocalTraining, tokens: int
) -> float:
    """Return the operations of one device's local training in a round.

    A product forward; backward, one with the weight where a gradient must pass, and one for the
    weight itself where it travels. Methods without a backward pass count otherwise
    (``phones/method_costs``).

    Args:
        tokens: target tokens of the device's text, before ``training.max_tokens``.
    """
    travels = {segment.name for segment in payload.segments}
    trunk, weights = _trunk(spec, travels)
    output = 2.0 * spec.output_dim * scored_words(spec, payload, training)
    trained_output = output if spec.output_table in travels else 0.0
    products = Products(trunk, weights, output, trained_output, passes_through(payload))
    each = METHOD_COSTS[training.method].flops(products, training)
    return each * tokens_trained(training, tokens)


def _trunk(spec: ModelSpec, travels: set[str]) -> tuple[float, float]:
    """Return operations a token, forward between the tables and for the weights that travel."""
    forward = weights = 0.0
    for name, role in roles(spec).items():
        factor = role.kind in ("lora_a", "lora_b")
        if not factor and not is_layer(name, role):
            continue
        product = 2.0 * role.shape[0] * role.shape[1]
        forward += product
        weights += product if name in travels else 0.0
    if body_of(spec).heads(spec):
        forward += spec.layers * 4.0 * min(spec.context, 32) * spec.embedding_dim
    return forward, weights
