"""Do the parts of a run fit together? Each check refuses what the rest of the run cannot keep."""

from __future__ import annotations

from pfl_lm.devices.trainable import require_trainable
from pfl_lm.dp.policy import Policy
from pfl_lm.payload.layout import Payload
from pfl_lm.run.aggregation import ExternalAggregator
from pfl_lm.run.context import RunContext, smallest_and_largest_payload
from pfl_lm.run.scenario import Scenario


def check_external(
    scenario: Scenario, policy: Policy | None, external: ExternalAggregator | None
) -> None:
    """Refuse another library's aggregator that is missing, or cannot do what the policy states."""
    if scenario.aggregator == "exact":
        return
    if external is None or external.name != scenario.aggregator:
        raise ValueError(
            f'aggregator = "{scenario.aggregator}": hand that library\'s aggregator to '
            "open_run or simulate (external=); the command line does"
        )
    if policy is not None and (reason := external.unsupported_reason(policy)):
        raise ValueError(f'aggregator = "{scenario.aggregator}" {reason}')
    if policy is not None and scenario.reproducible and policy.noise.at != "none":
        raise ValueError(
            f'reproducible: noise of aggregator = "{scenario.aggregator}" comes from no seed of '
            "ours"
        )
    external.check()


def check_training(context: RunContext) -> None:
    """Refuse what no device could train, before anything of the run is written."""
    require_trainable(context.spec, context.scenario.training)


def check_payloads(context: RunContext) -> None:
    """Refuse payloads that the policy does not cover, and what could not be summed."""
    policy = context.privacy.policy
    smallest, largest = smallest_and_largest_payload(context)
    if policy is not None and policy.noise.at == "device" and smallest.dim < policy.noise.min_dim:
        raise ValueError(
            f"the payload of round {smallest.round + 1} has {smallest.dim:,} coordinates, the "
            f"policy covers {policy.noise.min_dim:,} or more; lower the policy's noise.min_dim or "
            "send more"
        )
    _check_stream(context, largest)
    _check_clipping(context)
    for payload in (smallest, largest):
        context.aggregation.describe(context.privacy.grid(payload.dim))


def check_groups(context: RunContext) -> None:
    """Refuse public groups where something in the run knows of one sum alone."""
    groups, scenario = context.privacy.groups, context.scenario
    if groups == 1:
        if scenario.trimmed_groups:
            raise ValueError("trimmed_groups: the policy opens one sum a round; state its groups")
        return
    if scenario.fleet is not None or scenario.aggregator != "exact":
        raise ValueError(
            f"the policy's groups = {groups}: a fleet, or another library's aggregator, sums a "
            "round as a whole; leave fleet and aggregator out, or choose a policy with groups = 1"
        )
    if scenario.cohort % groups or scenario.cohort // groups < 3:
        raise ValueError(
            f"cohort = {scenario.cohort} must be a multiple of the policy's groups = {groups}, "
            "with at least 3 reports in each"
        )
    if 2 * context.trimmed_groups >= groups:
        raise ValueError(
            f"trimmed_groups = {context.trimmed_groups} at either end leave none of {groups} groups"
        )


def _check_clipping(context: RunContext) -> None:
    """Refuse a clip norm that begins outside its bounds, or that cannot follow the updates."""
    clipping, scenario = context.privacy.clipping, context.scenario
    if clipping is None:
        return
    if not clipping.lowest <= scenario.clip_norm <= clipping.highest:
        raise ValueError(
            f"clip_norm = {scenario.clip_norm:g}, of the first round, lies outside the policy's "
            f"clipping.lowest = {clipping.lowest:g} to clipping.highest = {clipping.highest:g}"
        )
    if context.privacy.external_noise:
        raise ValueError(
            f'aggregator = "{scenario.aggregator}" sums at one clip norm alone; leave it out, or '
            "choose a policy without a clipping table"
        )


def _check_stream(context: RunContext, payload: Payload) -> None:
    """Refuse what noise that is correlated between rounds cannot follow from round to round."""
    policy = context.privacy.policy
    if policy is None or not policy.mechanism.stateful:
        return
    kind = f'noise.kind = "{policy.noise.kind}" is correlated between rounds'
    if payload.directions is not None:
        raise ValueError(
            f"payload.directions: {kind}, and directions are new in every round; send the "
            'coordinates themselves, or choose a policy with noise.kind = "gaussian"'
        )
    if context.scenario.rotate:
        raise ValueError(
            f"rotate: {kind}, and each round rotates otherwise; leave rotate out, or choose a "
            'policy with noise.kind = "gaussian"'
        )
    if payload.places is not None and policy.noise.kind == "tree":
        raise ValueError(
            'payload: noise.kind = "tree" needs one in which everything travels in every round; '
            'send everything, or choose a policy with noise.kind = "blt"'
        )


def check_processor(context: RunContext) -> None:
    """Refuse a card for a method whose steps are the processor's alone."""
    method = context.scenario.training.method
    if context.processor.device.type != "cpu" and method != "backpropagation":
        raise ValueError(
            f'training.method = "{method}" trains on the processor alone: leave processor = '
            f'"{context.processor.device.type}" out, or choose method = "backpropagation"'
        )
