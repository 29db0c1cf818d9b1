"""`python -m pfl_lm`, as torchrun starts it: `torchrun --nproc-per-node 8 -m pfl_lm simulate …`."""

from __future__ import annotations

from pfl_lm.cli import main

if __name__ == "__main__":
    main()
