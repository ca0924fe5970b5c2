"""Frames on which native code must find the fields that the NumPy definition finds, for tests."""

import numpy as np

from dataload.fundus import field_of_grid_numpy, grid_step

DRAWN = 60
BLOCKS = 600


def definition(pixels):
    """Return the FieldOfView of (H, W, C) pixels by the definition in NumPy."""
    height, width = pixels.shape[:2]
    step = grid_step(width, height)
    return field_of_grid_numpy(pixels[step // 2 :: step, step // 2 :: step], width, height)


def draw(number):
    """Returns a drawn frame, (H, W, C): a disc in a surround; at times margins, a date, noise."""
    random = np.random.default_rng(number)
    height, width = random.integers(1, 1400, 2)
    channels = 3 if random.random() < 0.8 else 1
    surround, disc = random.integers(0, 60), random.integers(0, 256)
    pixels = np.full((height, width, channels), surround, np.uint8)
    y, x = np.ogrid[:height, :width]
    centre_y, centre_x = random.uniform(0.3, 0.7, 2) * (height, width)
    radius = random.uniform(0.05, 0.7) * max(height, width)
    inside = (y - centre_y) ** 2 + (x - centre_x) ** 2 < radius**2
    pixels[inside] = disc
    if random.random() < 0.5:
        pixels[: height // 12 + 1, : width // 5 + 1] = random.integers(0, 256, channels)
    if random.random() < 0.7:
        noise = random.integers(-20, 21, pixels.shape)
        pixels = np.clip(pixels.astype(np.int64) + noise, 0, 255).astype(np.uint8)
    if random.random() < 0.4:
        top, left = random.integers(0, 80, 2)
        pixels = np.pad(pixels, ((top, 3), (left, 0), (0, 0)), constant_values=255)
    return pixels


def draw_blocks(number):
    """Returns a small frame of random stripes and blocks whose levels lie about the thresholds."""
    random = np.random.default_rng(number)
    height, width = random.integers(20, 220, 2)
    surround = random.integers(0, 90)
    pixels = np.full((height, width), surround, np.uint8)
    levels = surround + np.array([0, 1, 8, 9, 10, 30, 60, 120])
    for _ in range(random.integers(1, 9)):
        (y, x), level = random.integers(0, (height, width)), random.choice(levels)
        rows, columns = random.integers(1, (height, width))
        pixels[y : y + rows, x : x + columns] = level
    if random.random() < 0.3:
        # two equal runs of lines: the first one counts
        pixels[:] = surround
        pixels[height // 8 : height // 4] = pixels[height // 2 : height // 2 + height // 8] = 200
    if random.random() < 0.3:
        # a corner of two levels, as many points of each
        pixels[: -(-height // 20), ::2] = surround + 5
    for margin in (pixels[: random.integers(1, 15)], pixels[:, -random.integers(1, 15) :]):
        if random.random() < 0.5:
            margin[:] = random.integers(238, 244)
            margin[random.random(margin.shape) < random.choice([0, 0.008, 0.012, 0.025])] = 100
    return pixels[..., None]


def corner_cases():
    """Returns frames at the edges of the definition: one value, one line, one point, checks."""
    flat = [np.full((40, 30, 3), level, np.uint8) for level in (0, 8, 9, 239, 240, 255)]
    random = np.random.default_rng(0)
    noise = [
        random.integers(0, 256, shape, np.uint8)
        for shape in [
            (1, 1, 3),
            (1, 700, 3),
            (513, 1, 1),
            (10, 8, 3),
            (512, 512, 1),
            (1025, 3, 3),
            (2, 2600, 3),
        ]
    ]
    ramp = np.broadcast_to(np.arange(1030, dtype=np.uint16)[:, None] // 5, (1030, 77))
    point = np.zeros((90, 90, 3), np.uint8)
    point[40, 50] = 200
    return [*flat, *noise, ramp[..., None].astype(np.uint8), point]


def read_photographs(folder):
    from PIL import Image

    suffixes = {".jpg", ".jpeg", ".png"}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes:
            yield np.asarray(Image.open(path).convert("RGB"))
