"""What a notebook checks: its parameters, with the sentence that refuses another value; promises; versions."""

import re

import cv2
import numpy as np
import pytest

from fetalseg_helpers import workspace
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
