"""One photograph on its way into a shard: every pixel format, orientation and kind of damage."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps
from tiny_cohort import draw_photograph

from dataload.decoding import decode_upright
from dataload.jpeg_segments import SegmentError, strip_segments
from dataload.photographs import PhotographError, Preparation, prepare_photograph

WHOLE = Preparation(crop=False)


def pixels_of(prepared):
    return np.asarray(Image.open(io.BytesIO(prepared.encoded)))


def assert_looks_like(prepared, expected, limit=3.0):
    """Compare with an RGB image by mean difference, in grey levels."""
    shown = pixels_of(prepared).astype(float)
    assert shown.shape == (expected.height, expected.width, 3)
    assert np.abs(shown - np.asarray(expected, float)).mean() < limit


def markers(jpeg):
    """Return the names of a JPEG's segments up to the first scan, and what follows its end."""
    names, position = [], 2
    while True:
        marker, length = struct.unpack(">HH", jpeg[position : position + 4])
        names.append(marker)
        position += 2 + length
        if marker == 0xFFDA:
            return names, jpeg.rpartition(b"\xff\xd9")[2]


def smooth_photograph(size=(160, 120)):
    """A photograph without sharp colour edges, which 4:2:0 would smear."""
    y, x = np.mgrid[: size[1], : size[0]]
    planes = [120 + 80 * x / size[0], 60 + 60 * y / size[1], 40 + 20 * x / size[0]]
    return Image.fromarray(np.round(np.stack(planes, -1)).astype(np.uint8))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_orientation_is_applied(tmp_path, orientation, suffix):
    upright = draw_photograph(3, "right", (120, 90))
    # what a camera held that way stores: the inverse of the turn that shows it upright
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = upright.transpose(stored[orientation]) if orientation in stored else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    image.save(path, exif=exif, quality=95)
    prepared = prepare_photograph(path, WHOLE)
    assert (prepared.original_width, prepared.original_height) == (120, 90)
    assert_looks_like(prepared, upright)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr", "L"])
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_colour_modes(tmp_path, mode, suffix):
    photograph = smooth_photograph().convert(mode)
    path = tmp_path / f"photo.{suffix}"
    photograph.save(path, quality=97)
    assert_looks_like(prepare_photograph(path, WHOLE), photograph.convert("RGB"))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_png_and_bmp_modes(tmp_path, mode, suffix):
    if (mode, suffix) in {("LA", "bmp")}:
        pytest.skip("BMP has no grey with transparency")
    photograph = smooth_photograph().convert(mode)
    path = tmp_path / f"photo.{suffix}"
    photograph.save(path)
    limit = 20 if mode in "1P" else 3
    assert_looks_like(prepare_photograph(path, WHOLE), photograph.convert("RGB"), limit)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    ramp = np.tile(np.linspace(0, 65535, 200).astype(np.uint16), (80, 1))
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(ramp).save(path)
    shown = pixels_of(prepare_photograph(path, WHOLE)).astype(float)
    assert np.abs(shown - (ramp / 257)[..., None]).max() < 4


def test_transparency_becomes_dark_surround(tmp_path):
    photograph = smooth_photograph().convert("RGBA")
    photograph.putalpha(Image.new("L", photograph.size, 0))
    photograph.save(tmp_path / "clear.png")
    assert pixels_of(prepare_photograph(tmp_path / "clear.png", WHOLE)).max() <= 3


def test_first_picture_of_a_multi_picture_jpeg(tmp_path):
    first = smooth_photograph()
    more = [Image.new("RGB", first.size, "blue")]
    first.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=more, quality=95)
    assert_looks_like(prepare_photograph(tmp_path / "photo.jpg", WHOLE), first)


def test_first_page_of_a_tiff(tmp_path):
    first, second = smooth_photograph(), Image.new("RGB", (50, 60), "blue")
    first.save(tmp_path / "two.tif", save_all=True, append_images=[second])
    assert_looks_like(prepare_photograph(tmp_path / "two.tif", WHOLE), first)


def test_only_what_decodes_the_pixels_is_written(tmp_path):
    """Comments, EXIF, profiles, resolution and what follows the end stay behind."""
    secret = b"PATIENT 4711"
    exif = Image.Exif()
    exif[0x010E] = secret.decode()
    source = tmp_path / "photo.jpg"
    draw_photograph(1, "left", (900, 700)).save(
        source,
        exif=exif,
        comment=secret,
        icc_profile=secret * 20,
        dpi=(471, 471),
        progressive=True,
        xmp=secret,
    )
    source.write_bytes(source.read_bytes() + secret)
    assert source.read_bytes().count(secret) > 4
    for preparation in (WHOLE, Preparation(short_side=128)):
        jpeg = prepare_photograph(source, preparation).encoded
        assert secret not in jpeg
        names, rest = markers(jpeg)
        # JFIF, quantisation tables, baseline frame, Huffman tables, one scan; no comment, no APPn
        assert set(names) == {0xFFE0, 0xFFDB, 0xFFC0, 0xFFC4, 0xFFDA}
        assert names.count(0xFFE0) == 1 and rest == b"" and jpeg.count(b"\xff\xda") == 1
        assert not Image.open(io.BytesIO(jpeg)).info.keys() & {"comment", "exif", "icc_profile"}


def test_field_is_cropped_and_its_place_recorded(tmp_path):
    path = tmp_path / "photo.png"
    draw_photograph(4, "right", (400, 300)).save(path)
    prepared = prepare_photograph(path, Preparation(short_side=100))
    assert prepared.field_found
    # radius 138 about (200, 150)
    assert np.abs(np.subtract(prepared.box, (62, 12, 338, 288))).max() <= 4
    assert (prepared.original_width, prepared.original_height) == (400, 300)
    assert min(prepared.width, prepared.height) == 100
    expected = Image.open(path).resize((prepared.width, prepared.height), box=prepared.box)
    assert_looks_like(prepared, expected)


@pytest.mark.parametrize(
    "size, short_side, expected",
    [((640, 480), 128, (171, 128)), ((480, 641), 128, (128, 171)), ((200, 90), 128, (200, 90))],
)
def test_short_side_is_exact_and_nothing_is_enlarged(tmp_path, size, short_side, expected):
    smooth_photograph(size).save(tmp_path / "photo.png")
    preparation = Preparation(short_side=short_side, crop=False)
    prepared = prepare_photograph(tmp_path / "photo.png", preparation)
    assert (prepared.width, prepared.height) == expected
    assert pixels_of(prepared).shape[:2] == expected[::-1]


def photograph_bytes(format="JPEG", **options):
    buffer = io.BytesIO()
    draw_photograph(1, "left", (150, 120)).save(buffer, format, **options)
    return buffer.getvalue()


JPEG = photograph_bytes(quality=95)
SCAN_MIDDLE = len(JPEG) * 2 // 3


def damaged_scan(middle):
    """The JPEG with other bytes in the middle of its scan, as a bad sector leaves them."""
    return JPEG[:SCAN_MIDDLE] + middle + JPEG[SCAN_MIDDLE + len(middle) :]


DAMAGED = {
    "empty": (b"", "is empty"),
    "text": (b"this is a report, not a photograph\n" * 50, "is not an image"),
    "gif": (photograph_bytes("GIF"), "is a GIF; JPEG, PNG, TIFF or BMP is needed"),
    "webp header": (b"RIFF\x24\0\0\0WEBPVP8 ", "is not an image"),
    "two bytes": (JPEG[:2], "is a JPEG with a broken header"),
    "header alone": (JPEG[:300], "broken header|does not decode"),
    "sixty per cent": (JPEG[: len(JPEG) * 6 // 10], "does not decode: Premature end"),
    "without its end": (JPEG[:-40], "does not decode: Premature end"),
    "zeros in the scan": (damaged_scan(bytes(512)), "does not decode: Corrupt JPEG data"),
    "noise in the scan": (
        damaged_scan(np.random.default_rng(3).bytes(512)),
        "does not decode: (Corrupt|Unsupported|Premature)",
    ),
    "junk before": (b"0123456789" + JPEG, "is not an image"),
    "cut png": (photograph_bytes("PNG")[:-500], "does not decode"),
    "broken png": (
        photograph_bytes("PNG").replace(b"IDAT", b"IDAX"),
        "is a PNG with a broken header",
    ),
    "cut tiff": (photograph_bytes("TIFF")[:20000], "does not decode"),
    "cut packed tiff": (photograph_bytes("TIFF", compression="tiff_lzw")[:1000], "is a TIFF with"),
    "zero by zero": (JPEG.replace(struct.pack(">HH", 120, 150), b"\0\0\0\0", 1), "is"),
    "sixty-five thousand a side": (
        JPEG.replace(struct.pack(">HH", 120, 150), b"\xff\xff\xff\xff", 1),
        "does not decode: .*exceeds limit",
    ),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_named_in_one_line(tmp_path, kind, capfd):
    content, message = DAMAGED[kind]
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(PhotographError, match=message) as caught:
        prepare_photograph(path, WHOLE)
    assert str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
@pytest.mark.parametrize("orientation", [1, 6])
def test_an_original_is_kept_without_its_metadata(tmp_path, options, orientation):
    secret = b"PATIENT 4711"
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = secret.decode(), orientation
    path = tmp_path / "photo.jpg"
    draw_photograph(1, "left", (300, 200)).save(
        path, quality=92, exif=exif, comment=secret, icc_profile=secret * 20, xmp=secret, **options
    )
    path.write_bytes(path.read_bytes() + secret)
    kept = prepare_photograph(path, Preparation(keep_original=True))
    assert kept.suffix == "jpg" and secret not in kept.encoded
    # the compressed pixels are the file's own: what decodes from them is the same to the bit
    upright, found = decode_upright(kept.encoded)
    assert found == orientation
    np.testing.assert_array_equal(upright, ImageOps.exif_transpose(Image.open(path)))
    assert (kept.width, kept.height) == upright.size == (300, 200)[:: 1 if orientation == 1 else -1]
    assert kept.region == kept.box and kept.field_found
    assert kept.box[2] - kept.box[0] < kept.width or kept.box[3] - kept.box[1] < kept.height


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_an_original_that_is_no_jpeg_is_kept_without_loss(tmp_path, suffix):
    photograph = draw_photograph(1, "left", (300, 200))
    photograph.save(tmp_path / f"photo.{suffix}")
    kept = prepare_photograph(tmp_path / f"photo.{suffix}", Preparation(keep_original=True))
    assert kept.suffix == "png"
    np.testing.assert_array_equal(Image.open(io.BytesIO(kept.encoded)), photograph)


def test_jpegs_that_cannot_be_taken_apart_are_kept_without_loss(tmp_path):
    # two bytes between segments, which libjpeg reads over
    place = JPEG.index(b"\xff\xdb")
    data = JPEG[:place] + b"\0\0" + JPEG[place:]
    (tmp_path / "photo.jpg").write_bytes(data)
    try:
        kept = prepare_photograph(tmp_path / "photo.jpg", Preparation(keep_original=True))
    except PhotographError as error:
        assert "extraneous" in str(error)
    else:
        assert kept.suffix == "png"


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 20, 200, 700])
def test_segments_that_end_early_are_said_to(cut):
    with pytest.raises(SegmentError):
        strip_segments(JPEG[:cut])


def test_doubtful_photographs_are_taken_and_named(tmp_path):
    def doubt(image):
        image.save(tmp_path / "photo.png")
        return prepare_photograph(tmp_path / "photo.png", Preparation()).doubt

    retina = draw_photograph(0, "left", (200, 160))
    assert doubt(retina) == "" and doubt(retina.convert("L")) == ""
    middle = retina.crop((30, 50, 90, 110))
    assert doubt(middle) == ""
    assert "blank" in doubt(Image.new("RGB", (200, 160)))
    assert "blank" in doubt(Image.new("RGB", (200, 160), (200, 90, 40)))
    sky = Image.merge("RGB", retina.split()[::-1])
    assert "not reddish" in doubt(sky)
    noise = np.random.default_rng(0).integers(100, 255, (160, 200), np.uint8)
    assert "grey" in doubt(Image.fromarray(noise))


def test_sixty_megapixels(tmp_path):
    frame = Image.new("RGB", (10000, 6000))
    retina = draw_photograph(2, "left", (500, 500)).resize((5400, 5400))
    frame.paste(retina, (2300, 300))
    frame.save(tmp_path / "photo.jpg", quality=80)
    prepared = prepare_photograph(tmp_path / "photo.jpg", Preparation())
    assert prepared.field_found and min(prepared.width, prepared.height) == 512
    assert (prepared.original_width, prepared.original_height) == (10000, 6000)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(PhotographError, match="cannot be read: No such file"):
        prepare_photograph(tmp_path / "gone.jpg", WHOLE)
    with pytest.raises(PhotographError, match="cannot be read: Is a directory"):
        prepare_photograph(tmp_path, WHOLE)


@pytest.mark.parametrize("size", [(1, 1), (31, 500), (500, 8)])
def test_a_thumbnail_is_no_photograph(tmp_path, size):
    smooth_photograph(size).save(tmp_path / "small.png")
    with pytest.raises(PhotographError, match=f"is {size[0]}x{size[1]} pixels; at least 32"):
        prepare_photograph(tmp_path / "small.png", WHOLE)


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((64, 64), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(PhotographError, match="floating-point"):
        prepare_photograph(tmp_path / "float.tif", WHOLE)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x"])
def test_broken_exif_does_not_cost_the_photograph(tmp_path, exif):
    photograph = smooth_photograph()
    photograph.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    assert_looks_like(prepare_photograph(tmp_path / "photo.jpg", WHOLE), photograph)


def test_bytes_after_the_end_do_no_harm(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(JPEG + b"\0" * 4096)
    prepared = prepare_photograph(tmp_path / "photo.jpg", WHOLE)
    assert (prepared.width, prepared.height) == (150, 120)


@pytest.mark.parametrize("options", [{"short_side": 31}, {"quality": 0}, {"quality": 101}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Preparation(**options)
