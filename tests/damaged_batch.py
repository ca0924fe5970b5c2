"""Run as a program: damaged photographs among many in DALI, where a mistake ends the process.

    python tests/damaged_batch.py COUNT THREADS

Prints a JSON object: for each damage to one of COUNT photographs the positions given up, and
whether the others come out as they do without it; "all at once" is a batch of drawn damages.
"""

import io
import json
import random
import sys

import numpy as np
import simplejpeg
import torch
from PIL import Image

from dataload.dali_pipeline import DaliPipeline
from dataload.image_job import DecodeFailures, ImageJob, ImageSettings

SIDE = 64
BLANK = np.frombuffer(simplejpeg.encode_jpeg(np.zeros((SIDE, SIDE, 3), np.uint8)), np.uint8)


def _changed(file, start, values):
    file = file.copy()
    file[start : start + len(values)] = values
    return file


def _with_frame(file, *, side=SIDE, bits=8):
    """Return the JPEG with another height and width, or depth, in its frame header."""
    frame = file.tobytes().index(b"\xff\xc0")
    return _changed(file, frame + 4, [bits, *2 * side.to_bytes(2, "big")])


def _saved(format, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (SIDE, SIDE)).save(buffer, format)
    return np.frombuffer(buffer.getvalue(), np.uint8)


DAMAGES = {
    "zeros": np.zeros_like,
    "no bytes": lambda file: file[:0],
    "text": lambda file: np.frombuffer(b"patient_id,left,right,report\n", np.uint8),
    "half": lambda file: file[: len(file) // 2],
    "header only": lambda file: file[:200],
    "garbage in the scan": lambda file: _changed(file, len(file) * 3 // 4, [0x5A] * 40),
    "said to be larger": lambda file: _with_frame(file, side=4 * SIDE),
    "said to be vast": lambda file: _with_frame(file, side=65535),
    "said to have no side": lambda file: _with_frame(file, side=0),
    "said to have 77 bits": lambda file: _with_frame(file, bits=77),
    "a PNG": lambda file: _saved("PNG"),
    "half a PNG": lambda file: _saved("PNG")[:40],
    "a TIFF of 32 bits": lambda file: _saved("TIFF", "I"),
    "a GIF": lambda file: _saved("GIF"),
}


def _photographs(count):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (count, 4, 4, 3), dtype=np.uint8)
    pixels = blocks.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)
    return [np.frombuffer(simplejpeg.encode_jpeg(image), np.uint8) for image in pixels]


def _drawn_damage(file, draw):
    """Return a JPEG with bytes changed, taken out or put in, or without its end."""
    file = bytearray(file.tobytes())
    place = draw.randrange(draw.choice((24, 200, len(file))))
    some = draw.randrange(1, 9)
    return np.frombuffer(
        draw.choice(
            (
                file[:place] + draw.randbytes(some) + file[place + some :],
                file[:place] + file[place + some :],
                file[:place] + draw.randbytes(some) + file[place:],
                file[:place],
            )
        ),
        np.uint8,
    )


def _job(files):
    count = len(files)
    return ImageJob(
        data=files,
        boxes=np.tile(np.float32([0, 0, SIDE, SIDE]), (count, 1)),
        gain=np.ones(count, np.float32),
        offset=np.zeros(count, np.float32),
        saturation=np.ones(count, np.float32),
        mirror=np.zeros(count, np.int32),
        erase=np.zeros((count, 4), np.float32),
    )


def _survive(pipeline, files):
    """Return (images, positions given up) of the files: given up ones are blank."""
    files, lost = list(files), []
    while True:
        try:
            images = [images.clone() for images in pipeline.run(lambda step: _job(files), 0, 1)]
        except DecodeFailures as failures:
            lost += failures.positions
            for position in failures.positions:
                files[position] = BLANK
        else:
            return images[0], sorted(lost)


def main(argv=None):
    count, threads = map(int, argv or sys.argv[1:])
    files, found, place = _photographs(count), {}, count // 3
    settings, device = ImageSettings(image_size=32), torch.device("cpu")
    pipeline = DaliPipeline(settings, batch=count, device=device, threads=threads)
    intact, _ = _survive(pipeline, files)
    others = np.arange(count) != place
    for name, damage in DAMAGES.items():
        damaged = [*files[:place], damage(files[place]), *files[place + 1 :]]
        images, lost = _survive(pipeline, damaged)
        found[name] = lost, torch.equal(images[others], intact[others])
    draw = random.Random(0)
    images, lost = _survive(pipeline, [_drawn_damage(file, draw) for file in files])
    found["all at once"] = len(lost), bool(images.isfinite().all())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
