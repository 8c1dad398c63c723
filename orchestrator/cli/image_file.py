"""Image files as pixels: upright, without transparency, grey or RGB, 8 bit.

in the file                      taken as
EXIF orientation                 turned, as viewers show it
colour profile (ICC)             converted to sRGB; one that cannot be used is passed over with a warning
transparent pixels               laid over white, as on a page
palette                          its colours
16 bit grey                      0..65535 becomes 0..255
32 bit integers                  as 16 bit; other values than 0..65535 are refused
floats                           0..1, or 0..255 if a value is above 1; other values are refused
CMYK                             R = (255 - C) (255 - K) / 255, likewise G and B, if there is no colour profile
colour, for a grey model         luma of ITU-R 601: 0.299 R + 0.587 G + 0.114 B
"""

from __future__ import annotations

import io
import logging
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from coedge.core.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

BACKGROUND = (255, 255, 255, 255)
# Descriptions of profiles that are sRGB itself.
SRGB_NAMES = frozenset(("sRGB IEC61966-2.1", "sRGB built-in", "sRGB"))
WHITE_16_BIT, WHITE_8_BIT = 65535.0, 255.0


def read_image(path: str | Path, rows: int, cols: int, channels: int) -> NDArray[np.uint8]:
    """Read an image file, turn it upright and resize it.

    Args:
        channels: 1 (grey) or 3 (RGB).

    Returns:
        Pixels, [rows, cols, channels].

    Raises:
        InputError: there is no such file, it is not an image, or its values have no known white.
    """
    from PIL import Image

    try:
        with Image.open(path) as opened:
            opened.load()
            image = (
                _flat(_in_srgb(_upright(opened), path)).convert("L" if channels == 1 else "RGB").resize((cols, rows))
            )
    except FileNotFoundError:
        raise InputError(f"there is no image {path}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # the decoders raise errors of many types
        raise InputError(f"{path} cannot be read as an image: {error or type(error).__name__}") from None
    return np.asarray(image, np.uint8).reshape(rows, cols, channels)


def _upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF data say. Data that cannot be read say nothing."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, struct.error, ValueError, TypeError, KeyError, EOFError):
        return image


def _in_srgb(image: Image.Image, path: str | Path) -> Image.Image:
    """Return the image in the colours of sRGB, if it has a colour profile. A profile that cannot be used is ignored."""
    from PIL import ImageCms

    embedded = image.info.get("icc_profile")
    if not embedded or image.mode not in ("P", "RGB", "RGBA", "CMYK"):
        return image
    if image.mode != "CMYK":  # a transparent colour is not found any more once it is converted
        image = image.convert("RGBA" if image.mode == "RGBA" or "transparency" in image.info else "RGB")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
        if ImageCms.getProfileDescription(profile).strip() in SRGB_NAMES:
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        log.warning("%s: its colour profile is ignored: %s", path, error)
        return image


def _flat(image: Image.Image) -> Image.Image:
    """Return the image with 8 bit per channel and without transparency."""
    from PIL import Image

    transparent = image.info.get("transparency")
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        grey = Image.fromarray(np.rint(values / _white(values, image.mode) * WHITE_8_BIT).astype(np.uint8))
        if not isinstance(transparent, int):
            return grey
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
        image = grey
    if image.mode == "La":  # grey multiplied by its transparency; there is no direct conversion to RGBA
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or transparent is not None:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image).convert("RGB")
    return image if image.mode in ("1", "L") else image.convert("RGB")


def _white(values: NDArray[Any], mode: str) -> float:
    """Return the value of white of an image of mode I, I;16 or F.

    Raises:
        InputError: the values do not show it.
    """
    low, high = float(values.min()), float(values.max())
    white = WHITE_16_BIT if mode.startswith("I") else 1.0 if high <= 1 else WHITE_8_BIT
    if not 0 <= low <= high <= white:  # NaN is not in this order, either
        known = "0 to 65535" if mode.startswith("I") else "0 to 1, or 0 to 255"
        raise InputError(f"it has values from {low:g} to {high:g}; black to white is {known}. Scale the values")
    return white
