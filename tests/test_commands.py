"""The command line, as a user calls it: files, exit codes, one sentence. Three tests start processes of their own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from filelock import FileLock

from fetalseg_helpers import __main__, evaluation, loading, training, workspace
from fetalseg_helpers.running import lessons, stages
from fetalseg_helpers.running.checks import PARAMETERS

SMALL = {"width": 64, "height": 48, "base_channels": 4, "depth": 3, "epochs": 2}
QUICK = SMALL | {"phantoms": 24, "overfit_steps": 10, "trial_steps": 2, "draws": 100}
on_the_run = pytest.mark.xdist_group("whole run")  # one process makes it, once
CONTRACT = {
    "manifest.csv": ["image_id", "image_path", "mask_path", "examination", "split", "width", "height"],
    "verification.csv": ["image_id", "check", "severity", "detail"],
    "history.csv": ["epoch", "train_loss", "valid_loss", "valid_dice", "learning_rate", "seconds"],
}


def start(*arguments, **options):
    """The command line in a process of its own, with its output in pipes."""
    command = [sys.executable, "-m", "fetalseg_helpers", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONUTF8": "1", "PYTHONPATH": str(workspace.project_root())}
    return subprocess.Popen(command, encoding="utf-8", **({"env": environment} | pipes | options))


@pytest.fixture
def call(monkeypatch, capsys):
    """A function that calls the command line in this process."""

    def call(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["fetalseg", *map(str, arguments)])
        monkeypatch.setattr(__main__, "signal", SimpleNamespace(signal=lambda *_: None, SIGINT=signal.SIGINT))
        with pytest.raises(SystemExit) as ended:
            __main__.main()
        code = ended.value.code or 0
        out, err = capsys.readouterr()
        if isinstance(code, str):  # which Python prints, with exit code 1
            code, err = 1, f"{err}{code}\n"
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    return call


def parameters(values):
    return [text for name, value in values.items() for text in ("-p", name, str(value))]


def is_one_sentence(text):
    return text.strip() and "Traceback" not in text and len(text.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run, as small as it gets, called from another folder, in a process of its own."""
    folder = tmp_path_factory.mktemp("finished")
    process = start("run", "--run-dir", "run", *parameters(QUICK), cwd=folder)
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    return folder / "run", SimpleNamespace(stdout=out, stderr=err)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, draw_pairs):
    """Folder of 30 drawn frames with their outlines. Read only."""
    folder = tmp_path_factory.mktemp("drawn") / "malignant"
    draw_pairs(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, drawn):
    """A run folder with a network that was trained on `drawn`, with seed 1 at 48 × 32. Read only."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    stages.ensure_prepared(folder, 48, 32, data=str(drawn), seed=1)
    settings = training.Settings(base_channels=4, depth=2, epochs=2, seed=1)
    training.train(training.Trainer(folder, settings), report=str)
    return folder


@pytest.fixture
def mine(trained, tmp_path):
    """A copy of `trained`."""
    return Path(shutil.copytree(trained, tmp_path / "mine"))


# the main job


@on_the_run
def test_run_leaves_everything_that_the_contract_names(finished):
    folder, _ = finished
    for name, columns in CONTRACT.items():
        assert list(pd.read_csv(folder / name).columns)[: len(columns)] == columns, name
    assert list(pd.read_csv(folder / "metrics.csv").columns)[:4] == ["image_id", "examination", "dice", "iou"]
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert {"mean_dice", "mean_iou", "images", "examinations", "threshold", "data", "parameters"} <= set(metrics)
    for name in ("checkpoint.pt", "last.pt", "prepared/images.npy", "prepared/masks.npy"):
        assert (folder / name).stat().st_size > 0
    assert len(list((folder / "notebooks").glob("0?_*.ipynb"))) == 6


@on_the_run
def test_predictions_are_masks_of_0_and_255_at_the_image_s_own_size(finished):
    folder, _ = finished
    manifest = pd.read_csv(folder / "manifest.csv").set_index("image_id")
    scored = pd.read_csv(folder / "metrics.csv")
    for image_id in scored.image_id:
        mask = cv2.imread(str(folder / "predictions" / f"{image_id}_pred.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (manifest.height[image_id], manifest.width[image_id])
        assert set(np.unique(mask)) <= {0, 255}


@on_the_run
def test_run_says_where_it_is_and_what_came_out(finished):
    _, result = finished
    for name in ("01_loading", "06_evaluation", "Dice", "95 % interval", "phantoms", "predictions"):
        assert name in result.stdout
    assert result.stderr == ""


@on_the_run
def test_given_parameters_reach_the_notebooks(finished):
    folder, _ = finished
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert {name: metrics["parameters"][name] for name in ("epochs", "width", "base_channels")} == {
        "epochs": 2, "width": 64, "base_channels": 4,
    }  # fmt: skip


def test_a_run_in_a_folder_that_another_one_uses_is_one_sentence(call, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        result = call("run", "--run-dir", tmp_path / "run", *parameters(QUICK))
    assert result.returncode == 1 and "wait, or choose another" in result.stderr and is_one_sentence(result.stderr)


@pytest.mark.skipif(os.name != "posix", reason="only POSIX systems have process groups")
@pytest.mark.parametrize("send", [os.kill, getattr(os, "killpg", None)], ids=["to the command", "to its group"])
def test_ctrl_c_while_phantoms_are_drawn_is_one_line_and_leaves_nothing(send, tmp_path):
    run = tmp_path / "run"
    process = start("run", "--run-dir", run, "-p", "phantoms", 2000, start_new_session=True)
    deadline = time.monotonic() + 300
    while not list(run.rglob("*_Annotation.png")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    below = psutil.Process(process.pid).children(recursive=True)
    send(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert below and process.returncode == 130 and err.strip() == "stopped."
    _, alive = psutil.wait_procs(below, timeout=10)
    assert alive == [] and list(run.rglob(".unfinished-*")) == [] and list(run.glob("notebooks/*")) == []


# wrong usage, and what goes wrong


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("epoch", "3"), "no notebook has a parameter 'epoch': did you mean 'epochs'?"),
        (("learningrate", "1"), "did you mean 'learning_rate'?"),
        (("epochs", "many"), "epochs is 'many' of type str, but must be a whole number."),
        (("bce_weight", "-1"), "bce_weight is -1.0, but must lie between 0 and 100."),
        (("flip", "perhaps"), "flip is 'perhaps' of type str, but must be true or false."),
        (("width", "100"), "does not divide by 2^4 = 16: use 96 × "),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_parameter_stops_a_run_before_anything_runs(given, sentence, call, tmp_path):
    result = call("run", "--run-dir", tmp_path / "run", "-p", *given)
    assert result.returncode == 1 and sentence in result.stderr and is_one_sentence(result.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name, value", [("run_dir", "elsewhere"), ("resume", "true")])
def test_train_does_not_silently_drop_what_has_an_option_of_its_own(name, value, call, tmp_path):
    result = call("train", "--run-dir", tmp_path / "run", "-p", name, value)
    assert result.returncode == 1 and is_one_sentence(result.stderr)
    assert f"--{name.replace('_', '-')}" in result.stderr and not list(tmp_path.rglob("*.pt"))


def test_wrong_usage_exits_with_2(call):
    assert call("run", "--preset", "huge").returncode == 2
    assert call("walk").returncode == 2
    assert call("predict", "x").returncode == 2


def test_a_missing_data_folder_is_one_sentence_with_the_folder_s_name(call, tmp_path):
    result = call("run", "--data", tmp_path / "nowhere", "--run-dir", tmp_path / "run")
    assert result.returncode == 1 and "nowhere" in result.stderr and is_one_sentence(result.stderr)


def test_a_folder_without_a_pair_is_one_sentence_and_the_failed_notebook_is_kept(call, tmp_path):
    (tmp_path / "data").mkdir()
    cv2.imwrite(str(tmp_path / "data" / "1_HC.png"), np.zeros((54, 80), np.uint8))
    result = call("verify", tmp_path / "data")
    assert result.returncode == 1 and "holds no pair" in result.stderr and is_one_sentence(result.stderr)
    result = call("run", "--data", tmp_path / "data", "--run-dir", tmp_path / "run")
    assert result.returncode == 1 and "01_loading.ipynb, cell" in result.stderr and is_one_sentence(result.stderr)
    assert "holds no pair" in result.stderr and "01_loading_failed.ipynb" in result.stderr
    assert [path.name for path in (tmp_path / "run" / "notebooks").iterdir()] == ["01_loading_failed.ipynb"]


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    data = ["--data", str(tmp_path / "nowhere")]
    monkeypatch.setattr(sys, "argv", ["fetalseg", "run", *data, "--debug"])
    monkeypatch.setattr(__main__.signal, "signal", lambda *_: None)
    with pytest.raises(workspace.FetalsegError, match="nowhere"):
        __main__.main()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError("Unable to allocate 7.45 GiB for an array"), "not enough memory (Unable to allocate 7.45 GiB"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore"),
            "not enough memory (CUDA out",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "not enough memory",
        ),
        (RuntimeError("can't start new thread"), "not enough memory"),
        (BrokenExecutor("A process was terminated abruptly."), "not enough memory (A process was"),
        (cv2.error("(-4:Insufficient memory) Failed to allocate 3 bytes"), "not enough memory"),
        (OSError(13, "Permission denied", "runs/x/last.pt"), "runs/x/last.pt: Permission denied."),
        (OSError("the network drive went away"), "the network drive went away"),
        (ModuleNotFoundError("No module named 'papermill'"), "pip install -r requirements.txt"),
        (workspace.FetalsegError("1_HC.png is cut off: copy it again."), "1_HC.png is cut off: copy it again."),
        (
            workspace.FetalsegError("05_training.ipynb, cell 9: CUDA out of memory. (see x)"),
            "cell 9: CUDA out of memory",
        ),
        (workspace.FetalsegError("05_training.ipynb, cell 9: CUDA out of memory. (see x)"), "lower batch_size"),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_what_a_user_can_mend_is_one_sentence_and_exit_code_1(error, sentence, call, monkeypatch, tmp_path):
    def fail(*_):
        raise error

    monkeypatch.setattr(loading, "load_pairs", fail)
    result = call("verify", tmp_path)
    assert result.returncode == 1 and sentence in result.stderr and is_one_sentence(result.stderr)


def test_a_mistake_of_the_program_is_not_dressed_up(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["fetalseg", "verify", str(tmp_path)])
    monkeypatch.setattr(__main__.signal, "signal", lambda *_: None)
    monkeypatch.setattr(loading, "load_pairs", lambda *_: {}["key"])
    with pytest.raises(KeyError):
        __main__.main()


def test_ctrl_c_ends_what_was_started_and_is_one_line_and_exit_code_130(monkeypatch, capsys):
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(__main__, "signal", SimpleNamespace(signal=lambda *_: None, SIGINT=2, SIG_IGN=None))
    with pytest.raises(SystemExit) as ended:
        __main__.stop()
    assert ended.value.code == 130 and capsys.readouterr().err == "stopped.\n"
    assert started.wait(timeout=10) != 0


def test_help_needs_neither_torch_nor_opencv_and_without_opencv_the_rest_is_one_sentence(tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    (tmp_path / "torch.py").write_text("raise ImportError('torch is slow')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(workspace.project_root())])}
    helped = start("train", "--help", env=environment)
    out, err = helped.communicate(timeout=60)
    assert helped.returncode == 0 and "--resume" in out and err == ""
    verified = start("verify", tmp_path, env=environment)
    out, err = verified.communicate(timeout=60)
    assert verified.returncode == 1 and is_one_sentence(err)
    assert "OpenCV cannot be imported (libGL.so.1" in err and "pip install opencv-python-headless" in err


def test_the_regions_that_predict_offers_are_those_of_the_notebooks():
    option = next(option for option in __main__.predict.params if option.name == "region")
    assert tuple(option.type.choices) == PARAMETERS["region"].choices[1:]


# where a run lies, and what it is made from


def test_two_data_folders_of_one_name_get_run_folders_of_their_own(tmp_path, monkeypatch):
    for module in (workspace, lessons):
        monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    runs = tmp_path / "runs"

    def choose(data, preset="laptop"):
        folder = lessons.choose_folder(None, data, preset)
        folder.mkdir(parents=True, exist_ok=True)
        root = tmp_path / "data" / data if data in stages.DOWNLOADED else Path(data)
        workspace.write_json(folder / "data.json", {"root": workspace.shown(root)})
        return folder

    assert choose(str(tmp_path / "a" / "data")) == runs / "data-laptop"
    assert choose(str(tmp_path / "b" / "data")) == runs / "data-laptop-2"
    assert choose("/somewhere/data") == runs / "data-laptop-3"
    assert choose(str(tmp_path / "b" / "data")) == runs / "data-laptop-2"
    assert choose("/somewhere/data", "quick") == runs / "data-quick"
    assert choose("kaggle") == runs / "kaggle-laptop" and choose("/elsewhere/kaggle") == runs / "kaggle-laptop-2"
    assert lessons.choose_folder(None, "phantom", "quick") == runs / "quick"


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert lessons.choose_folder(Path("~/run"), "phantom", "quick") == tmp_path / "run"
    for pairs, option in (([], "~/data"), ([("data", "~/data")], None), ([("data", "hc18")], "~/data")):
        assert lessons.parse_parameters(pairs, data=option) == {"data": str(tmp_path / "data")}
    assert lessons.parse_parameters([], data="hc18") == {"data": "hc18"} and lessons.parse_parameters([]) == {}


ONE_EPOCH = parameters({"base_channels": 4, "depth": 2, "epochs": 1})


def state_of(folder):
    """The content of every file in a run folder, by name."""
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_training_needs_not_be_told_what_its_preset_leaves_out(call, drawn, tmp_path):
    size = parameters({"width": 48, "height": 32, "start": "scratch"})
    result = call("train", "--preset", "laptop", "--data", drawn, "--run-dir", tmp_path / "run", *size, *ONE_EPOCH)
    assert result.returncode == 0 and "best validation Dice" in result.stdout, result.stderr
    assert training.load_checkpoint(tmp_path / "run" / "checkpoint.pt")["settings"]["patience"] == 16  # the preset's


@pytest.mark.parametrize("preset", [(), ("--preset", "quick", "-p", "width", "48", "-p", "height", "32")])
def test_a_training_without_data_keeps_the_data_of_its_run_folder(preset, call, mine):
    before = state_of(mine)
    result = call("train", "--run-dir", mine, *preset, *ONE_EPOCH)
    assert result.returncode == 0, result.stderr
    after = state_of(mine)
    for name in ("manifest.csv", "data.json", "images.npy", "masks.npy", "settings.json"):
        assert after[name] == before[name], name
    assert list(mine.glob("phantom*")) == [] and after["checkpoint.pt"] != before["checkpoint.pt"]
    assert training.load_checkpoint(mine / "checkpoint.pt")["settings"]["seed"] == 1  # as its split


@pytest.mark.parametrize(
    ("given", "differs"),
    [
        (("--data", "phantom"), "data"),
        (("-p", "seed", "0"), "seed 1, not 0"),
        (("-p", "width", "64"), "width 48, not 64"),
        (("--preset", "quick"), f"width 48, not {lessons.read_preset('quick')['width']}"),
        (("--preset", "reference", "--resume"), None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_training_from_something_else_is_refused_and_nothing_is_replaced(given, differs, call, mine):
    before = state_of(mine)
    result = call("train", "--run-dir", mine, *given)
    if differs:
        assert result.returncode == 1 and differs in result.stderr and is_one_sentence(result.stderr)
    else:  # what was stopped goes on as it was, and it is at its end
        assert result.returncode == 0 and "going on after epoch 2 of 2" in result.stdout
    before.pop("verification.csv", None)
    assert {name: content for name, content in state_of(mine).items() if name in before} == before


def test_a_resumed_training_takes_no_other_settings(call, mine):
    result = call("train", "--run-dir", mine, "--resume", "-p", "epochs", "9")
    assert result.returncode == 1 and "has epochs 2: leave epochs out to resume it." in result.stderr


@pytest.mark.parametrize("given", [(), ("--preset", "quick"), ("-p", "phantoms", "12")])
def test_resuming_in_a_folder_without_a_training_is_refused_and_makes_nothing(given, call, tmp_path):
    result = call("train", "--resume", "--run-dir", tmp_path / "mistyped", *given)
    assert result.returncode == 1 and "mistyped/last.pt" in result.stderr and is_one_sentence(result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_training_resumes_where_it_stopped_and_ends_with_the_same_weights(call, drawn, tmp_path):
    values = parameters({"width": 48, "height": 32, "base_channels": 4, "depth": 2, "epochs": 4})
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert call("train", "--data", drawn, "--run-dir", whole, *values).returncode == 0
    first = start("train", "--data", drawn, "--run-dir", stopped, *values, stderr=None)
    for line in first.stdout:
        if line.startswith("epoch   2/"):
            first.kill()
            break
    first.communicate(timeout=60)
    result = call("train", "--run-dir", stopped, "--resume")
    assert result.returncode == 0, result.stderr
    columns = ["epoch", "train_loss", "valid_loss", "valid_dice", "learning_rate"]
    histories = [pd.read_csv(folder / "history.csv")[columns] for folder in (whole, stopped)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    weights = [training.load_checkpoint(folder / "last.pt")["sha256"] for folder in (whole, stopped)]
    assert weights[0] == weights[1]


def test_train_fine_tunes_a_checkpoint_on_other_data(call, trained, phantom_set, tmp_path):
    given = parameters({"width": 48, "height": 32, "base_channels": 4, "depth": 2, "epochs": 1})
    command = ("train", "--data", phantom_set, "--run-dir", tmp_path / "tuned", "--start", trained / "checkpoint.pt")
    result = call(*command, *given)
    assert result.returncode == 0 and "best validation Dice" in result.stdout, result.stderr
    result = call(*command, *given, "-p", "base_channels", "5")
    assert result.returncode == 1 and is_one_sentence(result.stderr) and "another network" in result.stderr


# the other commands


def test_verify_exits_with_0_only_where_nothing_is_wrong(call, drawn, phantom_set):
    result = call("verify", drawn)
    assert result.returncode == 0 and "60 files found: 30 pairs used" in result.stdout
    result = call("verify", phantom_set)
    assert result.returncode == 1 and "unreadable" in result.stdout and "missing_mask" in result.stdout
    assert "23_HC: " not in result.stdout and "-> draw the outline" in result.stdout  # a line for each cause
    each = call("verify", phantom_set, "--all")
    assert each.returncode == 1 and "missing_mask          23_HC: " in each.stdout
    told = json.loads(call("verify", phantom_set, "--json").stdout)
    assert told["pairs_used"] == 35 and len(told["findings"]) == len(each.stdout.splitlines()) - 4
    assert {cause["check"]: cause["count"] for cause in told["causes"]}["missing_mask"] == 1


@pytest.mark.parametrize("what", ["absent", "file"])
def test_verify_exits_with_2_where_the_folder_cannot_be_read(call, tmp_path, what):
    (tmp_path / "file").touch()
    result = call("verify", tmp_path / what)
    assert result.returncode == 2 and is_one_sentence(result.stderr) and what in result.stderr


def test_phantom_writes_the_frames_that_are_asked_for(call, tmp_path):
    result = call("phantom", tmp_path / "set", "--count", 2, "--seed", 2)
    assert result.returncode == 0
    images = [path for path in (tmp_path / "set").rglob("malignant/*.png") if "Annotation" not in path.name]
    assert len(images) == 2
    again = call("phantom", tmp_path / "set", "--count", 2)
    assert again.returncode == 1 and is_one_sentence(again.stderr)


def test_predict_takes_a_file_or_a_folder_at_any_depth(call, trained, drawn, tmp_path):
    checkpoint = trained / "checkpoint.pt"
    images = [path for path in sorted(drawn.rglob("*.png")) if "Annotation" not in path.name]
    result = call("predict", drawn.parent, "--checkpoint", checkpoint, "--out", tmp_path / "all")
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "all").iterdir()} == {f"{path.stem}_pred.png" for path in images}
    result = call("predict", images[0], "--checkpoint", checkpoint, "--out", tmp_path / "one")
    (written,) = (tmp_path / "one").iterdir()
    assert result.returncode == 0 and written.name == f"{images[0].stem}_pred.png"
    one, same = (cv2.imread(str(tmp_path / where / written.name), cv2.IMREAD_UNCHANGED) for where in ("one", "all"))
    assert np.array_equal(one, same) and one.shape == (108, 160) and set(np.unique(one)) <= {0, 255}


@on_the_run
def test_predict_cuts_as_the_evaluation_of_the_run_did(call, finished, tmp_path):
    folder, _ = finished
    row = pd.read_csv(folder / "manifest.csv").query("split == 'test'").iloc[0]
    result = call("predict", row.image_path, "--checkpoint", folder / "checkpoint.pt", "--out", tmp_path / "mine")
    assert result.returncode == 0, result.stderr
    chosen = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert f"cut at {chosen['threshold']:.2f}, region '{chosen['region']}'" in result.stdout
    name = f"{row.image_id}_pred.png"
    assert (tmp_path / "mine" / name).read_bytes() == (folder / "predictions" / name).read_bytes()
    (tmp_path / "alone").mkdir()
    shutil.copyfile(folder / "checkpoint.pt", tmp_path / "alone" / "checkpoint.pt")
    alone = call("predict", row.image_path, "--checkpoint", tmp_path / "alone/checkpoint.pt", "--out", tmp_path / "out")
    assert alone.returncode == 0 and "cut at 0.50, region 'largest'" in alone.stdout
    chosen["checkpoint_sha256"] = "of other weights"
    (tmp_path / "alone" / "metrics.json").write_text(json.dumps(chosen), encoding="utf-8")
    other = call("predict", row.image_path, "--checkpoint", tmp_path / "alone/checkpoint.pt", "--out", tmp_path / "out")
    assert "cut at 0.50, region 'largest'" in other.stdout


def test_predict_cuts_as_it_is_told(call, trained, drawn, tmp_path):
    image = drawn / "1_HC.png"
    options = ("predict", image, "--checkpoint", trained / "checkpoint.pt", "--threshold", 0.3, "--no-flip")
    for name in ("largest", "ellipse"):
        assert call(*options, "--out", tmp_path / name, "--region", name).returncode == 0
    plain, ellipse = (
        cv2.imread(str(tmp_path / name / "1_HC_pred.png"), cv2.IMREAD_UNCHANGED) // 255
        for name in ("largest", "ellipse")
    )
    assert np.array_equal(ellipse, evaluation.cut(plain, 1, "ellipse"))


def test_predict_reports_an_unreadable_image_and_does_the_rest(call, trained, tmp_path):
    cv2.imwrite(str(tmp_path / "good.png"), np.zeros((60, 90), np.uint8))
    (tmp_path / "bad.png").write_bytes(b"no image")
    result = call("predict", tmp_path, "--checkpoint", trained / "checkpoint.pt", "--out", tmp_path / "out")
    assert result.returncode == 1 and "bad.png" in result.stderr and is_one_sentence(result.stderr)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good_pred.png"]


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"], ids=["missing", "empty", "text"])
def test_predict_refuses_a_checkpoint_that_is_none(content, call, tmp_path):
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((60, 90), np.uint8))
    checkpoint = tmp_path / "broken.pt"
    if content is not None:
        checkpoint.write_bytes(content)
    result = call("predict", tmp_path / "image.png", "--checkpoint", checkpoint, "--out", tmp_path / "out")
    assert result.returncode == 1 and "broken.pt" in result.stderr and is_one_sentence(result.stderr)
    assert not (tmp_path / "out").exists()


class Code:
    """What runs code where a pickle is trusted."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_with_code_in_it_is_one_sentence_and_nothing_is_run(trained, drawn, tmp_path):
    state = torch.load(trained / "checkpoint.pt", weights_only=True)
    torch.save(state | {"settings": Code(tmp_path / "ran")}, tmp_path / "mine.pt")
    process = start("predict", drawn / "1_HC.png", "--checkpoint", tmp_path / "mine.pt", "--out", tmp_path / "out")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and is_one_sentence(err) and "mine.pt" in err and out == "", err
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["a folder", "cut off", "an absurd canvas", "another network", "no numbers"])
def test_predict_and_fine_tuning_refuse_what_is_no_checkpoint_in_one_sentence(call, mine, drawn, tmp_path, kind):
    path = tmp_path / "start.pt"
    state = torch.load(mine / "checkpoint.pt", weights_only=True)
    if kind == "a folder":
        path.mkdir()
    elif kind == "cut off":
        path.write_bytes((mine / "checkpoint.pt").read_bytes()[:-100])
    elif kind == "another network":
        torch.save(torch.nn.Conv2d(1, 1, 1).state_dict(), path)
    elif kind == "an absurd canvas":
        state["canvas"]["width"] = 10**9
        torch.save(state, path)
    else:
        state["network"]["last.bias"] *= float("nan")
        training.save_checkpoint(path, state)
    for command in (
        ("predict", drawn / "1_HC.png", "--checkpoint", path, "--out", tmp_path / "out"),
        ("train", "--run-dir", mine, "--start", path, *ONE_EPOCH),
    ):
        result = call(*command)
        assert result.returncode == 1 and is_one_sentence(result.stderr) and "start.pt" in result.stderr, result.stderr
    assert not (tmp_path / "out").exists()


def test_weights_alone_predict_at_a_size_that_is_said_and_can_be_fine_tuned(call, mine, drawn, tmp_path):
    weights = torch.load(mine / "checkpoint.pt", weights_only=True)["network"]
    torch.save({f"module.{name}": weight for name, weight in weights.items()}, tmp_path / "alone.pt")
    result = call("predict", drawn / "1_HC.png", "--checkpoint", tmp_path / "alone.pt", "--out", tmp_path / "out")
    assert result.returncode == 0 and "alone.pt" in result.stdout and "96 × 64" in result.stdout, result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1_HC_pred.png"]
    result = call("train", "--run-dir", mine, "--start", tmp_path / "alone.pt", *ONE_EPOCH)
    assert result.returncode == 0 and "best validation Dice" in result.stdout, result.stderr


def test_evaluate_scores_what_predict_wrote(call, trained, drawn, tmp_path):
    call("predict", drawn, "--checkpoint", trained / "checkpoint.pt", "--out", tmp_path / "masks")
    result = call("evaluate", tmp_path / "masks", "--masks", drawn, "--out", tmp_path / "scores")
    assert result.returncode == 0 and "30 of 30 masks scored" in result.stdout, result.stderr
    assert len(pd.read_csv(tmp_path / "scores" / "metrics.csv")) == 30
    (tmp_path / "masks" / "3_HC_pred.png").unlink()
    result = call("evaluate", tmp_path / "masks", "--masks", drawn, "--out", tmp_path / "scores")
    assert result.returncode == 1 and "29 of 30 masks scored" in result.stdout
    result = call("evaluate", tmp_path / "masks", "--masks", drawn, "--out", tmp_path / "scores", "--tolerance", "inf")
    assert result.returncode == 2


def test_a_pipe_that_is_closed_is_no_traceback(drawn):
    process = start("verify", drawn)
    process.stdout.close()
    assert process.wait(timeout=60) == 1 and process.stderr.read() == ""
    process.stderr.close()
