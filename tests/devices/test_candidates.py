"""The compiled sampled softmax against the same in torch, table by table."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from pfl_lm import native
from pfl_lm.devices import candidates as compiled
from pfl_lm.devices.local_losses import LOSSES, SampledSoftmax
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.output import Centre, Objective
from pfl_lm.devices.tables import Table, slots_of
from pfl_lm.devices.task import Task
from pfl_lm.models.models import ModelSpec, roles
from pfl_lm.payload.choice import choose
from pfl_lm.payload.plan import PayloadPlan

K, V = 3, 90


@pytest.fixture(scope="module", autouse=True)
def compiled_here():
    if native.load("candidates") is None:
        pytest.skip("no C kernels: no compiler, or PFL_LM_NATIVE=0")


class Case:
    """An output layer of random rows; ``travels``: "rows", "all", or "none" of its table."""

    def __init__(self, travels: str, rows: int, count: int, width: int, loss: str) -> None:
        spec = ModelSpec("cifg_lstm", V, width, hidden_dim=5)
        unigram = 1 / (np.arange(V) + 2.7)
        unigram /= unigram.sum()
        plan = PayloadPlan(rows=40 if travels == "rows" else travels, dense="biases")
        payload = choose(plan, roles(spec), unigram, range(4), 0, 0)
        training = LocalTraining(1.0, loss=loss, negatives=count)
        nothing = np.zeros(0, np.float32)
        self.objective = Objective(Task(spec, {}, payload, nothing, training, unigram, 0, 0))
        self.drawn = self.objective.draw(0)
        draw = torch.Generator().manual_seed(0)
        k = V if payload.rows is None else len(payload.rows)
        self.frozen = torch.randn(V, width, generator=draw)
        self.bias = torch.randn(V, generator=draw)
        self.now = {"t": torch.randn(K, k, width, generator=draw)}
        self.now["b"] = torch.randn(K, k, generator=draw)
        if travels == "none":
            self.now = {}
        self.slots = slots_of(None if payload.rows is None else torch.from_numpy(payload.rows), V)
        self.vectors = torch.randn(K, rows, width, generator=draw)
        self.targets = torch.randint(0, V, (K, rows), generator=draw)
        self.weight = torch.rand(K, rows, generator=draw)
        self.weight[:, ::4] = 0
        self.weight[K - 1] = 0  # windows of padding alone

    def run(
        self,
        in_c: bool = True,
        in_place: bool = False,
        biased: bool = True,
        centre: Centre | None = None,
    ) -> list[Tensor]:
        """Losses, the gradient by the vectors, and what the tables' rows have become."""
        now = {name: tensor.clone() for name, tensor in self.now.items()}
        into = now if in_place else {name: torch.zeros_like(x) for name, x in now.items()}
        held = {"t": self.frozen, "b": self.bias}
        table, bias = (Table(held, now, into, name, self.slots) for name in ("t", "b"))
        supports = compiled.supports if in_c else lambda *given: False
        with patch.object(compiled, "supports", supports):
            loss, gradient = self.objective(
                self.vectors,
                self.targets,
                self.weight,
                table,
                bias if biased else None,
                -0.1,
                self.drawn,
                centre,
            )
        return [loss, gradient, *into.values()]


@pytest.mark.parametrize(
    ("travels", "loss"),
    [("rows", "sampled"), ("all", "sampled"), ("none", "sampled"), ("rows", "softmax")],
)
@pytest.mark.parametrize("sizes", [(1, 17, 5), (61, 23, 24), (130, 16, 33)])
def test_the_same_losses_and_gradients_as_in_torch(travels: str, sizes: tuple, loss: str) -> None:
    case = Case(travels, *sizes, loss)
    for about in ({}, {"in_place": True}, {"biased": False}):
        pairs = zip(case.run(**about), case.run(in_c=False, **about), strict=True)
        for ours, torchs in pairs:
            torch.testing.assert_close(ours, torchs, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("loss", ["sampled", "softmax"])
def test_the_same_of_candidates_that_moved_by_their_inclusion(loss: str) -> None:
    case = Case("rows", 61, 23, 24, loss)
    draw = torch.Generator().manual_seed(1)
    count = len(case.drawn.words)
    centre = Centre(
        torch.randn(K, count, 24, generator=draw), torch.randn(K, count, generator=draw)
    )
    for about in ({}, {"biased": False}):
        held = case.run(centre=centre, **about)
        for ours, torchs in zip(held, case.run(False, centre=centre, **about), strict=True):
            torch.testing.assert_close(ours, torchs, atol=2e-5, rtol=2e-5)
        assert not torch.allclose(held[0], case.run(**about)[0])


def test_all_devices_may_hold_the_same_rows() -> None:
    case = Case("rows", 9, 17, 24, "sampled")
    case.now = {name: x[:1].expand(K, *x.shape[1:]) for name, x in case.now.items()}
    for ours, torchs in zip(case.run(), case.run(in_c=False), strict=True):
        torch.testing.assert_close(ours, torchs, atol=2e-5, rtol=2e-5)


def test_a_device_has_the_same_bits_on_any_number_of_threads() -> None:
    case = Case("rows", 61, 23, 24, "sampled")
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            found.append(case.run())
        finally:
            torch.set_num_threads(1)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


def test_a_vector_that_is_not_a_number_reaches_its_own_row_and_the_tables() -> None:
    case = Case("rows", 9, 17, 24, "sampled")
    case.vectors[1, 2, 3] = torch.nan
    loss, gradient, table, _ = case.run()
    assert loss[1, 2].isnan()
    assert gradient[1, 2].isnan().all()
    assert table[1].isnan().any()
    assert (
        not torch.cat([loss[0], loss[2], gradient[0].flatten(), table[2].flatten()]).isnan().any()
    )


class Doubled(SampledSoftmax):
    """A loss of one's own: twice the softmax's."""

    def slopes(self, *given):
        return tuple(2 * part for part in super().slopes(*given))


class OfEveryWord(Doubled):
    every_word = True


@pytest.mark.parametrize("travels", ["rows", "all", "none"])
@pytest.mark.parametrize(("kind", "alike"), [(Doubled, "sampled"), (OfEveryWord, "softmax")])
def test_no_kernel_stands_in_for_a_loss_of_ones_own(travels, kind, alike, monkeypatch) -> None:
    monkeypatch.setitem(LOSSES, "own", kind())
    own, plain = (Case(travels, 17, 20, 16, loss).run() for loss in ("own", alike))
    for found, single in zip(own, plain, strict=True):
        torch.testing.assert_close(found, 2 * single, rtol=1e-4, atol=1e-5)


def test_slopes_of_another_shape_are_refused(monkeypatch) -> None:
    def mean(loss, d_target, d_scores):
        return loss.mean(), d_target, d_scores

    def double(*slopes):
        return tuple(part.double() for part in slopes)

    for change in (lambda *slopes: slopes[:2], mean, double):
        made = type("Own", (SampledSoftmax,), {"slopes": _changed(change)})
        monkeypatch.setitem(LOSSES, "own", made())
        with pytest.raises(ValueError, match=r"the loss Own: slopes must return losses \(A, N\)"):
            Case("rows", 17, 20, 16, "own").run()
    monkeypatch.setitem(LOSSES, "own", Doubled)
    with pytest.raises(ValueError, match="loss = 'own': put an object of a subclass of LocalLoss"):
        LocalTraining(1.0, loss="own")


def _changed(change):
    return lambda self, *given: change(*SampledSoftmax().slopes(*given))
