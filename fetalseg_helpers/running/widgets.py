"""What moves on the screen: sliders around a function that the cell before has drawn once, and a growing curve."""

import inspect
import os
from contextlib import closing

import ipywidgets
from IPython.display import display
from tqdm.auto import tqdm

from fetalseg_helpers.running.checks import sharp


def explore(draw, **controls):
    """Controls above a figure that is drawn again whenever one is released, an `ipywidgets.VBox`; headless, the figure.

    `draw` returns a figure; its arguments are named like the controls, and their defaults are where these start. A
    control is a widget or what `ipywidgets.interact` makes one of: (lowest, highest, step), or a list of choices.
    """
    if not somebody_watches():
        return draw()
    picture = ipywidgets.Image(format="png")
    chosen = {}

    def redraw(_=None):
        figure = draw(**{name: control.value for name, control in chosen.items()})
        picture.value, about = sharp(figure)
        picture.layout.width = f"{about['width']}px"

    arguments = inspect.signature(draw).parameters
    for name, control in controls.items():
        chosen[name] = ipywidgets.interactive.widget_from_abbrev(control, arguments[name].default)
        chosen[name].description = chosen[name].description or name
        chosen[name].continuous_update = False  # one figure per move, not one per pixel of the slider's way
        chosen[name].observe(redraw, names="value")
    redraw()
    return ipywidgets.VBox([*chosen.values(), picture])


def somebody_watches():
    """True in a kernel that JupyterLab or Jupyter Notebook started, False under papermill and nbval."""
    return "JPY_SESSION_NAME" in os.environ


def watch(rows, total, draw, line, earlier=()):
    """Go through the epochs of a training: a bar and a growing curve on a screen, a line per epoch headless.

    `rows` is a generator of rows (dicts), closed at the end; `total` is the number of epochs, `earlier` are rows of a
    training that goes on. `draw` makes a figure of the rows so far, `line` a text of one. Returns a list of all rows.
    """
    seen, curve, live = list(earlier), None, somebody_watches()
    with closing(rows):
        for row in tqdm(rows, total=total, initial=len(seen), desc="epochs", disable=not live):
            seen.append(row)
            if not live:
                print(line(row))
            elif curve is None:
                curve = display(draw(seen), display_id=True)
            else:
                curve.update(draw(seen))
    return seen
