"""Every way to decode a photograph that the decode benchmark compares, by name.

Each is built for one kind of work, "decode" or "resize" (decoding, then 224 pixels square, bicubic
and antialiased), and then given lists of encoded photographs. What handles one photograph at a time
does so on a pool of threads; all of these give the interpreter free while they decode.
"""

import dataclasses
import importlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from PIL import Image

from bench.peers import first_line

SIDE = 224
WORKS = ("decode", "resize")
LOADS = (0.0, 0.65, 0.8, 0.9, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a builder is told: `largest` is a (height, width) in pixels that holds everything."""

    work: str
    threads: int
    batch: int
    device: torch.device
    largest: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """One implementation; `build` returns its worker for a Setting.

    A worker has `batches(files)`, which yields lists of decoded pictures in order.
    """

    name: str
    build: Callable
    about: str
    # what must be importable, and the distribution that has it if it is not ours
    module: str
    package: str | None
    works: tuple[str, ...] = WORKS
    needs_gpu: bool = False
    # of `build`, and of its rows: tells peers of one name apart
    options: dict = field(default_factory=dict)


def why_not(peer, device):
    """Return one line that says why a peer cannot run on `device`, or None if it can."""
    if peer.needs_gpu and device.type != "cuda":
        return "needs a CUDA GPU"
    try:
        importlib.import_module(peer.module)
    except ModuleNotFoundError as error:
        return f"not installed: pip install {peer.package or error.name}"
    # whatever another's package raises at import becomes its row
    except Exception as error:
        return first_line(error)
    return None


def as_pixels(picture):
    """Return a decoded picture of any kind as its (H, W, 3) uint8 pixels."""
    if isinstance(picture, torch.Tensor):
        return picture.permute(1, 2, 0).cpu().numpy()
    # DALI's, on the GPU
    return np.asarray(picture.as_cpu() if hasattr(picture, "as_cpu") else picture)


class Pool:
    """A worker that decodes one photograph per thread."""

    def __init__(self, decode, threads):
        self._decode = decode
        self._threads = ThreadPoolExecutor(threads, "decode")

    def batches(self, files):
        for picture in self._threads.map(self._decode, files):
            yield [picture]

    def close(self):
        self._threads.shutdown(cancel_futures=True)


class DaliDecoder:
    """A worker that decodes with DALI, on the GPU if it is given one."""

    def __init__(self, setting, *, device, **options):
        from bench.decode_dali import decoding

        self._batch = setting.batch
        self._streak = decoding(
            batch=setting.batch,
            threads=setting.threads,
            device=device,
            image_size=SIDE if setting.work == "resize" else None,
            **options,
        )

    def batches(self, files):
        yield from self._streak.batches(in_batches(files, self._batch))

    def close(self):
        self._streak = None


class TorchvisionGpu:
    """A worker that decodes a batch at a time with nvJPEG through torchvision."""

    def __init__(self, setting):
        self._setting = setting
        self._decode, self._resize = _torchvision()

    def batches(self, files):
        for batch in in_batches(files, self._setting.batch):
            tensors = [torch.from_numpy(file) for file in batch]
            images = self._decode(tensors, device=self._setting.device)
            if self._setting.work == "resize":
                images = [self._resize(image) for image in images]
            yield images

    def close(self):
        pass


def in_batches(files, batch):
    """Cut a list into lists of `batch`, the last one shorter."""
    return [files[start : start + batch] for start in range(0, len(files), batch)]


def _torchvision():
    """Return torchvision's decode_jpeg, to RGB, and its resize to 224 pixels square."""
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2 import InterpolationMode, functional

    def decode(files, device):
        return decode_jpeg(files, mode=ImageReadMode.RGB, device=device)

    def resize(image):
        bicubic = InterpolationMode.BICUBIC
        return functional.resize(image, [SIDE, SIDE], interpolation=bicubic, antialias=True)

    return decode, resize


def _dali_cpu(setting):
    return DaliDecoder(setting, device=torch.device("cpu"))


def _dali_gpu(setting, **options):
    height, width = setting.largest
    options |= {"preallocate_height_hint": height, "preallocate_width_hint": width}
    return DaliDecoder(setting, device=setting.device, **options)


def _torchvision_cpu(setting):
    decode, resize = _torchvision()

    def one(file):
        image = decode(torch.from_numpy(file), device="cpu")
        return resize(image) if setting.work == "resize" else image

    return Pool(one, setting.threads)


def _pillow(setting, *, draft):
    def one(file):
        image = Image.open(io.BytesIO(file))
        if draft:
            # no smaller than this in either direction
            image.draft("RGB", (SIDE, SIDE))
        image.load()
        if image.mode != "RGB":
            image = image.convert("RGB")
        if setting.work == "resize":
            image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        return image

    return Pool(one, setting.threads)


def _simplejpeg(setting):
    import simplejpeg

    def one(file):
        pixels = simplejpeg.decode_jpeg(file, "RGB")
        return _shrunk(pixels) if setting.work == "resize" else pixels

    return Pool(one, setting.threads)


def _shrunk(pixels):
    # of bytes as they lie there, for which torch has vector instructions
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(image, (SIDE, SIDE), mode="bicubic", antialias=True)[0]


# whose pixels are the measure of all others'
PILLOW = Peer(
    name="pillow",
    build=partial(_pillow, draft=False),
    about="Pillow on threads, every pixel",
    module="PIL.Image",
    package="pillow",
)
_DALI = {"module": "nvidia.dali", "package": "nvidia-dali-cuda130"}
_TORCHVISION = {"module": "torchvision.io", "package": "torchvision"}

PEERS = (
    Peer(name="dali-cpu", build=_dali_cpu, about="fn.decoders.image on the CPU", **_DALI),
    *(
        Peer(
            name="dali-gpu",
            build=_dali_gpu,
            about="fn.decoders.image(device='mixed'); load is the hardware decoder's share",
            needs_gpu=True,
            options={"hw_decoder_load": load},
            **_DALI,
        )
        for load in LOADS
    ),
    Peer(
        name="torchvision-cpu",
        build=_torchvision_cpu,
        about="torchvision.io.decode_jpeg on threads",
        **_TORCHVISION,
    ),
    Peer(
        name="torchvision-cuda",
        build=TorchvisionGpu,
        about="torchvision.io.decode_jpeg of a batch on the GPU",
        needs_gpu=True,
        **_TORCHVISION,
    ),
    PILLOW,
    dataclasses.replace(
        PILLOW,
        name="pillow-draft",
        build=partial(_pillow, draft=True),
        about="Pillow on threads, scaled while decoding to no less than 224 pixels",
    ),
    Peer(
        name="simplejpeg",
        build=_simplejpeg,
        about="libjpeg-turbo through simplejpeg on threads; torch's interpolate resizes the bytes",
        module="simplejpeg",
        package="simplejpeg",
    ),
)
