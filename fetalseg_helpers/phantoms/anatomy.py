"""What the sound meets: the mother's tissue, amniotic fluid, limbs and body of the fetus, its skull and its brain.

Everything is laid on the polar grid of an examination. What sets the look of a frame is drawn in `frames`, from its
table; the small print of shapes is drawn here, beside the shape. Of an ellipse, a is the longer half axis.
"""

import numpy as np

from fetalseg_helpers.ellipses import Ellipse, ellipse_coordinates
from fetalseg_helpers.phantoms.ultrasound import BEAMS, SAMPLES, amplitude, loss_per_pixel, polar_grid
from fetalseg_helpers.workspace import cv2

TISSUE_DB = -3.0  # level of maternal tissue, to which all other levels relate
FLUID_ATTENUATION = 0.005  # dB/cm/MHz, of amniotic fluid


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
    """What the sound meets, on the polar grid: `echo`, `mirror`, `attenuation`, float32 of shape (samples, beams)."""

    def __init__(self, examination, ellipse):
        self.examination = examination
        self.values = examination.values
        self.ellipse = Ellipse(*(float(value) for value in ellipse))
        self.rng = np.random.default_rng(examination.anatomy_seed)
        self.depth, angle, self.x, self.y = polar_grid(examination.sector)
        self.beam = np.sin(angle), np.cos(angle)
        self.echo = np.full((SAMPLES, BEAMS), TISSUE_DB, np.float32)  # dB, level of the scatterers
        self.mirror = np.zeros_like(self.echo)  # amplitude of what reflects like a mirror
        self.attenuation = np.full_like(self.echo, self.values["attenuation"])  # dB/cm/MHz

    def noise(self, rows, columns):
        """Random field of the grid's shape, about -2 to 2, with `rows` x `columns` independent values."""
        coarse = self.rng.standard_normal((rows, columns), dtype=np.float32)
        return cv2.resize(coarse, (BEAMS, SAMPLES), interpolation=cv2.INTER_CUBIC)

    def cosine(self, normal):
        """Of the angle between the beam and a surface's normal, 0 to 1."""
        return np.abs(normal[0] * self.beam[0] + normal[1] * self.beam[1])

    def facing(self, normal):
        """How much of a mirror's echo comes back: 1 where the beam hits it squarely, 0 where it runs along it."""
        return self.cosine(normal) ** np.float32(self.values["mirror_power"])

    def fill(self, region, echo, attenuation=None):
        """Lay tissue where `region` is true; without an `attenuation` the old one stays."""
        self.echo = np.where(region, np.float32(echo), self.echo)
        if attenuation is not None:
            self.attenuation = np.where(region, np.float32(attenuation), self.attenuation)


def build_scene(examination, ellipse, head=True):
    """Lay everything on the polar grid of an examination, from the mother's skin to the fetal brain; a `Scene`.

    Without the `head`, the rest stays where it would be around the `ellipse`.
    """
    scene = Scene(examination, ellipse)
    values, rng = scene.values, scene.rng
    wall = values["layers"] * examination.sector.depth  # px, thickness of the abdominal wall
    _maternal(scene, values, rng, wall)
    if values["cavity"]:
        _cavity(scene, values, rng, scene.depth > wall)
    for _ in range(int(values["limbs"])):
        _limb(scene, values, rng)
    if values["trunk"]:
        _trunk(scene, values, rng)
    if head:
        _head(scene, values, rng)
    return scene


def _ridge(distance, width):
    """1 where `distance` is 0, falling off on both sides as a Gaussian does: 1/e at `width`."""
    return np.exp(-((distance / width) ** 2))


def _blob(u, v, centre_u, centre_v, size_u, size_v):
    """Below 1 inside of an ellipse along u and v."""
    return ((u - centre_u) / size_u) ** 2 + ((v - centre_v) / size_v) ** 2


def _maternal(scene, values, rng, wall):
    """Patches of tissue, the layers of the abdominal wall, what rings under the probe, where the probe lifts off."""
    kinds = np.argmax([scene.noise(4, 4) for _ in range(4)], axis=0)  # neighbouring tissues with uneven borders
    scene.echo += np.float32(values["patchiness"]) * rng.standard_normal(4, dtype=np.float32)[kinds]
    grain = np.clip(scene.noise(5, 5) + 1, 0.2, 2.5)  # some parts are coarser than others
    scene.echo += 4.0 * scene.noise(6, 6) + grain * (rng.uniform(1, 4) * scene.noise(40, 22))
    scene.echo += grain * rng.uniform(0, 3.5) * scene.noise(90, 14)
    layered = scene.depth < wall * (1 + 0.15 * scene.noise(2, 4))
    scene.echo += layered * np.float32(values["stripes"]) * (scene.noise(110, 4) + 0.6 * scene.noise(50, 10))
    scene.mirror += _ridge(scene.noise(36, 4), 0.08) * layered * amplitude(values["stripes"] - 6)  # fascia
    spacing = rng.uniform(5, 14)  # px, thickness of the matching layer and the gel
    for order in range(1, 6):
        line = _ridge(scene.depth - order * spacing, 1.6) * amplitude(values["ringing"] - 4 * order)
        scene.mirror += line * np.clip(1 + 0.4 * scene.noise(2, 9), 0, 2)
    blocked = np.clip(scene.noise(1, 7)[0] + rng.normal(-0.4, 0.5), 0, 2)
    step = scene.examination.sector.depth / SAMPLES
    to_loss = loss_per_pixel(1, values["frequency"], scene.examination.pixel_size) * step  # dB a sample at 1 dB/cm/MHz
    scene.attenuation[0] += values["shadow"] * blocked / to_loss


def _cavity(scene, values, rng, below):
    """Amniotic fluid with an uneven wall around the head, and the placenta that may line it, `below` the skin."""
    x, y, a, b, _ = scene.ellipse
    size = values["cavity_size"]
    wide, high = a * size, b * (1 + (size - 1) * rng.uniform(0.3, 1.0)) * rng.uniform(0.85, 1.1)
    centre_x = x + max(wide - a, 0.15 * a) * rng.uniform(-1, 1)
    centre_y = y - max(high - b, 0.15 * b) * rng.uniform(-0.6, 1)
    cavity = Ellipse(centre_x, centre_y, wide, high, rng.normal(0, 12))
    distance, normal = ellipse_distance(cavity, scene.x, scene.y)
    distance = distance + np.float32(values["cavity_roughness"] * a) * (scene.noise(4, 5) + 0.35 * scene.noise(12, 14))
    if values["placenta"]:
        bearing = rng.uniform(-np.pi, np.pi)
        side = normal[0] * np.float32(np.cos(bearing)) + normal[1] * np.float32(np.sin(bearing))
        thick = np.float32(rng.uniform(0.2, 0.6) * a) * np.clip(side, 0, 1)
        scene.fill((distance < thick) & below, TISSUE_DB + rng.uniform(0, 6) + 1.5 * scene.noise(20, 20))
    scene.echo += np.float32(rng.uniform(0, 6)) * _ridge(distance, 7)
    line = _ridge(distance, rng.uniform(1.5, 3.5)) * np.clip(0.4 + 0.7 * scene.noise(12, 12), 0, 1.6)
    scene.mirror += amplitude(rng.uniform(-8, 8)) * line * scene.facing(normal) * below
    scene.fill((distance < 0) & below, values["fluid"] + 2.0 * scene.noise(6, 6), FLUID_ATTENUATION)


def _part_beside(scene, sizes, gaps, ratios):
    """Ellipse of a part of the fetus beside the head, at any bearing and angle, its distances and its normals.

    `sizes` and `gaps` are ranges of its long semi-axis and its distance over the head's, `ratios` of short over long.
    """
    rng, (x, y, a, b, degrees) = scene.rng, scene.ellipse
    size, gap = a * rng.uniform(*sizes), a * rng.uniform(*gaps)
    bearing = rng.uniform(0, 2 * np.pi)
    turn = bearing - np.radians(degrees)
    reach = a * b / np.hypot(b * np.cos(turn), a * np.sin(turn)) + size + gap
    place = x + reach * np.cos(bearing), y + reach * np.sin(bearing)
    part = Ellipse(*place, size, size * rng.uniform(*ratios), rng.uniform(0, 180))
    return part, *ellipse_distance(part, scene.x, scene.y)


def _limb(scene, values, rng):
    """A hand, an arm or a leg: a soft part with a bright bone in it, which throws a shadow."""
    part, distance, _ = _part_beside(scene, sizes=(0.10, 0.42), gaps=(-0.1, 0.3), ratios=(0.35, 0.9))
    inside = distance < 0.15 * part.a * scene.noise(12, 12)
    scene.fill(inside, TISSUE_DB + rng.uniform(-6, 6) + 3.5 * scene.noise(30, 20), values["attenuation"])
    for _ in range(rng.integers(0, 4)):
        along = rng.uniform(0.15, 0.7) * part.a
        place = part.x + rng.normal(0, 0.4) * part.a, part.y + rng.normal(0, 0.3) * part.a
        bone = Ellipse(*place, along, along * rng.uniform(0.12, 0.5), part.angle + rng.normal(0, 25))
        distance, normal = ellipse_distance(bone, scene.x, scene.y)
        scene.mirror += _ridge(distance, 3) * scene.facing(normal) * amplitude(rng.uniform(0, 16))
        scene.fill(distance < 0, TISSUE_DB + rng.uniform(0, 8), values["bone_attenuation"])


def _trunk(scene, values, rng):
    """The body, cut across beside the head: a round thing with a bright rim that is no head."""
    part, distance, normal = _part_beside(scene, sizes=(0.6, 1.2), gaps=(-0.15, 0.2), ratios=(0.6, 0.95))
    distance = distance + 0.06 * part.a * scene.noise(8, 8)
    scene.fill(distance < 0, TISSUE_DB + rng.uniform(-9, 4) + 3.0 * scene.noise(24, 20), values["attenuation"])
    rim = _ridge(distance, rng.uniform(3, 8)) * np.clip(0.6 + 0.6 * scene.noise(9, 9), 0, 1.6)
    scene.mirror += rim * scene.facing(normal) * amplitude(rng.uniform(-6, 12))
    organs = (scene.noise(14, 14) > 1.2) & (distance < -0.2 * part.a)
    scene.fill(organs, TISSUE_DB + rng.choice((-20.0, 8.0)))


def _head(scene, values, rng):
    """Scalp, skull and brain."""
    ellipse = scene.ellipse
    distance, normal = ellipse_distance(ellipse, scene.x, scene.y)
    u, v = ellipse_coordinates(ellipse, scene.x, scene.y)
    bearing = np.arctan2(v, u)
    uneven = np.float32(values["irregularity"] * ellipse.a) * _around(rng, bearing, 9)
    distance = distance + np.float32(values["inset"] * ellipse.a) + np.clip(uneven, -8, 8)  # of the bone from here on
    wall = np.float32(values["wall"] * ellipse.a + 1)
    scalp = np.float32(values["scalp"] * ellipse.a) * (1 + 0.4 * scene.noise(8, 8))
    scene.fill((distance > -wall) & (distance < scalp), TISSUE_DB - 5 + 2 * scene.noise(20, 20), values["attenuation"])
    inside = distance < -wall
    lay_brain = _early_brain if scene.examination.trimester == 1 else _late_brain
    brain, lines = lay_brain(scene, values, rng, u, v)
    scene.fill(inside, brain, values["attenuation"] * values["brain_attenuation"])
    scene.mirror *= distance > 0  # nothing of what lies around shines through
    turn = np.radians(np.float32(ellipse.angle))
    upright = scene.facing((-np.sin(turn), np.cos(turn)))
    scene.mirror += lines * inside * upright * amplitude(values["brain"] + values["midline"])
    thickness = wall * np.clip(1 + 0.4 * _around(rng, bearing, 8), 0.4, 1.9)
    bone = _ridge(distance + wall / 2, np.float32(0.42) * thickness)
    for place in rng.uniform(-np.pi, np.pi, int(values["sutures"])):
        off = np.float32(np.pi) - np.abs(np.abs(bearing - np.float32(place)) - np.float32(np.pi))  # the shorter way
        width = np.float32(values["suture_width"] * rng.uniform(0.4, 1.6))
        bone = bone * (1 - np.float32(rng.uniform(0.5, 1)) * _ridge(off, width))
    patchy = np.clip(1 + 0.4 * _around(rng, bearing, 12) + 0.3 * scene.noise(24, 30), 0.15, 2.2)
    scene.echo = np.maximum(scene.echo, values["wall_echo"] + 20 * np.log10(bone * patchy + np.float32(1e-3)))
    scene.mirror += bone * patchy * scene.facing(normal) * amplitude(values["wall_mirror"])
    if values["double_line"]:
        inner = _ridge(distance + wall * np.float32(rng.uniform(1.5, 2.4)), 0.35 * wall)
        inner = inner * np.clip(_around(rng, bearing, 8), 0, 1.5)
        scene.mirror += inner * scene.facing(normal) * amplitude(values["wall_mirror"] - rng.uniform(5, 12))
    grazing = 1 - scene.cosine(normal)  # less is let through
    scene.attenuation += bone * np.float32(values["bone_attenuation"]) * (1 + 0.5 * grazing)


def _around(rng, bearing, waves):
    """Random function of the bearing (radians) around the head, closed, about -2 to 2, of up to `waves` waves."""
    steps = np.linspace(-np.pi, np.pi, 361, dtype=np.float32)
    orders = np.arange(1, waves + 1)[:, None]
    strength, phase = rng.standard_normal(waves), rng.uniform(0, 2 * np.pi, waves)
    curve = (strength[:, None] * np.cos(orders * steps + phase[:, None])).sum(0) * np.sqrt(2 / waves)
    return np.interp(bearing, steps, curve).astype(np.float32)


def _early_brain(scene, values, rng, u, v):
    """First trimester: two large ventricles filled with choroid plexus, the falx between them; u, v from -1 to 1."""
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
    falx = _ridge(v + 0.02 * scene.noise(5, 5), 0.035) * np.clip(0.7 + 0.6 * scene.noise(9, 9), 0, 1.5)
    return echo, falx * (np.abs(u) < 0.9)


def _late_brain(scene, values, rng, u, v):
    """Second and third trimester: thalami, cavum, ventricles with choroid plexus, sulci, a broken midline."""
    texture = 2.5 * scene.noise(14, 14) + 2.0 * scene.noise(40, 26)
    echo = values["brain"] + texture + rng.uniform(0, 6) * np.exp(-_blob(u, v, 0, 0, 0.5, 0.45))
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
        wall = _ridge(np.sqrt(ventricle) - 1, 0.1) * np.clip(0.3 + 0.8 * scene.noise(9, 12), 0, 1.3)
        lines += rng.uniform(0, 0.9) * wall
        if rng.random() < 0.8:
            inner = place[0] + 0.1 * end, place[1], rng.uniform(0.3, 0.7) * size[0], rng.uniform(0.5, 0.9) * size[1]
            echo = np.where(_blob(rough_u, rough_v, *inner) < 1, values["brain"] + values["choroid"] + texture, echo)
    folds = _ridge(scene.noise(30, 26), 0.1) * (scene.noise(7, 7) > rng.uniform(-0.3, 1.2))
    echo = echo + values["folds"] * folds
    clumps = np.clip(scene.noise(7, 7) + rng.uniform(-0.8, 0.4), 0, 1.2) * _ridge(v, 0.6)
    echo = echo + values["folds"] * clumps * np.clip(scene.noise(64, 48), -0.5, 1.8)
    cavum = (np.abs(rough_u + end * rng.uniform(0.3, 0.5)) < rng.uniform(0.06, 0.13)) & (np.abs(rough_v) < 0.05)
    echo = np.where(cavum, echo + values["ventricles"], echo)
    thin = np.float32(0.006 + 0.8 / scene.ellipse.b)
    sides = rng.normal(0, 0.2, int(rng.integers(1, 10)))
    for offset, share in ((0.0, 1.0), *((place, rng.uniform(0.2, 1)) for place in sides)):
        pieces = np.clip(1.2 * scene.noise(16, 30) + (0.4 if offset == 0 else -0.7), 0, 1.5)
        tilt = rng.normal(0, 0.03 if offset == 0 else 0.15) * u + 0.03 * scene.noise(8, 10)
        line = _ridge(v - offset + tilt, thin * rng.uniform(0.6, 1.6))
        lines += share * pieces * line * (np.abs(u) < 0.88 - 0.5 * abs(offset))
    return echo, lines * ~cavum
