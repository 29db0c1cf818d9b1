"""Fuzz every target by hand: `make fuzz`, or `python -m tests.fuzz [--minutes 60] [TARGET...]`.

Every finding is written to a file beside a line that says what was raised; the status is then 1.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.fuzz.driver import Finding, attempts, opened_targets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of all targets together [60]")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the mutations")
    parser.add_argument("--findings", type=Path, default=Path("fuzz_findings"))
    parser.add_argument("targets", nargs="*", help="parts of names [all]")
    arguments = parser.parse_args()
    found: list[Finding] = []
    with tempfile.TemporaryDirectory() as scratch, opened_targets(Path(scratch) / "f") as known:
        chosen = [
            target
            for target in known
            if not arguments.targets or any(part in target.name for part in arguments.targets)
        ]
        seconds = 60 * arguments.minutes / max(1, len(chosen))
        for target in chosen:
            until, count = time.monotonic() + seconds, 0
            for finding in attempts(target, arguments.seed):
                count += 1
                if finding is not None:
                    found.append(finding)
                    print(f"{target.name}: {finding.keep(arguments.findings)}", flush=True)
                if time.monotonic() > until or sum(f.target == target.name for f in found) >= 5:
                    break
            print(f"{target.name}: {count:,} inputs in {seconds:.0f} s", flush=True)
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
