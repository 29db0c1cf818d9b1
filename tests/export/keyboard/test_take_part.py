"""The keyboard page as a device: off until it is switched on, then beside devices in Python.

Once with a stand-in for the graphs, so that Chromium is all that is needed; once with the bundle's
own ``train_step`` in ONNX Runtime Web, which skips where that or the onnx extra is not here.
"""

from __future__ import annotations

import importlib.util
import json
import os
from contextlib import contextmanager
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

pytest.importorskip("grpc_tools", reason="needs gRPC: pip install pfl-lm[network]")

from pfl_lm.devices.training import train
from pfl_lm.export import build, test_vectors
from pfl_lm.export.bundle import opened, read_index, write_index
from pfl_lm.export.formats import registry as formats
from pfl_lm.export.source import open_source
from pfl_lm.keyboard import runtime
from pfl_lm.keyboard.take_part import KeyboardPage
from pfl_lm.models.file import load_model
from pfl_lm.network.identity import ServerKeys, enrol
from pfl_lm.network.task_config import served
from pfl_lm.network.web import WebAddress
from pfl_lm.payload.plan import PayloadPlan
from pfl_lm.run.context import choose_payload
from pfl_lm.run.scenario import EvaluationConfig, PopulationConfig
from pfl_lm.run.setup import open_run
from pfl_lm.run.simulate import simulate
from tests.export.keyboard.conftest import Browser, chromium
from tests.export.keyboard.page_trial import IN_PAGES, PageTrial
from tests.network.conftest import free_port

ONNX = formats.FORMATS["onnx"]  # as it is before a fixture replaces it for the whole module
READY = "window.app && app.part && !app.working"
STUB = """
export async function openGraphs() {
  const { graphs } = await (await fetch("bundle/bundle.json")).json();
  return (path) => ({ run: (inputs) => answer(graphs.find((one) => one.path === path), inputs) });
}
async function answer({ graph, signature }, { values, windows }) {
  if (graph === "train_step") {
    const words = windows.data.filter((word) => word !== 0).length;
    return { gradient: { data: values.data.map((_, i) => ((i % 7) - 3) * words / 256) } };
  }
  const size = (dims) => dims.reduce((product, length) => product * length, 1);
  return Object.fromEntries(signature.outputs.map(([name, type, dims]) =>
    [name, { type, dims, data: new Float32Array(size(dims)) }]));
}
"""


def without_graphs() -> str | None:
    if importlib.util.find_spec("onnxscript") is None:
        return "needs the onnx extra, to convert the graphs"
    return runtime.missing() or None


WITHOUT_GRAPHS = without_graphs()


@pytest.fixture(scope="module")
def whole(tiny_scenario):
    """A scenario of one round in which the whole model travels; repeatable."""
    return tiny_scenario(
        population=PopulationConfig("synthetic", users=6, tokens_per_user=40),
        rounds=1,
        cohort=6,
        reproducible=True,
        adversary="active",
        secure_aggregation="protocol",
        evaluation=EvaluationConfig(0, users=2, final_users=2, tokens_per_user=30),
    )


@pytest.fixture(scope="module")
def bundle_folder(kept_format, source, text, tmp_path_factory):
    """A bundle of a run in which 120 rows travelled; no file of it holds its ``train_step``."""
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    parts = {"precisions": ("fp32",), "train": False, "personal": False}
    build.export(source, folder, build.ExportConfig(formats=("onnx",), **parts), text)
    index = asdict(read_index(folder))
    index = {name: index[name] for name in index if name not in ("schema", "files", "digest")}
    path = "graphs/train_step.fp32.onnx"
    (folder / path).write_bytes(b"the page has a stand-in")
    inputs = [["values", "float32", [3172]], ["windows", "int32", [4, 9]]]
    step = {"graph": "train_step", "path": path, "name": "train_step.fp32.onnx"}
    step |= {"signature": {"inputs": inputs}, "bytes": 23}
    index["graphs"].append(index["graphs"][0] | step)
    write_index(folder, index)
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "keys"
    enrol(folder, 6)
    return ServerKeys(folder)


@pytest.fixture(scope="module")
def address(keys):
    return WebAddress(f"127.0.0.1:{free_port()}", keys)


@pytest.fixture
def browsers(tmp_path):
    if chromium() is None:
        pytest.skip("needs Chromium or Chrome, which is not installed")
    found = [Browser(tmp_path / f"profile {number}") for number in IN_PAGES]
    yield found
    for browser in found:
        browser.close()


@pytest.fixture(scope="module")
def without_runtime():
    """Let the page be made where the web runtime was not fetched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "missing", lambda: "")
        yield


def take_part(run: PageTrial, browsers, new_watcher, checks=lambda browser: None):
    """Let two pages take part in the run, and return its folder."""
    run.start_devices([user for user in range(run.scenario.cohort) if user not in IN_PAGES])
    folders = []
    run.start(lambda: folders.append(run.serve(new_watcher())))
    for browser, (user, messages) in zip(browsers, IN_PAGES.items(), strict=True):
        wait_for_page(browser, run.link(user))
        browser.until("document.getElementById('part').open")
        browser.tap("#part .close")
        for text in messages:
            browser.run(f"app.text.value = {text!r}; app.send().then(() => 1)")
        browser.tap("#part-open")
        checks(browser)
        browser.tap("#taking-part")
    for browser in browsers:
        browser.until("app.part.state === 'finished'")
        assert browser.run("app.part.rounds") == [*range(run.scenario.rounds)]
    run.join()
    return folders[0]


def wait_for_page(browser, address: str) -> None:
    """Open the page once the server answers."""
    for _ in range(100):
        browser.open(address)
        if browser.run("new Promise((d) => setTimeout(d, 200)).then(() => Boolean(window.app))"):
            break
    browser.until(READY)


def switch_on(browser, link: str) -> None:
    """Follow a link that enrols the page, and let it take part."""
    wait_for_page(browser, link)
    browser.until("document.getElementById('part').open")
    browser.tap("#taking-part")


def sheet(browser) -> dict[str, str]:
    """What the sheet says."""
    return json.loads(
        browser.run(
            "JSON.stringify(Object.fromEntries([...document.querySelectorAll('#part dt')]"
            ".map((one) => [one.textContent, one.nextSibling.textContent])))"
        )
    )


def untouched(browser) -> None:
    """Before it is switched on: off, what would leave is shown, and the key left the address."""
    assert browser.run("document.getElementById('taking-part').checked") is False
    assert browser.run("document.getElementById('part-state').textContent") == "Off"
    assert "#" not in browser.run("location.href")
    said = sheet(browser)
    assert said["Sent"] in ("3,172 numbers, 6 kB", "3,172 numbers, 7 kB")
    assert said["Clipped"] == "to length 0.5"
    assert said["Trained on"] in ("2 messages kept here", "1 message kept here")
    assert "nobody is protected" in browser.run("document.getElementById('part').textContent")
    calls = [one for one in browser.requests() if one.endswith(("Challenge", "Authenticate"))]
    assert calls == []


@contextmanager
def page_of(run, bundle_folder):
    """Give browsers the bundle's page with a stand-in for its graphs, within a ``with`` block."""
    with opened(bundle_folder) as bundle, pytest.MonkeyPatch.context() as patch:
        page = KeyboardPage.of(bundle, WebAddress(f"127.0.0.1:{free_port()}", run.keys))
        run.page = replace(page, files={**page.files, "runtime.js": STUB.encode()})
        patch.setattr(KeyboardPage, "check", lambda *about: None)  # the bundle is of another run
        yield


def is_the_simulations(run, bundle_folder, browsers, new_watcher) -> bool:
    """Whether the model of a run with two pages has the bytes of a sum in one process."""
    with page_of(run, bundle_folder):
        folder = take_part(run, browsers, new_watcher, untouched)

    def update(task, user: int) -> np.ndarray:
        words = np.count_nonzero(run.windows_of(user))
        gradient = ((np.arange(len(task.values)) % 7 - 3) * words / 256).astype(np.float32)
        return (task.values - np.float32(0.5) * gradient) - task.values

    found, expected = load_model(folder.model_path).parameters, run.expected(update)
    return all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.skipif(
    "PFL_LM_TEST_MINUTES" not in os.environ,
    reason="takes a minute; PFL_LM_TEST_MINUTES=1 plays 22 devices for three rounds",
)
def test_two_pages_beside_twenty_devices_for_three_rounds(
    bundle_folder, whole, browsers, without_runtime, tmp_path, new_watcher, quick_text
):
    enrol(tmp_path / "keys", 22)
    people = PopulationConfig("synthetic", users=22, tokens_per_user=40)
    longer = replace(whole, population=people, rounds=3, cohort=22)
    run = PageTrial(longer, tmp_path / "run", ServerKeys(tmp_path / "keys"))
    assert is_the_simulations(run, bundle_folder, browsers, new_watcher)


def test_two_pages_take_part_and_the_model_is_the_simulations(
    bundle_folder, whole, keys, browsers, without_runtime, tmp_path, new_watcher, quick_text
):
    run = PageTrial(whole, tmp_path / "run", keys)
    assert is_the_simulations(run, bundle_folder, browsers, new_watcher)
    first = browsers[0]
    assert first.run("app.part.key.number") == 1
    first.tap("#taking-part")
    first.until("app.part.state === 'off' && !app.part.on")
    first.tap("#part-leave")
    first.until("app.part.key === null && document.getElementById('taking-part').disabled")
    kept = "app.part.store.read('key').then((one) => one === null)"
    assert first.run(kept)
    errors = [e for e in first.events if e["method"] == "Runtime.exceptionThrown"]
    assert errors == []
    second = browsers[1]
    second.run("app.part.store.write('record', { version: 2 }).then(() => app.part.open())")
    assert "no participation record" in second.run("app.part.text")
    second.tap("#part-forget")
    second.until("app.part.state === 'off' && app.part.key === null")
    assert second.run("app.part.store.read('record').then((one) => one === null)")


def test_no_tab_goes_on_with_what_another_left(
    bundle_folder, whole, keys, browsers, without_runtime, tmp_path, new_watcher, quick_text
):
    run, browser = PageTrial(whole, tmp_path / "run", keys), browsers[0]
    with page_of(run, bundle_folder):
        run.start(lambda: run.serve(new_watcher()))
        switch_on(browser, run.link(1))
        browser.until("app.part.participant && app.part.text.startsWith('admitted')")
        with browser.tab():
            wait_for_page(browser, run.link(1).split("#")[0])
            browser.until("app.part.on && app.part.text === 'for another page of this browser'")
            browser.tap("#part-open")
            browser.tap("#part-leave")
            browser.until("app.part.key === null && !app.part.on")
        browser.until("app.part.key === null && !app.part.on")
        assert browser.run("document.getElementById('taking-part').checked") is False
        assert "stopped" in browser.run("app.part.participant.train().catch((e) => e.message)")
        run.start_devices(range(6))
        run.join()


def test_a_browser_that_writes_nothing_stops_when_it_is_told_to(
    bundle_folder, whole, keys, browsers, without_runtime, tmp_path, new_watcher, quick_text
):
    run, browser = PageTrial(whole, tmp_path / "run", keys), browsers[0]
    with page_of(run, bundle_folder):
        run.start(lambda: run.serve(new_watcher()))
        switch_on(browser, run.link(1))
        browser.until("app.part.on")
        browser.run("app.part.store.write = () => Promise.reject(new Error('the disk is full')); 1")
        browser.tap("#taking-part")
        browser.until("!app.part.on && app.part.state === 'failed'")
        assert "the disk is full" in browser.run("document.getElementById('part').textContent")
        shut = "IDBFactory.prototype.open = () => { throw new Error('no database here'); }"
        browser._call("Page.addScriptToEvaluateOnNewDocument", source=shut)
        wait_for_page(browser, run.link(1).split("#")[0])
        browser.until("app.part.state === 'failed'")
        assert "no database here" in browser.run("app.part.text")
        assert browser.run("document.documentElement.classList.contains('failed')") is False
        run.start_devices(range(6))
        run.join()


@pytest.fixture(scope="module")
def quick_text():
    """Public text of invented users is short."""
    import pfl_lm.run.setup

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pfl_lm.run.setup, "PUBLIC_USERS", 20)
        yield


@pytest.mark.skipif(WITHOUT_GRAPHS is not None, reason=str(WITHOUT_GRAPHS))
def test_a_page_trains_by_the_bundles_own_graph(
    whole, keys, browsers, text, quick_text, tmp_path, new_watcher
):
    """Up to float32's rounding, which moves few coordinates of the sum by a step of the grid."""
    partial = replace(whole, payload=PayloadPlan(rows=120, draw="unigram"))
    exported = open_source(simulate(partial, tmp_path / "earlier", new_watcher()).path)
    config = build.ExportConfig(formats=("onnx",), precisions=("fp32",), personal=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(formats.FORMATS, "onnx", ONNX)
        patch.setattr(test_vectors, "GRADIENT_TOLERANCE", 3e-4)
        louder = 20 * exported.model.parameters["embedding"]
        parameters = exported.model.parameters | {"embedding": louder}
        model = replace(exported.model, parameters=parameters)
        build.export(replace(exported, model=model), tmp_path / "bundle", config, text)
    run = PageTrial(partial, tmp_path / "run", keys)
    with opened(tmp_path / "bundle") as bundle:
        run.page = KeyboardPage.of(bundle, WebAddress(f"127.0.0.1:{free_port()}", keys))
        folder = take_part(run, browsers, new_watcher)

    def update(task, user: int) -> np.ndarray:
        return train(task, [run.windows_of(user)], [user])[0][0]

    found, expected = load_model(folder.model_path).parameters, run.expected(update)
    differing = [(found[name] - expected[name]).abs().flatten() for name in expected]
    far = torch.cat(differing)
    step = 1 / run.context.privacy.grid(choose_payload(run.context, 0).dim).scale / 6
    assert far.max() <= 2.1 * step  # of two pages
    assert (far > 0.5 * step).float().mean() < 0.01


class TestRefusals:
    def test_a_bundle_of_another_run_is_refused(
        self, bundle_folder, whole, address, without_runtime, quick_text
    ):
        context = served(open_run(whole), 6, True)
        with opened(bundle_folder) as bundle:
            page = KeyboardPage.of(bundle, address)
            with pytest.raises(ValueError, match="another run: payload differ"):
                page.check(context, True)

    def test_a_bundle_without_a_graph_to_train_by_is_refused(
        self, bundle_folder, address, without_runtime
    ):
        with opened(bundle_folder) as bundle:
            graphs = [one for one in bundle.index.graphs if one["graph"] != "train_step"]
            bare = replace(bundle, index=replace(bundle.index, graphs=graphs))
            with pytest.raises(ValueError, match="no train_step in ONNX"):
                KeyboardPage.of(bare, address)

    def test_a_page_needs_the_web_runtime(self, bundle_folder, address, monkeypatch):
        monkeypatch.setattr(runtime, "missing", lambda: "fetch it")
        with (
            opened(bundle_folder) as bundle,
            pytest.raises(ValueError, match="--web: fetch it"),
        ):
            KeyboardPage.of(bundle, address)
