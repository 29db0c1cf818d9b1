"""A module of the user's own trains here as it does in a plain loop of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pfl_lm.devices.batches import Schedule
from pfl_lm.devices.local_training import LocalTraining
from pfl_lm.devices.task import Task
from pfl_lm.devices.training import train
from pfl_lm.interop.torch_module import adopt
from pfl_lm.models import user_models as modules
from pfl_lm.models.models import ModelSpec, initialise, roles
from pfl_lm.payload.choice import choose
from pfl_lm.payload.layout import gather
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.run.simulate import simulate
from pfl_lm.text.synthetic.population import synthetic_tokenizer

V, D, H, T = 300, 8, 12, 6


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(V, D)
        self.body = nn.GRU(D, H, batch_first=True)
        self.head = nn.Linear(H, V)

    def forward(self, words):
        return self.head(self.body(self.words(words))[0])


class Tied(nn.Module):
    """Convolutions and a norm, the output tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(V, D)
        self.inner = nn.ModuleDict({"mix": nn.Conv1d(D, D, 3), "norm": nn.LayerNorm(D)})
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.words.weight
        nn.init.uniform_(self.words.weight, -0.1, 0.1)  # float32 is finer near zero

    def forward(self, words):
        x = self.words(words)
        before = nn.functional.pad(x.transpose(1, 2), (2, 0))
        x = x + self.dropout(torch.tanh(self.inner["mix"](before).transpose(1, 2)))
        return self.head(self.inner["norm"](x))


def windows_of(devices: int, seed: int) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [draw.integers(4, V, (int(draw.integers(2, 6)), T + 1)) for _ in range(devices)]


def plain_loop(module: nn.Module, own, training, seed: int, user: int) -> dict[str, torch.Tensor]:
    """The reference: torch's own optimizer on the module itself, in the same order of examples."""
    module.eval()  # no dropout
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), training.learning_rate)
    for batch in Schedule([own], training, seed, 0, [user]):
        inputs, targets = batch.inputs[0], batch.targets[0]
        real = batch.weight[0, :, 0] > 0  # the last batch is filled up
        optimizer.zero_grad()
        scores = module(inputs[real])
        nn.functional.cross_entropy(scores.flatten(0, 1), targets[real].flatten()).backward()
        optimizer.step()
    return {name: value.detach() - before[name] for name, value in module.named_parameters()}


def whole(spec: ModelSpec):
    tokenizer = synthetic_tokenizer(V)
    payload = choose(PayloadPlan(), roles(spec), tokenizer.unigram, tokenizer.specials, 0, 0)
    return tokenizer, payload


@pytest.mark.parametrize("kind", [Gru, Tied])
def test_a_device_trains_as_a_plain_loop_does(kind):
    torch.manual_seed(1)
    module = kind()
    spec = adopt(module, "mine", embedding="words", output="head")
    training = LocalTraining(0.3, batch_size=2, epochs=2, window=T)
    tokenizer, payload = whole(spec)
    start, texts = initialise(spec, 0), windows_of(3, 0)
    received = gather(start, payload)
    task = Task(spec, start, payload, received, training, tokenizer.unigram, 7, 0)
    updates, _ = train(task, texts, [0, 1, 2])
    names = {"words.weight": "embedding", "head.weight": "output", "head.bias": "output_bias"}
    for user, own in enumerate(texts):
        fresh = kind()
        fresh.load_state_dict(module.state_dict())
        expected = plain_loop(fresh, own, training, 7, user)
        found = payload.views(updates[user])
        assert len(found) == len(expected)
        for name, change in expected.items():
            ours = found[names.get(name, f"module.{name}")]
            assert float(change.abs().max()) > 1e-3
            np.testing.assert_allclose(ours, change.numpy(), atol=1e-6, rtol=0)


def test_the_module_itself_is_left_as_it_was():
    module = Tied().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    spec = adopt(module, "mine", embedding="words", output="head")
    assert spec == ModelSpec("module", V, D, projection_dim=D, output_bias=False, module="mine")
    assert module.training
    assert type(module.words) is nn.Embedding
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_simulation_trains_it_with_a_partial_payload(tiny_scenario, tmp_path, quick, new_watcher):
    spec = adopt(Gru(), "mine", embedding="words", output="head")
    scenario = tiny_scenario(
        model=spec, rounds=3, payload=PayloadPlan(rows=100), training=LocalTraining(1.0, window=8)
    )
    run = simulate(scenario, tmp_path / "run", new_watcher())
    assert run.model_path.is_file()


class OfLayer(nn.Module):
    """Any layer between the tables, and whether it keeps its state from call to call."""

    def __init__(self, layer: nn.Module, hidden: int = H, keeps: bool = False) -> None:
        super().__init__()
        self.words, self.layer, self.head = nn.Embedding(V, D), layer, nn.Linear(hidden, V)
        self.keeps, self.state = keeps, None

    def forward(self, words):
        x = self.words(words)
        if isinstance(self.layer, nn.GRU):
            x, state = self.layer(x, self.state)
            self.state = state if self.keeps else None
            return self.head(x)
        return self.head(self.layer(x))


class TestWhatItSees:
    """A user's update must follow from this user's words, each from those before it."""

    @pytest.mark.parametrize(
        ("module", "says"),
        [
            (lambda: OfLayer(nn.GRU(D, H)), "mixes windows.*batch_first"),
            (lambda: OfLayer(nn.TransformerEncoderLayer(D, 2, 8), D), "mixes windows.*batch_first"),
            (lambda: OfLayer(nn.GRU(D, H, batch_first=True), keeps=True), "one call to the next"),
            (
                lambda: OfLayer(nn.GRU(D, H, batch_first=True, bidirectional=True), 2 * H),
                "looks ahead",
            ),
            (
                lambda: OfLayer(nn.TransformerEncoderLayer(D, 2, 8, batch_first=True), D),
                "looks ahead",
            ),
        ],
    )
    @pytest.mark.parametrize("scale", [1.0, 1e-3])
    def test_what_it_must_not_see_is_refused(self, module, says, scale):
        torch.manual_seed(1)
        theirs = module()
        with torch.no_grad():
            theirs.words.weight.mul_(scale)  # a small table must not hide it
        modules._BODIES.pop("refused", None)
        with pytest.raises(ValueError, match=says):
            adopt(theirs, "refused", embedding="words", output="head")
        assert "refused" not in modules._BODIES

    def test_a_masked_transformer_is_accepted(self):
        class Causal(OfLayer):
            def forward(self, words):
                mask = nn.Transformer.generate_square_subsequent_mask(words.shape[1])
                return self.head(self.layer(self.words(words), src_mask=mask))

        layer = nn.TransformerEncoderLayer(D, 2, 8, batch_first=True)
        assert adopt(Causal(layer, D), "causal", embedding="words", output="head").module


class TestRefusals:
    def test_layers_that_are_not_there_are_named(self):
        with pytest.raises(ValueError, match="no 'embed'; its Embedding: words"):
            adopt(Gru(), "mine", embedding="embed", output="head")
        with pytest.raises(ValueError, match="body is a GRU; expected a Linear"):
            adopt(Gru(), "mine", embedding="words", output="body")

    def test_a_module_that_does_more_than_its_layers_say(self):
        class Scaled(Gru):
            def forward(self, words):
                return 2 * super().forward(words)

        with pytest.raises(ValueError, match="differ by"):
            adopt(Scaled(), "mine", embedding="words", output="head")

    def test_other_number_formats(self):
        with pytest.raises(ValueError, match=r"call \.float\(\)"):
            adopt(Gru().double(), "mine", embedding="words", output="head")

    def test_a_name_that_nobody_registered(self):
        modules._BODIES.pop("nobody", None)
        with pytest.raises(ValueError, match="not known in this process"):
            roles(ModelSpec("module", V, D, module="nobody"))
        with pytest.raises(ValueError, match="name one where"):
            ModelSpec("module", V, D)

    def test_ways_of_training_that_need_single_steps(self):
        spec = adopt(Gru(), "mine", embedding="words", output="head")
        tokenizer, payload = whole(spec)
        start = initialise(spec, 0)
        training = LocalTraining(0.3, window=T, method="forward_only")
        received = gather(start, payload)
        task = Task(spec, start, payload, received, training, tokenizer.unigram, 7, 0)
        with pytest.raises(ValueError, match="module"):
            train(task, windows_of(1, 0), [0])
