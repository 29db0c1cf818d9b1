"""README and docs: links lead somewhere, commands run from a built wheel in an empty folder.

A fenced block marked ``bash`` or ``python`` runs, in the order of its page. A comment before it,
``<!-- needs: … -->``, says why it cannot run here. A block that needs minutes runs where
PFL_LM_TEST_MINUTES is set.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, *(ROOT / n for n in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"))]
PACKAGED = ("pfl_lm", "tokenizers", "simulations", "privacy")
BUILT_FROM = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"(?:<!-- needs: (.+?) -->\n)?```(bash|python)\n(.*?)```", re.DOTALL)
NAMED = re.compile(r"`(\w+)`\s+(?:of|in)\s+\[[^\]]*\]\(([^)\s]+\.py)\)")
TEST = re.compile(r"(tests/[\w/]+\.py)(?:::(\w+))?")
MINUTES = "PFL_LM_TEST_MINUTES" in os.environ
LEAST, MOST = 2_000, 150_000  # bytes of an image


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    needs: str | None
    text: str

    @property
    def runs(self) -> bool:
        return self.needs is None or (self.needs == "minutes" and MINUTES)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path) -> list[Block]:
    found = BLOCK.findall(path.read_text(encoding="utf-8"))
    return [Block(language, needs or None, text) for needs, language, text in found]


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Path:
    """Build a wheel from a copy of the sources and install it, alone, into a folder."""
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "installed"))
    for folder in PACKAGED:
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in BUILT_FROM:
        shutil.copy(ROOT / file, source / file)
    build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", "dist"]
    _quietly(build, source)
    wheel = next((source / "dist").glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target"]
    _quietly([*pip, str(target), str(wheel)], source)
    shutil.copy(wheel, target / wheel.name)
    return target


def _quietly(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def environment(installed: Path) -> dict[str, str]:
    """The wheel first, and nothing of the clone."""
    paths = {"PATH": f"{installed / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    return os.environ | paths | {"PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.mark.wheel
def test_a_wheel_holds_every_recipe(installed):
    with zipfile.ZipFile(next(installed.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    recipes = [file for folder in PACKAGED[1:] for file in (ROOT / folder).rglob("*.toml")]
    assert len(recipes) > 20
    for file in recipes:
        assert f"pfl_lm/shipped/{file.relative_to(ROOT).as_posix()}" in names
    assert not {name for name in names if name.startswith(("tests/", "privacy/", "simulations/"))}


@pytest.mark.wheel
def test_a_wheel_holds_the_device_in_javascript(installed):
    modules = {path.name for path in (ROOT / "pfl_lm" / "web_device").glob("*.mjs")}
    assert "device.mjs" in modules
    assert {path.name for path in (installed / "pfl_lm" / "web_device").glob("*.mjs")} == modules


@pytest.mark.wheel
def test_an_installed_wheel_finds_its_recipes_by_name(installed, tmp_path):
    code = (
        "from pathlib import Path; import pfl_lm; from pfl_lm.recipes import find, load;"
        "from pfl_lm.run.scenario import Scenario;"
        "scenario = load(Scenario, Path('chat_partial'));"
        "print(Path(pfl_lm.__file__).parent, scenario.policy, scenario.tokenizer, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(installed),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    package, policy, tokenizer = map(Path, done.stdout.splitlines())
    assert package == installed / "pfl_lm"
    assert policy == package / "shipped" / "privacy" / "keyboard_150.toml"
    assert tokenizer == tmp_path / "data" / "en_30k"


@pytest.mark.wheel
@pytest.mark.parametrize("page", [p for p in PAGES if any(b.runs for b in blocks(p))], ids=name)
def test_blocks_run_in_an_empty_folder_from_a_wheel(installed, tmp_path, page):
    (tmp_path / "dist").mkdir()
    shutil.copy(next(installed.glob("*.whl")), tmp_path / "dist")
    for block in blocks(page):
        if not block.runs:
            continue
        text = "\n".join(line for line in block.text.splitlines() if not _of_a_clone(line))
        shell = ["bash", "-euo", "pipefail", "-c", text]
        command = shell if block.language == "bash" else [sys.executable, "-c", text]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(installed), capture_output=True, text=True,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block.text}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def _of_a_clone(line: str) -> bool:
    """Say whether a line installs, or is of a clone: both are done, or tested, elsewhere."""
    return line.startswith(("make ", "pip install "))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_block_that_does_not_run_says_what_it_needs(page):
    known = {
        "minutes",
        "hours",
        "own text",
        "several machines",
        "several processes",
        "extra packages",
        "tensorflow-federated",
    }
    for block in blocks(page):
        assert block.needs is None or block.needs in known


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        target, _, anchor = link.partition("#")
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        assert path.is_relative_to(ROOT), link
        if anchor and path.suffix == ".md":
            assert anchor in _anchors(path), link


def _anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_a_name_stands_in_the_file_that_is_said_to_hold_it(page):
    for named, file in NAMED.findall(page.read_text(encoding="utf-8")):
        source = (page.parent / file).read_text(encoding="utf-8")
        assert re.search(rf"\b{named}\b", source), f"{named} of {file}"


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_named_tests_exist(page):
    for file, function in TEST.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / file).is_file(), file
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not function or function in functions, f"{file}::{function}"


def test_every_promise_of_the_threat_model_names_a_test():
    text = (ROOT / "docs" / "threat_model.md").read_text(encoding="utf-8")
    table = text.split("## What is promised")[1].split("## What is not")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        assert TEST.search(row.split("|")[4]), row


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_nothing_leans_on_files_that_a_user_does_not_have(page):
    assert "../shared" not in page.read_text(encoding="utf-8")


def test_every_page_is_in_the_table_of_contents():
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^(?:.*<)?(\w+)>?$", index, flags=re.MULTILINE))
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"} <= listed


def test_images_are_small():
    images = sorted((ROOT / "docs" / "images").iterdir())
    assert images
    for image in images:
        assert LEAST < image.stat().st_size < MOST, image.name


def test_bare_make_prints_help():
    if shutil.which("make") is None:
        pytest.skip("needs make, which is not installed")
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "docs", "lint"):
        assert f"make {target} " in done.stdout
