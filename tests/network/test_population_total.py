"""The one total of everybody for whom an authority vouches."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("cryptography", reason="needs pip install pfl-lm[network]")

from pfl_lm.cli import app
from pfl_lm.dp.population_ledger import PopulationLedger
from pfl_lm.network.identity import ServerKeys, enrol


def test_it_is_stated_by_the_keys_of_the_server(tmp_path: Path) -> None:
    enrol(tmp_path / "keys", 3)
    command = ["privacy", "population", str(tmp_path / "keys"), "--total", "4", "--delta", "1e-6"]
    stated = CliRunner().invoke(app, command)
    assert stated.exit_code == 0, stated.output
    with PopulationLedger.open(ServerKeys(tmp_path / "keys").account()) as ledger:
        assert ledger.spent().total.epsilon == 4.0
    assert "stated once" in str(CliRunner().invoke(app, command).exception)
    shown = CliRunner().invoke(
        app, ["privacy", "population", str(tmp_path / "keys/server/ledgers")]
    )
    assert "ε = 4.000 at δ = 1e-06" in shown.output
