"""Every figure that needs no real text, one benchmark after the other: `make bench`.

The simulator's benchmark builds an environment for apple/pfl-research on its first run
(`.env-pfl`, about a gigabyte). The table on real chat comes from the commands in its own rows.
"""

from __future__ import annotations

import subprocess
import sys

PARTS = (
    ("Text", ["benchmarks.population"]),
    ("Privacy primitives", ["benchmarks.noise"]),
    ("Evaluation", ["benchmarks.evaluation"]),
    ("Secure aggregation, a client", ["benchmarks.secagg", "client"]),
    ("Cost as work grows", ["benchmarks.scale"]),
    ("Several processes", ["benchmarks.ranks"]),
    ("The simulator beside pfl-research", ["benchmarks.simulator"]),
)


def main() -> None:
    """Run every part; one that fails does not keep the others from running."""
    failed = []
    for title, command in PARTS:
        print(f"\n== {title}: python -m {' '.join(command)}", flush=True)
        if subprocess.run([sys.executable, "-m", *command], check=False).returncode:
            failed.append(title)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
