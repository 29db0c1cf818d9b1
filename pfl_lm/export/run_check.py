"""Does a bundle hold the run's model? The run's own model.pt answers, and the bundle is compared.

Reference answers come from the simulator's scorer, on texts that are invented here and are not
those of the bundle's test vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pfl_lm.export import test_vectors
from pfl_lm.export.bundle import INDEX, MISSHAPEN, PERSONAL, TOKENIZER, WEIGHTS, Bundle
from pfl_lm.export.formats.registry import ExportedFile, format_of, open_file
from pfl_lm.export.graphs.personal import PersonalPlan, personal_step, plain
from pfl_lm.export.graphs.train_artifact import first_step, first_task, train_graph
from pfl_lm.export.signature import Arrays, ExportGraph, Runner
from pfl_lm.export.source import Source, identity, open_source
from pfl_lm.export.trained import TrainedModel
from pfl_lm.export.vocabulary import BlockList
from pfl_lm.models.file import Model
from pfl_lm.models.models import longest_text
from pfl_lm.models.spec import ModelSpec
from pfl_lm.recipes import from_plain
from pfl_lm.run.folder import RunFolder

# How far a score may be from the trained model's; 4 bits moved one by 0.38 in a model of 30,000
# words.
_TOLERANCE = test_vectors.TOLERANCE | {"int4": 1.0}
_SEED = 1  # of the texts; the bundle's own vectors have another
Finding = tuple[str, bool | None, str]  # what, whether it holds, why


def check_of_run(bundle: Bundle, run: Path, blocked: BlockList) -> Iterator[Finding]:
    """Compare a bundle with the run as it lies there now."""
    name = "of the run"
    if problem := _another(bundle, run):
        yield name, False, problem
        return
    try:
        source = open_source(run, bundle.path(TOKENIZER))
    except ValueError as error:
        yield name, False, str(error)
        return
    yield name, True, f"{run} has the manifest, the ledger and the model file that it names"
    if from_plain(ModelSpec, bundle.index.model["spec"], INDEX) != source.model.spec:
        yield "model.spec of the run", False, f"{INDEX} states another"
        return
    if bundle.index.model["weights"] is not None:
        yield f"{WEIGHTS} of the run", *_weights(bundle, source.model)
    for entry in bundle.index.graphs:
        yield f"{entry['name']} of the run", *_graph(bundle, entry, source, blocked)


def _another(bundle: Bundle, run: Path) -> str:
    """Say why the bundle was made from another run, or an earlier state of it, or nothing."""
    now, then = identity(RunFolder.open(run)), bundle.index.run
    if now["manifest_digest"] != then["manifest_digest"]:
        return f"{run} is another run"
    if (later := now["ledger_entries"] - then["ledger_entries"]) > 0:
        return f"outdated: the run has spent {later} more rounds; export it again"
    return "" if now == then else "outdated: the run's model has changed; export it again"


def _weights(bundle: Bundle, model: Model) -> tuple[bool, str]:
    values = np.fromfile(bundle.path(WEIGHTS), "<f4")
    for name, place in bundle.index.model["weights"].items():
        wanted = model.parameters[name].detach().numpy().astype("<f4").ravel()
        first = place["offset"] // 4
        if not np.array_equal(values[first : first + len(wanted)], wanted):
            return False, f"{name} is not the run's"
    return True, "the parameters of the run's model"


def _graph(
    bundle: Bundle, entry: dict[str, Any], source: Source, blocked: BlockList
) -> tuple[bool | None, str]:
    """Run one file on inputs that are made here, if its runtime is here."""
    try:
        exported = ExportedFile.of_entry(entry)
        if remedy := format_of(exported.format).runtime_missing():
            return None, f"not run: {remedy}"
        run = open_file(bundle.path(entry["path"]).parent, exported)
        if exported.graph == "predict":
            return _suggests(run, exported, source, blocked)
        if exported.graph == "personal_step":
            graph, given = _personal(bundle, source.model)
            says = f"the gradient of the run's model with {PERSONAL}"
        else:
            task = first_task(source)
            graph = train_graph(task, format_of(exported.format).lookup)
            given, says = first_step(task, graph), "the gradient of the run's first round"
        wrong = _differs(run, graph, given)
    except (ValueError, RuntimeError, OSError, *MISSHAPEN) as error:
        return False, f"does not run: {' '.join(str(error).split())}"
    return not wrong, wrong or says


def _suggests(
    run: Runner, exported: ExportedFile, source: Source, blocked: BlockList
) -> tuple[bool, str]:
    trained, words = TrainedModel(source.model, blocked.ids), source.tokenizer
    texts = test_vectors.invent_texts(
        words, frozenset(blocked.ids), longest_text(source.model.spec), _SEED
    )
    mask, signature = test_vectors.PrefixMask(words), exported.signature
    best = {tensor.name: tensor.size for tensor in signature.outputs}["words"]
    tolerance = _TOLERANCE[exported.precision]
    for number, text in enumerate(texts):
        answers = test_vectors.type_text(run, signature, exported.zeros(), text, mask)
        expected = test_vectors.trained_answers(trained, text, best, mask)
        if wrong := test_vectors.differences(answers, expected, tolerance):
            return False, f"text {number} is not answered as by the run's model: {wrong}"
    return True, f"suggests what the run's model does, on {len(texts)} texts"


def _personal(bundle: Bundle, model: Model) -> tuple[ExportGraph, Arrays]:
    """Return the personal step of the run's model, and inputs that reach all of it."""
    ready = plain(model)
    plan = PersonalPlan().of(model)
    shape = (plan.rank, ready.spec.output_dim)
    down = test_vectors.read_values(bundle.path(PERSONAL), "float32", shape)
    graph, random = personal_step(ready, plan, down), np.random.default_rng(_SEED)
    values, windows = graph.start["values"], graph.start["windows"]
    return graph, {
        "values": 0.1 * random.normal(size=values.shape).astype(np.float32),
        "windows": random.integers(4, ready.spec.vocabulary_size, windows.shape, np.int32),
    }


def _differs(run: Runner, graph: ExportGraph, given: Arrays) -> str:
    """Say how a training graph's outputs differ from those of the run's model, or nothing."""
    found, wanted = run(**given), graph(**given)
    for name, value in wanted.items():
        if wrong := test_vectors.distance(name, found[name], value):
            return wrong
    return ""
