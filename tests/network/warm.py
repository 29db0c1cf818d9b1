"""What server processes of the tests find loaded: they are forked from a process that has this."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")


import scipy.signal  # noqa: F401

import pfl_lm.network.server  # noqa: F401
from pfl_lm.text.synthetic.population import synthetic_tokenizer

synthetic_tokenizer(300)  # kept; it takes a second
