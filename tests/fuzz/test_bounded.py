"""Every fuzzed target on a fixed number of inputs; `make fuzz` runs them for an hour."""

from __future__ import annotations

from itertools import islice

import pytest

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from tests.fuzz.driver import attempts, opened_targets

INPUTS = 24


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    with opened_targets(tmp_path_factory.mktemp("fuzz") / "f") as opened:
        yield opened


def test_sound_inputs_pass(targets):
    """A target whose seeds are refused would fuzz its first check alone."""
    for target in targets:
        for seed in target.seeds:
            if target.name not in ("bundle.zip", "task configuration", "http2", "keyboard"):
                target.attempt(seed)


def test_no_input_raises_anything_but_what_is_promised(targets):
    found = []
    for target in targets:
        found += [f for f in islice(attempts(target, seed=1), INPUTS) if f is not None]
    assert not found, "\n".join(f"{f.target}: {f.data[:200]!r}\n{f.raised}" for f in found[:5])
