"""Intel AMX's tiles, emulated: products.c as a processor with AMX_BF16 runs it.

The tests of bfloat16's products run once more on kernels that multiply by tiles, each tile a piece
of memory (emulated_tiles.h). What a tile computes there is what Intel's manual says.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pfl_lm import native
from pfl_lm.native import compiler, products
from tests.native.test_products import (  # noqa: F401  (run here again)
    test_a_layer_with_factors_in_one_call,
    test_gradients_in_bfloat16,
    test_numbers_are_rounded_to_bfloat16_as_torch_does,
    test_products_in_bfloat16,
)

EMULATOR = shlex.quote(str(Path(__file__).with_name("emulated_tiles.h")))
FLAGS = f"-O1 -DLANES=16 -include {EMULATOR}"


def compile_with(flags: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("PFL_LM_CFLAGS", flags)
    patch.setenv("XDG_CACHE_HOME", str(cache))
    native.attempt.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if native.load("products") is None or compiler.find() is None:
        pytest.skip("needs a compiler of the C kernels")
    if platform.machine() != "x86_64":
        pytest.skip("the emulator wants x86 intrinsics' names")
    with pytest.MonkeyPatch.context() as patch:
        compile_with(FLAGS, tmp_path_factory.mktemp("tiles"), patch)
        yield
    native.attempt.cache_clear()


def test_tiles_are_in_use() -> None:
    assert products.has_tiles()
    assert products.has_bfloat16()


def test_where_the_kernel_lends_no_tiles_vectors_multiply(tmp_path, monkeypatch) -> None:
    compile_with(f"{FLAGS} -DPERMITTED=0", tmp_path, monkeypatch)
    assert not products.has_tiles()
    test_products_in_bfloat16()
    native.attempt.cache_clear()
