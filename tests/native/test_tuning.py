from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pfl_lm.native import tuning as machine


def test_tuning_leaves_products_float32() -> None:
    """In a process of its own: tuning is for the life of a process."""
    program = (
        "import torch; from pfl_lm.native.tuning import give_memory_back, tune;"
        "assert not tune(1, keep=False).memory_kept; give_memory_back(); t = tune(1);"
        "a = torch.randn(64, 300); b = torch.randn(300, 80);"
        "assert (a @ b - (a.double() @ b.double())).abs().max() < 1e-4;"
        "assert torch.get_num_threads() == 1; print(t.products, t.memory_kept)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("oneDNN", "torch's default"))


@pytest.mark.parametrize(
    "flags",
    [
        {"GenuineIntel", "avx512f"},
        {"AuthenticAMD", "avx2"},
        {"AuthenticAMD", "avx512f", "amx_tile"},
        set(),
    ],
)
def test_other_processors_are_left_alone(flags: set[str], monkeypatch) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: flags)
    before = torch.backends.mkldnn.matmul.fp32_precision
    assert not machine.use_onednn()
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_a_route_that_rounds_to_bfloat16_is_withdrawn(monkeypatch) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: {"AuthenticAMD", "avx512f"})
    before = torch.backends.mkldnn.matmul.fp32_precision
    product = torch.Tensor.__matmul__

    def rounded(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype == torch.float64:
            return product(left, right)
        return product(left.bfloat16(), right.bfloat16()).float()

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert not machine.use_onednn()
    assert torch.backends.mkldnn.matmul.fp32_precision == before
