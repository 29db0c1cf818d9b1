"""A device of the secure aggregation protocol in JavaScript, for browsers and for Node."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ANSWER = FOLDER / "answer.mjs"  # answers conformance vectors over standard input and output
