"""Every public name has an example, and the examples run."""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import subprocess
import sys
from dataclasses import is_dataclass
from functools import cached_property
from importlib import import_module

import pytest

import pfl_lm
from pfl_lm.dp.policy import Policy
from pfl_lm.evaluation.measures import Evaluation
from pfl_lm.models.file import Model
from pfl_lm.report.comparison.bootstrap import Difference
from pfl_lm.report.comparison.compare import Comparison, Judged
from pfl_lm.report.comparison.settings import Setting
from pfl_lm.run.manifest_file import Manifest, RecordedGuarantee

pytestmark = pytest.mark.usefixtures("quick")
RETURNED = (
    pfl_lm.ProgressListener, pfl_lm.Run, pfl_lm.Scenario, Policy, Comparison, Judged, Setting,
    Difference, Evaluation, Manifest, RecordedGuarantee, Model,
)  # fmt: skip
MODULES = ("pfl_lm.api.scenarios", "pfl_lm.api.runs", "pfl_lm.api.comparing")
MORE = ("pfl_lm.recipes.settings", "pfl_lm.reference.docstrings", "pfl_lm.api.sweep.plan")


@pytest.mark.parametrize("name", [*MODULES, *MORE])
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome = doctest.testmod(import_module(name))
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_every_public_name_is_documented_and_every_function_has_an_example():
    for name in pfl_lm.__all__:
        value = getattr(pfl_lm, name)
        if name == "__version__":
            continue
        assert inspect.getdoc(value), name
        if inspect.isfunction(value):
            assert ">>> " in inspect.getdoc(value), name


@pytest.mark.parametrize("kind", RETURNED, ids=lambda kind: kind.__name__)
def test_what_the_interface_returns_is_documented(kind):
    """Its methods and properties too; fields are named in the docstring of their class."""
    told = inspect.getdoc(kind)
    assert told
    fields = {field.name for field in dataclasses.fields(kind)} if is_dataclass(kind) else set()
    for name, member in inspect.getmembers(kind):
        if name.startswith("_") or name in fields:
            continue
        if inspect.isfunction(member) or isinstance(member, property | cached_property):
            assert inspect.getdoc(member), name


def test_public_names_are_those_of_the_type_checker():
    assert set(pfl_lm._HOMES) | {"__version__"} == set(pfl_lm.__all__)
    assert dir(pfl_lm) == sorted(pfl_lm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pfl_lm.nothing  # noqa: B018


def test_importing_the_package_is_cheap():
    code = "import sys, pfl_lm; dir(pfl_lm); print(len([m for m in sys.modules if 'torch' in m]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
