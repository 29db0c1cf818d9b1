"""What a file costs: memory and time for each key, in a process that does nothing else.

    python -m pfl_lm.export.cost FOLDER NAME.json

prints one JSON object. Memory is what opening and running the file adds to the process, at its
peak; the Python runtimes that are measured hold a little more than those of a phone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pfl_lm.export.formats.registry import ExportedFile, format_of, open_file

KEYS = 400  # keystrokes timed
_WARM = 20
_WORDS = 8  # keystrokes after which the state moves on: a word and the keys of the next


@dataclass(frozen=True)
class RuntimeCost:
    """Figures of one file on one thread.

    Attributes:
        median_ms, p95_ms: wall clock for a keystroke, on this machine as busy as it was.
        median_cpu_ms: processor time for a keystroke.
        peak_memory_bytes: added by opening and running the file; None where the system does not
            tell it (it is read from /proc).
        open_ms: until it can answer.
    """

    median_ms: float
    p95_ms: float
    median_cpu_ms: float
    peak_memory_bytes: int | None
    open_ms: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_cost(folder: Path, exported: ExportedFile) -> RuntimeCost | None:
    """Measure a file in a process of its own; None where its runtime is not here.

    Raises:
        ValueError: the runtime is here and fails; the message is its last line.
    """
    known = format_of(exported.format)
    if known.runtime_missing() or not known.runs:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        entry = Path(scratch) / "file.json"
        entry.write_text(json.dumps(exported.as_dict()), encoding="utf-8")
        command = [sys.executable, "-m", "pfl_lm.export.cost", str(folder), str(entry)]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, **threads}, timeout=600
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise ValueError(f"{exported.name} does not run: {last}")
    return RuntimeCost(**json.loads(done.stdout.strip().splitlines()[-1]))


def _time(folder: Path, exported: ExportedFile) -> RuntimeCost:
    """Type with the file: each key is one call, as the keyboard calls it."""
    import time

    import numpy as np

    signature = exported.signature
    given = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in signature.inputs}
    random = np.random.default_rng(0)
    size = next(tensor.size for tensor in signature.inputs if tensor.name == "mask")
    _forget_peak()
    before, began = _memory("VmRSS"), time.perf_counter()
    runner = open_file(folder, exported, 1)
    runner(**given)
    opened = time.perf_counter() - began
    wall, cpu = [], []
    for key in range(_WARM + KEYS):
        if key % _WORDS == 0:
            given["token"] = random.integers(4, size, 1).astype(np.int32)
        start = time.perf_counter(), time.process_time()
        outputs = runner(**given)
        wall.append(time.perf_counter() - start[0])
        cpu.append(time.process_time() - start[1])
        if key % _WORDS == 0 and "position" not in given:
            given |= {i: outputs[o] for o, i in signature.state.items()}
    peak = _memory("VmHWM")
    return RuntimeCost(
        median_ms=1e3 * float(np.median(wall[_WARM:])),
        p95_ms=1e3 * float(np.quantile(wall[_WARM:], 0.95)),
        median_cpu_ms=1e3 * float(np.median(cpu[_WARM:])),
        peak_memory_bytes=None if before is None or peak is None else max(0, peak - before),
        open_ms=1e3 * opened,
    )


def _memory(field: str) -> int | None:
    """Bytes of a line of /proc/self/status; None where there is no such file, or line."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    kibibytes = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(kibibytes[0]) if kibibytes else None


def _forget_peak() -> None:
    """Let the kernel's record of peak memory begin anew; imports are not the file's cost."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        clear.write_text("5", encoding="utf-8")


if __name__ == "__main__":
    about = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    result = _time(Path(sys.argv[1]), ExportedFile.from_dict(about))
    print(json.dumps(result.as_dict()))
