"""A trained model in every phone format: size, latency, memory, agreement, perplexity.

    make export-env
    .env-export/bin/python -m benchmarks.export MODEL.pt --tokenizer DIR --population DIR \
        --public DIR --folder runs/export_bench [--formats onnx,litert] [--measure-only]

Writes the files, then reads held-out text with each of them beside torch, and prints one row of
benchmarks/RESULTS.md a file. Converting and measuring can be two calls: what was converted lies
in the folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from pfl_lm.evaluation.vocabulary import Vocabulary
from pfl_lm.export.cost import measure_cost
from pfl_lm.export.formats.registry import FORMATS, PRECISIONS, ExportedFile, convert, open_file
from pfl_lm.export.graphs.predict import predict_graph
from pfl_lm.export.parity import HeldOutText, Reading, compare, read
from pfl_lm.export.quantise.gptq import fitted_layers
from pfl_lm.export.quantise.word_tables import layers_of
from pfl_lm.export.signature import ExportGraph
from pfl_lm.models.file import Model, load_model
from pfl_lm.text.population import PopulationStore
from pfl_lm.text.tokenizer import Tokenizer

HEAD = (
    "| file | MB | top-1 | top-3 | perplexity | keystrokes saved | ms median / p95 | CPU ms "
    "| memory MB |\n|---|---|---|---|---|---|---|---|---|"
)
FIT_WINDOWS, WINDOW = 3000, 20


def main() -> None:
    options = _options()
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, model = Tokenizer.open(options.tokenizer), load_model(options.model)
    blocked = Vocabulary.of(tokenizer).never_suggested.tolist()
    graph = predict_graph(model, blocked=blocked)
    if not options.measure_only:
        _convert(options, graph, model, blocked)
    if options.convert_only:
        return
    text = HeldOutText(
        "test", PopulationStore.open(options.population), tokenizer, "test", WINDOW,
        positions=options.positions,
    )  # fmt: skip
    reference = _reference(folder, graph, text)
    print(HEAD, flush=True)
    for record in sorted(folder.glob("predict.*.json")):
        file = ExportedFile.from_dict(json.loads(record.read_text()))
        if file.format in options.formats and file.precision in options.precisions:
            print(_row(folder, file, graph, text, reference), flush=True)


def _convert(
    options: argparse.Namespace, graph: ExportGraph, model: Model, blocked: list[int]
) -> None:
    windows = _public_windows(options.public)
    for name in options.formats:
        for precision in FORMATS[name].precisions:
            if precision not in options.precisions:
                continue
            record = options.folder / f"predict.{precision}.{name}.json"
            if record.is_file():
                continue
            source = graph
            if layers := layers_of(precision):
                layers = fitted_layers(model, windows) if precision == "int4" else layers
                source = predict_graph(model, blocked=blocked, layers=layers)
            file = convert(source, name, precision, options.folder)
            record.write_text(json.dumps(file.as_dict()))
            print(f"{file.name}: {file.bytes / 1e6:.2f} MB", flush=True)


def _public_windows(path: Path) -> np.ndarray:
    words = PopulationStore.open(path).stream("train")
    starts = np.linspace(0, len(words) - WINDOW, FIT_WINDOWS).astype(np.int64)
    windows: np.ndarray = words[starts[:, None] + np.arange(WINDOW)].astype(np.int64)
    return windows


def _reference(folder: Path, graph: ExportGraph, text: HeldOutText) -> Reading:
    found = read(graph, graph.signature, graph.start, text)
    e = found.evaluation
    print(f"torch: perplexity {e.perplexity:.2f}, top-3 {e.top3:.2%}, "
          f"keystrokes saved {e.keystrokes_saved:.2%}, {len(found.scores)} positions")  # fmt: skip
    return found


def _row(
    folder: Path, file: ExportedFile, graph: ExportGraph, text: HeldOutText, reference: Reading
) -> str:
    run = open_file(folder, file)
    p = compare(read(run, file.signature, graph.start, text), reference)
    loss = p.perplexity / p.reference_perplexity - 1
    cells = [
        f"{file.format} {file.precision}",
        f"{file.bytes / 1e6:.2f}",
        f"{p.top1_agreement:.1%}",
        f"{p.top3_agreement:.1%}",
        f"{p.perplexity:.2f} ({loss:+.2%})",
        f"{p.keystrokes_saved:.2%}",
    ]
    cost = measure_cost(folder, file) if FORMATS[file.format].runs else None
    if cost is not None:
        cells += [
            f"{cost.median_ms:.2f} / {cost.p95_ms:.2f}",
            f"{cost.median_cpu_ms:.2f}",
            "–" if (peak := cost.peak_memory_bytes) is None else f"{peak / 1e6:.0f}",
        ]
    else:
        cells += ["not run", "not run", "not run"]
    return f"| {' | '.join(cells)} |"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    for name in ("tokenizer", "population", "public", "folder"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--formats", type=lambda text: text.split(","), default=list(FORMATS))
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=PRECISIONS)
    parser.add_argument("--positions", type=int, default=3000)
    parser.add_argument("--measure-only", action="store_true")
    parser.add_argument("--convert-only", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
