"""What moves on the screen: sliders around a function that the cell before has drawn once, and a growing curve."""

import functools
import os

import ipywidgets
from IPython.display import display
from tqdm.auto import tqdm


def explore(draw, **controls):
    """Redraw a figure whenever a control is released.

    Parameters
    ----------
    draw : callable
        Returns a figure; its arguments are named like the controls.
    controls : widget, or what `ipywidgets.interactive` makes one of
        Each argument's control: (lowest, highest, step), a list of choices, or a widget.

    Returns
    -------
    ipywidgets.interactive
        The controls above the figure.
    """

    @functools.wraps(draw)  # the controls start at its defaults
    def show(**values):
        display(draw(**values))

    panel = ipywidgets.interactive(show, **controls)
    for control in panel.kwargs_widgets:
        control.continuous_update = False  # one figure per move, not one per pixel of the slider's way
    return panel


def somebody_watches():
    """True in a kernel that JupyterLab or Jupyter Notebook started, False under papermill and nbval."""
    return "JPY_SESSION_NAME" in os.environ


def watch(rows, total, draw, line):
    """Go through the epochs of a training: a bar and a growing curve on a screen, a line per epoch headless.

    Parameters
    ----------
    rows : iterable of dict
        One row of the history at a time.
    total : int
        Number of epochs asked for.
    draw : callable
        Makes a figure of the rows so far.
    line : callable
        Makes one line of text of a row.

    Returns
    -------
    list of dict
        All rows.
    """
    seen, curve = [], None
    live = somebody_watches()
    for row in tqdm(rows, total=total, desc="epochs", disable=not live):
        seen.append(row)
        if not live:
            print(line(row))
        elif curve is None:
            curve = display(draw(seen), display_id=True)
        else:
            curve.update(draw(seen))
    return seen
