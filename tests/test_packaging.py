"""What a checkout and a wheel hold: the same bytes on every machine, licences included."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from pfl_lm.keyboard import runtime
from pfl_lm.keyboard.site import PAGE

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(not (ROOT / "Makefile").is_file(), reason="not in a clone")


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_make_refuses_another_python_before_it_fetches_torch():
    lines = (ROOT / "Makefile").read_text(encoding="utf-8").split("define environment", 1)[1]
    recipe = lines.split("endef", 1)[0]
    low, high = re.findall(r"\((\d+, \d+)\)", recipe.split("sys.exit", 1)[1])[:2]
    stated = f">={low.replace(', ', '.')},<{high.replace(', ', '.')}"
    assert stated == project()["project"]["requires-python"]
    assert recipe.index("sys.version_info") < recipe.index("torch")


def test_no_wheel_holds_what_make_fetches():
    kept = project()["tool"]["setuptools"]["package-data"]
    assert runtime.FOLDER.name == "web"
    assert not [glob for globs in kept.values() for glob in globs if glob.startswith("web")]
    assert not {Path(name).suffix for name in runtime.FILES} & {
        Path(glob).suffix for glob in kept["*"]
    }


def test_the_licence_of_the_web_runtime_is_part_of_every_page():
    text = (PAGE / "LICENSE.onnxruntime-web.txt").read_text(encoding="utf-8")
    assert "MIT License" in text
    assert "Copyright (c) Microsoft Corporation" in text
    assert "page/*" in project()["tool"]["setuptools"]["package-data"]["pfl_lm.keyboard"]
