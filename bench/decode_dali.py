"""DALI as the decode benchmark runs it: decoding alone, and the loader's operators bare.

A pipeline here is fed from a list and run to its end, so that nothing of one turn is decoded ahead
of time in another's. The bare pipeline is written apart from `dataload`: it is what the loader is
held against, and shares nothing with it but the jobs, whose arguments are computed beforehand.
"""

import numpy as np
import torch

# grey level about which color_twist changes the contrast of 8-bit input
_CONTRAST_CENTRE = 128.0
_ARGUMENTS = ("start", "end", "brightness", "contrast", "saturation", "mirror", "anchor", "shape")


class Streak:
    """A pipeline that is run over a list of batches, from the first to the last, any number of
    times; `build` is called with the source that hands the batches out."""

    def __init__(self, build):
        self._steps, self._used = [], False
        self._pipeline = build(self._step)
        self._pipeline.build()

    def _step(self, iteration):
        if iteration >= len(self._steps):
            raise StopIteration
        return self._steps[iteration]

    def batches(self, steps):
        """Yield what the pipeline makes of each batch in turn."""
        self._steps = steps
        if self._used:
            self._pipeline.reset()
        self._used = True
        while True:
            try:
                (batch,) = self._pipeline.run()
            except StopIteration:
                return
            yield batch


def _options(batch, threads, device):
    """What is said of any pipeline; on a CPU there is no device_id."""
    options = {"batch_size": batch, "num_threads": threads, "prefetch_queue_depth": 2}
    if device.type != "cuda":
        return options | {"device_id": None}
    index = torch.cuda.current_device() if device.index is None else device.index
    return options | {"device_id": index}


def _decoded(encoded, device, **options):
    from nvidia.dali import fn

    if device.type != "cuda":
        return fn.decoders.image(encoded, adjust_orientation=False, device="cpu")
    return fn.decoders.image(
        encoded,
        device="mixed",
        # the orientation is left alone, as Pillow leaves it; chroma is smoothed, as libjpeg does
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
        **options,
    )


def decoding(*, batch, threads, device, image_size=None, **options):
    """Return the Streak that decodes lists of encoded photographs to uint8 (H, W, 3).

    With `image_size` they are resized to that many pixels square, bicubic and antialiased. On a
    CUDA `device` that is done there, with `options` of fn.decoders.image.
    """
    from nvidia.dali import fn, pipeline_def, types

    def build(source):
        @pipeline_def(**_options(batch, threads, device))
        def definition():
            encoded = fn.external_source(source, batch=True, no_copy=True, dtype=types.UINT8)
            images = _decoded(encoded, device, **options)
            if image_size is None:
                return images
            return fn.resize(
                images,
                size=[image_size, image_size],
                interp_type=types.INTERP_CUBIC,
                antialias=True,
            )

        return definition()

    return Streak(build)


def arguments(job):
    """Return [files, *arrays]: an ImageJob as what the bare pipeline is fed with."""
    brightness = job.gain + job.offset / _CONTRAST_CENTRE
    arrays = (
        job.boxes[:, :2],
        job.boxes[:, 2:],
        brightness,
        job.gain / brightness,
        job.saturation,
        job.mirror,
        job.erase[:, :2],
        job.erase[:, 2:],
    )
    return [job.data, *map(np.ascontiguousarray, arrays)]


def training(settings, *, batch, threads, device):
    """Return the Streak that makes float32 (3, S, S) training images of lists of `arguments`.

    `settings` are dataload's ImageSettings.
    """
    from nvidia.dali import fn, pipeline_def, types

    def build(source):
        @pipeline_def(**_options(batch, threads, device))
        def definition():
            dtypes = [types.INT32 if name == "mirror" else types.FLOAT for name in _ARGUMENTS]
            encoded, *given = fn.external_source(
                source,
                num_outputs=1 + len(_ARGUMENTS),
                batch=True,
                no_copy=True,
                dtype=[types.UINT8, *dtypes],
            )
            given = dict(zip(_ARGUMENTS, given, strict=True))
            return _training_images(_decoded(encoded, device), given, settings)

        return definition()

    return Streak(build)


def _training_images(images, given, settings):
    from nvidia.dali import fn, types

    images = fn.resize(
        images,
        roi_start=given["start"],
        roi_end=given["end"],
        size=[settings.image_size, settings.image_size],
        interp_type=types.INTERP_CUBIC,
        antialias=True,
    )
    colour = {name: given[name] for name in ("brightness", "contrast", "saturation")}
    images = fn.color_twist(images, **colour, dtype=types.FLOAT)
    images = fn.crop_mirror_normalize(
        images,
        mirror=given["mirror"],
        mean=[255 * value for value in settings.mean],
        std=[255 * value for value in settings.std],
        dtype=types.FLOAT,
        output_layout="CHW",
    )
    return fn.erase(images, anchor=given["anchor"], shape=given["shape"], axis_names="HW")
