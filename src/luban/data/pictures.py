"""Pictures: bytes that nobody vouches for, to arrays of one shape.

Read are JPEG, PNG, GIF, BMP, WebP and plain TIFF; of an animation the first frame. What a picture claims is checked
before memory is given to it, and whatever is wrong with one is a `PictureError` that says what.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from luban.errors import MissingExtra

if TYPE_CHECKING:
    from types import ModuleType

    from PIL.Image import Image

Pixels = NDArray[np.uint8]
Kind = Literal["empty", "not_a_picture", "truncated", "too_large", "unsupported"]

MAX_PIXELS = 50_000_000
MAX_BYTES = 190_000_000
"""Of memory that reading a picture may take."""
# What reading takes at its peak, measured: bytes per pixel, where the picture is resized and where it stays whole.
_BYTES = {
    "1": (2, 11),
    "L": (1, 11),
    "RGB": (4, 14),
    "CMYK": (5, 15),
    "P": (9, 16),
    "LA": (8, 18),
    "RGBA": (8, 18),
}
_BYTES |= dict.fromkeys(("I;16", "I;16L", "I;16B"), (10, 14))
_TRANSPARENT = (12, 19)
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
_TIFF_COMPRESSIONS = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate")
_ORIENTATION = 0x0112  # EXIF's tag
_SWAPPING = (5, 6, 7, 8)  # orientations that swap height and width
_READ_ALONE = re.compile(rb"\s*(<!--.*?-->\s*|<\?xml[^>]*>\s*|<!DOCTYPE[^>]*>\s*)*<([a-z:]+)", re.I | re.S)
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
)
_BMP_HEADERS = (b"\x0c", b"\x28", b"\x34", b"\x38", b"\x40", b"\x6c", b"\x7c")
_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "HEIC, AVIF or a video"),
    (0, b"\0\0\0\x0cjP", "JPEG 2000"),
    (0, b"%PDF", "PDF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\x01\0", "an icon"),
)


class PictureError(Exception):
    """A picture cannot be used.

    Arguments:
        kind: `empty` (no bytes), `not_a_picture`, `truncated` (cut or damaged), `too_large` (to be decoded), or
            `unsupported` (a form that luban does not read).
        detail: what is wrong, and how to mend it where that is known.
    """

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind: Kind = kind
        self.detail = detail


def picture_size(data: bytes) -> tuple[int, int]:
    """Return (height, width) as the header has them, before any turning that EXIF asks for; no pixel is decoded.

    Raises:
        PictureError: the header is that of no picture luban reads.
        MissingExtra: Pillow is not installed.
    """
    with _opened(data) as image:
        return image.height, image.width


def decode(
    data: bytes | NDArray[Any], *, size: tuple[int, int] | None, channels: int, max_pixels: int = MAX_PIXELS
) -> Pixels:
    """Return a picture as pixels.

    EXIF's orientation is applied. What is transparent lies on white. 16 bits become 8 by scaling. Grey is the luma of
    ITU-R BT.601. Colour profiles are not applied.

    Arguments:
        data: a file's bytes; or pixels, (height, width) or (height, width, channels) of uint8 or uint16, read as grey,
            grey with alpha, RGB or RGBA.
        size: (height, width) to bring it to: of the picture, the largest part in the middle that has this aspect is
            resized, with antialiasing. None leaves the size.
        channels: 1 for grey or 3 for RGB.
        max_pixels: a picture of more is refused before it is decoded; and so is one that takes more than MAX_BYTES.

    Shapes:
        returns (height, width, channels).

    Raises:
        PictureError: the picture cannot be used.
        MissingExtra: Pillow is needed and not installed.

    Example:
        >>> decode(encode_png(np.full((4, 6), 200, np.uint8)), size=(2, 2), channels=3).tolist()
        [[[200, 200, 200], [200, 200, 200]], [[200, 200, 200], [200, 200, 200]]]
    """
    assert channels in (1, 3), "pictures are grey or RGB"
    if isinstance(data, np.ndarray):
        pixels = _checked(data, max_pixels)
        if pixels.shape[2] == channels and pixels.dtype == np.uint8 and size in (None, pixels.shape[:2]):
            return pixels
        with _as_refusals("pixels"):
            return _pixels(_from_array(pixels), size, channels)
    with _opened(data) as image:
        if image.width * image.height > max_pixels:
            detail = f"{image.width} x {image.height} pixels; the most is {max_pixels:,}"
            raise PictureError("too_large", detail)
        if image.format == "TIFF" and image.info.get("compression") not in _TIFF_COMPRESSIONS:
            detail = f"TIFF with {image.info.get('compression')} compression; save it as PNG"
            raise PictureError("unsupported", detail)
        if size is not None:
            # JPEG can be decoded at an eighth to a half of its size; twice what is needed leaves the rest to resizing.
            image.draft(None, (2 * max(size), 2 * max(size)))
        _check_memory(image, whole=size is None)
        image.load()
        return _pixels(image, size, channels)


def _check_memory(image: Image, *, whole: bool) -> None:
    """Refuse a picture whose pixels would fill the memory, before they are decoded."""
    transparent = image.mode not in ("P", "LA", "RGBA") and "transparency" in image.info
    each = (_TRANSPARENT if transparent else _BYTES.get(image.mode, _TRANSPARENT))[whole]
    needed = image.width * image.height * each
    if needed > MAX_BYTES:
        megabytes = f"take {needed / 1e6:,.0f} MB to read; the most is {MAX_BYTES / 1e6:,.0f}"
        raise PictureError(
            "too_large",
            f"{image.width} x {image.height} pixels ({image.mode}) {megabytes}: save it smaller",
        )


def encode_png(pixels: Pixels) -> bytes:
    """Return a PNG file of pixels (height, width) or (height, width, 1, 3 or 4): grey, RGB or RGBA, uint8.

    Source: the W3C's PNG specification, third edition, https://www.w3.org/TR/png-3/
    """
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels.shape
    assert pixels.dtype == np.uint8 and height and width, "some pixels of uint8"
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, -1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@contextmanager
def _opened(data: bytes) -> Iterator[Image]:
    """Read a picture's header; whatever goes wrong from here on is a PictureError."""
    if not data:
        raise PictureError("empty", "the file has no bytes")
    pillow_image = _pillow()
    claimed = _claimed(data)
    if claimed is None:
        raise _foreign(data)
    with _as_refusals(claimed), pillow_image.open(io.BytesIO(data), formats=FORMATS) as image:
        if min(image.width, image.height) < 1:
            raise PictureError("truncated", f"{image.width} x {image.height} pixels")
        yield image


@contextmanager
def _as_refusals(claimed: str) -> Iterator[None]:
    """Turn what Pillow raises into PictureError. Its decoders answer damage with almost any exception."""
    pillow_image = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd EXIF: both are judged here
            yield
    except (PictureError, MissingExtra, MemoryError):
        raise
    except pillow_image.UnidentifiedImageError as error:
        raise PictureError("truncated", f"it begins as a {claimed} file, but has no header of one") from error
    except pillow_image.DecompressionBombError as error:
        raise PictureError("too_large", str(error)) from error
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        if "too large" in said.lower():
            raise PictureError("too_large", f"damaged or made to fill memory: {said}") from error
        raise PictureError("truncated", f"a {claimed} file, cut or damaged: {said[:200]}") from error


def _claimed(data: bytes) -> str | None:
    """Return which form the first bytes claim; None is none that luban reads."""
    if data[:4] == b"RIFF":
        return "WEBP" if data[8:12] == b"WEBP" else None
    if data[:2] == b"BM":  # so may a text begin: a bitmap says also how long its header is
        return "BMP" if data[14:15] in _BMP_HEADERS and data[15:18] == bytes(3) else None
    return next((name for start, name in _STARTS if data.startswith(start)), None)


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", extra="images", purpose="read pictures") from error
    return Image


def _foreign(data: bytes) -> PictureError:
    """Say what bytes are that begin like no picture luban reads."""
    advice = f"save it as {', '.join(FORMATS[:-1])} or TIFF"
    for start, mark, name in _FOREIGN:
        if data[start : start + len(mark)] == mark:
            return PictureError("unsupported", f"{name}; {advice}")
    text = _READ_ALONE.match(data[:4096].removeprefix(b"\xef\xbb\xbf"))
    if text is not None and text[2].lower() in (b"svg", b"svg:svg"):
        return PictureError("unsupported", f"SVG, a drawing without pixels; {advice}")
    if text is not None:
        return PictureError("not_a_picture", "HTML or XML; perhaps a page came in place of the picture")
    return PictureError("not_a_picture", f"it begins with {data[:8]!r}, as no picture does that luban reads")


def _checked(array: NDArray[Any], max_pixels: int) -> NDArray[Any]:
    """Return pixels as (height, width, channels)."""
    pixels = array[:, :, None] if array.ndim == 2 else array
    if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4 or array.dtype not in (np.uint8, np.uint16):
        detail = f"an array of {array.dtype} and shape {array.shape}; give uint8, (height, width, 1 to 4)"
        raise PictureError("unsupported", detail)
    if not pixels.size:
        raise PictureError("empty", f"an array of shape {array.shape}")
    if pixels.shape[0] * pixels.shape[1] > max_pixels:
        raise PictureError("too_large", f"an array of shape {array.shape}; the most is {max_pixels:,} pixels")
    return pixels


def _from_array(pixels: NDArray[Any]) -> Image:
    """Return pixels as Pillow's image; 16 bits of more than one channel become 8."""
    if pixels.dtype == np.uint16 and pixels.shape[2] > 1:
        pixels = np.round(pixels / 257.0).astype(np.uint8)
    return _pillow().fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)  # type: ignore[no-any-return]


def _pixels(image: Image, size: tuple[int, int] | None, channels: int) -> Pixels:
    """Bring a decoded picture to its size, then to its channels: the order that needs the least memory."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    # Asked after loading, since Pillow turns TIFF by itself.
    orientation = _orientation(image)
    image = _resizable(image)
    if size is not None:
        image = _resized(image, size[::-1] if orientation in _SWAPPING else size)
    if orientation in turns:
        image = image.transpose(turns[orientation])
    if image.mode == "F":
        grey = np.asarray(image).round().clip(0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], channels, axis=2)
    if image.mode in ("LA", "RGBA"):
        image = image.convert("RGBA")
        white = _pillow().new("RGBA", image.size, (255, 255, 255, 255))
        image = _pillow().alpha_composite(white, image)
    image = image.convert("L" if channels == 1 else "RGB")
    pixels = np.array(image)  # Pillow's own array cannot be written to
    return pixels[:, :, None] if channels == 1 else pixels


def _orientation(image: Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF raises almost anything, and the picture is good without
        return 1


def _resizable(image: Image) -> Image:
    """Return the picture in a mode that can be resized; 16 bits become floating-point numbers from 0 to 255."""
    if image.mode.startswith("I;16"):
        return _pillow().fromarray(np.asarray(image).astype(np.float32) / 257.0)  # type: ignore[no-any-return]
    if image.mode in ("I", "F"):
        detail = f"pixels of 32 bits (mode {image.mode}); scale them to 8 or 16 bits"
        raise PictureError("unsupported", detail)
    if image.has_transparency_data and image.mode not in ("LA", "RGBA"):
        return image.convert("RGBA")
    if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _resized(image: Image, size: tuple[int, int]) -> Image:
    """Resize the largest part in the middle that has the aspect of `size`, by a triangle filter over all it covers."""
    from PIL.Image import Resampling

    height, width = size
    if (image.height, image.width) == size:
        return image
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    box = (max(0.0, box[0]), max(0.0, box[1]), min(image.width, box[2]), min(image.height, box[3]))
    return image.resize((width, height), Resampling.BILINEAR, box=box)
