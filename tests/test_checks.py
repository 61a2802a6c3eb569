"""What a notebook checks: its parameters, with the sentence that refuses another value; promises; versions."""

import io
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from fetalseg_helpers import evaluation, plotting, unet, workspace
from fetalseg_helpers.running import checks
from fetalseg_helpers.running.checks import PARAMETERS, check_parameters
from fetalseg_helpers.workspace import FetalsegError

WRONG_TYPES = {
    int: ["12", "1e-3", 1.0, 2.5, True, None, [3], np.int64(3), ""],
    float: ["1e-3", "0.5", True, None, [0.5], ""],
    str: [1, 0.5, True, None, ["phantom"], b"phantom"],
    bool: ["false", "true", "", 0, 1, None],
}
NUMBERS = [name for name, rule in PARAMETERS.items() if rule.low is not None]
CHOICES = [name for name, rule in PARAMETERS.items() if rule.choices]


def sentence_about(name, value):
    """The message of the error that `value` causes, which must be one sentence with name and value."""
    with pytest.raises(FetalsegError) as caught:
        check_parameters(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} is ") and message.endswith(".") and "\n" not in message
    return message


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_of_a_wrong_type_is_refused_with_name_value_and_type(name):
    for value in WRONG_TYPES[PARAMETERS[name].kind]:
        message = sentence_about(name, value)
        assert repr(value) in message and type(value).__name__ in message


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_taken_at_both_bounds_and_refused_beyond_them(name):
    kind, low, high, _ = PARAMETERS[name]
    check_parameters(**{name: kind(low)})
    check_parameters(**{name: kind(high)})
    for value in (low - 1, high + 1) if kind is int else (low - 0.01, high + 0.01 * high):
        numbers = re.findall(r"-?\d(?:[\d.e+-]*\d)?", sentence_about(name, value))
        shown, *bounds = map(float, numbers)
        assert shown == pytest.approx(value, rel=1e-5) and bounds == pytest.approx([low, high], rel=1e-5)
        assert not bounds[0] <= shown <= bounds[1]  # as a reader sees them


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_a_number_and_infinity_are_no_learning_rate(value):
    assert str(value) in sentence_about("learning_rate", value)


def test_a_whole_number_is_good_where_a_number_is_asked():
    check_parameters(learning_rate=1, bce_weight=0, gradient_norm=1)


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_choice_is_refused_with_the_known_ones(name):
    for value in ("", "Scale", "exam", PARAMETERS[name].choices[0].upper() + " "):
        message = sentence_about(name, value)
        assert repr(value) in message and all(choice in message for choice in PARAMETERS[name].choices)
    for value in PARAMETERS[name].choices:
        check_parameters(**{name: value})


@pytest.mark.parametrize("name", ["run_dir", "data"])
@pytest.mark.parametrize("value", ["", " ", "\t\n"])
def test_an_empty_text_is_refused(name, value):
    assert "empty" in sentence_about(name, value)


def test_the_first_wrong_parameter_of_several_is_named():
    with pytest.raises(FetalsegError, match=r"^epochs is 0,"):
        check_parameters(seed=1, epochs=0, data="phantom", flip="no")


# self-checks


def test_a_self_check_prints_every_promise_and_names_the_first_that_is_broken(capsys):
    checks.self_check({"the sky is blue": True, "it rains": True})
    assert capsys.readouterr().out == "yes the sky is blue\nyes it rains\n"
    with pytest.raises(AssertionError, match="self-check failed: it rains"):
        checks.self_check({"the sky is blue": True, "it rains": False, "it snows": False})
    assert capsys.readouterr().out == "yes the sky is blue\nNO  it rains\nNO  it snows\n"


def test_a_hope_may_be_broken_but_is_said(capsys):
    checks.self_check({"it rains": False}, hopes=["it rains"])
    assert capsys.readouterr().out == "NO  it rains\n"


# versions


def test_the_versions_line_names_all_that_a_result_depends_on(monkeypatch):
    monkeypatch.chdir(workspace.project_root() / "notebooks")
    line = checks.versions()
    assert "\n" not in line
    assert all(
        f"{name} " in line for name in ("fetalseg", "Python", "torch", "numpy", "matplotlib", "pandas", "OpenCV")
    )
    assert f"numpy {np.__version__}" in line and f"OpenCV {cv2.__version__}" in line
    assert f"in {workspace.project_root()}," in line or "in ~/" in line


# a notebook's page


@pytest.fixture
def shell(monkeypatch):
    """A shell as a kernel has it, in this process; gives a function that runs a cell and returns what was printed."""
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.clear_instance()
    shell = InteractiveShell.instance(colors="nocolor")
    monkeypatch.setattr(checks, "PAGE", {})
    monkeypatch.setattr(checks, "get_ipython", lambda: shell)
    monkeypatch.delenv("FETALSEG_SEED", raising=False)
    monkeypatch.delenv("FETALSEG_RUN_DIR", raising=False)

    def run(cell, capsys):
        result = shell.run_cell(cell, store_history=True)
        return result, capsys.readouterr().out

    run("from fetalseg_helpers.running import checks", SimpleNamespace(readouterr=lambda: SimpleNamespace(out="")))
    yield run
    InteractiveShell.clear_instance()


OPENING = 'run_dir: str = "runs/quick"\nseed: int = 0\nepochs: int = 35'


def test_sound_parameters_are_checked_and_nothing_is_said(shell, capsys):
    shell(OPENING, capsys)
    result, printed = shell("checks.begin(globals())", capsys)
    assert result.success and printed == ""
    assert shell("epochs", capsys)[1].strip().endswith("35")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("epoch = 3", ["'epoch'", "did you mean 'epochs'"]),
        ("epochs = 'many'", ["epochs is 'many'", "a whole number"]),
        ("epochs = 0", ["epochs is 0", "between 1 and"]),
        ("resume = 'true'", ["resume is 'true'", "write True"]),
        ("learning_rate = '1e-3'", ["learning_rate is '1e-3'", "0.001"]),
    ],
)
def test_what_papermill_gives_and_no_notebook_takes_is_one_sentence(shell, capsys, given, words):
    shell(OPENING, capsys)
    shell(f"# Parameters\n{given}\n", capsys)
    result, printed = shell("checks.begin(globals())", capsys)
    assert isinstance(result.error_in_exec, FetalsegError)
    assert all(word in str(result.error_in_exec) for word in words)
    assert "Traceback" not in printed


def test_a_lost_tag_is_noticed(shell, capsys):
    shell("# Parameters\nepochs = 3\n", capsys)  # without the tag, papermill puts it before everything
    shell(OPENING, capsys)
    result, _ = shell("checks.begin(globals())", capsys)
    assert "epochs was given as 3, and is 35" in str(result.error_in_exec) and "tag" in str(result.error_in_exec)


def test_a_class_sets_run_folder_and_seed_where_nobody_has_changed_them(shell, capsys, monkeypatch):
    monkeypatch.setenv("FETALSEG_SEED", "7")
    monkeypatch.setenv("FETALSEG_RUN_DIR", "runs/anna")
    shell(OPENING, capsys)
    for _ in range(2):  # the cell may run again
        printed = shell("checks.begin(globals()); print(seed, run_dir)", capsys)[1]
        assert printed.splitlines()[-1] == "7 runs/anna"
    shell(OPENING.replace("= 0", "= 3"), capsys)
    assert shell("checks.begin(globals()); print(seed, run_dir)", capsys)[1].splitlines()[-1] == "3 runs/anna"


def test_a_parameter_that_was_changed_without_the_checking_cell_is_pointed_out(shell, capsys):
    shell(OPENING, capsys)
    shell("checks.begin(globals())", capsys)
    assert shell("1 + 1", capsys)[1].strip().endswith("2")
    assert "epochs" not in shell("epochs = 3", capsys)[1]
    assert "epochs was 35 and is 3 now: run the cell with `begin` again" in shell("pass", capsys)[1]
    assert shell("checks.begin(globals())", capsys)[1] == "" == shell("pass", capsys)[1]


def test_a_name_that_is_not_there_yet_is_one_sentence_with_its_line(shell, capsys):
    shell(OPENING, capsys)
    shell("checks.begin(globals())", capsys)
    result, printed = shell("x = 1\ntrainer.history", capsys)
    assert isinstance(result.error_in_exec, NameError)
    assert "NameError, line 2: name 'trainer' is not defined. Run the cells above first" in printed
    assert "Traceback" not in printed


def test_a_figure_has_two_pixels_for_each_of_the_screen_and_its_titles_as_text():
    figure, axes = plotting.new_figure(1, 2, 2.0, "phantom 1_HC")
    axes[0].set_title("image")
    picture, about = checks.sharp(figure)
    width, height = Image.open(io.BytesIO(picture)).size
    assert about == {"width": width // 2, "height": height // 2, "alt": "phantom 1_HC; image"}
    assert 1000 < width <= 1400


def test_a_changed_definition_is_named_with_what_follows_and_an_equal_one_is_not(capsys):
    def dice_score(prediction, truth):
        """Another docstring, and a comment."""
        both, predicted, true = overlap_counts(prediction, truth)  # noqa: F821
        return 2 * both / (predicted + true) if predicted + true else 1.0

    def iou_score(prediction, truth):
        return 0.5

    class Up(unet.Up):
        def forward(self, x, skip):
            return self.block(x)

    checks.say_changes([dice_score], evaluation, "nothing follows")
    assert capsys.readouterr().out == ""
    checks.say_changes([dice_score, iou_score], evaluation, "metrics.csv has it.")
    assert capsys.readouterr().out == "changed on this page: iou_score. metrics.csv has it.\n"
    checks.say_changes([Up, unet.Down], unet, "train it.")
    assert capsys.readouterr().out == "changed on this page: Up. train it.\n"
