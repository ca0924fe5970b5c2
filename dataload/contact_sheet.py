"""A contact sheet of a shard set: its patients' photographs side by side, for a look.

Each patient has a row of two: the right eye on the left, as the one who examines faces the
patient, then the left eye. The sheet shows what training sees of them. It is made of photographs,
so it says on top that it contains patient data; patients are numbered by their place in the set.
"""

import io

import numpy as np
from PIL import Image, ImageDraw

THUMBNAIL = 128
GAP = 8
CAPTION = 14
PATIENTS_ACROSS = 4
BACKGROUND, INK = (24, 24, 24), (200, 200, 200)
BANNER, BANNER_INK = (140, 29, 24), (255, 255, 255)
PATIENT_DATA = "contains patient data"
# as ophthalmologists lay photographs out
ORDER = ("right", "left")


def contact_sheet(reader, count=24):
    """Return the RGB PIL image of up to `count` patients of a ShardReader, evenly spaced."""
    chosen = np.unique(np.linspace(0, len(reader) - 1, min(count, len(reader))).astype(int))
    across = min(PATIENTS_ACROSS, len(chosen))
    width, height = 2 * THUMBNAIL + 2 * GAP, THUMBNAIL + CAPTION + GAP
    top = CAPTION + 2 * GAP
    size = (across * width + GAP, top + -(-len(chosen) // across) * height)
    sheet = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((0, 0, size[0], CAPTION + GAP), fill=BANNER)
    draw.text((GAP, GAP // 2), PATIENT_DATA, fill=BANNER_INK)
    for place, index in enumerate(chosen.tolist()):
        corner = (GAP + place % across * width, top + place // across * height)
        visit = reader.patient(index).examinations[0]
        for number, eye in enumerate(ORDER):
            x, y = corner[0] + number * (THUMBNAIL + GAP // 2), corner[1] + CAPTION
            photographs = getattr(visit, eye) or (visit.unknown if number == 0 else ())
            name = eye if getattr(visit, eye) else "unknown eye" if photographs else f"no {eye}"
            draw.text((x, corner[1]), f"{index} {name}", fill=INK)
            if photographs:
                sheet.paste(_thumbnail(reader, photographs[0]), (x, y))
    return sheet


def _thumbnail(reader, photo):
    image = Image.open(io.BytesIO(reader.jpeg(photo).tobytes())).convert("RGB").crop(photo.region)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image
