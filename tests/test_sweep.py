"""Sweeps: reading a grid, small notebooks in a row, what is kept and what is made anew, one real combination."""

import json
import sys

import nbformat
import pandas as pd
import pytest
import yaml
from filelock import FileLock

from fetalseg_helpers import __main__, loading
from fetalseg_helpers.running import lessons, sweep
from fetalseg_helpers.workspace import FetalsegError, read_json

TINY = {"phantoms": 24, "width": 32, "height": 32, "base_channels": 2, "depth": 2, "epochs": 2, "batch_size": 4}
PARAMETERS = """run_dir: str = "runs/quick"  # folder
data: str = "phantom"  # data
seed: int = 0  # split
phantoms: int = 400  # frames
epochs: int = 2  # rows of the history
batch_size: int = 4  # more than 100 is too much
resume: bool = False  # go on"""
TRAINING = """from pathlib import Path

assert batch_size <= 100, f"batch_size {batch_size} is too much."
history = Path(run_dir) / "history.csv"
rows = history.read_text().splitlines()[1:] if resume and history.exists() else []
rows += [f"{len(rows) + epoch},0.{batch_size},1.5" for epoch in range(1, epochs + 1)]
text = "\\n".join(["epoch,valid_dice,seconds", *rows])
_ = history.write_text(text + "\\n")"""
EVALUATION = """import json
from pathlib import Path

summary = {"mean_dice": batch_size / 10, "mean_iou": 0.5, "worst_dice": 0.1, "images": 3}
summary["dice_interval_95"] = [0.2, 0.9]
_ = (Path(run_dir) / "metrics.json").write_text(json.dumps(summary))"""


def write_grid(folder, **values):
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def command(monkeypatch, *arguments):
    """The exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["fetalseg", "sweep", *map(str, arguments)])
    monkeypatch.setattr(__main__.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    return ended.value.code or 0


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Paths of two notebooks of three cells each, which train and evaluate nothing."""
    folder = tmp_path_factory.mktemp("small")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for name, work in zip(sweep.LESSONS, (TRAINING, EVALUATION), strict=True):
        cells = [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, work, "print('done')")]
        cells[0].metadata["tags"] = ["parameters"]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / name)
    return sorted(folder.glob("*.ipynb"))


@pytest.fixture
def small_lessons(small, monkeypatch):
    """The small notebooks in place of the course's."""
    monkeypatch.setattr(lessons, "lessons", lambda: small)


@pytest.fixture
def no_lessons(monkeypatch):
    """In place of executing a notebook: a list of (its name, whether it goes on)."""
    done = []

    def note(path, folder, values):
        done.append((path.name, values["resume"]))
        final = folder / "notebooks" / path.name
        final.parent.mkdir(exist_ok=True)
        final.write_text("executed")

    monkeypatch.setattr(lessons, "run_lesson", note)
    return done


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, draw_pairs):
    """A folder of drawn frames, and the values of a combination on them."""
    folder = tmp_path_factory.mktemp("drawn") / "malignant"
    draw_pairs(folder, count=12)
    return folder, lessons.read_preset("quick") | TINY | {"data": str(folder)}


def test_a_grid_gives_every_combination_over_the_values_of_its_preset(tmp_path):
    grid = write_grid(tmp_path, preset="laptop", learning_rate=[0.001, 0.004], seed=[0, 1, 2], epochs=7)
    combinations, varied = sweep.read_grid(grid)
    assert varied == ["learning_rate", "seed"] and len(combinations) == 6
    laptop = lessons.read_preset("laptop")
    for values in combinations.values():
        assert values["epochs"] == 7 and values["width"] == laptop["width"] and values["data"] == "phantom"
    chosen = combinations["learning_rate=0.001,seed=2"]
    assert (chosen["learning_rate"], chosen["seed"]) == (0.001, 2)


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
    assert not (tmp_path / "out").exists()


def test_a_broken_combination_is_reported_and_the_others_are_finished(
    tmp_path, small_lessons, pairs, monkeypatch, capsys
):
    grid = write_grid(tmp_path, data=str(pairs[0]), epochs=3, batch_size=[4, 500, 6])
    assert command(monkeypatch, grid, "--out", tmp_path / "out") == 1
    out = capsys.readouterr().out
    assert "batch_size=500: 05_training.ipynb, cell 3: batch_size 500 is too much." in out
    assert "2 of 3 runs complete" in out and "batch_size=6: done" in out
    table = pd.read_csv(tmp_path / "out" / "sweep.csv", keep_default_na=False).set_index("run")
    assert list(table.index) == ["batch_size=4", "batch_size=500", "batch_size=6"]
    assert "is too much" in table.problem["batch_size=500"]
    good = table.loc[["batch_size=4", "batch_size=6"]]
    assert good.problem.eq("").all() and list(good.mean_dice.astype(float)) == [0.4, 0.6]
    assert list(good.valid_dice.astype(float)) == [0.4, 0.6] and good.seconds.astype(float).eq(4.5).all()
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 5000


def test_what_is_complete_is_left_alone_and_what_was_stopped_goes_on(tmp_path, no_lessons, pairs):
    _, values = pairs
    folder = tmp_path / "run"
    assert sweep.run_combination(folder, values) == ("run", "")
    assert no_lessons == [(name, False) for name in sweep.LESSONS]
    sweep.run_combination(folder, values)
    assert len(no_lessons) == 2
    (folder / "notebooks" / sweep.LESSONS[-1]).unlink()  # stopped before its last notebook
    sweep.run_combination(folder, values)
    assert no_lessons[2:] == [(name, True) for name in sweep.LESSONS]


def spoil(folder):
    """What a training that was stopped, and an evaluation, leave."""
    for name in sweep.RESULTS:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("old")


def test_other_values_are_trained_anew_and_not_mixed_with_the_old_training(tmp_path, no_lessons, pairs):
    _, values = pairs
    folder = tmp_path / "run"
    sweep.run_combination(folder, values)
    spoil(folder)
    sweep.run_combination(folder, values | {"epochs": 3, "width": 48})
    assert no_lessons[2:] == [(name, False) for name in sweep.LESSONS]
    assert not (folder / "last.pt").exists() and not (folder / "metrics.json").exists()
    assert read_json(folder / "prepared" / "settings.json")["width"] == 48


def test_a_sweep_whose_data_changed_makes_its_runs_anew(tmp_path, no_lessons, pairs, draw_pairs):
    folder, values = tmp_path / "run", pairs[1] | {"data": str(tmp_path / "malignant")}
    draw_pairs(tmp_path / "malignant", count=12)
    sweep.run_combination(folder, values)
    spoil(folder)
    before = read_json(folder / "prepared" / "settings.json")
    outline = tmp_path / "malignant" / "3_HC_Annotation.png"
    outline.write_bytes((tmp_path / "malignant" / "4_HC_Annotation.png").read_bytes())
    assert sweep.run_combination(folder, values) == ("run", "")
    assert no_lessons[2:] == [(name, False) for name in sweep.LESSONS]
    assert not (folder / "last.pt").exists() and read_json(folder / "prepared" / "settings.json") != before


def test_a_run_that_was_stopped_while_its_data_was_made_begins_anew(tmp_path, no_lessons, pairs, monkeypatch):
    _, values = pairs
    folder = tmp_path / "run"
    sweep.run_combination(folder, values)
    spoil(folder)
    with monkeypatch.context() as patch:
        patch.setattr(sweep.preprocessing, "prepare", lambda *_: pytest.fail("stopped here"))
        with pytest.raises(pytest.fail.Exception):
            sweep.run_combination(folder, values | {"width": 48})
    sweep.run_combination(folder, values)  # as before, but its old results are gone
    assert no_lessons[2:] == [(name, False) for name in sweep.LESSONS]


def test_a_folder_that_cannot_be_written_is_the_problem_of_one_combination(tmp_path):
    (tmp_path / "taken").write_text("a file")
    name, problem = sweep.run_combination(tmp_path / "taken", {"epochs": 1})
    assert name == "taken" and "choose another run_dir" in problem


def test_two_sweeps_in_one_folder_are_refused_in_one_sentence(tmp_path, pairs):
    grid = write_grid(tmp_path, data=str(pairs[0]), **TINY)
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(FetalsegError, match="wait, or choose another") as error:
        sweep.sweep(grid, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_the_same_sweep_runs_on_a_dask_cluster(tmp_path, small_lessons, pairs, monkeypatch, capsys):
    distributed = pytest.importorskip("distributed", reason="pip install 'dask[distributed]'")
    grid = write_grid(tmp_path, data=str(pairs[0]), batch_size=[4, 6])
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)
    with cluster:
        assert command(monkeypatch, grid, "--out", tmp_path / "out", "--dask", cluster.scheduler_address) == 0
    table = pd.read_csv(tmp_path / "out" / "sweep.csv").set_index("run")
    assert table.mean_dice.to_dict() == {"batch_size=4": 0.4, "batch_size=6": 0.6}


def test_a_real_combination_trains_evaluates_and_shares_its_phantoms(tmp_path, monkeypatch, capsys):
    grid = write_grid(tmp_path, **TINY, trial_steps=2, draws=100)
    assert command(monkeypatch, grid, "--out", tmp_path / "out", "--jobs", "2") == 0
    table = pd.read_csv(tmp_path / "out" / "sweep.csv", keep_default_na=False).set_index("run")
    metrics = json.loads((tmp_path / "out" / "only" / "metrics.json").read_text(encoding="utf-8"))
    assert table.mean_dice["only"] == pytest.approx(metrics["mean_dice"]) and table.problem["only"] == ""
    assert metrics["data"] == "phantom" and metrics["parameters"]["epochs"] == 2
    assert list((tmp_path / "out").glob("*/phantom_*")) == [] and (tmp_path / "out" / "phantom_24").is_dir()
    assert "1 of 1 runs complete" in capsys.readouterr().out


def test_the_figure_has_a_line_per_setting_and_a_dot_per_seed():
    table = pd.DataFrame(
        {"run": list("abcd"), "epochs": [1, 1, 2, 2], "seed": [0, 1, 0, 1], "valid_dice": [0.5, 0.6, 0.8, None]}
    )
    (axis,) = sweep.show_sweep(table, ["epochs", "seed"]).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["1", "2"]  # the best on top
    means, dots = ({*zip(line.get_ydata(), line.get_xdata(), strict=True)} for line in axis.lines)
    assert means == {("1", 0.55), ("2", 0.8)} and dots == {("1", 0.5), ("1", 0.6), ("2", 0.8)}
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["mean", "one run"]


def test_of_many_settings_the_best_twenty_are_drawn():
    table = pd.DataFrame({"run": range(30), "epochs": range(30), "valid_dice": [number / 30 for number in range(30)]})
    (axis,) = sweep.show_sweep(table, ["epochs"]).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [str(number) for number in range(10, 30)]


def test_the_two_notebooks_of_a_sweep_are_in_the_course():
    assert [path.name for path in lessons.lessons() if path.name in sweep.LESSONS] == list(sweep.LESSONS)


def test_examinations_and_negatives_of_a_grid_reach_its_manifests(pairs, no_lessons, tmp_path):
    folder, _ = pairs
    grid = write_grid(tmp_path, data=str(folder), examinations=r"(\d+)_", negatives=True, **TINY)
    combinations, _ = sweep.read_grid(grid)
    ((name, values),) = combinations.items()
    assert sweep.run_combination(tmp_path / name, values) == (name, "")
    made = read_json(tmp_path / name / "data.json")
    assert (made["examinations"], made["negatives"]) == (r"(\d+)_", True)
    assert set(loading.read_manifest(tmp_path / name).examination) == {str(number) for number in range(1, 13)}
