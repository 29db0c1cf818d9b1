"""How fast the keyboard page answers a finger: the times of RESULTS.

    python -m benchmarks.keyboard_page BUNDLE [--words 60] [--unlisted TEXT]

Serves the page of a bundle, opens it in headless Chromium at 390 × 844, and types words with
touches, every third with a slip. Of each touch it takes three times: what the page's own code took,
the wait until the frame with the glyph was painted, and from then the wait until the bar showed
suggestions to it. ``--unlisted`` types words of a public text that the vocabulary lacks. With
subwords, a fourth time is that until the search for words of pieces ended, and a share says how
often the next touch came before. Needs Chromium and the web runtime (`make keyboard-web`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.export.bundle import TOKENIZER, opened
from pfl_lm.keyboard.server import Server
from pfl_lm.keyboard.site import Site
from pfl_lm.text.readers import read_texts
from pfl_lm.text.tokenizer import Tokenizer
from tests.export.keyboard.conftest import Browser

PAUSE = 0.12  # seconds between touches; a fast typist's
WATCH = """
window.times = [];
addEventListener("pointerdown", (event) => {
  const one = { began: event.timeStamp, entered: performance.now() };
  times.push(one);
  requestAnimationFrame(() => { const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => { one.painted = performance.now(); }; port2.postMessage(0); });
}, true);
addEventListener("pointerdown", () => { times.at(-1).left = performance.now(); });
new MutationObserver((changes) => { const one = times.at(-1); if (!one) return;
  for (const { attributeName } of changes)
    one[attributeName === "data-suggested" ? "shown" : "composed"] ??= performance.now(); })
  .observe(document.documentElement, { attributes: true, attributeFilter: ["data-suggested", "data-composed"] });
1
"""  # noqa: E501
TYPEABLE = "(words) => words.filter((w) => [...w].every((one) => app.keys.map.keys.has(one)))"


def measure(browser: Browser, words: list[str]) -> list[dict[str, float]]:
    """Type words on the page that is open; return the times of each touch, in milliseconds."""
    browser.run(WATCH)
    for number, word in enumerate(words):
        typed = word[1] + word[0] + word[2:] if number % 3 == 2 and len(word) > 3 else word
        for character in f"{typed} ":
            browser.tap_text(character)
            time.sleep(PAUSE)
    found: list[dict[str, float]] = browser.run("times")
    return [one for one in found if {"painted", "shown", "left"} <= one.keys()]


def _words(tokenizer: Tokenizer, unlisted: Path | None) -> list[str]:
    """Return the words to type: frequent ones of the list, or those of a text that it lacks."""
    if unlisted is None:
        found = [word for word, kind in zip(tokenizer.words, tokenizer.kinds, strict=True)
                 if kind == "word"][:400]  # fmt: skip
    else:
        lacking = (tokenizer.unknown_words(text) for text in islice(read_texts(unlisted), 2000))
        found = list(dict.fromkeys(word for words in lacking for word in words))
    return [word for word in found if 2 <= len(word) <= 12]


def report(name: str, values: Any) -> None:
    """Print the median and the higher quantiles of some times."""
    middle, high, most = np.quantile(np.array(values), [0.5, 0.95, 1])
    print(f"{name}: {middle:.1f} ms (median), {high:.1f} ms (95%), {most:.1f} ms at most")


def main() -> None:
    """Serve, type, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--words", type=int, default=60)
    parser.add_argument("--unlisted", type=Path, metavar="TEXT")
    options = parser.parse_args()
    with opened(options.bundle) as bundle, tempfile.TemporaryDirectory() as profile:
        server, browser = Server(Site.of(bundle), 0), Browser(Path(profile))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            browser.open(server.address)
            browser.until("window.app && app.corrector && !app.working")
            drawn = _words(Tokenizer.open(bundle.path(TOKENIZER)), options.unlisted)
            vocabulary = browser.run(f"({TYPEABLE})({json.dumps(drawn)})")
            words = [vocabulary[7 * n % len(vocabulary)] for n in range(options.words)]
            touches = measure(browser, words)
        finally:
            browser.close()
            server.shutdown()
            server.server_close()
    print(f"{len(touches)} touches")
    report("the page's own code for a touch", [one["left"] - one["entered"] for one in touches])
    report(
        "from the touch to the painted glyph", [one["painted"] - one["began"] for one in touches]
    )
    report("from the glyph to suggestions", [one["shown"] - one["painted"] for one in touches])
    if composed := [one["composed"] - one["painted"] for one in touches if "composed" in one]:
        report("from the glyph to words of pieces", composed)
        print(f"{1 - len(composed) / len(touches):.1%} of the searches were ended by the next key")


if __name__ == "__main__":
    main()
