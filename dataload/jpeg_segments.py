"""A JPEG file without what is not needed to decode it, its compressed pixels untouched.

A JPEG is a row of segments. Comments, EXIF, profiles, thumbnails and what follows the end can hold
a patient's name or number, and some public sets do; tables, frame and scans cannot. How the
photograph is to be turned is the one fact of EXIF that is kept, in an EXIF segment of its own.
(ISO/IEC 10918-1, annex B.)
"""

import re
import struct

START, END, SCAN = 0xD8, 0xD9, 0xDA
# Adobe's segment says how the colours are stored, in 12 bytes; another may follow or stand there
ADOBE = 0xEE
ADOBE_BODY = re.compile(rb"Adobe.{7}", re.DOTALL)
EXIF = 0xE1
# quantisation and Huffman tables, restart interval, arithmetic conditioning, number of lines
TABLES = {0xDB, 0xC4, 0xDD, 0xCC, 0xDC}
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# inside a scan: neither a stuffed byte, nor a restart, nor a fill byte
NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class SegmentError(ValueError):
    """The bytes are no row of JPEG segments."""


def strip_segments(data, orientation=1):
    """Return the JPEG bytes `data` with the segments alone that its pixels need.

    `orientation` is EXIF's 1 to 8; anything but 1 is written down. SegmentError where the
    segments cannot be told apart.
    """
    kept = [b"\xff\xd8"]
    if orientation != 1:
        kept.append(_orientation_segment(orientation))
    position = 2
    if data[:2] != kept[0]:
        raise SegmentError("does not begin as a JPEG does")
    while True:
        marker, position = _marker(data, position)
        if marker == END:
            return b"".join([*kept, b"\xff\xd9"])
        end = position + _length(data, position)
        if marker == SCAN:
            found = NEXT_MARKER.search(data, end)
            end = found.start() if found else len(data)
        if marker == ADOBE and (body := ADOBE_BODY.match(data, position + 2, end)):
            kept.append(_segment(ADOBE, body[0]))
        elif marker in TABLES | FRAMES | {SCAN}:
            kept.append(bytes((0xFF, marker)) + data[position:end])
        position = end


def _marker(data, position):
    """Return the marker at `position` and where what belongs to it begins."""
    if data[position : position + 1] != b"\xff":
        raise SegmentError(f"has no marker at byte {position}")
    # any number of fill bytes may stand before it
    while data[position : position + 1] == b"\xff":
        position += 1
    if position >= len(data):
        raise SegmentError("ends before its end marker")
    return data[position], position + 1


def _length(data, position):
    field = data[position : position + 2]
    if len(field) < 2 or (length := int.from_bytes(field, "big")) < 2:
        raise SegmentError(f"has a broken segment at byte {position}")
    if position + length > len(data):
        raise SegmentError(f"ends within the segment at byte {position}")
    return length


def _orientation_segment(orientation):
    """Return an EXIF segment with that one field: tag 0x0112, one 16-bit number."""
    entry = struct.pack(">HHHIHH", 1, 0x0112, 3, 1, orientation, 0)
    body = b"Exif\0\0" + b"MM\0*" + struct.pack(">I", 8) + entry + struct.pack(">I", 0)
    return _segment(EXIF, body)


def _segment(marker, body):
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body
