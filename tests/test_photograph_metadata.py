"""Nothing but pixels of a photograph reaches a shard, wherever in the file it was written."""

import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin
from tiny_cohort import draw_photograph
from tiny_shards import build_tiny, everything, image_of, patients_of

from dataload.decoding import decode_upright
from dataload.jpeg_segments import strip_segments
from dataload.shards import ShardReader

CANARY = b"CANARY4711"
COMMENT, APP, END = 0xFE, 0xE0, b"\xff\xd9"


def segment(marker, body):
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def jpeg_bytes(size=(48, 40), **options):
    file = io.BytesIO()
    draw_photograph(1, "right", size).save(file, "JPEG", quality=95, **options)
    return file.getvalue()


def exif_with_everything():
    """An EXIF segment with orientation, description, owner, GPS, and a thumbnail beside it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.ImageDescription] = CANARY.decode()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.CameraOwnerName] = CANARY.decode()
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSMapDatum] = CANARY.decode()
    thumbnail = jpeg_bytes((16, 16), comment=CANARY)
    return segment(0xE1, exif.tobytes() + thumbnail)


def jpeg_with_everything(**options):
    """A JPEG with a canary in every segment that can hold one, between scans and after the end."""
    plain = jpeg_bytes((200, 160), **options)
    begin = [
        exif_with_everything(),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x>" + CANARY + b"</x>"),
        segment(0xE2, b"ICC_PROFILE\0\1\1" + CANARY * 20),
        segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0f\x1c\x02\x05\0\x0a" + CANARY),
        segment(0xEE, b"not Adobe's " + CANARY),
        segment(0xEE, b"Adobe\0\x64\0\0\0\0\1" + CANARY),
        *(segment(APP + number, CANARY) for number in (3, 4, 11, 15)),
        segment(COMMENT, CANARY),
    ]
    # a second comment, right before the scan
    place = plain.index(b"\xff\xda")
    late = plain[2:place] + segment(COMMENT, CANARY) + plain[place:]
    return plain[:2] + b"".join(begin) + late + CANARY + jpeg_bytes(comment=CANARY)


def png_with_everything():
    """A PNG with text of all kinds, EXIF, and bytes after its end."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", CANARY.decode())
    texts.add_text("Zipped", CANARY.decode() * 9, zip=True)
    texts.add_itxt("Title", CANARY.decode(), lang="zh")
    texts.add(b"prVt", CANARY)
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = CANARY.decode()
    file = io.BytesIO()
    image = draw_photograph(1, "right", (200, 160))
    image.save(file, "PNG", pnginfo=texts, exif=exif, icc_profile=CANARY * 20)
    return file.getvalue() + CANARY


FILES = {
    "baseline.jpg": jpeg_with_everything(),
    "progressive.jpg": jpeg_with_everything(progressive=True),
    "text.png": png_with_everything(),
}


@pytest.mark.parametrize("keep_original", [False, True])
def test_no_comment_reaches_a_shard(tmp_path, keep_original):
    rows = ["patient_id,left,report"]
    for number, (name, data) in enumerate(FILES.items()):
        assert data.count(CANARY) >= 4
        (tmp_path / name).write_bytes(data)
        rows.append(f"P{number},{name},report {number}")
    (tmp_path / "patients.csv").write_text("\n".join(rows))
    summary = build_tiny(
        tmp_path / "patients.csv", tmp_path / "out", keep_original=keep_original, crop=False
    )
    assert (summary.photographs, summary.rejects) == (3, 0)
    for name, data in everything(tmp_path / "out").items():
        assert CANARY not in data and b"Photoshop" not in data, name
    reader = ShardReader(summary.train)
    for (name, data), patient in zip(FILES.items(), patients_of(summary.train), strict=True):
        photo = patient.examinations[0].left[0]
        stored = reader.jpeg(photo).tobytes()
        with Image.open(io.BytesIO(stored)) as image:
            # of EXIF, how an original is to be turned, alone
            assert dict(image.getexif()) in ({}, {ExifTags.Base.Orientation: 6}), name
            # zlib would hide it
            assert not getattr(image, "text", None) and "icc_profile" not in image.info
        if keep_original:
            kept, original = decode_upright(stored)[0], decode_upright(data)[0]
            np.testing.assert_array_equal(kept, original)
        else:
            assert image_of(reader, photo).shape[2] == 3


def test_adobe_says_how_colours_are_stored_and_no_more():
    """A JPEG of inks, which cannot be read without Adobe's segment, keeps its 12 bytes."""
    file = io.BytesIO()
    draw_photograph(1, "left", (64, 64)).convert("CMYK").save(file, "JPEG")
    data = file.getvalue()
    place = data.index(b"Adobe") - 4
    marked = data[:place] + segment(0xEE, data[place + 4 : place + 16] + CANARY)
    marked += data[place + 16 :]
    kept = strip_segments(marked)
    assert CANARY in marked and CANARY not in kept and b"Adobe" in kept
    np.testing.assert_array_equal(decode_upright(kept)[0], decode_upright(data)[0])
