"""Notebooks in a real JupyterLab in Chromium: cells run, widgets move pictures, a training is stopped and goes on."""

import io
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fetalseg_helpers import workspace
from fetalseg_helpers.running import lessons

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install -e '.[browser]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: on Debian, apt-get install chromium"),
    pytest.mark.xdist_group("browser"),
]
ROOT = workspace.project_root()
LESSONS = lessons.lessons()[1:]  # without the primer
EXERCISE = ROOT / "notebooks" / "exercises" / "release" / "02_preprocessing" / "02_preprocessing.ipynb"
SMALL = {
    "width": 32, "height": 32, "base_channels": 4, "depth": 2, "epochs": 3, "batch_size": 4, "overfit_steps": 20,
    "trial_steps": 2, "draws": 200, "worsened": 2, "leak_steps": 2, "repeats": 1, "shots": 2, "shot_steps": 2,
    "phantoms": 24,
}  # fmt: skip
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
READY = """() => {
    const session = window.jupyterapp?.shell.currentWidget?.context?.sessionContext;
    const kernel = session?.session?.kernel;
    return Boolean(session?.isReady && kernel?.connectionStatus === 'connected' && kernel?.status === 'idle');
}"""
RUN = "(command) => { window.jupyterapp.commands.execute(command); }"
CELLS = """() => window.jupyterapp.shell.currentWidget.content.widgets
    .filter(cell => cell.model.type === 'code')
    .map(cell => ({count: cell.model.executionCount, source: cell.model.sharedModel.source,
                   outputs: cell.model.outputs.toJSON()}))"""
ENDS = "() => ['now', 'max'].map(end => document.activeElement.getAttribute(`aria-value${end}`))"
ACTIVATE = """(words) => {
    const notebook = window.jupyterapp.shell.currentWidget.content;
    notebook.activeCellIndex = notebook.widgets.findIndex(cell => cell.model.sharedModel.source.includes(words));
}"""


@pytest.fixture(scope="module")
def home(tmp_path_factory, folders):
    """The server's folder, which the phantoms lie beside."""
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(folders / "phantom_24", home / "runs" / "phantom_24")
    return home


@pytest.fixture(scope="module")
def lab(home, tmp_path_factory):
    """The address of a notebook in a JupyterLab whose every folder is its own, as a function of its name."""
    scratch = tmp_path_factory.mktemp("jupyter")
    (scratch / "app").mkdir()
    notebook = {"windowingMode": "none"}  # every cell is on the page
    news = {"fetchNews": "false", "checkForUpdates": False}
    plugins = ("@jupyterlab/apputils-extension:notification", "@jupyterlab/notebook-extension:tracker")
    overrides = dict(zip(plugins, (news, notebook), strict=True))
    (scratch / "app" / "overrides.json").write_text(json.dumps(overrides), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    own = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    environment = os.environ | {name: str(scratch / name) for name in (*own, "IPYTHONDIR")}
    environment |= {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": str(ROOT)}
    options = [
        "--no-browser", "--allow-root", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={home}",
        f"--LabApp.app_settings_dir={scratch / 'app'}", "--LabApp.expose_app_in_browser=True",
    ]  # fmt: skip
    address, log = f"http://127.0.0.1:{port}", (scratch / "lab.log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail("JupyterLab did not start: " + (scratch / "lab.log").read_text(encoding="utf-8")[-500:])
        yield lambda name: f"{address}/lab/tree/{name}?token={token}&reset"
    finally:
        server.terminate()
        server.wait()
        log.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_notebook(lab, browser, home):
    """A function that opens a notebook in JupyterLab, its kernel ready; gives the page."""
    page = browser.new_page(viewport={"width": 1280, "height": 1600})

    def open_notebook(notebook, name):
        nbformat.write(notebook, home / name)
        page.goto(lab(name))
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=60_000)
        page.wait_for_function(READY, timeout=120_000)
        return page

    yield open_notebook
    page.evaluate("() => window.jupyterapp.shell.currentWidget.context.sessionContext.shutdown()")
    page.close()


def small_copy(path, **values):
    """A notebook without outputs, its parameters replaced."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            if "parameters" in cell.metadata.get("tags", []):
                for name, value in values.items():
                    cell.source = re.sub(rf"(?m)^({name}: \w+ = )[^#\n]+", rf"\g<1>{value!r}  ", cell.source)
    return notebook


def wait(page, seconds):
    """Wait until no cell runs or waits any more."""
    end = time.monotonic() + seconds
    while True:
        page.wait_for_timeout(300)
        waiting = any("*" in prompt for prompt in page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts())
        if not waiting and page.evaluate(READY):
            return
        assert time.monotonic() < end, f"cells still run after {seconds} s"


def run_all(page, seconds=120):
    """Run every cell; gives a sentence for each that stopped with an error or was not run."""
    page.evaluate(RUN, "notebook:run-all-cells")
    page.wait_for_timeout(500)
    wait(page, seconds)
    problems = []
    for number, cell in enumerate(page.evaluate(CELLS), 1):
        errors = [out for out in cell["outputs"] if out["output_type"] == "error"]
        problems += [f"{number}: {error['ename']}: {error['evalue']}" for error in errors]
        problems += [] if cell["count"] else [f"{number}: not run"]
    return problems


def pixels(element):
    """What an element shows, as an array."""
    element.scroll_into_view_if_needed()
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB"))


def moved_widgets(page):
    """Move every control on a page by some steps; gives (its name, whether the picture beside it changed) for each."""
    moved = []
    for box in page.locator(".jp-OutputArea-output .widget-vbox").all():
        picture = box.locator("img").first
        for control in box.locator(".widget-inline-hbox").all():
            name = control.locator("label").first.inner_text()
            before = pixels(picture)
            if control.locator("select").count():
                control.locator("select").select_option(index=1)
            else:
                control.locator(".noUi-handle").focus()
                ends = page.evaluate(ENDS)  # at its highest value it can only go down
                for _ in range(3):
                    page.keyboard.press("ArrowLeft" if ends[0] == ends[1] else "ArrowRight")
            for _ in range(40):  # until it is drawn anew
                page.wait_for_timeout(150)
                after = pixels(picture)
                if after.shape != before.shape or (after != before).any():
                    break
            moved.append((name, after.shape != before.shape or bool((after != before).any())))
    return moved


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_notebook_runs_to_its_end_and_its_widgets_move_their_pictures(path, open_notebook, home):
    page = open_notebook(small_copy(path, **SMALL, run_dir=str(home / "runs" / "shared")), path.name)
    assert run_all(page) == []
    expected = path.read_text(encoding="utf-8").count("widgets.explore(")
    moved = moved_widgets(page)
    assert page.locator(".jp-OutputArea-output .widget-vbox").count() == expected
    assert len(moved) >= expected and all(changed for _, changed in moved), moved


def test_an_exercise_runs_to_its_end_unanswered(open_notebook):
    page = open_notebook(small_copy(EXERCISE), EXERCISE.name)
    assert run_all(page) == []
    said = [out.get("text", "") for cell in page.evaluate(CELLS) for out in cell["outputs"]]
    assert sum("not answered yet." in "".join(text) for text in said) >= 3


def test_a_training_grows_its_curve_is_stopped_in_the_middle_and_goes_on(open_notebook, home):
    run_dir = home / "runs" / "stopped"
    values = SMALL | {"epochs": 60, "patience": 60, "run_dir": str(run_dir)}
    page = open_notebook(small_copy(LESSONS[4], **values), "stopped.ipynb")
    page.evaluate(RUN, "notebook:run-all-cells")
    curve = page.locator(".jp-Cell:has-text('widgets.watch(') .jp-OutputArea-output img")
    history = run_dir / "history.csv"
    seen, end = [], time.monotonic() + 120
    while len(seen) < 3 and time.monotonic() < end:  # pictures of the growing curve, which takes another's place
        picture = curve.first.get_attribute("src") if curve.count() else None
        if picture and (not seen or picture != seen[-1]):
            seen.append(picture)
    assert len(seen) == 3
    page.evaluate(RUN, "notebook:interrupt-kernel")
    page.wait_for_function("() => document.body.innerText.includes('KeyboardInterrupt')", timeout=30_000)
    wait(page, 60)
    before = pd.read_csv(history)
    assert 1 <= len(before) < 60
    page.evaluate(ACTIVATE, "widgets.watch(")
    page.evaluate(RUN, "notebook:run-cell")
    page.wait_for_timeout(500)
    wait(page, 120)
    after = pd.read_csv(history)
    assert list(after.epoch) == list(range(1, 61))
    pd.testing.assert_frame_equal(after[: len(before)], before, check_dtype=False)
    watched = next(cell for cell in page.evaluate(CELLS) if "widgets.watch(" in cell["source"])
    assert not any(out["output_type"] == "error" for out in watched["outputs"])


def test_what_is_wrong_is_found(open_notebook):
    """An error, a cell after it that is not run, a widget whose picture never changes."""
    still = """
from matplotlib import pyplot
from fetalseg_helpers.running import widgets
def draw(size=1):
    return pyplot.figure(figsize=(2, 2))
widgets.explore(draw, size=(1, 9, 1))
"""
    cells = [nbformat.v4.new_code_cell(source) for source in (still, "1 / 0", "print('never')")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    page = open_notebook(nbformat.v4.new_notebook(cells=cells, metadata=kernel), "wrong.ipynb")
    assert run_all(page) == ["2: ZeroDivisionError: division by zero", "3: not run"]
    assert moved_widgets(page) == [("size", False)]


@pytest.mark.parametrize("width", [1400, 400])
def test_a_page_of_a_run_fits_the_screen_and_asks_for_nothing(width, browser, paged_run):
    for name in ("index.html", "notebooks/05_training.html"):
        page, asked = browser.new_page(viewport={"width": width, "height": 900}), []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto((paged_run / name).as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert [url for url in asked if url.startswith("http")] == [] and page.locator("h1").first.is_visible()
        page.close()
