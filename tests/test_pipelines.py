"""The image pipelines: DALI against Pillow, Pillow against the formulas, and broken files."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dataload import dali_pipeline
from dataload.augment import Augmentation, crop_boxes, draw, erase_boxes
from dataload.dali_pipeline import DaliPipeline
from dataload.image_job import GREY_WEIGHTS, DecodeFailures, ImageJob, ImageSettings
from dataload.pillow_pipeline import PillowPipeline, decode, recolour, resample

SIDE = 64
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
ON_GPU = pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])


def encode(pixels, format_="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format_, **{"quality": 95, **options})
    return np.frombuffer(file.getvalue(), np.uint8)


def drawn_photographs(count, seed=0):
    """Return photographs of several shapes, smooth with sharp edges, as files."""
    random = np.random.default_rng(seed)
    files = []
    for number in range(count):
        height, width = random.integers(60, 260, 2)
        coarse = random.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.array(image)
        pixels[: height // 5, : width // 4] = 0
        files.append(encode(pixels, subsampling=number % 3))
    return files


def real_photographs(folder):
    names = ["hrf_876x584/01_g_resized.jpg", "hrf_876x584/07_h_resized.jpg"]
    names += ["other/CHASEDB1_08L.png", "other/retina_1411_left_cc0.jpg"]
    return [np.frombuffer((folder / name).read_bytes(), np.uint8) for name in names]


def make_job(files, settings, *, seed=None, flip="per_eye"):
    """Return the job that shows whole photographs, or with a `seed` varies them strongly."""
    data = list(files) if settings.encoded else [decode(file) for file in files]
    sizes = np.array([decode(file).shape[:2] for file in files])
    count = len(files)
    if seed is None:
        boxes = np.concatenate([np.zeros((count, 2)), sizes], axis=1)
        one, nothing = np.ones(count, np.float32), np.zeros(count, np.float32)
        values = {"gain": one, "offset": nothing, "saturation": one, "mirror": nothing.astype("i4")}
        values["erase"] = np.zeros((count, 4), np.float32)
        return ImageJob(data=data, boxes=boxes.astype(np.float32), **values)
    strong = Augmentation(crop_scale=(0.3, 1.0), erase_probability=0.5, flip=flip)
    draws = draw(strong, seed=seed, epoch=0, patients=np.arange(count), eye=0)
    erase = erase_boxes(draws, settings.image_size)
    erase[:, 2:] -= erase[:, :2]
    return ImageJob(
        data=data,
        boxes=crop_boxes(draws, *sizes.T).astype(np.float32),
        gain=draws.gain.astype(np.float32),
        offset=draws.offset.astype(np.float32),
        saturation=draws.saturation.astype(np.float32),
        mirror=draws.mirror.astype(np.int32),
        erase=erase.astype(np.float32),
    )


def build(name, settings, count, device="cpu", **options):
    if name == "pillow":
        return PillowPipeline(settings, **options)
    return DaliPipeline(settings, batch=count, device=torch.device(device), **options)


def one_batch(name, settings, job, device="cpu"):
    pipeline = build(name, settings, len(job.data), device)
    (images,) = pipeline.run(lambda step: job, 0, 1)
    images = images.clone().cpu()
    pipeline.close()
    return images


def grey_levels(images, settings):
    return images * 255 * torch.tensor(settings.std)[:, None, None]


def differences(first, second, settings):
    """Return absolute differences in grey levels (0 to 255), flattened."""
    return grey_levels(first - second, settings).abs().flatten()


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize("interpolation", ["bicubic", "linear"])
@pytest.mark.parametrize("image_size", [64, 224])
def test_evaluation_agrees_with_pillow(device, interpolation, image_size, shared_fundus):
    settings = ImageSettings(image_size=image_size, interpolation=interpolation)
    files = real_photographs(shared_fundus) + drawn_photographs(4)
    job = make_job(files, settings)
    images = one_batch("dali", settings, job, device)
    difference = differences(images, one_batch("pillow", settings, job), settings)
    if device == "cpu":
        assert (difference <= 1.01).float().mean() >= 0.999
        assert difference.max() <= 3.01
    else:
        # nvJPEG's inverse transform and chroma upsampling are its own
        assert difference.mean() <= 1
        assert (difference <= 4.01).float().mean() >= 0.999


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize("interpolation", ["bicubic", "linear"])
@pytest.mark.parametrize("encoded", [True, False])
def test_training_agrees_with_pillow(device, interpolation, encoded):
    settings = ImageSettings(
        image_size=SIDE, interpolation=interpolation, colour=True, encoded=encoded
    )
    job = make_job(drawn_photographs(24), settings, seed=5)
    images = one_batch("dali", settings, job, device)
    oracle = one_batch("pillow", settings, job)
    difference = differences(images, oracle, settings)
    assert difference.mean() <= 1
    assert (difference <= 4).float().mean() >= 0.999
    # the same rectangles are erased, to the pixel, and are zero
    assert ((images == 0).all(dim=1) == (oracle == 0).all(dim=1)).float().mean() >= 0.9999
    areas = (job.erase[:, 2] * job.erase[:, 3]).astype(int)
    assert (areas > 0).any() and (areas == 0).any()
    for image, (top, left, height, width) in zip(images, job.erase.astype(int), strict=True):
        assert (image[:, top : top + height, left : left + width] == 0).all()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("colour", [True, False])
def test_pixels_of_cpu_and_gpu_agree(colour, shared_fundus):
    settings = ImageSettings(image_size=224, colour=colour)
    files = real_photographs(shared_fundus) + drawn_photographs(12)
    job = make_job(files, settings, seed=5 if colour else None)
    on_gpu = one_batch("dali", settings, job, "cuda")
    difference = differences(one_batch("dali", settings, job), on_gpu, settings)
    assert difference.mean() <= 1
    assert (difference <= 4).float().mean() >= 0.999
    assert torch.equal(on_gpu, one_batch("dali", settings, job, "cuda"))


@pytest.mark.parametrize("interpolation", ["bicubic", "linear"])
def test_resampling_keeps_what_it_must(interpolation):
    pixels = decode(drawn_photographs(1)[0])
    square = pixels[:50, :50]
    assert (resample(square, (0, 0, 50, 50), (50, 50), interpolation) == square).all()
    flat = np.full((70, 90, 3), 137, np.uint8)
    assert (resample(flat, (3, 4, 60, 80), (32, 32), interpolation) == 137).all()
    # pixels outside the box take part, so a box is not the same as a cut
    box = (10, 10, 50, 50)
    shifted = resample(np.roll(pixels, (5, 7), (0, 1)), (15, 17, 55, 57), (20, 20), interpolation)
    assert (resample(pixels, box, (20, 20), interpolation) == shifted).all()
    mirrored = resample(pixels[:, ::-1], (0, 0, *pixels.shape[:2]), (40, 40), interpolation)
    whole = resample(pixels, (0, 0, *pixels.shape[:2]), (40, 40), interpolation)
    assert np.abs(mirrored[:, ::-1].astype(int) - whole).max() <= 1


@pytest.mark.parametrize("encoded", [True, False])
def test_a_box_beyond_the_photograph_is_cut_to_it(encoded):
    settings = ImageSettings(image_size=SIDE, encoded=encoded)
    files = drawn_photographs(5)
    beyond, within = (make_job(files, settings) for _ in range(2))
    (height, width) = decode(files[0]).shape[:2]
    # in this order: outside altogether, on two sides, on one, before the first pixel, of no pixel
    beyond.boxes[:3] = [[900, 900, 990, 990], [20, 30, 900, 900], [20, 30, 40, 900]]
    beyond.boxes[3:] = [[-7, -9, 40, 30], [20, 30, 20, 30]]
    sizes = within.boxes[:, 2:].copy()
    within.boxes[0, :2] = sizes[0] - 1
    within.boxes[1, :2] = within.boxes[2, :2] = within.boxes[4, :2] = (20, 30)
    within.boxes[2:, 2:] = [[40, sizes[2, 1]], [40, 30], [21, 31]]
    assert (height, width) == tuple(sizes[0])
    images = [
        one_batch(name, settings, job) for name in ("dali", "pillow") for job in (beyond, within)
    ]
    assert torch.equal(*images[:2]) and torch.equal(*images[2:])
    assert differences(images[0], images[2], settings).max() <= 3.01


def test_halving_with_the_linear_kernel_is_a_known_average():
    row = np.array([10, 20, 40, 80, 160, 240, 200, 100], np.uint8)
    pixels = np.repeat(np.tile(row, (8, 1))[..., None], 3, axis=2)
    result = resample(pixels, (0, 0, 8, 8), (4, 4), "linear")[0, :, 0]
    padded = np.concatenate([row[:1], row, row[-1:]]).astype(float)
    expected = [np.dot(padded[k : k + 4], [1, 3, 3, 1]) / 8 for k in (0, 2, 4, 6)]
    assert np.abs(result - np.array(expected)).max() <= 0.5


def test_the_colour_step_is_brightness_contrast_saturation_in_turn():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    draws = draw(Augmentation(), seed=1, epoch=2, patients=np.array([3]), eye=1)
    brightened = image * draws.brightness[0]
    centre = 255 * draws.contrast_centre
    contrasted = centre + draws.contrast[0] * (brightened - centre)
    grey = (contrasted @ np.array(GREY_WEIGHTS))[..., None]
    expected = grey + draws.saturation[0] * (contrasted - grey)
    result = recolour(image, draws.gain[0], draws.offset[0], draws.saturation[0])
    assert np.abs(result - expected).max() < 1e-3


def test_dali_follows_any_colour_factors():
    settings = ImageSettings(image_size=16, colour=True)
    job = make_job(drawn_photographs(4), settings, seed=1)
    # the last two need the limit of DALI's own parametrisation
    job.gain[:] = [0.1, 3.0, 0.5, 0.0]
    job.offset[:] = [-80.0, 60.0, -64.0, 0.0]
    difference = differences(
        one_batch("dali", settings, job), one_batch("pillow", settings, job), settings
    )
    assert difference.max() <= 4


def test_an_upright_photograph_comes_out_of_a_turned_file():
    upright = decode(drawn_photographs(1)[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn anticlockwise
    turned = encode(np.ascontiguousarray(np.rot90(upright)), "PNG", exif=exif.tobytes())
    assert (decode(turned) == upright).all()
    jpeg = encode(np.ascontiguousarray(np.rot90(upright)), exif=exif.tobytes(), subsampling=0)
    settings = ImageSettings(image_size=SIDE)
    job = make_job([jpeg], settings)
    difference = differences(
        one_batch("dali", settings, job), one_batch("pillow", settings, job), settings
    )
    assert difference.max() <= 3.01


@pytest.fixture(params=["dali", "pillow"])
def backend(request):
    return request.param


BROKEN = {
    "truncated": lambda file: file[: len(file) // 2],
    "no bytes": lambda file: file[:0],
    "text": lambda file: np.frombuffer(b"patient_id,left,right,report\n", np.uint8),
    "header only": lambda file: file[:20],
}


@pytest.mark.parametrize("damage", list(BROKEN))
def test_a_broken_file_costs_no_batch(backend, damage):
    settings = ImageSettings(image_size=16)
    files = drawn_photographs(4)
    good = make_job(files, settings)
    bad = make_job(files, settings)
    bad.data[1] = bad.data[3] = BROKEN[damage](files[1])
    repaired, seen = set(), []

    def job_of(step):
        return bad if step == 2 and step not in repaired else good

    pipeline = build(backend, settings, 4, prefetch=2)
    with pytest.raises(DecodeFailures) as caught:
        for images in pipeline.run(job_of, 0, 6):
            seen.append(images.clone())
    assert caught.value.step == 2 == len(seen)
    assert caught.value.positions == (1, 3)
    repaired.add(2)
    seen += [images.clone() for images in pipeline.run(job_of, 2, 6)]
    assert len(seen) == 6 and all(torch.equal(images, seen[0]) for images in seen)
    pipeline.close()


def test_an_error_of_the_source_comes_through(backend):
    settings = ImageSettings(image_size=16)
    job = make_job(drawn_photographs(2), settings)

    def job_of(step):
        if step == 3:
            raise OSError("shard-00007.tar has vanished")
        return job

    pipeline = build(backend, settings, 2, prefetch=1)
    with pytest.raises(OSError, match=r"shard-00007\.tar has vanished"):
        list(pipeline.run(job_of, 0, 6))
    assert len(list(pipeline.run(lambda step: job, 0, 2))) == 2
    pipeline.close()


class Decoders:
    """Stands for DALI's fn where only the arguments of the decoder matter."""

    def __init__(self):
        self.decoders = self

    def image(self, encoded, **options):
        return options


def test_only_a_gpus_decoder_is_told_sizes_and_load():
    fancy = {"jpeg_fancy_upsampling": True}
    options = {"largest": (480, 640), "hw_decoder_load": 0.8}
    assert dali_pipeline._decode(Decoders(), None, False, **options) == fancy | {"device": "cpu"}
    hints = {"preallocate_height_hint": 480, "preallocate_width_hint": 640}
    on_gpu = fancy | hints | {"device": "mixed"}
    loaded = on_gpu | {"hw_decoder_load": 0.8}
    assert dali_pipeline._decode(Decoders(), None, True, **options) == loaded
    # nothing said is DALI's own choice, and 0 is not nothing
    assert dali_pipeline._decode(Decoders(), None, True, (480, 640)) == on_gpu
    assert dali_pipeline._decode(Decoders(), None, True, (1, 1), 0.0)["hw_decoder_load"] == 0.0


@pytest.mark.parametrize("prefetch", [1, 3])
def test_dali_is_not_built_again_for_every_epoch(prefetch, monkeypatch):
    built = []
    build_once = dali_pipeline._build
    monkeypatch.setattr(
        dali_pipeline, "_build", lambda *a, **k: built.append(1) or build_once(*a, **k)
    )
    settings = ImageSettings(image_size=16)
    job = make_job(drawn_photographs(2), settings)
    pipeline = build("dali", settings, 2, prefetch=prefetch)
    for epoch in range(4):
        # as a training loop does: asks for each batch and never for the end
        run = pipeline.run(lambda step: job, epoch, 5)
        for _ in range(epoch, 5):
            next(run)
    assert len(built) == 1


@pytest.mark.parametrize("prefetch", [1, 3])
def test_runs_follow_each_other_and_may_be_given_up(backend, prefetch):
    settings = ImageSettings(image_size=16, colour=True)
    files = drawn_photographs(3)
    jobs = [make_job(files, settings, seed=seed) for seed in range(5)]
    pipeline = build(backend, settings, 3, prefetch=prefetch)
    expected = [images.clone() for images in pipeline.run(jobs.__getitem__, 0, 5)]
    assert not torch.equal(expected[0], expected[1])
    for first, taken in ((0, 5), (0, 2), (3, 1), (1, 4), (4, 1)):
        run = pipeline.run(jobs.__getitem__, first, 5)
        for step in range(first, first + taken):
            assert torch.equal(next(run), expected[step])
        run.close()
    pipeline.close()


def test_images_stay_as_they_are_when_later_ones_come(backend):
    settings = ImageSettings(image_size=16, colour=True)
    jobs = [make_job(drawn_photographs(3), settings, seed=seed) for seed in range(6)]
    pipeline = build(backend, settings, 3)
    kept = list(pipeline.run(jobs.__getitem__, 0, 6))
    copies = [images.clone() for images in pipeline.run(jobs.__getitem__, 0, 6)]
    pipeline.close()
    assert all(torch.equal(*pair) for pair in zip(kept, copies, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": 8, "interpolation": "nearest"}, "interpolation is 'nearest'"),
        ({"image_size": 8, "std": (0.1, 0.0, 0.1)}, "std above 0"),
    ],
)
def test_impossible_settings_name_themselves(options, message):
    with pytest.raises(ValueError, match=message):
        ImageSettings(**options)
