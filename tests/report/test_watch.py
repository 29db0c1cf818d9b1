"""A run's page while it goes on: this machine's pages pause and stop it, and nobody else's."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from pfl_lm.report.watch import WatchServer
from pfl_lm.run import control
from pfl_lm.run.control import RunStopped
from pfl_lm.run.folder import RunFolder
from pfl_lm.run.progress import ProgressListener
from pfl_lm.run.simulate import simulate
from tests.export.keyboard.conftest import Browser, chromium

pytestmark = pytest.mark.usefixtures("quick")


@contextmanager
def watching(run: Path) -> Iterator[WatchServer]:
    with WatchServer(run, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server(make_run):
    run = make_run(rounds=20, finished=False)
    with control.heeding(RunFolder(run)), watching(run) as server:
        yield server


def ask(server, method, path, **headers) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, f"/{server.secret}{path}", headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def ours(server) -> dict[str, str]:
    return {"Origin": f"http://127.0.0.1:{server.server_port}"}


def test_the_page_and_its_state(server):
    assert server.server_address[0] == "127.0.0.1"
    status, page = ask(server, "GET", "/")
    assert status == 200
    assert page.startswith("<!doctype html>")
    assert 'id="watch-stop"' in page
    state = json.loads(ask(server, "GET", "/state")[1])
    assert (state["rounds"], state["finished"], state["paused"]) == (20, False, False)
    with (server.folder.metrics_path).open("a") as metrics:
        metrics.write('{"kind": "round", "round": 20, "loss": 1.0}\n')
    fresh = json.loads(ask(server, "GET", "/state")[1])
    assert fresh["rounds"] == 21
    assert fresh["version"] != state["version"]
    assert ask(server, "GET", "/ledger.jsonl")[0] == 404


def test_buttons_leave_requests(server):
    run = server.folder.path
    for path, paused in (("/pause", True), ("/go-on", False)):
        assert ask(server, "POST", path, **ours(server))[0] == 200
        assert control.asks(run, control.PAUSE) is paused
    ask(server, "POST", "/stop", **ours(server))
    assert control.asks(run, control.STOP)
    assert json.loads(ask(server, "GET", "/state")[1])["stopping"]


@pytest.mark.parametrize(
    ("rounds", "finished", "goes_on"), [(20, False, False), (60, False, True), (60, True, False)]
)
def test_a_run_that_heeds_nothing_is_asked_nothing(make_run, rounds, finished, goes_on):
    """Its process was killed, its last round is over, or it ended."""
    run = make_run(rounds=rounds, finished=finished)
    process = control.heeding(RunFolder(run)) if goes_on else nullcontext()
    with process, watching(run) as server:
        assert not json.loads(ask(server, "GET", "/state")[1])["heeds"]
        for path in ("/pause", "/go-on", "/stop"):
            assert ask(server, "POST", path, **ours(server)) == (
                409,
                "the run's rounds are over, or no process runs it now",
            )
        assert not list(run.glob("*.request"))


def test_a_run_that_is_gone_is_told_in_a_line(server, capfd):
    run = server.folder.path
    run.rename(run.with_name("moved"))
    for method, path in (("GET", "/"), ("GET", "/state"), ("POST", "/stop")):
        status, text = ask(server, method, path, **ours(server))
        assert status == 503
        assert str(run) in text
        assert "\n" not in text
    assert capfd.readouterr().err == ""


def test_a_question_s_folder_has_no_page(tmp_path):
    (tmp_path / "manifest.json").write_text('{"asked": {}}')
    with pytest.raises(ValueError, match=r"manifest\.json"):
        WatchServer(tmp_path, 0)


def test_a_caller_who_does_not_know_the_address_is_refused(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", "/")
    assert connection.getresponse().status == 403


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}, {}]
)
def test_other_sites_are_refused(server, headers):
    assert ask(server, "POST", "/stop", **headers)[0] == 403
    assert not control.asks(server.folder.path, control.STOP)


class Presser(ProgressListener):
    """Asks the run to pause and then to stop, after its second round."""

    def __init__(self, run) -> None:
        self.run, self.rounds = run, 0

    def round_done(self, entry, rounds) -> None:
        self.rounds += 1
        if self.rounds == 2:
            control.ask(self.run, control.PAUSE)
            threading.Timer(0.3, control.ask, (self.run, control.STOP)).start()


def test_a_stopped_run_keeps_its_rounds_and_continues(tiny_scenario, tmp_path, new_watcher):
    run, scenario = tmp_path / "run", tiny_scenario(rounds=4)
    presser = Presser(run)
    with pytest.raises(RunStopped, match=r"stopped after 2 rounds, as was asked.*--resume"):
        simulate(scenario, run, presser)
    assert presser.rounds == 2
    assert max(RunFolder.open(run).checkpoints()) == 2
    assert not list(run.glob("*.request"))
    control.ask(run, control.STOP)  # asked of a run that had ended: forgotten
    watcher = new_watcher()
    simulate(scenario, run, watcher, resume=True)
    assert [entry["round"] for entry in watcher.rounds] == [2, 3]


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run folder"):
        WatchServer(tmp_path, 0)
    with pytest.raises(ValueError, match="is not a run folder"):
        control.ask(tmp_path, control.STOP)


def test_a_new_round_closes_nothing_that_is_read(server, tmp_path):
    """What is unfolded stays so, and charts show their values under a pointer."""
    if chromium() is None:
        pytest.skip("needs Chromium or Chrome, which is not installed")
    browser = Browser(tmp_path / "profile")
    try:
        browser.size(1000, 900, mobile=False)
        browser.open(server.address)
        browser.until("document.getElementById('watch-state')?.textContent.startsWith('round 20')")
        browser.run("document.querySelector('#record details').open = true; 1")
        with (server.folder.metrics_path).open("a") as metrics:
            metrics.write('{"kind": "round", "round": 20, "loss": 1.0, "epsilon": 1.0}\n')
        browser.until("document.querySelector('header').textContent.includes('round 21')")
        assert browser.run("document.querySelectorAll('details[open]').length") == 1
        browser.run(
            "{ const chart = document.querySelector('svg[data-chart]'); chart.scrollIntoView();"
            "const box = chart.getBoundingClientRect();"
            "chart.dispatchEvent(new PointerEvent('pointermove',"
            " { bubbles: true, clientX: box.x + box.width / 2, clientY: box.y + 20 })); 1 }"
        )
        assert browser.run("document.getElementById('tip').hidden") is False
    finally:
        browser.close()
