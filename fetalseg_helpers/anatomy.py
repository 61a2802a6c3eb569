"""What the sound meets: the mother's tissue, amniotic fluid, limbs and body of the fetus, its skull and its brain.

Everything is laid on the polar grid of an examination. What sets the look of a frame is drawn in `phantom`, from its
table; the small print of shapes is drawn here, beside the shape. An ellipse is
`(centre_x, centre_y, semi_axis_a, semi_axis_b, angle_degrees)` in px with a >= b and the angle of a turned from +x
towards +y (down), as OpenCV turns it.
"""

import cv2
import numpy as np
from scipy.special import ellipe

from fetalseg_helpers.ultrasound import BEAMS, SAMPLES, amplitude, loss_per_pixel, polar_grid

TISSUE_DB = -3.0  # level of maternal tissue, to which all other levels relate
FLUID_ATTENUATION = 0.005  # dB/cm/MHz, of amniotic fluid


def ellipse_coordinates(ellipse, x, y):
    """Coordinates of points along the two axes of an ellipse: u, v with u² + v² = 1 on it."""
    centre_x, centre_y, a, b, degrees = (np.float32(value) for value in ellipse)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    u = ((x - centre_x) * cosine + (y - centre_y) * sine) / a
    v = ((y - centre_y) * cosine - (x - centre_x) * sine) / b
    return u, v


def ellipse_perimeter(a, b):
    """Length of an ellipse with half axes a and b, exactly: 4 a E(1 - (b / a)²), a the longer.

    Examples
    --------
    >>> round(ellipse_perimeter(1, 1) / 3.14159265, 6)
    2.0
    """
    a, b = max(a, b), min(a, b)
    return 4 * a * float(ellipe(1 - (b / a) ** 2))


def ellipse_distance(ellipse, x, y):
    """Distance (px, first order) of points from an ellipse, negative inside, and the outward unit normal (x, y)."""
    a, b, degrees = (np.float32(value) for value in ellipse[2:])
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    u, v = ellipse_coordinates(ellipse, x, y)
    level = np.sqrt(u**2 + v**2) + np.float32(1e-6)
    slope = np.sqrt((u / a) ** 2 + (v / b) ** 2) + np.float32(1e-9)
    normal = (u / a * cosine - v / b * sine) / slope, (u / a * sine + v / b * cosine) / slope
    return (level - 1) * level / slope, normal


class Scene:
    """What the sound meets, on the polar grid: level of the scatterers (dB), amplitude of mirrors, attenuation.

    Arrays are float32 of shape (samples, beams); attenuation is in dB/cm/MHz.
    """

    def __init__(self, examination, ellipse):
        self.values, self.ellipse = examination.values, tuple(float(value) for value in ellipse)
        self.trimester, self.pixel_size = examination.trimester, examination.pixel_size
        self.rng = np.random.default_rng(examination.anatomy_seed)
        self.depth, angle, self.x, self.y = polar_grid(examination.sector)
        self.full_depth = examination.sector.depth
        self.beam = np.sin(angle), np.cos(angle)
        self.echo = np.full((SAMPLES, BEAMS), TISSUE_DB, np.float32)
        self.mirror = np.zeros_like(self.echo)
        self.attenuation = np.full_like(self.echo, self.values["attenuation"])

    def noise(self, rows, columns):
        """Random field of the grid's shape, about -2 to 2, with `rows` x `columns` independent values."""
        coarse = self.rng.standard_normal((rows, columns), dtype=np.float32)
        return cv2.resize(coarse, (BEAMS, SAMPLES), interpolation=cv2.INTER_CUBIC)

    def facing(self, normal):
        """How much of a mirror's echo comes back: 1 where the beam hits it squarely, 0 where it runs along it."""
        return self.cosine(normal) ** np.float32(self.values["mirror_power"])

    def cosine(self, normal):
        """Of the angle between the beam and a surface's normal, 0 to 1."""
        return np.abs(normal[0] * self.beam[0] + normal[1] * self.beam[1])

    def fill(self, region, echo, attenuation=None):
        """Lay tissue where `region` is true; without an `attenuation` the old one stays."""
        self.echo = np.where(region, np.float32(echo), self.echo)
        if attenuation is not None:
            self.attenuation = np.where(region, np.float32(attenuation), self.attenuation)


def build_scene(examination, ellipse):
    """Lay everything on the polar grid of an examination, from the mother's skin to the fetal brain; a `Scene`."""
    scene = Scene(examination, ellipse)
    _maternal(scene)
    if scene.values["cavity"]:
        _cavity(scene)
    for _ in range(int(scene.values["limbs"])):
        _limb(scene)
    if scene.values["trunk"]:
        _trunk(scene)
    _head(scene)
    return scene


def _maternal(scene):
    """Patches of tissue, the layers of the abdominal wall, what rings under the probe, where the probe lifts off."""
    values, rng = scene.values, scene.rng
    kinds = np.argmax([scene.noise(4, 4) for _ in range(4)], axis=0)  # neighbouring tissues with uneven borders
    scene.echo += np.float32(values["patchiness"]) * rng.standard_normal(4, dtype=np.float32)[kinds]
    grain = np.clip(scene.noise(5, 5) + 1, 0.2, 2.5)  # some parts are coarser than others
    scene.echo += 4.0 * scene.noise(6, 6) + grain * (rng.uniform(1, 4) * scene.noise(40, 22))
    scene.echo += grain * rng.uniform(0, 3.5) * scene.noise(90, 14)
    layers = values["layers"] * scene.full_depth * (1 + 0.15 * scene.noise(2, 4))
    stripes = scene.noise(110, 4) + 0.6 * scene.noise(50, 10)
    scene.echo += np.where(scene.depth < layers, np.float32(values["stripes"]) * stripes, 0)
    fascia = np.exp(-((scene.noise(36, 4) / 0.08) ** 2)) * (scene.depth < layers)  # thin, bright, along the skin
    scene.mirror += fascia * amplitude(values["stripes"] - 6)
    spacing = rng.uniform(5, 14)  # px, thickness of the matching layer and the gel
    for order in range(1, 6):
        line = np.exp(-(((scene.depth - order * spacing) / 1.6) ** 2)) * amplitude(values["ringing"] - 4 * order)
        scene.mirror += line * np.clip(1 + 0.4 * scene.noise(2, 9), 0, 2)
    blocked = np.clip(scene.noise(1, 7)[0] + rng.normal(-0.4, 0.5), 0, 2)
    step = scene.full_depth / SAMPLES
    to_loss = loss_per_pixel(1, values["frequency"], scene.pixel_size) * step  # dB of one sample at 1 dB/cm/MHz
    scene.attenuation[0] += values["shadow"] * blocked / to_loss


def _cavity(scene):
    """Amniotic fluid with an uneven wall around the head, and the placenta that may line it."""
    values, rng = scene.values, scene.rng
    x, y, a, b, _ = scene.ellipse
    size = values["cavity_size"]
    wide, high = a * size, b * (1 + (size - 1) * rng.uniform(0.3, 1.0)) * rng.uniform(0.85, 1.1)
    slack = max(wide - a, 0.15 * a), max(high - b, 0.15 * b)
    cavity = x + slack[0] * rng.uniform(-1, 1), y - slack[1] * rng.uniform(-0.6, 1), wide, high, rng.normal(0, 12)
    distance, normal = ellipse_distance(cavity, scene.x, scene.y)
    uneven = scene.noise(4, 5) + 0.35 * scene.noise(12, 14)
    distance = distance + np.float32(values["cavity_roughness"] * a) * uneven
    below = scene.depth > values["layers"] * scene.full_depth
    if values["placenta"]:
        bearing = rng.uniform(-np.pi, np.pi)
        side = normal[0] * np.float32(np.cos(bearing)) + normal[1] * np.float32(np.sin(bearing))
        thick = np.float32(rng.uniform(0.2, 0.6) * a) * np.clip(side, 0, 1)
        scene.fill((distance < thick) & below, TISSUE_DB + rng.uniform(0, 6) + 1.5 * scene.noise(20, 20))
    scene.echo += np.float32(rng.uniform(0, 6)) * np.exp(-((distance / 7) ** 2))
    line = np.exp(-((distance / rng.uniform(1.5, 3.5)) ** 2)) * np.clip(0.4 + 0.7 * scene.noise(12, 12), 0, 1.6)
    scene.mirror += amplitude(rng.uniform(-8, 8)) * line * scene.facing(normal) * below
    haze = values["fluid"] + 2.0 * scene.noise(6, 6)
    scene.fill((distance < 0) & below, haze, FLUID_ATTENUATION)


def _part_beside(scene, sizes, gaps, ratios):
    """Ellipse of a part of the fetus beside the head, at any bearing and angle.

    `sizes` and `gaps` are ranges of its long semi-axis and its distance over the head's, `ratios` of short over long.
    """
    rng, (x, y, a, b, degrees) = scene.rng, scene.ellipse
    size, gap = a * rng.uniform(*sizes), a * rng.uniform(*gaps)
    bearing = rng.uniform(0, 2 * np.pi)
    turn = bearing - np.radians(degrees)
    reach = a * b / np.hypot(b * np.cos(turn), a * np.sin(turn)) + size + gap
    place = x + reach * np.cos(bearing), y + reach * np.sin(bearing)
    return (*place, size, size * rng.uniform(*ratios), rng.uniform(0, 180))


def _limb(scene):
    """A hand, an arm or a leg: a soft part with a bright bone in it, which throws a shadow."""
    rng = scene.rng
    part = _part_beside(scene, sizes=(0.10, 0.42), gaps=(-0.1, 0.3), ratios=(0.35, 0.9))
    size = part[2]
    distance, _ = ellipse_distance(part, scene.x, scene.y)
    inside = distance < 0.15 * size * scene.noise(12, 12)
    scene.fill(inside, TISSUE_DB + rng.uniform(-6, 6) + 3.5 * scene.noise(30, 20), scene.values["attenuation"])
    for _ in range(rng.integers(0, 4)):
        along = rng.uniform(0.15, 0.7) * size
        place = part[0] + rng.normal(0, 0.4) * size, part[1] + rng.normal(0, 0.3) * size
        bone = (*place, along, along * rng.uniform(0.12, 0.5), part[4] + rng.normal(0, 25))
        distance, normal = ellipse_distance(bone, scene.x, scene.y)
        ridge = np.exp(-((distance / 3) ** 2))
        scene.mirror += ridge * scene.facing(normal) * amplitude(rng.uniform(0, 16))
        solid = distance < 0
        scene.fill(solid, TISSUE_DB + rng.uniform(0, 8), scene.values["bone_attenuation"])


def _trunk(scene):
    """The body, cut across beside the head: a round thing with a bright rim that is no head."""
    rng = scene.rng
    part = _part_beside(scene, sizes=(0.6, 1.2), gaps=(-0.15, 0.2), ratios=(0.6, 0.95))
    size = part[2]
    distance, normal = ellipse_distance(part, scene.x, scene.y)
    distance = distance + 0.06 * size * scene.noise(8, 8)
    scene.fill(distance < 0, TISSUE_DB + rng.uniform(-9, 4) + 3.0 * scene.noise(24, 20), scene.values["attenuation"])
    rim = np.exp(-((distance / rng.uniform(3, 8)) ** 2)) * np.clip(0.6 + 0.6 * scene.noise(9, 9), 0, 1.6)
    scene.mirror += rim * scene.facing(normal) * amplitude(rng.uniform(-6, 12))
    organs = (scene.noise(14, 14) > 1.2) & (distance < -0.2 * size)
    scene.fill(organs, TISSUE_DB + rng.choice((-20.0, 8.0)))


def _head(scene):
    """Scalp, skull and brain."""
    values, rng, ellipse = scene.values, scene.rng, scene.ellipse
    a, turn = ellipse[2], np.radians(np.float32(ellipse[4]))
    distance, normal = ellipse_distance(ellipse, scene.x, scene.y)
    u, v = ellipse_coordinates(ellipse, scene.x, scene.y)
    bearing = np.arctan2(v, u)
    uneven = _around(rng, bearing, 9)
    distance = distance + np.float32(values["inset"] * a)  # of the bone from here on
    distance = distance + np.clip(np.float32(values["irregularity"] * a) * uneven, -8, 8)
    wall = np.float32(values["wall"] * a + 1)
    scalp = np.float32(values["scalp"] * a) * (1 + 0.4 * scene.noise(8, 8))
    scene.fill((distance > -wall) & (distance < scalp), TISSUE_DB - 5 + 2 * scene.noise(20, 20), values["attenuation"])
    inside = distance < -wall
    kind = _early_brain if scene.trimester == 1 else _late_brain
    brain, lines = kind(scene, u, v)
    scene.fill(inside, brain, values["attenuation"] * values["brain_attenuation"])
    scene.mirror *= distance > 0  # nothing of what lies around shines through
    upright = scene.facing((-np.sin(turn), np.cos(turn)))
    scene.mirror += lines * inside * upright * amplitude(values["brain"] + values["midline"])
    thickness = wall * np.clip(1 + 0.4 * _around(rng, bearing, 8), 0.4, 1.9)
    bone = np.exp(-(((distance + wall / 2) / (np.float32(0.42) * thickness)) ** 2))
    for place in rng.uniform(-np.pi, np.pi, int(values["sutures"])):
        off = np.float32(np.pi) - np.abs(np.abs(bearing - np.float32(place)) - np.float32(np.pi))  # the shorter way
        width = np.float32(values["suture_width"] * rng.uniform(0.4, 1.6))
        bone = bone * (1 - np.float32(rng.uniform(0.5, 1)) * np.exp(-((off / width) ** 2)))
    patchy = np.clip(1 + 0.4 * _around(rng, bearing, 12) + 0.3 * scene.noise(24, 30), 0.15, 2.2)
    scene.echo = np.maximum(scene.echo, values["wall_echo"] + 20 * np.log10(bone * patchy + np.float32(1e-3)))
    facing = scene.facing(normal)
    scene.mirror += bone * patchy * facing * amplitude(values["wall_mirror"])
    if values["double_line"]:
        inner = np.exp(-(((distance + wall * np.float32(rng.uniform(1.5, 2.4))) / (0.35 * wall)) ** 2))
        inner = inner * np.clip(_around(rng, bearing, 8), 0, 1.5) * facing
        scene.mirror += inner * amplitude(values["wall_mirror"] - rng.uniform(5, 12))
    grazing = 1 - scene.cosine(normal)  # less is let through
    scene.attenuation += bone * np.float32(values["bone_attenuation"]) * (1 + 0.5 * grazing)


def _around(rng, bearing, waves):
    """Random function of the bearing (radians) around the head, closed, about -2 to 2, of up to `waves` waves."""
    steps = np.linspace(-np.pi, np.pi, 361, dtype=np.float32)
    orders = np.arange(1, waves + 1)[:, None]
    strength, phase = rng.standard_normal(waves), rng.uniform(0, 2 * np.pi, waves)
    curve = (strength[:, None] * np.cos(orders * steps + phase[:, None])).sum(0) * np.sqrt(2 / waves)
    return np.interp(bearing, steps, curve).astype(np.float32)


def _blob(u, v, centre_u, centre_v, size_u, size_v):
    """Below 1 inside of an ellipse along u and v."""
    return ((u - centre_u) / size_u) ** 2 + ((v - centre_v) / size_v) ** 2


def _early_brain(scene, u, v):
    """First trimester: two large ventricles filled with choroid plexus, the falx between them; u, v from -1 to 1."""
    values, rng = scene.values, scene.rng
    echo = values["brain"] + 2.5 * scene.noise(16, 16) + 2.0 * scene.noise(40, 26)
    rough_u, rough_v = u + 0.09 * scene.noise(15, 15), v + 0.09 * scene.noise(15, 15)
    fluid = (rough_u**2 + rough_v**2 < rng.uniform(0.55, 0.85)) & (np.abs(rough_v) > 0.07)
    echo = np.where(fluid, echo + values["ventricles"] * rng.uniform(0.8, 1.6), echo)
    grown, end = rng.uniform(0.55, 1.1), rng.choice((-1.0, 1.0))
    for side in (-1, 1):
        lobe = _blob(rough_u, rough_v, 0.12 * end, side * rng.uniform(0.36, 0.46), 0.62 * grown, 0.33 * grown)
        echo = np.where(lobe < 1, values["brain"] + values["choroid"] + 2.5 * scene.noise(30, 26), echo)
    echo = np.where(np.abs(rough_v) < rng.uniform(0.03, 0.08), values["brain"] + 0.6 * values["midline"], echo)
    echo = echo + rng.uniform(0, 5) * scene.noise(26, 24)
    falx = np.exp(-(((v + 0.02 * scene.noise(5, 5)) / 0.035) ** 2)) * np.clip(0.7 + 0.6 * scene.noise(9, 9), 0, 1.5)
    return echo, falx * (np.abs(u) < 0.9)


def _late_brain(scene, u, v):
    """Second and third trimester: thalami, cavum, ventricles with choroid plexus, sulci, a broken midline."""
    values, rng = scene.values, scene.rng
    texture = 2.5 * scene.noise(14, 14) + 2.0 * scene.noise(40, 26)
    echo = values["brain"] + texture + rng.uniform(0, 6) * np.exp(-((u / 0.5) ** 2) - (v / 0.45) ** 2)
    rough_u, rough_v = u + 0.05 * scene.noise(16, 16), v + 0.05 * scene.noise(16, 16)
    end = rng.choice((-1.0, 1.0))  # which end of the head is the back
    lines = np.zeros_like(u)
    for side, seen in ((-1, 0.4), (1, 0.85)):  # near and far half; haze hides the near one
        if rng.random() < 0.5:  # a thalamus, darker than its surroundings
            echo = np.where(_blob(rough_u, rough_v, 0.02, side * 0.16, 0.22, 0.13) < 1, echo - rng.uniform(2, 6), echo)
        if rng.random() > seen:
            continue
        place = end * rng.uniform(0.15, 0.45), side * rng.uniform(0.25, 0.45)
        size = rng.uniform(0.2, 0.42), rng.uniform(0.09, 0.2)
        ventricle = _blob(rough_u, rough_v, *place, *size)
        echo = np.where(ventricle < 1, echo + values["ventricles"], echo)
        wall = np.exp(-(((np.sqrt(ventricle) - 1) / 0.1) ** 2)) * np.clip(0.3 + 0.8 * scene.noise(9, 12), 0, 1.3)
        lines += rng.uniform(0, 0.9) * wall
        if rng.random() < 0.8:
            inner = place[0] + 0.1 * end, place[1], rng.uniform(0.3, 0.7) * size[0], rng.uniform(0.5, 0.9) * size[1]
            plexus = values["brain"] + values["choroid"] + texture
            echo = np.where(_blob(rough_u, rough_v, *inner) < 1, plexus, echo)
    folds = np.exp(-((scene.noise(30, 26) / 0.1) ** 2)) * (scene.noise(7, 7) > rng.uniform(-0.3, 1.2))
    echo = echo + values["folds"] * folds
    clumps = np.clip(scene.noise(7, 7) + rng.uniform(-0.8, 0.4), 0, 1.2) * np.exp(-((v / 0.6) ** 2))
    echo = echo + values["folds"] * clumps * np.clip(scene.noise(64, 48), -0.5, 1.8)
    cavum = (np.abs(rough_u + end * rng.uniform(0.3, 0.5)) < rng.uniform(0.06, 0.13)) & (np.abs(rough_v) < 0.05)
    echo = np.where(cavum, echo + values["ventricles"], echo)
    thin = np.float32(0.006 + 0.8 / scene.ellipse[3])
    sides = rng.normal(0, 0.2, int(rng.integers(1, 10)))
    for offset, share in ((0.0, 1.0), *((place, rng.uniform(0.2, 1)) for place in sides)):
        pieces = np.clip(1.2 * scene.noise(16, 30) + (0.4 if offset == 0 else -0.7), 0, 1.5)
        tilt = rng.normal(0, 0.03 if offset == 0 else 0.15) * u + 0.03 * scene.noise(8, 10)
        line = np.exp(-(((v - offset + tilt) / (thin * rng.uniform(0.6, 1.6))) ** 2))
        lines += share * pieces * line * (np.abs(u) < 0.88 - 0.5 * abs(offset))
    return echo, lines * ~cavum
