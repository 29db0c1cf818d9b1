"""Text of the pages against what it stands on: 4.5 to 1 at least, controls 3 to 1 (WCAG 2.2 AA)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pfl_lm

ROOT = Path(pfl_lm.__file__).parent
PAGES, KEYBOARD = ROOT / "pages" / "theme.css", ROOT / "keyboard" / "page" / "style.css"
TEXT, CONTROL = 4.5, 3.0
PAIRS = {
    PAGES: [(ink, paper, TEXT) for paper in ("paper", "card") for ink in ("ink", "quiet", "care")]
    + [("quiet", "warm", TEXT), ("quiet", "tint", TEXT), ("care", "warm", TEXT)]
    + [("good", "tint", TEXT), ("bad", "alarm", TEXT), ("bad", "warm", TEXT)],
    KEYBOARD: [(ink, paper, TEXT) for paper in ("paper", "card") for ink in ("ink", "quiet")]
    + [("accent", "tint", TEXT), ("accent", "board", TEXT), ("on-accent", "accent", TEXT)]
    + [("quiet", "tint", TEXT), ("label", "key", TEXT), ("danger", "card", TEXT)]
    + [("ink", "key-2", TEXT), ("off", "card", CONTROL)],
}


def colours(path: Path, scheme: str) -> dict[str, str]:
    """Return the custom properties of a style sheet in the light or the dark scheme."""
    light, dark = re.findall(r":root \{(.*?)\}", path.read_text(encoding="utf-8"), re.DOTALL)[:2]
    found = dict(re.findall(r"--([\w-]+): #([0-9a-f]{6})", light))
    if scheme == "dark":
        found |= dict(re.findall(r"--([\w-]+): #([0-9a-f]{6})", dark))
    return found


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.name)
def test_text_can_be_read(path, scheme):
    found = colours(path, scheme)
    for ink, paper, least in PAIRS[path]:
        low, high = sorted((luminance(found[ink]), luminance(found[paper])))
        assert (high + 0.05) / (low + 0.05) >= least, (ink, paper)


def test_what_only_tells_lines_apart_is_no_colour_of_text():
    sheets = [path for path in ROOT.rglob("*.css") if path != PAGES]
    written = [path.name for path in sheets if "color: var(--c1)" in path.read_text("utf-8")]
    assert written == []
