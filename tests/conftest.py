"""What every test may ask for."""

from __future__ import annotations

import os
from pathlib import Path

# Before numpy or torch is imported: test processes run side by side, one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default", max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real text and oracles beside the repository; the test skips without it."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (real text and oracle tables), which is absent")
    return SHARED
