"""A round's figures for people: losses, norms, traffic. Nothing here goes back into training."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pfl_lm.devices.trace import Trace
from pfl_lm.distributed import Ranks
from pfl_lm.run.availability import Cohort
from pfl_lm.run.divergence import has_diverged
from pfl_lm.run.privacy import RunPrivacy
from pfl_lm.secagg.errors import SecaggError
from pfl_lm.secagg.traffic import Traffic
from pfl_lm.server.state import Broadcast


class RoundFigures:
    """Collects the figures of one round of the simulation."""

    def __init__(self, privacy: RunPrivacy, broadcast: Broadcast, cohort: Cohort) -> None:
        self.reports = 0
        self._started = time.monotonic()
        self._privacy = privacy.at_clip(broadcast.clip_norm)
        self._broadcast, self._cohort = broadcast, cohort
        grid = privacy.grid(broadcast.payload.dim)
        vector = (grid.modulus_bits * grid.dim + 7) // 8
        self._traffic = Traffic(vector, 0, vector)
        self._traces: list[Trace] = []
        self._clipped = 0
        self._mean_norm: float | None = None
        self._noise_norm: float | None = None
        self._short_share: float | None = None

    def add(self, traces: list[Trace], clipped: np.ndarray, reports: int) -> None:
        """Note what a simulation sees of K devices.

        Args:
            clipped: bool[K].
            reports: how many of their reports were summed.
        """
        self._traces += traces
        self._clipped += int(clipped.sum())
        self.reports += reports

    def merge(self, ranks: Ranks) -> None:
        """Bring the figures of all ranks together on the first one."""
        parts = ranks.gather((self.reports, self._clipped, self._traces))
        self.reports = sum(reports for reports, _, _ in parts)
        self._clipped = sum(clipped for _, clipped, _ in parts)
        # A sum of floats depends on its order; that of users depends on nothing.
        traces = (trace for _, _, part in parts for trace in part)
        self._traces = sorted(traces, key=lambda trace: trace.user)

    def opened(self, mean: np.ndarray, traffic: Traffic, noise_ratio: float = 1.0) -> None:
        """Note what came out of an opened sum, and the expected norm of the noise in it.

        Args:
            mean: as it was released.
            noise_ratio: of the noise in ``mean`` to that of a plain mean over all reports.
        """
        privacy = self._privacy
        deviation = privacy.mean_deviation(self._broadcast.round) * noise_ratio
        self._traffic = traffic
        update, self._short_share = privacy.decoded(mean)
        self._mean_norm = float(np.linalg.norm(update))
        self._noise_norm = float(deviation * np.sqrt(len(update)))

    def failed(self, failure: SecaggError) -> int:
        """Note that no sum was opened; return how many reports had come."""
        self.reports = getattr(failure, "reports", self.reports)
        return self.reports

    def entry(self) -> dict[str, Any]:
        """Return the round's line for the metrics."""
        dim, traffic = self._broadcast.payload.dim, self._traffic
        devices = len(self._traces)
        healthy = [trace for trace in self._traces if not has_diverged(trace.loss)]
        tokens = sum(trace.tokens for trace in healthy)
        loss = sum(trace.loss * trace.tokens for trace in healthy)
        norms = sum(trace.update_norm for trace in healthy)
        return {
            "kind": "round",
            "round": self._broadcast.round,
            "loss": loss / tokens if tokens else None,
            "seconds": time.monotonic() - self._started,
            "invited": len(self._cohort),
            "reports": self.reports,
            "tokens": sum(trace.tokens for trace in self._traces),
            "trained_devices": devices,
            "diverged_devices": devices - len(healthy),
            "update_norm": norms / len(healthy) if healthy else None,
            "clipped_share": self._clipped / devices if devices else None,
            "mean_norm": self._mean_norm,
            "noise_norm": self._noise_norm,
            "payload_dim": dim,
            "download_bytes": 4 * dim + traffic.download_bytes,
            "upload_bytes": traffic.upload_bytes,
            **clip_figures(self._privacy, self._short_share),
            **self._cohort.figures,
        }


def clip_figures(privacy: RunPrivacy, share: float | None) -> dict[str, float | None]:
    """Return the figures of a clip norm that follows the updates; none where it is fixed.

    Args:
        privacy: at the round's clip norm.
        share: of short updates, as it was released.
    """
    if privacy.clipping is None:
        return {}
    return {"clip_norm": privacy.clip_norm, "short_share": share}
