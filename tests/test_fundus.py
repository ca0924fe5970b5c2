"""The field-of-view finder on drawn frames with a known disc, and on real photographs."""

import numpy as np
import pytest
from PIL import Image

from dataload import fundus
from dataload.fundus import FieldOfView, field_of_grid, find_field, grid_step


@pytest.fixture(autouse=True)
def definition(monkeypatch):
    """The definition is tested here; tests/test_native_field.py holds native code to it."""
    monkeypatch.setattr(fundus, "_native", lambda: None)


def draw_disc(
    width, height, *, centre=None, radius=None, retina=(170, 90, 50), surround=(3, 2, 2), noise=1.0
):
    """Return uint8 (height, width, 3): a disc darker towards its rim, with an optic disc."""
    generator = np.random.default_rng(7)
    centre = centre or (width / 2, height / 2)
    radius = radius or 0.45 * min(width, height)
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(x + 0.5 - centre[0], y + 0.5 - centre[1]) / radius
    light = np.where(distance <= 1, 1 - 0.5 * distance**2, 0.0)[..., None]
    frame = light * np.array(retina) + (distance > 1)[..., None] * np.array(surround)
    spot = np.hypot(x - centre[0] - 0.5 * radius, y - centre[1]) < 0.15 * radius
    frame[spot] *= 1.4
    frame += generator.normal(0, noise, frame.shape)
    return np.clip(np.round(frame), 0, 255).astype(np.uint8)


def assert_near(field, box, steps=2):
    """Check a field against (x0, y0, x1, y1) to within `steps` pixels of the box."""
    assert np.abs(np.subtract(field.box, box)).max() <= steps, (field, box)
    assert field.found


@pytest.mark.parametrize(
    "retina, steps",
    [
        ((170, 90, 50), 2),
        ((400, 330, 250), 2),
        # a rim as dim as this is told from noise a few pixels further in
        ((30, 12, 6), 5),
        ((20, 20, 20), 5),
    ],
)
def test_disc_is_found_at_any_exposure(retina, steps):
    frame = draw_disc(400, 300, retina=retina)
    assert_near(find_field(frame), (65, 15, 335, 285), steps)


@pytest.mark.parametrize("surround, noise", [((0, 0, 0), 0.0), ((8, 8, 8), 3.0), ((45, 44, 40), 4)])
def test_surround_may_be_grey_and_noisy(surround, noise):
    frame = draw_disc(400, 300, surround=surround, noise=noise)
    assert_near(find_field(frame), (65, 15, 335, 285))


def test_disc_off_centre_and_cut_by_the_frame():
    frame = draw_disc(400, 300, centre=(220, 150), radius=170)
    assert_near(find_field(frame), (50, 0, 390, 300))


def test_square_photograph_is_kept_whole():
    frame = draw_disc(300, 300, radius=150)
    assert_near(find_field(frame), (0, 0, 300, 300), steps=0)


@pytest.mark.parametrize("white", [255, 247])
def test_white_margin_is_trimmed_before_the_disc_is_sought(white):
    photograph = draw_disc(400, 300)
    frame = np.full((500, 460, 3), white, np.uint8)
    frame[90:390, 20:420] = photograph
    assert_near(find_field(frame), (85, 105, 355, 375))


def test_disc_on_white_paper():
    frame = draw_disc(400, 300, surround=(255, 255, 255), noise=0.5)
    assert_near(find_field(frame), (65, 15, 335, 285))


def test_printed_date_and_mark_beside_the_disc_are_left_out():
    frame = draw_disc(500, 300, centre=(250, 150))
    frame[275:290, 8:95] = 230
    frame[5:25, 460:495] = 230
    assert_near(find_field(frame), (115, 15, 385, 285))


def test_large_frame_is_right_to_its_grid():
    frame = draw_disc(1200, 900, centre=(580, 440), radius=420)
    assert_near(find_field(frame), (160, 20, 1000, 860), steps=2 * grid_step(1200, 900))


def test_grey_photograph_gives_the_same_box():
    frame = draw_disc(400, 300)
    grey = frame.max(-1)
    assert find_field(grey) == find_field(grey[..., None]) == find_field(frame)


@pytest.mark.parametrize("level", [0, 4, 128, 255])
def test_blank_frame_is_kept_whole_and_said_to_be_a_guess(level):
    frame = np.full((90, 120, 3), level, np.uint8)
    assert find_field(frame) == FieldOfView(x0=0, y0=0, x1=120, y1=90, found=False)


def test_retina_without_a_surround_is_kept_whole():
    generator = np.random.default_rng(3)
    frame = np.clip(generator.normal((150, 80, 40), 12, (200, 240, 3)), 0, 255).astype(np.uint8)
    assert find_field(frame) == FieldOfView(x0=0, y0=0, x1=240, y1=200, found=False)


def test_specks_in_a_dark_frame_are_no_disc():
    frame = np.zeros((300, 400, 3), np.uint8)
    frame[140:150, 200:215] = 250
    assert not find_field(frame).found


@pytest.mark.parametrize("width, height", [(1, 1), (2, 700), (513, 1), (1025, 3), (4096, 2)])
def test_odd_sizes_give_a_box_inside_the_frame(width, height):
    frame = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    field = find_field(frame)
    assert 0 <= field.x0 < field.x1 <= width
    assert 0 <= field.y0 < field.y1 <= height


def test_grid_alone_gives_the_same_box_as_the_photograph():
    frame = draw_disc(700, 601)
    step = grid_step(700, 601)
    grid = frame[step // 2 :: step, step // 2 :: step]
    assert field_of_grid(grid, 700, 601) == find_field(frame)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.float32), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_photograph_is_refused(pixels):
    with pytest.raises(ValueError, match="uint8"):
        find_field(pixels)


def test_real_photographs(shared_fundus):
    """Discs of HRF are cut above and below and 0.93 of the frame wide; the others lie free."""
    paths = [path for path in shared_fundus.glob("*/*") if path.parent.name != "hrf_3504x2336"]
    # camera originals take long to decode, and two show what eight do
    paths += sorted(shared_fundus.glob("hrf_3504x2336/*"))[:2]
    for path in paths:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        field = find_field(pixels)
        height, width = pixels.shape[:2]
        assert field.found, path
        if path.parent.name.startswith("hrf"):
            assert (field.y0, field.y1) == (0, height), path
            assert 0.92 < (field.x1 - field.x0) / width < 0.95, path
        else:
            assert 0.97 < (field.x1 - field.x0) / (field.y1 - field.y0) < 1.03, path
        level = pixels.max(-1)
        assert (level[:, : field.x0] > 60).mean() < 0.01, path
        assert (level[:, field.x1 :] > 60).mean() < 0.01, path
    assert len(paths) >= 40
