"""A manifest read back: what a run wrote is what its readers look up."""

from __future__ import annotations

import json

import pytest

from pfl_lm.run.folder import RunFolder
from pfl_lm.run.manifest import manifest
from pfl_lm.run.manifest_file import FORMAT, Manifest
from pfl_lm.run.setup import open_run


def written(path, content) -> RunFolder:
    (path / "manifest.json").write_text(json.dumps(content))
    return RunFolder(path)


def test_what_a_run_writes_is_read_whole(tiny_scenario, policy_file, tmp_path):
    context = open_run(tiny_scenario(policy=policy_file()))
    content = manifest(context, "tiny")
    found = Manifest.read(written(tmp_path, content))
    assert found.content == json.loads(json.dumps(content))
    assert (found.run, found.scenario.rounds) == ("tiny", context.scenario.rounds)
    assert found.scenario.window == context.scenario.training.window
    assert found.policy is not None
    assert found.guarantee is not None
    assert found.guarantee.statement == content["guarantee"]["statement"]
    assert found.population.cohort_rule.kind == content["population"]["cohort_rule"]["kind"]
    assert found.model.start == {"kind": "random"}


def test_the_least_manifest_is_read(plain_manifest, tmp_path):
    found = Manifest.read(written(tmp_path, plain_manifest))
    assert found.policy is found.guarantee is found.fleet is found.vocabulary is None


@pytest.mark.parametrize("name", ["run", "scenario", "statements", "population", "tokenizer"])
def test_what_is_missing_is_named_in_one_line(plain_manifest, tmp_path, name):
    content = {key: value for key, value in plain_manifest.items() if key != name}
    with pytest.raises(ValueError, match=rf"manifest\.json is damaged.*{name}: Field") as caught:
        Manifest.read(written(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_another_format_is_said(plain_manifest, tmp_path):
    with pytest.raises(ValueError, match=f"has format {FORMAT + 1}, this version reads {FORMAT}"):
        Manifest.read(written(tmp_path, plain_manifest | {"format": FORMAT + 1}))
