"""Sweeps: reading a grid, real notebooks side by side, a broken run, a killed sweep, a Dask cluster."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from fetalseg_helpers import notebooks, plotting, sweep
from fetalseg_helpers.workspace import FetalsegError, read_json

TINY = {"phantoms": 24, "width": 32, "height": 32, "base_channels": 2, "depth": 2, "epochs": 2, "batch_size": 4}
ROOT = Path(sweep.__file__).parent.parent


def write_grid(folder, **values):
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def command(grid, out, *options):
    return [sys.executable, "-m", "fetalseg_helpers", "sweep", str(grid), "--out", str(out), *options]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The same number of threads everywhere, for the same scores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


def stamp(folder):
    return (folder / "notebooks" / "06_evaluation.ipynb").stat().st_mtime_ns


def test_a_grid_gives_every_combination_over_the_values_of_its_preset(tmp_path):
    grid = write_grid(tmp_path, preset="laptop", learning_rate=[0.001, 0.004], seed=[0, 1, 2], epochs=7)
    combinations, varied = sweep.read_grid(grid)
    assert varied == ["learning_rate", "seed"] and len(combinations) == 6
    laptop = notebooks.read_preset("laptop")
    for values in combinations:
        assert values["epochs"] == 7 and values["width"] == laptop["width"] and values["data"] == "phantom"
    names = {sweep.run_name(values, varied) for values in combinations}
    assert len(names) == 6 and "learning_rate=0.001,seed=2" in names


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("learning_rate: [0.1, fast]", "learning_rate is 'fast'"),
        ("learning_rates: [0.1]", "'learning_rates' is not a parameter"),
        ("run_dir: [a, b]", "'run_dir' is not a parameter"),
        ("epochs: []", "epochs has no value"),
        ("split_by: [examination, image]", "'split_by' is not a parameter"),
        ("- 1", "holds no parameters"),
        ("", "holds no parameters"),
        ("a: [", "cannot be read as YAML"),
        ("preset: fast", "fast is no preset"),
    ],
)
def test_a_grid_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, text, part):
    path = tmp_path / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FetalsegError) as error:
        sweep.read_grid(path)
    assert part in str(error.value) and "\n" not in str(error.value)


def test_a_missing_grid_and_two_equal_values_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(FetalsegError, match="cannot be read"):
        sweep.read_grid(tmp_path / "none.yaml")
    with pytest.raises(FetalsegError, match="share the folder seed=1"):
        sweep.sweep(write_grid(tmp_path, **TINY, seed=[1, 1]), tmp_path / "out")


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two good combinations and a broken one, killed when the first is complete, then run again."""
    root = tmp_path_factory.mktemp("sweep")
    grid, out = write_grid(root, **{**TINY, "batch_size": [4, 500, 6]}), root / "out"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
    process = subprocess.Popen(command(grid, out), start_new_session=True, **quiet)
    first, deadline = out / "batch_size=4" / "notebooks" / "06_evaluation.ipynb", time.monotonic() + 900
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
    process.wait()
    assert first.exists() and not (out / "sweep.csv").exists()
    before = stamp(out / "batch_size=4")
    again = subprocess.run(command(grid, out, "--jobs", "2"), capture_output=True, text=True, cwd=ROOT, timeout=900)
    return out, before, again


def test_a_killed_sweep_goes_on_where_it_was(swept):
    out, before, _ = swept
    assert stamp(out / "batch_size=4") == before


def test_a_broken_combination_is_reported_and_the_others_are_finished(swept):
    out, _, again = swept
    assert again.returncode == 1, again.stderr
    table = pd.read_csv(out / "sweep.csv", keep_default_na=False).set_index("run")
    assert list(table.index) == ["batch_size=4", "batch_size=500", "batch_size=6"]
    assert "batch_size 500 is more than the" in table.problem["batch_size=500"]
    assert table.problem[["batch_size=4", "batch_size=6"]].eq("").all()
    assert "batch_size=500: 05_training.ipynb" in again.stdout and "2 of 3 runs complete" in again.stdout


def test_the_table_holds_the_scores_of_each_folder_and_a_figure_lies_beside_it(swept):
    out, _, _ = swept
    table = pd.read_csv(out / "sweep.csv").set_index("run")
    for name in ("batch_size=4", "batch_size=6"):
        metrics = read_json(out / name / "metrics.json")
        assert table.mean_dice[name] == pytest.approx(metrics["mean_dice"])
        assert metrics["data"] == "phantom" and metrics["parameters"]["batch_size"] == table.batch_size[name]
    assert (out / "sweep.png").stat().st_size > 5000
    assert [path.name for path in out.glob("*/phantom_*")] == [] and (out / "phantom_24").is_dir()  # shared


def test_other_values_train_anew_and_the_same_are_left_alone(swept, tmp_path, monkeypatch):
    out, _, _ = swept
    done = []
    monkeypatch.setattr(
        notebooks, "run_lesson", lambda path, folder, values: done.append((path.name, values["resume"]))
    )
    values = read_json(out / "batch_size=6" / "values.json")
    assert sweep.run_combination(out / "batch_size=6", values) == ("batch_size=6", "") and done == []
    folder = tmp_path / "run"
    sweep.run_combination(folder, values)
    sweep.run_combination(folder, values)  # stopped before its last notebook: it goes on
    sweep.run_combination(folder, values | {"epochs": 3})
    assert [resume for _, resume in done[::2]] == [False, True, False]


def test_other_values_that_were_stopped_at_once_are_not_mixed_with_the_old_training(swept, tmp_path):
    out, _, _ = swept
    folder = shutil.copytree(out / "batch_size=6", tmp_path / "out" / "batch_size=6")
    shutil.copytree(out / "phantom_24", tmp_path / "out" / "phantom_24")
    values = read_json(folder / "values.json") | {"epochs": 3}
    for name in sweep.RESULTS:
        (folder / name).unlink()
    (folder / "values.json").write_text(json.dumps(values))  # stopped before its first epoch
    assert sweep.run_combination(folder, values) == ("batch_size=6", "")
    assert len(pd.read_csv(folder / "history.csv")) == 3


def test_a_folder_that_cannot_be_written_is_the_problem_of_one_combination(tmp_path):
    (tmp_path / "taken").write_text("a file")
    name, problem = sweep.run_combination(tmp_path / "taken", {"epochs": 1})
    assert name == "taken" and "choose another run_dir" in problem


def test_the_same_sweep_runs_on_a_dask_cluster_of_two_workers(swept):
    distributed = pytest.importorskip("distributed", reason="pip install 'dask[distributed]'")
    out, _, _ = swept
    grid = write_grid(out.parent, **{**TINY, "batch_size": [4, 6], "seed": [0]})
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        options = ("--jobs", "2", "--dask", cluster.scheduler_address)
        done = subprocess.run(
            command(grid, out.parent / "dask", *options), capture_output=True, text=True, cwd=ROOT, timeout=900
        )
    assert done.returncode == 0, done.stderr[-2000:]
    table = pd.read_csv(out.parent / "dask" / "sweep.csv").set_index("run")
    here = pd.read_csv(out / "sweep.csv").set_index("run")
    assert table.mean_dice.to_dict() == pytest.approx(here.mean_dice[list(table.index)].to_dict(), abs=0.02)


def test_the_figure_has_a_line_per_setting_and_a_dot_per_seed():
    table = pd.DataFrame(
        {"run": list("abcd"), "epochs": [1, 1, 2, 2], "seed": [0, 1, 0, 1], "valid_dice": [0.5, 0.6, 0.8, None]}
    )
    (axis,) = plotting.show_sweep(table, ["epochs", "seed"]).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["1", "2"]  # the best on top
    dots = [line.get_xdata() for line in axis.lines if line.get_marker() == "o"]
    assert [list(values) for values in dots] == [[0.5, 0.6], [0.8]]
