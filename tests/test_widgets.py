"""Sliders that redraw, and the progress of a training on a screen and headless."""

import ipywidgets
import pytest
from matplotlib.figure import Figure

from fetalseg_helpers import workspace
from fetalseg_helpers.running import widgets

ROWS = [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}]


def line(row):
    return f"epoch {row['epoch']}"


def each(rows):
    yield from rows


@pytest.fixture
def shown(monkeypatch):
    """What `watch` displays: a list of (call, figure)."""
    calls = []

    class Handle:
        def update(self, figure):
            calls.append(("update", figure))

    def display(figure, display_id):
        calls.append(("display", figure))
        return Handle()

    monkeypatch.setattr(widgets, "display", display)
    return calls


def figure_of(value):
    """A figure whose pixels depend on a value."""
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().bar([0], [value])
    return figure


@pytest.fixture
def on_a_screen(monkeypatch):
    """As in a kernel that JupyterLab has started."""
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook.ipynb")


def test_headless_the_figure_stands_where_the_sliders_would(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert isinstance(widgets.explore(lambda at=3: figure_of(at), at=(0, 10, 1)), Figure)


def test_a_moved_slider_draws_again_with_the_new_value(on_a_screen):
    drawn = []

    def draw(at=3):
        drawn.append(at)
        return figure_of(at)

    slider, picture = widgets.explore(draw, at=(0, 10, 1)).children
    assert slider.description == "at" and slider.value == 3
    before = bytes(picture.value)
    slider.value = 7
    assert drawn == [3, 7]
    after = bytes(picture.value)
    assert before.startswith(b"\x89PNG") and after.startswith(b"\x89PNG") and before != after


def test_every_control_reaches_its_argument(on_a_screen):
    drawn = []

    def draw(rank, kind):
        drawn.append((rank, kind))
        return figure_of(rank)

    rank, kind, _ = widgets.explore(draw, rank=(1, 3, 1), kind=["worst", "best"]).children
    rank.value, kind.value = 3, "best"
    assert drawn[-1] == (3, "best")


def test_a_slider_waits_until_it_is_released(on_a_screen):
    slider, _ = widgets.explore(lambda at: figure_of(at), at=(0.0, 1.0, 0.1)).children
    assert isinstance(slider, ipywidgets.FloatSlider) and slider.continuous_update is False


def test_no_output_widget_is_made(on_a_screen):
    panel = widgets.explore(lambda at: figure_of(at), at=(0, 1, 1))
    assert not any(isinstance(child, ipywidgets.Output) for child in panel.children)
    for path in (workspace.project_root() / "notebooks").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert "interact(" not in text and "Output(" not in text, path.name


def test_headless_there_is_a_line_per_row_and_nothing_on_stderr(monkeypatch, capsys, shown):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert widgets.watch(each(ROWS), 3, lambda rows: pytest.fail("drawn headless"), line) == ROWS
    out, err = capsys.readouterr()
    assert out.splitlines() == ["epoch 1", "epoch 2", "epoch 3"]
    assert err == "" and shown == []


def test_headless_lines_come_while_the_training_runs(monkeypatch, capsys):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    seen_before_next = []

    def rows():
        for row in ROWS:
            seen_before_next.append(capsys.readouterr().out)
            yield row

    widgets.watch(rows(), 3, None, line)
    assert seen_before_next == ["", "epoch 1\n", "epoch 2\n"]


def test_on_a_screen_one_curve_grows(monkeypatch, capsys, shown):
    monkeypatch.setenv("JPY_SESSION_NAME", "05_training.ipynb")
    assert widgets.watch(each(ROWS), 3, lambda rows: f"figure of {len(rows)}", line) == ROWS
    assert shown == [("display", "figure of 1"), ("update", "figure of 2"), ("update", "figure of 3")]
    assert "epoch 1" not in capsys.readouterr().out


def test_a_training_that_stops_early_or_never_starts_gives_the_rows_that_there_are(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert widgets.watch(each(ROWS[:1]), 3, None, line) == ROWS[:1]
    assert widgets.watch(each([]), 3, None, line) == []
    assert widgets.watch(each(ROWS[1:]), 3, None, line, ROWS[:1]) == ROWS


def test_an_error_in_the_training_is_not_swallowed(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)

    def rows():
        yield ROWS[0]
        raise ValueError("the loss became nan")

    with pytest.raises(ValueError, match="nan"):
        widgets.watch(rows(), 3, None, line)


def test_a_training_that_is_interrupted_while_it_is_shown_lets_go(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    released = []

    def rows():
        try:
            yield from ROWS
        finally:
            released.append(True)

    def interrupted(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        widgets.watch(rows(), 3, None, interrupted)
    assert released == [True]
