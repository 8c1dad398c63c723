"""Image files as pixels: every mode against values that are computed by hand."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from coedge.core.errors import InputError
from coedge.core.package_data import PHOTOGRAPH
from orchestrator.cli.image_file import read_image

ORIENTATION = 0x0112


def read(path: Path, channels: int = 3) -> list[Any]:
    """Return the pixels of an image of one row and up to four columns: numbers if grey, lists if RGB."""
    with Image.open(path) as opened:
        cols, rows = opened.size
    pixels = read_image(path, rows, cols, channels)
    assert pixels.shape == (rows, cols, channels) and pixels.dtype == np.uint8
    row: list[Any] = (pixels[0, :, 0] if channels == 1 else pixels[0]).tolist()
    return row


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def row(mode: str, *values: Any) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    image.putdata(values)
    return image


def array_row(*values: float, dtype: Any) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


def grey(*values: int) -> list[list[int]]:
    return [[value] * 3 for value in values]


# The numbers of the EXIF standard: where the first row and the first column of the file are on the upright picture.
LETTERS = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
UPRIGHT = {
    1: LETTERS,
    2: LETTERS[:, ::-1],
    3: LETTERS[::-1, ::-1],
    4: LETTERS[::-1],
    5: [[10, 40], [20, 50], [30, 60]],
    6: [[40, 10], [50, 20], [60, 30]],
    7: [[60, 30], [50, 20], [40, 10]],
    8: [[30, 60], [20, 50], [10, 40]],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_photographs_are_turned_upright(tmp_path: Path, orientation: int, dtype: Any) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = LETTERS if dtype is np.uint8 else LETTERS.astype(np.uint16) * 257
    path = saved(tmp_path / "turned.png", Image.fromarray(stored), exif=exif)
    expected = np.asarray(UPRIGHT[orientation])
    assert np.array_equal(read_image(path, *expected.shape, 1)[:, :, 0], expected)


def test_a_phone_photograph_is_resized_after_it_is_turned(tmp_path: Path) -> None:
    """A JPEG of 40 rows and 80 columns whose left half is white. Upright it has 80 rows; the upper half is white."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = saved(tmp_path / "phone.jpg", Image.fromarray(pixels), exif=exif, quality=95)
    got = read_image(path, 16, 8, 3)
    assert got[:6].min() > 240 and got[10:].max() < 15


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"Exif\0\0junk", b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 9), b""])
def test_exif_data_that_cannot_be_read_do_not_matter(tmp_path: Path, exif: bytes) -> None:
    path = saved(tmp_path / "odd.jpg", Image.new("L", (8, 8), 200), exif=exif)
    assert abs(int(read_image(path, 8, 8, 1)[0, 0, 0]) - 200) <= 1


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("1.png", row("1", 0, 255), grey(0, 255)),
        ("L.png", row("L", 0, 7, 255), grey(0, 7, 255)),
        # Over white: 255 - alpha (255 - grey) / 255.
        ("LA.png", row("LA", (0, 255), (0, 0), (0, 51), (100, 153)), grey(0, 255, 204, 162)),
        ("RGB.png", row("RGB", (1, 2, 3)), [[1, 2, 3]]),
        ("RGBA.png", row("RGBA", (1, 2, 3, 255), (1, 2, 3, 0), (0, 100, 255, 51)),
         [[1, 2, 3], [255] * 3, [204, 224, 255]]),
        # 65535 / 255 = 257; 128 * 257 = 32896; half a step above is 33025 -> 129.
        ("I16.png", array_row(0, 257, 32896, 33025, 65535, dtype=np.uint16), grey(0, 1, 128, 129, 255)),
        ("I16.tif", array_row(0, 257, 32896, 65535, dtype=np.uint16), grey(0, 1, 128, 255)),
        ("I16B.tif", array_row(0, 257, 32896, 65535, dtype=">u2"), grey(0, 1, 128, 255)),
        ("I16.pgm", array_row(0, 257, 32896, 65535, dtype=np.uint16), grey(0, 1, 128, 255)),
        ("I.tif", array_row(0, 257, 65535, dtype=np.int32), grey(0, 1, 255)),
        ("F.tif", array_row(0.0, 0.2, 0.5, 1.0, dtype=np.float32), grey(0, 51, 128, 255)),
        ("F255.tif", array_row(0.0, 51.0, 255.0, dtype=np.float32), grey(0, 51, 255)),
        # (255 - C) (255 - K) / 255: 255 * 204 / 255 = 204, 155 * 204 / 255 = 124.
        ("CMYK.tif", row("CMYK", (0, 0, 0, 0), (255, 0, 0, 0), (0, 100, 255, 51), (0, 0, 0, 255)),
         [[255] * 3, [0, 255, 255], [204, 124, 0], [0] * 3]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_modes(tmp_path: Path, name: str, image: Image.Image, expected: list[list[int]]) -> None:
    assert read(saved(tmp_path / name, image)) == expected


def test_inks_of_a_jpeg_are_not_inverted(tmp_path: Path) -> None:
    """Programs of Adobe, and Pillow, store the inks of a JPEG inverted."""
    path = saved(tmp_path / "cmyk.jpg", Image.new("CMYK", (8, 8), (0, 100, 255, 51)), quality=100)
    assert np.abs(read_image(path, 8, 8, 3).astype(int) - [204, 124, 0]).max() <= 3


def test_a_palette_gives_its_colours_and_its_transparency(tmp_path: Path) -> None:
    image = row("P", 0, 1, 2)
    image.putpalette([10, 20, 30, 200, 100, 0, 0, 0, 0])
    assert read(saved(tmp_path / "p.png", image)) == [[10, 20, 30], [200, 100, 0], [0, 0, 0]]
    # One transparency per entry of the palette: 0, 51 of 255, all.
    path = saved(tmp_path / "alpha.png", image, transparency=bytes([0, 51, 255]))
    assert read(path) == [[255] * 3, [244, 224, 204], [0] * 3]
    path = saved(tmp_path / "key.gif", image, transparency=1)
    assert read(path) == [[10, 20, 30], [255] * 3, [0] * 3]


@pytest.mark.parametrize(
    ("image", "key", "expected"),
    [
        (row("L", 5, 6), 5, grey(255, 6)),
        (row("1", 0, 255), 0, grey(255, 255)),
        (row("RGB", (1, 2, 3), (3, 2, 1)), (1, 2, 3), [[255] * 3, [3, 2, 1]]),
        (array_row(257, 258, dtype=np.uint16), 257, grey(255, 1)),
    ],
    ids=["L", "1", "RGB", "I;16"],
)
def test_a_transparent_value_is_white(tmp_path: Path, image: Image.Image, key: Any, expected: list[list[int]]) -> None:
    assert read(saved(tmp_path / "key.png", image, transparency=key)) == expected


def test_a_grey_model_takes_the_luma_of_colours(tmp_path: Path) -> None:
    """0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2; the same over white at an alpha of 0 is 255."""
    assert read(saved(tmp_path / "rgb.png", row("RGB", (200, 100, 50), (255, 0, 0))), 1) == [124, 76]
    assert read(saved(tmp_path / "rgba.png", row("RGBA", (200, 100, 50, 255), (200, 100, 50, 0))), 1) == [124, 255]
    assert read(saved(tmp_path / "la.png", row("LA", (10, 255), (10, 0))), 1) == [10, 255]
    assert read(saved(tmp_path / "i16.png", array_row(0, 65535, dtype=np.uint16)), 1) == [0, 255]
    assert read(saved(tmp_path / "one.png", row("1", 0, 255)), 1) == [0, 255]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [((0, 70_000), np.int32), ((-1, 5), np.int32), ((0, 300), np.float32), ((-0.1, 1), np.float32),
     ((0, np.nan), np.float32), ((0, np.inf), np.float32)],
)  # fmt: skip
def test_values_without_a_known_white_are_refused(tmp_path: Path, values: tuple[float, float], dtype: Any) -> None:
    path = saved(tmp_path / "odd.tif", array_row(*values, dtype=dtype))
    with pytest.raises(InputError, match=r"odd\.tif: it has values from .* Scale the values"):
        read_image(path, 1, 2, 3)


def test_files_that_are_no_image_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "junk.png").write_bytes(b"\x89PNG\r\n\x1a\njunk")
    whole = saved(tmp_path / "whole.png", Image.effect_noise((64, 64), 50)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("hello")
    for name in ("junk.png", "cut.png", "text.jpg", "."):
        with pytest.raises(InputError, match="cannot be read as an image"):
            read_image(tmp_path / name, 2, 2, 3)
    with pytest.raises(InputError, match=r"there is no image .*none\.png"):
        read_image(tmp_path / "none.png", 2, 2, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"cannot be read as an image: .*exceeds limit"):
        read_image(tmp_path / "whole.png", 2, 2, 3)


def test_plain_photographs_are_as_pillow_converts_them(tmp_path: Path) -> None:
    with Image.open(PHOTOGRAPH) as opened:
        expected = np.asarray(opened.convert("RGB").resize((50, 40)))
    assert np.array_equal(read_image(PHOTOGRAPH, 40, 50, 3), expected)
    text = PngInfo()
    text.add_text("note", "no pixels")
    assert read(saved(tmp_path / "text.png", row("L", 3), pnginfo=text)) == [[3, 3, 3]]


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def linear_light() -> bytes:
    """Return the profile of sRGB with another name and with values in proportion to light."""
    renamed = SRGB.replace("sRGB".encode("utf-16-be"), "line".encode("utf-16-be"))
    curve = renamed.index(b"para") + len(b"para") + 4
    assert struct.unpack_from(">H", renamed, curve) == (3,)
    power_1 = struct.pack(">5i", *(round(term * 65536) for term in (1, 1, 0, 1, 0)))
    return renamed[: curve + 4] + power_1 + renamed[curve + 4 + len(power_1) :]


def test_colours_of_a_profile_become_those_of_srgb(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The standard: sRGB of linear light v is 1.055 v^(1 / 2.4) - 0.055."""
    light = np.array([[10, 55, 128], [255, 255, 255]])
    expected = np.rint(255 * (1.055 * (light / 255) ** (1 / 2.4) - 0.055))
    picture = row("RGB", *map(tuple, light.tolist()))
    found = read(saved(tmp_path / "linear.png", picture, icc_profile=linear_light()))
    assert np.abs(np.array(found) - expected).max() <= 1
    palette = saved(
        tmp_path / "palette.png", picture.convert("P", palette=Image.Palette.ADAPTIVE), icc_profile=linear_light()
    )
    assert np.abs(np.array(read(palette)) - expected).max() <= 1
    clear = saved(tmp_path / "clear.png", picture, icc_profile=linear_light(), transparency=(10, 55, 128))
    assert read(clear) == [[255] * 3] * 2
    assert caplog.messages == []


def test_a_profile_of_srgb_changes_nothing_and_a_broken_one_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    colours = [(200, 30, 60), (1, 2, 3)]
    picture = row("RGB", *colours)
    assert read(saved(tmp_path / "srgb.png", picture, icc_profile=SRGB)) == [list(colour) for colour in colours]
    assert caplog.messages == []
    assert read(saved(tmp_path / "broken.png", picture, icc_profile=b"no profile")) == [list(c) for c in colours]
    assert len(caplog.messages) == 1 and "broken.png: its colour profile is ignored" in caplog.messages[0]
