"""Phantoms of the fetal head: what is drawn at random, from one table, and a frame with its truth.

`anatomy` lays out what `DISTRIBUTIONS` gives, `ultrasound` turns it into a picture. Ellipses are as in `anatomy`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from fetalseg_helpers.anatomy import build_scene, ellipse_distance
from fetalseg_helpers.ultrasound import (
    BEAMS,
    HEIGHT,
    SAMPLES,
    WIDTH,
    Sector,
    amplitude,
    beam_sigma,
    compress,
    envelope,
    level_along_beam,
    loss_per_pixel,
    point_spread,
    pulse_sigma,
    reverberate,
    sample_depths,
    scan_convert,
    scatterers,
)

LINE_HALF_WIDTH = 1.27  # px, the data set's outlines reach this far to both sides of the ellipse they follow
FRAME_MARGIN = 8  # px between a whole head and the frame's edge
APERTURE = 3.0  # beams: a wide aperture sees past the edge of an obstacle, so shadows have soft edges
SCREEN_SIGMA = 0.8  # px: the screen's own resolution, added to the pulse's
BAR_COLUMNS, BAR_ROWS, BAR_LEVEL, BAR_POWER = (3, 12), (24, 184), 243, 1.4  # the grey bar at the left edge
SCREEN_COLUMNS = (3, 785)  # the scanner draws no echo outside these columns
NOTCH = (692, 104)  # px: columns from, rows to, of the second box (upper right) that some zoomed frames have
CINE_ROWS = (519, 540)  # of the bar with the scanner's time line that a few frames have at the bottom


class Draw(NamedTuple):
    """How a parameter is drawn: `uniform` from first to second, `normal` with mean and SD, `chance` true or false."""

    how: str
    first: float
    second: float
    unit: str
    meaning: str

    def __call__(self, rng):
        if self.how == "chance":
            return bool(rng.random() < self.first)
        return float(getattr(rng, self.how)(self.first, self.second))


# Sources: [HC18] van den Heuvel et al. 2018, PLoS ONE 13(8):e0200412, the data set that the phantoms stand in for;
# [masks] and [frames] measured on its public training set, [masks] on the ellipses, [frames] by eye on 100 frames;
# [Szabo] Szabo 2014, Diagnostic Ultrasound Imaging, chapters 4, 7 and 10; [Fry] Fry and Barger 1978, JASA 63:1576.
TRIMESTER_SHARES = (165 / 999, 693 / 999, 141 / 999)  # of frames [HC18, table 1]
DISTRIBUTIONS = {
    # the head: second trimester
    "circumference": Draw("normal", 172, 20, "mm", "circumference of the head [HC18]"),
    "head_size": Draw("normal", 242, 32, "px", "long semi-axis; gives the pixel size [masks]"),
    "axes_ratio": Draw("normal", 0.79, 0.035, "1", "short over long axis [masks]"),
    "turn": Draw("normal", 0, 7, "°", "angle of the long axis [masks]"),
    "tilted": Draw("chance", 0.12, 0, "1", "whether the head lies at any angle instead [masks]"),
    "centre_x": Draw("normal", 394, 32, "px", "centre of the head [masks]"),
    "centre_y": Draw("normal", 270, 26, "px", "centre of the head [masks]"),
    # the view: an enlarged part of the sector
    "whole_sector": Draw("chance", 0.24, 0, "1", "whether the whole sector is on the screen [frames]"),
    "half_angle": Draw("uniform", 14, 36, "°", "half the opening of the sector [frames]"),
    "top_width": Draw("uniform", 330, 900, "px", "width of the sector at the frame's upper edge [frames]"),
    "sector_start": Draw("uniform", -90, 25, "px", "row of the probe's surface, negative above the frame [frames]"),
    "sector_end": Draw("uniform", 545, 720, "px", "row where the sector ends [frames]"),
    "sector_x": Draw("normal", 395, 22, "px", "column of the sector's axis [frames]"),
    # the scanner
    "frequency": Draw("uniform", 3.0, 5.5, "MHz", "centre of the pulse; obstetric curved probes [Szabo]"),
    "cycles": Draw("uniform", 1.5, 3.0, "1", "length of the pulse [Szabo]"),
    "f_number": Draw("uniform", 2.0, 4.5, "1", "focal length over aperture [Szabo]"),
    "beam_growth": Draw("uniform", 1.2, 2.0, "1", "how much wider the beam is at full depth than at the probe"),
    "looks": Draw("uniform", 2, 6, "1", "independent pictures that are averaged: compounding smooths speckle"),
    "gain": Draw("normal", 25, 3, "dB", "how far below tissue black begins [frames]"),
    "dynamic_range": Draw("uniform", 48, 66, "dB", "from black to white [Szabo]"),
    "grey_power": Draw("uniform", 1.2, 1.8, "1", "of the grey curve, which darkens the middle tones"),
    "noise": Draw("normal", -64, 5, "dB", "electronic noise at the probe's surface; time-gain raises it with depth"),
    "clutter": Draw("normal", -17, 4, "dB", "reverberation haze, relative to the echoes before it [frames]"),
    "clutter_length": Draw("uniform", 15, 110, "px", "over which the haze fades to 1/e [frames]"),
    "ghost": Draw("uniform", -70, -26, "dB", "second echo of the skull at twice its depth"),
    "ringing": Draw("uniform", -15, 8, "dB", "bright lines right under the probe [frames]"),
    "shadow": Draw("uniform", 0, 9, "dB", "loss where the probe lifts off or a rib lies before it [frames]"),
    "time_gain": Draw("normal", 1, 0.07, "1", "what the scanner makes up for, over the attenuation of tissue"),
    "lower_box_left": Draw("normal", 595, 14, "px", "left edge of the box that blacks out the settings [frames]"),
    "lower_box_top": Draw("uniform", 350, 445, "px", "top of that box [frames]"),
    "upper_box": Draw("chance", 0.35, 0, "1", "whether a second box lies at the upper right [frames]"),
    "cine_bar": Draw("chance", 0.02, 0, "1", "whether the time line with its text is at the bottom [frames]"),
    # what lies around the head
    "attenuation": Draw("uniform", 0.3, 0.7, "dB/cm/MHz", "of soft tissue [Szabo]"),
    "layers": Draw("uniform", 0.02, 0.24, "1", "share of the depth that the mother's abdominal wall takes [frames]"),
    "stripes": Draw("uniform", 2, 8, "dB", "contrast of its layers"),
    "patchiness": Draw("uniform", 2, 9, "dB", "contrast between neighbouring tissues"),
    "cavity": Draw("chance", 0.85, 0, "1", "whether amniotic fluid is seen"),
    "cavity_size": Draw("uniform", 0.95, 1.7, "1", "its half-width over the head's [frames]"),
    "cavity_roughness": Draw("uniform", 0.06, 0.22, "1", "how uneven its wall is"),
    "fluid": Draw("uniform", -38, -17, "dB", "level of the fluid, black to turbid [frames]"),
    "placenta": Draw("chance", 0.4, 0, "1", "whether an even, brighter layer lines the fluid"),
    "trunk": Draw("chance", 0.2, 0, "1", "whether the body is cut beside the head"),
    "limbs": Draw("uniform", 0, 4, "1", "hands, arms and legs with their bones, rounded down [frames]"),
    # the skull
    "wall": Draw("uniform", 0.035, 0.085, "1", "thickness of its line over the long semi-axis [frames]"),
    "wall_echo": Draw("uniform", -10, 4, "dB", "level that it scatters to all sides: low loses the lateral arcs"),
    "wall_mirror": Draw("uniform", 11, 24, "dB", "level that it reflects where the beam hits it squarely [frames]"),
    "mirror_power": Draw("uniform", 2, 6, "1", "power of the cosine with which that reflection falls"),
    "inset": Draw(
        "uniform", -0.002, 0.009, "1", "how far inside the outline the bone lies, over the semi-axis [masks]"
    ),
    "irregularity": Draw("uniform", 0.003, 0.014, "1", "how far the bone leaves the ellipse, over the semi-axis"),
    "sutures": Draw("uniform", 1, 6, "1", "gaps between the bones, rounded down"),
    "suture_width": Draw("uniform", 0.03, 0.18, "rad", "width of a gap"),
    "double_line": Draw("chance", 0.3, 0, "1", "whether a second line follows the inner side [frames]"),
    "scalp": Draw("uniform", 0, 0.06, "1", "thickness of the skin over the bone, over the semi-axis [frames]"),
    "bone_attenuation": Draw("uniform", 0.2, 3.0, "dB/cm/MHz", "fetal bone loses less than the 10 to 20 of [Fry]"),
    # the brain
    "brain": Draw("normal", -11, 2.5, "dB", "level of its tissue [frames]"),
    "brain_attenuation": Draw("uniform", 0.7, 1.0, "1", "its attenuation over that of the tissue outside"),
    "midline": Draw("uniform", 4, 20, "dB", "level of the falx above the brain"),
    "folds": Draw("uniform", 2, 14, "dB", "level of sulci and vessels above the brain"),
    "ventricles": Draw("uniform", -14, -4, "dB", "level of their fluid below the brain"),
    "choroid": Draw("uniform", 5, 14, "dB", "level of the choroid plexus above the brain"),
}
FIRST_TRIMESTER = {  # small, without much skull, the ventricles full of choroid plexus, in a sac of fluid
    "circumference": Draw("uniform", 57, 100, "mm", "circumference of the head [HC18]"),
    "head_size": Draw("uniform", 98, 220, "px", "long semi-axis [masks]"),
    "axes_ratio": Draw("normal", 0.83, 0.04, "1", "short over long axis [masks]"),
    "tilted": Draw("chance", 0.8, 0, "1", "whether the head lies at any angle [masks]"),
    "centre_x": Draw("normal", 415, 55, "px", "centre of the head [masks]"),
    "centre_y": Draw("normal", 280, 48, "px", "centre of the head [masks]"),
    "whole_sector": Draw("chance", 0.12, 0, "1", "whether the whole sector is on the screen [frames]"),
    "frequency": Draw("uniform", 4.5, 8.0, "MHz", "centre of the pulse; less depth allows more [Szabo]"),
    "layers": Draw("uniform", 0.0, 0.18, "1", "share of the depth that the mother's abdominal wall takes [frames]"),
    "cavity": Draw("chance", 0.93, 0, "1", "whether amniotic fluid is seen"),
    "cavity_size": Draw("uniform", 1.1, 2.6, "1", "its half-width over the head's [frames]"),
    "fluid": Draw("uniform", -38, -12, "dB", "level of the fluid, black to turbid [frames]"),
    "trunk": Draw("chance", 0.5, 0, "1", "whether the body is cut beside the head"),
    "wall": Draw("uniform", 0.03, 0.09, "1", "thickness of its line over the long semi-axis [frames]"),
    "wall_mirror": Draw("uniform", -4, 14, "dB", "level that it reflects where the beam hits it squarely [frames]"),
    "wall_echo": Draw("uniform", -20, 2, "dB", "level that it scatters to all sides"),
    "inset": Draw("uniform", 0.005, 0.05, "1", "how far inside the outline the bone lies, over the semi-axis [masks]"),
    "sutures": Draw("uniform", 2, 8, "1", "gaps between the bones, rounded down"),
    "suture_width": Draw("uniform", 0.05, 0.4, "rad", "width of a gap"),
    "bone_attenuation": Draw("uniform", 0.1, 1.2, "dB/cm/MHz", "hardly mineralised"),
    "brain": Draw("normal", -7.5, 2.5, "dB", "level of its tissue [frames]"),
}
THIRD_TRIMESTER = {  # large, deep, the sides of the skull lost
    "circumference": Draw("uniform", 230, 345, "mm", "circumference of the head [HC18]"),
    "whole_sector": Draw("chance", 0.5, 0, "1", "whether the whole sector is on the screen [frames]"),
    "turn": Draw("normal", 0, 14, "°", "angle of the long axis [masks]"),
    "frequency": Draw("uniform", 2.2, 4.0, "MHz", "centre of the pulse; depth allows less [Szabo]"),
    "gain": Draw("normal", 22, 3, "dB", "how far below tissue black begins [frames]"),
    "wall_echo": Draw("uniform", -12, 2, "dB", "level that it scatters to all sides: low loses the lateral arcs"),
    "bone_attenuation": Draw("uniform", 0.5, 4.0, "dB/cm/MHz", "fetal bone loses less than the 10 to 20 of [Fry]"),
}
WHOLE_SECTOR = {
    "half_angle": Draw("uniform", 26, 40, "°", "half the opening of the sector [frames]"),
    "top_width": Draw("uniform", 170, 330, "px", "width of the sector at the frame's upper edge [frames]"),
    "sector_start": Draw("uniform", 10, 70, "px", "row of the probe's surface [frames]"),
    "sector_end": Draw("uniform", 500, 590, "px", "row where the sector ends [frames]"),
    "head_shrink": Draw("uniform", 0.62, 1.0, "1", "of the head's size in the picture [frames]"),
}


@dataclass(frozen=True)
class Examination:
    """What all frames of one ultrasound session share.

    `values` holds a number for each row of `DISTRIBUTIONS`; `pixel_size` is in mm; `trimester` is 1, 2 or 3.
    """

    sector: Sector
    ellipse: tuple
    trimester: int
    pixel_size: float
    anatomy_seed: int
    values: dict


@dataclass(frozen=True)
class Phantom:
    """A frame with its truth: `image` uint8, `mask` uint8 0/1, `outline` uint8 0/255, all (540, 800); the `ellipse`."""

    image: np.ndarray
    mask: np.ndarray
    outline: np.ndarray
    ellipse: tuple


def draw_values(rng, distributions):
    """A number (or true, false) from each row of a table like `DISTRIBUTIONS`; a dict."""
    return {name: draw(rng) for name, draw in distributions.items()}


def draw_examination(rng, whole_sector=None, changes=None):
    """Draw what one session keeps the same.

    Parameters
    ----------
    rng : numpy.random.Generator
    whole_sector : bool, optional
        True shows the whole sector, False an enlarged part of it; drawn by default.
    changes : dict of str to Draw, optional
        Rows that replace those of `DISTRIBUTIONS`, in all trimesters and views: another scanner, other mothers.
    """
    changes = changes or {}
    trimester = int(rng.choice(3, p=TRIMESTER_SHARES)) + 1
    table = DISTRIBUTIONS | ({}, FIRST_TRIMESTER, {}, THIRD_TRIMESTER)[trimester] | changes
    values = draw_values(rng, table)
    values["time_gain"] *= values["attenuation"]  # dB/cm/MHz from here on
    if whole_sector is not None:
        values["whole_sector"] = whole_sector
    if values["whole_sector"]:
        values |= draw_values(rng, WHOLE_SECTOR | {name: changes[name] for name in WHOLE_SECTOR if name in changes})
    half_angle = np.radians(values["half_angle"])
    above = values["top_width"] / 2 / np.tan(half_angle)  # px from the apex to the frame's upper edge
    start, end = values["sector_start"], values["sector_end"]
    sector = Sector(values["sector_x"], -above, above + start, end - start, half_angle)
    a = float(np.clip(values["head_size"], 95, 320)) * values.get("head_shrink", 1.0)
    b = a * float(np.clip(values["axes_ratio"], 0.66, 0.96))
    turn = rng.uniform(-90, 90) if values["tilted"] else values["turn"]
    x, y = values["centre_x"], values["centre_y"]
    if values["whole_sector"]:
        y = start + (end - start) * rng.uniform(0.42, 0.68)
    # Ramanujan's approximation (1914) of the perimeter: a phantom of one seed stays the same to the byte.
    perimeter = np.pi * (3 * (a + b) - np.sqrt((3 * a + b) * (a + 3 * b)))
    pixel_size = float(np.clip(values["circumference"], 57, 346) / perimeter)
    return Examination(sector, (x, y, a, b, turn), trimester, pixel_size, int(rng.integers(2**32)), values)


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
    return tuple(float(value) for value in (x, y, a, min(a, b), turn))


def _half_extent(a, b, degrees):
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.hypot(a * cosine, b * sine), np.hypot(a * sine, b * cosine)


def cut_pose(rng, examination, near_border=False):
    """Ellipse of a head cut by the frame's lower edge; with `near_border` only its uppermost part is left.

    The lower edge, left of the blacked-out box, is where every enlarged sector reaches the frame's edge.
    """
    _, _, a, b, turn = draw_pose(rng, examination)
    a, b, turn = max(a, 170.0), max(b, 130.0), float(np.clip(turn, -15, 15))
    half_height = _half_extent(a, b, turn)[1]
    visible = rng.uniform(48, 58) if near_border else half_height * rng.uniform(1.45, 1.7)
    return (rng.uniform(310, 370), float(HEIGHT + half_height - visible), a, b, turn)


def truth(ellipse):
    """Mask (0/1, the line counted inside) and outline (0/255) of an ellipse; uint8 (540, 800), cut by the frame."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    distance = ellipse_distance(ellipse, x, y)[0]
    return np.uint8(distance <= LINE_HALF_WIDTH), np.uint8(np.abs(distance) <= LINE_HALF_WIDTH) * np.uint8(255)


def draw_frame(rng, examination=None, ellipse=None):
    """Draw one phantom.

    Parameters
    ----------
    rng : numpy.random.Generator
        Gives the speckle, and whatever is not given below.
    examination : Examination, optional
        By default a new one.
    ellipse : tuple of five floats, optional
        Where the head lies (px, degrees). By default a pose near the examination's own.

    Returns
    -------
    Phantom
    """
    examination = examination or draw_examination(rng)
    ellipse = ellipse or draw_pose(rng, examination)
    grey = 255 * echoes(rng, examination, build_scene(examination, ellipse))
    image = _screen(np.uint8(scan_convert(grey, examination.sector) + 0.5), examination.values)
    return Phantom(image, *truth(ellipse), ellipse)


def echoes(rng, examination, scene):
    """What the scanner makes of a scene, on the polar grid: float32 (samples, beams), 0 black to 1 white."""
    values, sector, pixel_size = examination.values, examination.sector, examination.pixel_size
    per_attenuation = loss_per_pixel(1, values["frequency"], pixel_size)
    time_gain = values["time_gain"] * per_attenuation  # dB/px
    level = level_along_beam(scene.attenuation * np.float32(per_attenuation), sector, time_gain)
    heard = amplitude(cv2.GaussianBlur(level, (0, 0), sigmaX=APERTURE, sigmaY=0.3))
    step = sector.depth / SAMPLES  # px
    axial = np.hypot(pulse_sigma(values["frequency"], values["cycles"], pixel_size), SCREEN_SIGMA) / step
    pitch = (sector.radius + sector.depth / 2) * 2 * sector.half_angle / BEAMS  # px between beams, half-way down
    lateral = np.hypot(beam_sigma(values["frequency"], values["f_number"], pixel_size), SCREEN_SIGMA) / pitch
    lateral = np.clip(lateral, 0.5, 3.0) * np.linspace(0.8, 0.8 * values["beam_growth"], SAMPLES)
    steady = (amplitude(scene.echo) * heard) ** 2
    mirror = scene.mirror * heard
    haze = reverberate(steady + mirror**2, values["clutter_length"] / step) * amplitude(2 * values["clutter"])
    twice = cv2.resize(scene.mirror[: SAMPLES // 2], (BEAMS, SAMPLES)) * amplitude(values["ghost"]) * heard
    noise_db = np.broadcast_to(values["noise"] + time_gain * sample_depths(sector), level.shape)
    strength, unit_db = np.sqrt(steady + haze), np.zeros_like(level)
    magnitude, looks = np.float32(0), int(values["looks"])
    for _ in range(looks):
        field = point_spread(scatterers(rng, unit_db) * strength + mirror + twice, axial, lateral)
        magnitude = magnitude + envelope(field + scatterers(rng, noise_db)) / looks
    return compress(magnitude, values["gain"], values["dynamic_range"]) ** np.float32(values["grey_power"])


def _screen(image, values):
    """Add what the scanner's screen adds: its edges, the grey bar, the blacked-out boxes, the time line."""
    image[:, : SCREEN_COLUMNS[0]] = image[:, SCREEN_COLUMNS[1] :] = 0
    image[int(values["lower_box_top"]) : 525, int(np.clip(values["lower_box_left"], 560, 645)) :] = 0
    if values["upper_box"] and not values["whole_sector"]:
        image[: NOTCH[1], NOTCH[0] :] = 0
    fall = np.linspace(1, 0, BAR_ROWS[1] - BAR_ROWS[0]) ** BAR_POWER
    image[slice(*BAR_ROWS), slice(*BAR_COLUMNS)] = np.uint8(BAR_LEVEL * fall)[:, None]
    if values["cine_bar"]:
        image[slice(*CINE_ROWS)] = np.linspace(90, 30, CINE_ROWS[1] - CINE_ROWS[0]).astype(np.uint8)[:, None]
        image[CINE_ROWS[0] + 3 : CINE_ROWS[1] - 3, 590:780] = 12
        cv2.putText(image, "12 sec", (530, CINE_ROWS[1] - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.45, 190, 1, cv2.LINE_AA)
    return image
