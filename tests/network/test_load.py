"""What keeps the server's work and memory in bounds where thousands of devices call."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.network.exclusions import Exclusions
from pfl_lm.network.model_delta import _pieces
from pfl_lm.network.presence import Presence
from pfl_lm.network.transport import Limits


def test_news_of_thousands_is_looked_at_together():
    """Who waits for news looks at every device: not once for each of them."""
    presence = Presence(range(100_000), Limits(), Exclusions({}))

    async def run() -> bool:
        waiting = asyncio.create_task(presence.wait(60.0))
        await asyncio.sleep(0)
        for _ in range(10):
            presence.news.set()
            await asyncio.sleep(0)
        looked_at_once = waiting.done()
        await waiting  # but it ends, without more news
        return looked_at_once

    assert not asyncio.run(run())


def test_a_download_holds_a_small_piece_of_the_model():
    """A device that reads slowly keeps one piece in the server's memory, whatever the model."""
    table = torch.arange(1_000_003, dtype=torch.float32)
    context = SimpleNamespace(roles={"table": None})
    pieces = list(_pieces(context, {"table": table}, None))
    assert max(map(len, pieces)) <= 1 << 17
    assert np.array_equal(np.frombuffer(b"".join(pieces), "<f4"), table.numpy())
