"""Phantoms of the fetal head: what is drawn at random, from one table, and a frame with its truth."""

from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fetalseg_helpers.ellipses import LINE_HALF_WIDTH, Ellipse
from fetalseg_helpers.phantoms import ultrasound
from fetalseg_helpers.phantoms.anatomy import build_scene, ellipse_distance
from fetalseg_helpers.phantoms.ultrasound import BEAMS, HEIGHT, SAMPLES, WIDTH, Sector, amplitude
from fetalseg_helpers.workspace import cv2

FRAME_MARGIN = 8  # px between a whole head and the frame's edge
SCREEN_SIGMA = 0.8  # px: the screen's own resolution, added to the pulse's
BAR_COLUMNS, BAR_ROWS = (3, 12), (24, 184)  # of the grey bar at the left edge
CINE_ROWS = (519, 540)  # of the bar with the scanner's time line that a few frames have at the bottom


class Draw(namedtuple("Draw", ["how", "first", "second", "unit", "meaning"])):
    """How a parameter is drawn: `uniform` from first to second, `normal` with mean and SD, `chance` true or false."""

    def __call__(self, rng):
        if self.how == "chance":
            return bool(rng.random() < self.first)
        return float(getattr(rng, self.how)(self.first, self.second))


# Sources: [HC18] van den Heuvel et al. 2018, PLoS ONE 13(8):e0200412, the data set that the phantoms stand in for;
# [masks] and [frames] measured on its public training set, [masks] on the ellipses, [frames] by eye on 100 frames;
# [Szabo] Szabo 2014, Diagnostic Ultrasound Imaging, chapters 4, 7 and 10; [Fry] Fry and Barger 1978, JASA 63:1576.
TRIMESTER_SHARES = (165 / 999, 693 / 999, 141 / 999)  # of frames [HC18, table 1]
TABLE = pd.read_csv(Path(__file__).with_name("distributions.csv"), converters={"first": float, "second": float})
DRAWS = {kind: {} for kind in TABLE.holds_for}  # name to Draw, in the order of the rows, which is that of drawing
for kind, _, name, *row in TABLE.itertuples(index=False):  # the second column is a heading for readers
    DRAWS[kind][name] = Draw(*row)
DISTRIBUTIONS = DRAWS["every frame"]  # the head as in the second trimester, the view enlarged
FIRST_TRIMESTER = DRAWS["first trimester"]  # small, without much skull, ventricles full of choroid plexus
THIRD_TRIMESTER = DRAWS["third trimester"]  # large, deep, the sides of the skull lost
WHOLE_SECTOR = DRAWS["whole sector"]


@dataclass(frozen=True)
class Examination:
    """What all frames of one ultrasound session share."""

    sector: Sector
    ellipse: Ellipse
    trimester: int  # 1, 2 or 3
    pixel_size: float  # mm
    anatomy_seed: int
    values: dict  # a number for each row of `DISTRIBUTIONS`


class Phantom(namedtuple("Phantom", ["image", "mask", "outline", "ellipse"])):
    """A frame with its truth: `image` uint8, `mask` uint8 0/1, `outline` uint8 0/255, all (540, 800); the `ellipse`."""


def draw_examination(rng, whole_sector=None, changes=None):
    """Draw what one session keeps the same, an `Examination`, with a numpy Generator.

    `whole_sector` True shows the whole sector, False an enlarged part of it; by default it is drawn. `changes`, a dict
    of str to Draw, replaces rows of `DISTRIBUTIONS` in all trimesters and views: another scanner, other mothers.
    """
    changes = changes or {}
    trimester = int(rng.choice(3, p=TRIMESTER_SHARES)) + 1
    table = DISTRIBUTIONS | ({}, FIRST_TRIMESTER, {}, THIRD_TRIMESTER)[trimester] | changes
    values = {name: draw(rng) for name, draw in table.items()}
    values["time_gain"] *= values["attenuation"]  # dB/cm/MHz from here on
    if whole_sector is not None:
        values["whole_sector"] = whole_sector
    if values["whole_sector"]:
        values |= {name: changes.get(name, draw)(rng) for name, draw in WHOLE_SECTOR.items()}
    half_angle = np.radians(values["half_angle"])
    above = values["top_width"] / 2 / np.tan(half_angle)  # px from the apex to the frame's upper edge
    start, end = values["sector_start"], values["sector_end"]
    sector = Sector(values["sector_x"], -above, above + start, end - start, half_angle)
    a = float(np.clip(values["head_size"], 95, 320)) * values.get("head_shrink", 1.0)
    b = a * float(np.clip(values["axes_ratio"], 0.66, 0.96))
    turn = rng.uniform(-90, 90) if values["tilted"] else values["turn"]
    y = start + (end - start) * rng.uniform(0.42, 0.68) if values["whole_sector"] else values["centre_y"]
    # Ramanujan's approximation (1914) of the perimeter: a phantom of one seed stays the same to the byte.
    perimeter = np.pi * (3 * (a + b) - np.sqrt((3 * a + b) * (a + 3 * b)))
    pixel_size = float(np.clip(values["circumference"], 57, 346) / perimeter)
    ellipse = Ellipse(values["centre_x"], y, a, b, turn)
    return Examination(sector, ellipse, trimester, pixel_size, int(rng.integers(2**32)), values)


def draw_pose(rng, examination):
    """Ellipse of one frame: the examination's head, moved and turned a little, within the frame and the sector."""
    x, y, a, b, turn = examination.ellipse
    size, turn = rng.uniform(0.95, 1.05), turn + rng.normal(0, 5)
    a, b = a * size * rng.uniform(0.99, 1.01), b * size
    x, y = x + rng.normal(0, 14), y + rng.normal(0, 12)
    sector = examination.sector
    top = max(FRAME_MARGIN, sector.apex_y + sector.radius)
    bottom = min(HEIGHT - FRAME_MARGIN, sector.apex_y + sector.radius + sector.depth)
    for _ in range(2):  # the height of the centre sets how wide the sector is there; shrinking moves the centre
        room = min(WIDTH / 2 - FRAME_MARGIN, (y - sector.apex_y) * np.tan(sector.half_angle))
        half_width, half_height = _half_extent(a, b, turn)
        scale = min(1.0, room / half_width, (bottom - top) / 2 / half_height)
        a, b, half_width, half_height = (scale * value for value in (a, b, half_width, half_height))
        y = np.clip(y, top + half_height, bottom - half_height)
    aside = min(room - half_width, WIDTH / 2 - FRAME_MARGIN - half_width - abs(sector.apex_x - WIDTH / 2))
    x = np.clip(x, sector.apex_x - max(aside, 0), sector.apex_x + max(aside, 0))
    x = np.clip(x, half_width + FRAME_MARGIN, WIDTH - half_width - FRAME_MARGIN)
    return Ellipse(*(float(value) for value in (x, y, a, min(a, b), turn)))


def _half_extent(a, b, degrees):
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.hypot(a * cosine, b * sine), np.hypot(a * sine, b * cosine)


def cut_pose(rng, examination, near_border=False):
    """Ellipse of a head cut by the frame's lower edge; with `near_border` only its uppermost part is left."""
    _, _, a, b, turn = draw_pose(rng, examination)
    a, b, turn = max(a, 170.0), max(b, 130.0), float(np.clip(turn, -15, 15))
    half_height = _half_extent(a, b, turn)[1]
    visible = rng.uniform(48, 58) if near_border else half_height * rng.uniform(1.45, 1.7)
    x = rng.uniform(310, 370)  # left of the blacked-out box, where every enlarged sector reaches the lower edge
    return Ellipse(x, float(HEIGHT + half_height - visible), a, b, turn)


def truth(ellipse):
    """Mask (0/1, the line counted inside) and outline (0/255) of an ellipse; uint8 (540, 800), cut by the frame."""
    x, y = np.arange(WIDTH, dtype=np.float32), np.arange(HEIGHT, dtype=np.float32)[:, None]
    distance = ellipse_distance(ellipse, x, y)[0]
    return np.uint8(distance <= LINE_HALF_WIDTH), np.uint8(np.abs(distance) <= LINE_HALF_WIDTH) * np.uint8(255)


def draw_frame(rng, examination=None, ellipse=None, head=True):
    """Draw one `Phantom`, by default of a new examination, its head (`ellipse`) in a pose near the examination's own.

    `rng`, a numpy Generator, gives the speckle and whatever is not given. Without a `head`, mask and outline are empty.
    """
    examination = examination or draw_examination(rng)
    ellipse = ellipse or draw_pose(rng, examination)
    grey = 255 * echoes(rng, examination, build_scene(examination, ellipse, head))
    image = _screen(np.uint8(ultrasound.scan_convert(grey, examination.sector) + 0.5), examination.values)
    return Phantom(image, *(np.uint8(head) * array for array in truth(ellipse)), ellipse)


def echoes(rng, examination, scene):
    """What the scanner makes of a scene, on the polar grid: float32 (samples, beams), 0 black to 1 white."""
    values, sector, pixel_size = examination.values, examination.sector, examination.pixel_size
    step = sector.depth / SAMPLES  # px
    pitch = (sector.radius + sector.depth / 2) * 2 * sector.half_angle / BEAMS  # px between beams, half-way down
    # There and back, a pulse is drawn half as long as it is; a focused beam is f-number wavelengths wide.
    pulse = ultrasound.gaussian_sigma(values["cycles"] / 2, values["frequency"], pixel_size)
    beam = ultrasound.gaussian_sigma(values["f_number"], values["frequency"], pixel_size)
    axial = np.hypot(pulse, SCREEN_SIGMA) / step
    lateral = np.clip(np.hypot(beam, SCREEN_SIGMA) / pitch, 0.5, 3.0)
    lateral = lateral * np.linspace(0.8, 0.8 * values["beam_growth"], SAMPLES)
    per_attenuation = ultrasound.loss_per_pixel(1, values["frequency"], pixel_size)
    time_gain = values["time_gain"] * per_attenuation  # dB/px
    level = ultrasound.level_along_beam(scene.attenuation * np.float32(per_attenuation), sector, time_gain)
    # A wide aperture (3 beams) sees past the edge of an obstacle, so shadows have soft edges.
    heard = amplitude(cv2.GaussianBlur(level, (0, 0), sigmaX=3.0, sigmaY=0.3))
    steady, mirror = (amplitude(scene.echo) * heard) ** 2, scene.mirror * heard
    haze = ultrasound.reverberate(steady + mirror**2, values["clutter_length"] / step)
    haze = haze * amplitude(2 * values["clutter"])
    strength = np.sqrt(steady + haze)
    twice = cv2.resize(scene.mirror[: SAMPLES // 2], (BEAMS, SAMPLES)) * amplitude(values["ghost"]) * heard
    noise_db = values["noise"] + time_gain * np.broadcast_to(ultrasound.polar_grid(sector)[0], level.shape)
    magnitude, looks = np.float32(0), int(values["looks"])
    for _ in range(looks):
        echo = ultrasound.scatterers(rng, np.zeros_like(level)) * strength + mirror + twice
        field = ultrasound.point_spread(echo, axial, lateral) + ultrasound.scatterers(rng, noise_db)
        magnitude = magnitude + ultrasound.envelope(field) / looks
    return ultrasound.compress(magnitude, values["gain"], values["dynamic_range"]) ** np.float32(values["grey_power"])


def _screen(image, values):
    """Add what the scanner's screen adds: its edges, the grey bar, the blacked-out boxes, the time line."""
    image[:, :3] = image[:, 785:] = 0  # no echo is drawn there
    image[int(values["lower_box_top"]) : 525, int(np.clip(values["lower_box_left"], 560, 645)) :] = 0
    if values["upper_box"] and not values["whole_sector"]:
        image[:104, 692:] = 0  # a second box, at the upper right
    bar = 243 * np.linspace(1, 0, BAR_ROWS[1] - BAR_ROWS[0]) ** 1.4
    image[slice(*BAR_ROWS), slice(*BAR_COLUMNS)] = np.uint8(bar)[:, None]
    if values["cine_bar"]:
        image[slice(*CINE_ROWS)] = np.linspace(90, 30, CINE_ROWS[1] - CINE_ROWS[0]).astype(np.uint8)[:, None]
        image[CINE_ROWS[0] + 3 : CINE_ROWS[1] - 3, 590:780] = 12
        cv2.putText(image, "12 sec", (530, CINE_ROWS[1] - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.45, 190, 1, cv2.LINE_AA)
    return image
