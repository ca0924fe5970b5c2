"""A small cohort of drawn photographs with reports, for tests that need a manifest quickly.

Each photograph is a disc of its own colour in a dark surround, with the optic disc on its nasal
side: right in a right eye, left in a left eye. About one patient in three has one eye only.
"""

import colorsys
import csv

from PIL import Image, ImageDraw

COLUMNS = ("patient_id", "left", "right", "report", "label")
SIZES = ((96, 96), (120, 90), (150, 100))
REPORTS = (
    "Both eyes: no abnormality seen.",
    "左眼黄斑区可见玻璃膜疣,右眼未见明显异常。",
    "Cup-to-disc ratio 0.{number} in both eyes, suspect glaucoma.",
    "双眼后极部散在微血管瘤,第{number}次复查。",
)


def photograph_colour(number, eye):
    """Return the RGB colour (0 to 255) of the retina drawn for this patient and eye."""
    hue = (2 * number + (eye == "right")) * 0.381966 % 1.0
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.75, 0.7))


def draw_photograph(number, eye, size=(96, 96)):
    """Return an RGB photograph, `size` pixels (width, height), with a coloured disc."""
    width, height = size
    image = Image.new("RGB", size, (3, 2, 2))
    draw = ImageDraw.Draw(image)
    radius = 0.46 * min(size)
    centre_x, centre_y = width / 2, height / 2
    disc = [centre_x - radius, centre_y - radius, centre_x + radius, centre_y + radius]
    draw.ellipse(disc, fill=photograph_colour(number, eye))
    nasal = centre_x + (0.55 if eye == "right" else -0.55) * radius
    spot = 0.16 * radius
    draw.ellipse(
        [nasal - spot, centre_y - spot, nasal + spot, centre_y + spot], fill=(250, 240, 210)
    )
    return image


def tiny_report(number):
    """Return the report of a patient; every fourth patient has the same one."""
    return REPORTS[number % 4].format(number=number)


def tiny_eyes(number):
    """Return the eyes of which this patient has a photograph."""
    return {2: ("left",), 5: ("right",)}.get(number % 6, ("left", "right"))


def write_tiny_cohort(folder, patients=12):
    """Write `patients` patients under `folder` and return the path of the manifest."""
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    manifest = folder / "patients.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for number in range(patients):
            row = {"patient_id": f"T{number:03d}", "report": tiny_report(number)}
            row["label"] = str(number % 4)
            for eye in tiny_eyes(number):
                name = f"T{number:03d}_{eye}.jpg"
                image = draw_photograph(number, eye, SIZES[number % len(SIZES)])
                image.save(photos / name, quality=92)
                row[eye] = f"photos/{name}"
            writer.writerow(row)
    return manifest
