"""The image pipeline in NVIDIA DALI: decoding on the GPU where there is one, on the CPU where not.

One body, `_process`, serves training and evaluation, encoded files and decoded pixels, either
device; evaluation leaves out the colour step. Everything that varies comes in through
external_source as a pure function of the iteration, so the pipeline itself holds no state that a
checkpoint would need. `Pipeline.run` is driven by hand: DALI's iterator loses batches after an
error. After a photograph that cannot be decoded the pipeline is thrown away, whose state DALI calls
undefined, and the caller starts a new one at the same step (milliseconds). A file whose header DALI
cannot read is kept from it: in a large batch it may end the process (see _unreadable).

Legend: M photographs in a batch, S the side of a finished image.
"""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from dataload.fundus_operator import find_fields
from dataload.image_job import DecodeFailures

# what the channels of a photograph may be
_DEPTHS = ("uint8", "uint16")
# grey level that color_twist leaves alone when it changes the contrast of 8-bit input
_DALI_CONTRAST_CENTRE = 128.0


def _decode(fn, encoded, on_gpu, largest=(0, 0), hw_decoder_load=None):
    # libjpeg's smooth chroma on both devices: by default nvJPEG repeats chroma samples
    options = {"jpeg_fancy_upsampling": True}
    if on_gpu:
        options |= {"preallocate_height_hint": largest[0], "preallocate_width_hint": largest[1]}
        if hw_decoder_load is not None:
            options["hw_decoder_load"] = hw_decoder_load
    return fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", **options)


def _place_in_fields(images, boxes, on_gpu):
    """Return where boxes (start, end), fractions of the field of view, lie in the images."""
    from nvidia.dali import fn, math, types

    field = fn.cast(find_fields(images, on_gpu), dtype=types.FLOAT)
    corner, size = field[:2], field[2:]
    # half up, as pillow_pipeline.place_in_field
    return [corner + math.floor(box * size + 0.5) for box in boxes]


def _cut(images, start, end):
    """Return the corners of boxes cut to their images: outside them resize reads what is not its.

    The index of a set says how large a photograph is, and may be wrong.
    """
    from nvidia.dali import fn, math, types

    # taken on the CPU from what is known of the images, without a wait for a GPU
    size = fn.cast(images.shape()[:2], dtype=types.FLOAT)
    start = math.clamp(start, 0.0, size - 1.0)
    return start, math.clamp(end, start + 1.0, size)


def _process(images, job, settings, on_gpu):
    from nvidia.dali import fn, types

    kernels = {"bicubic": types.INTERP_CUBIC, "linear": types.INTERP_LINEAR}
    start, end = job["start"], job["end"]
    if settings.find_field:
        start, end = _place_in_fields(images, (start, end), on_gpu)
    start, end = _cut(images, start, end)
    images = fn.resize(
        images,
        roi_start=start,
        roi_end=end,
        size=[settings.image_size, settings.image_size],
        interp_type=kernels[settings.interpolation],
        antialias=True,
        dtype=types.UINT8,
    )
    if settings.colour:
        images = fn.color_twist(
            images,
            brightness=job["brightness"],
            contrast=job["contrast"],
            saturation=job["saturation"],
            dtype=types.FLOAT,
        )
    images = fn.crop_mirror_normalize(
        images,
        mirror=job["mirror"],
        mean=[255 * value for value in settings.mean],
        std=[255 * value for value in settings.std],
        dtype=types.FLOAT,
        output_layout="CHW",
    )
    return fn.erase(
        images, anchor=job["anchor"], shape=job["extent"], axis_names="HW", fill_value=0.0
    )


_INPUTS = ("start", "end", "mirror", "anchor", "extent")
_COLOUR_INPUTS = ("brightness", "contrast", "saturation")


def _inputs(job, settings):
    """Return the arrays of M rows that vary from batch to batch, in the order of the names."""
    arrays = [job.boxes[:, :2], job.boxes[:, 2:], job.mirror, job.erase[:, :2], job.erase[:, 2:]]
    if settings.colour:
        # color_twist computes B (128 + C (x - 128)): with these that is gain x + offset
        brightness = job.gain + job.offset / _DALI_CONTRAST_CENTRE
        # any B but zero does where gain and offset happen to cancel
        brightness[brightness == 0] = 1e-6
        arrays += [brightness, job.gain / brightness, job.saturation]
    return [np.ascontiguousarray(array) for array in arrays]


def _build(source, settings, *, batch, device_id, threads, prefetch, largest, hw_decoder_load):
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(
        batch_size=batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=prefetch
    )
    def definition():
        names = _INPUTS + _COLOUR_INPUTS if settings.colour else _INPUTS
        dtypes = [types.INT32 if name == "mirror" else types.FLOAT for name in names]
        data, *values = fn.external_source(
            source=source,
            num_outputs=1 + len(names),
            batch=True,
            # the arrays outlive the batch: DaliPipeline keeps the jobs that are under way
            no_copy=True,
            dtype=[types.UINT8, *dtypes],
            layout=["" if settings.encoded else "HWC", *[""] * len(names)],
        )
        on_gpu = device_id is not None
        if settings.encoded:
            images = _decode(fn, data, on_gpu, largest, hw_decoder_load)
        else:
            images = data.gpu() if on_gpu else data
        return _process(images, dict(zip(names, values, strict=True)), settings, on_gpu)

    pipeline = definition()
    pipeline.build()
    return pipeline


def _unreadable(files):
    """Return the positions of files whose headers DALI cannot read, by the parser that it uses.

    DALI 2.4 reads the headers of a large batch (56 photographs) on several threads. When one fails,
    its decoder is left while a thread still works on what lay on the decoder's stack, and the
    process dies of a segmentation fault. Takes 3 to 7 microseconds a file.
    """
    from nvidia import nvimgcodec

    unreadable = []
    for position, encoded in enumerate(files):
        try:
            known = nvimgcodec.CodeStream(encoded).dtype in _DEPTHS
        # no header, or one that gives a depth there is no name for
        except (RuntimeError, TypeError):
            known = False
        if not known:
            unreadable.append(position)
    return unreadable


def _build_decoder(device_id):
    """Return a pipeline that decodes one file per run and looks no further ahead."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1)
    def definition():
        encoded = fn.external_source(name="encoded", dtype=types.UINT8)
        return _decode(fn, encoded, device_id is not None)

    pipeline = definition()
    pipeline.build()
    return pipeline


def _decodes(pipeline, encoded):
    pipeline.feed_input("encoded", [encoded])
    try:
        pipeline.run()
    except RuntimeError:
        return False
    return True


def check_gpu_decoder():
    """Raise RuntimeError unless nvJPEG is in this process: DALI falls back to the CPU in silence.

    Call after the first decoded batch, which is when the library is loaded.
    """
    if "libnvjpeg.so" not in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace"):
        raise RuntimeError(
            "DALI decodes on the CPU although a GPU was asked for, because nvJPEG is not loaded: "
            "install nvidia-nvjpeg beside nvidia-dali-cuda130"
        )


class DaliPipeline:
    """Carries out image jobs of `batch` photographs with DALI, `prefetch` batches ahead.

    On a CUDA `device` (torch.device) images are decoded, finished and handed over there; on any
    other they stay in host memory. On a GPU decoder memory is set aside for the `largest`
    photograph, (height, width) in pixels, and `hw_decoder_load` (0 to 1, None: DALI's choice) of
    them go to the decoding engines.
    """

    def __init__(
        self,
        settings,
        *,
        batch,
        device,
        threads=2,
        prefetch=2,
        largest=(0, 0),
        hw_decoder_load=None,
    ):
        self.settings = settings
        self._device = torch.device(device)
        on_gpu = self._device.type == "cuda"
        index = torch.cuda.current_device() if on_gpu and device.index is None else device.index
        self._device_id = index if on_gpu else None
        self._build_options = {
            "batch": batch,
            "device_id": self._device_id,
            "threads": threads,
            "prefetch": prefetch,
            "largest": largest,
            "hw_decoder_load": hw_decoder_load,
        }
        self._idle = None
        self._decoder_checked = not (on_gpu and settings.encoded)
        self._make_job, self._first, self._last = None, 0, 0
        self._jobs, self._unreadable = {}, []

    def _source(self, iteration):
        step = self._first + iteration
        if step >= self._last:
            raise StopIteration
        job = self._jobs[step] = self._make_job(step)
        self._unreadable = _unreadable(job.data) if self.settings.encoded else []
        if self._unreadable:
            # the batches before are still handed out, and `run` then finds the end
            raise StopIteration
        return [job.data, *_inputs(job, self.settings)]

    def _start(self, make_job, first, last):
        self._make_job, self._first, self._last = make_job, first, last
        self._jobs = {}
        # taken out until the run has come to its end: one that is given up leaves batches behind
        pipeline, self._idle = self._idle, None
        if pipeline is None:
            return _build(self._source, self.settings, **self._build_options)
        pipeline.reset()
        return pipeline

    def _outputs(self, pipeline):
        if self._device_id is None:
            return pipeline.run()
        # bound to the stream that consumes them: its memory is not reused before that has read it
        return pipeline.run(torch.cuda.current_stream(self._device))

    def _broken(self, step):
        if not self.settings.encoded or step not in self._jobs:
            return []
        decoder = _build_decoder(self._device_id)
        broken = []
        for position, encoded in enumerate(self._jobs[step].data):
            if not _decodes(decoder, encoded):
                broken.append(position)
                decoder = _build_decoder(self._device_id)
        return broken

    def run(self, make_job, first, last):
        """Yield the (M, 3, S, S) float32 images of jobs first..last-1, made by `make_job(step)`.

        Raises DecodeFailures in place of a batch that holds an undecodable photograph; the caller
        starts again at that step with a job that does without it. On a GPU the images belong to
        the stream that is current when they are asked for: use them there.
        """
        pipeline = self._start(make_job, first, last)
        for step in range(first, last):
            try:
                (images,) = self._outputs(pipeline)
            except StopIteration:
                raise DecodeFailures(step, self._unreadable) from None
            except RuntimeError as error:
                broken = self._broken(step)
                if not broken:
                    raise
                raise DecodeFailures(step, broken) from error
            self._jobs.pop(step - 1, None)
            self._check_decoder()
            if step == last - 1:
                # before the last batch is handed out, after which nobody may ask again
                self._put_away(pipeline)
            yield torch.from_dlpack(images.as_tensor())

    def _put_away(self, pipeline):
        # a run that meets the end of the source, without which reset() does nothing
        with suppress(StopIteration):
            pipeline.run()
        self._idle = pipeline

    def _check_decoder(self):
        if not self._decoder_checked:
            check_gpu_decoder()
            self._decoder_checked = True

    def close(self):
        """Let go of the pipeline and its memory."""
        self._idle = None
