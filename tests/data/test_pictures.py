"""Pictures come out as they look, whatever form they came in; what is none is refused, by kind and in little memory."""

import io
import json
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luban.data import pictures
from luban.data.pictures import PictureError, decode, encode_png, picture_size

PIL = pytest.importorskip("PIL")
from PIL import Image  # noqa: E402

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = NOISE[:, :, 0]


def smooth(height: int, width: int) -> np.ndarray:
    """A picture that JPEG keeps well and whose corners differ: red rises to the right, green downwards."""
    red = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    green = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return np.stack([red, green, np.full((height, width), 60.0)], 2).round().astype(np.uint8)


def saved(image: "Image.Image | np.ndarray", form: str, **options: object) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, form, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(height: int, width: int, *chunks: bytes, colour: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


LOSSLESS = {
    "png": ("PNG", {}),
    "bmp": ("BMP", {}),
    "webp": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "tiff lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_forms_come_back_to_the_bit(name: str) -> None:
    form, options = LOSSLESS[name]
    data = saved(NOISE, form, **options)
    assert picture_size(data) == (20, 30)
    np.testing.assert_array_equal(decode(data, size=None, channels=3), NOISE)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([0, 1, 3, 4]), st.integers(0, 99))
def test_our_png_is_read_by_pillow(height: int, width: int, channels: int, seed: int) -> None:
    shape = (height, width, channels) if channels else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    image = Image.open(io.BytesIO(encode_png(pixels)))
    np.testing.assert_array_equal(np.asarray(image), pixels[:, :, 0] if channels == 1 else pixels)


def test_a_jpeg_is_near_and_read_whatever_its_name() -> None:
    for options in ({}, {"progressive": True}, {"subsampling": 0}):
        data = saved(smooth(40, 60), "JPEG", quality=95, **options)
        pixels = decode(data, size=None, channels=3)
        assert np.abs(pixels.astype(int) - smooth(40, 60)).mean() < 3


def test_grey_is_luma_and_colour_of_grey_is_grey() -> None:
    luma = (NOISE @ np.array([0.299, 0.587, 0.114])).round()
    grey = decode(saved(NOISE, "PNG"), size=None, channels=1)
    assert grey.shape == (20, 30, 1)
    assert np.abs(grey[:, :, 0] - luma).max() <= 1
    colour = decode(saved(GREY, "PNG"), size=None, channels=3)
    np.testing.assert_array_equal(colour, GREY[:, :, None].repeat(3, 2))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("size", [None, (16, 10)])
def test_exif_orientation_is_applied(orientation: int, form: str, size: tuple[int, int] | None) -> None:
    """What the camera stored, turned as EXIF says, is what it saw: a picture taller than wide."""
    seen = smooth(48, 32)
    turns = {
        1: seen,
        2: seen[:, ::-1],
        3: seen[::-1, ::-1],
        4: seen[::-1],
        5: seen.transpose(1, 0, 2),
        6: np.rot90(seen),
        7: seen[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(seen, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    stored = np.ascontiguousarray(turns[orientation])
    data = saved(stored, form, exif=exif, **options)
    pixels = decode(data, size=size, channels=3)
    expected = decode(seen, size=size, channels=3)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= 6


def test_cmyk_is_read_as_it_looks() -> None:
    image = Image.fromarray(smooth(40, 60)).convert("CMYK")
    for data in (saved(image, "JPEG", quality=95), saved(image, "TIFF")):
        pixels = decode(data, size=None, channels=3)
        assert np.abs(pixels.astype(int) - smooth(40, 60)).mean() < 4


def test_sixteen_bits_are_scaled() -> None:
    deep = np.array([[0, 128, 257, 32768, 65535]], np.uint16)
    for form in ("PNG", "TIFF"):
        data = saved(Image.fromarray(deep), form)
        assert decode(data, size=None, channels=1)[0, :, 0].tolist() == [0, 0, 1, 128, 255]
        assert decode(data, size=None, channels=3)[0, 4].tolist() == [255, 255, 255]
        assert decode(data, size=(1, 1), channels=1).tolist() == [[[1]]]  # the middle one
    assert decode(deep, size=None, channels=1)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_what_is_transparent_lies_on_white() -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    expected = [[255, 0, 0], [255, 255, 255], [204, 204, 204]]
    for data in (
        saved(rgba, "PNG"),
        saved(rgba, "WEBP", lossless=True, exact=True),
        saved(rgba, "TIFF"),
        rgba,
    ):
        assert decode(data, size=None, channels=3)[0].tolist() == expected
    paletted = saved(Image.fromarray(rgba[:, :2]).quantize(4), "PNG")
    assert b"tRNS" in paletted and b"PLTE" in paletted
    assert decode(paletted, size=None, channels=3)[0].tolist() == expected[:2]
    grey = np.array([[[0, 255], [0, 0]]], np.uint8)
    assert decode(saved(grey, "PNG"), size=None, channels=1)[0, :, 0].tolist() == [0, 255]
    keyed = saved(NOISE, "PNG", transparency=tuple(map(int, NOISE[0, 0])))
    assert decode(keyed, size=None, channels=3)[0, 0].tolist() == [255, 255, 255]


def test_transparency_does_not_bleed_when_resized() -> None:
    """The black hidden under full transparency must not darken its neighbours."""
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :4] = (255, 0, 0, 255)
    small = decode(saved(rgba, "PNG"), size=(2, 2), channels=3)
    assert small[..., 0].min() == 255  # red or white, nowhere dark


def test_bilevel_and_palette() -> None:
    black = np.array([[True, False]])
    assert decode(saved(Image.fromarray(black), "PNG"), size=None, channels=1).ravel().tolist() == [255, 0]
    paletted = Image.fromarray(smooth(4, 4)).quantize(16)
    expected = np.asarray(paletted.convert("RGB"))
    np.testing.assert_array_equal(decode(saved(paletted, "GIF"), size=None, channels=3), expected)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(form: str) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert (decode(data, size=None, channels=3) == (255, 0, 0)).all()


def test_resizing_takes_the_middle_and_averages() -> None:
    wide = RNG.integers(0, 256, (8, 24, 1), dtype=np.uint8)
    cut = decode(saved(wide[:, :, 0], "PNG"), size=(2, 2), channels=1)
    np.testing.assert_array_equal(cut, decode(np.ascontiguousarray(wide[:, 4:20]), size=(2, 2), channels=1))
    tall = smooth(300, 100)
    small = decode(saved(tall, "PNG"), size=(20, 20), channels=3).astype(int)
    middle = tall[100:200].reshape(20, 5, 20, 5, 3).mean((1, 3))
    assert np.abs(small - middle)[1:-1, 1:-1].max() <= 2
    assert decode(saved(NOISE, "PNG"), size=(64, 64), channels=3).shape == (64, 64, 3)


def test_a_large_jpeg_is_decoded_small_and_looks_the_same() -> None:
    data = saved(smooth(1600, 2000), "JPEG", quality=95)
    fast = decode(data, size=(32, 40), channels=3).astype(int)
    slow = decode(decode(data, size=None, channels=3), size=(32, 40), channels=3)
    assert np.abs(fast - slow).max() <= 3


def test_arrays_are_pictures() -> None:
    np.testing.assert_array_equal(decode(GREY, size=None, channels=1)[:, :, 0], GREY)
    np.testing.assert_array_equal(decode(NOISE, size=(20, 30), channels=3), NOISE)
    np.testing.assert_array_equal(decode(GREY, size=None, channels=3)[:, :, 1], GREY)
    for array, kind in (
        (np.zeros((2, 2), np.float32), "unsupported"),
        (np.zeros((2, 2, 5), np.uint8), "unsupported"),
        (np.zeros(4, np.uint8), "unsupported"),
        (np.zeros((0, 2), np.uint8), "empty"),
        (np.zeros((11, 10), np.uint8), "too_large"),
    ):
        with pytest.raises(PictureError) as caught:
            decode(array, size=None, channels=1, max_pixels=100)
        assert caught.value.kind == kind


PROFILE = chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(300_000_000), 9))
NOTE = chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(300_000_000), 9))
PIXELS = chunk(b"IDAT", zlib.compress(bytes(6)))
FAKE_GIF = (
    b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0) + b",\0\0\0\0" + b"\x60\xea\x60\xea\0\x02\0;"
)

REFUSED = {
    "no bytes": (b"", "empty"),
    "text": (b"hello, this is text", "not_a_picture"),
    "text like a BMP": (b"BMW is a make of cars, and this is no bitmap at all", "not_a_picture"),
    "HTML": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "not_a_picture"),
    "SVG": (b'<?xml version="1.0"?>\n<!-- a -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported"),
    "SVG with mark": (b"\xef\xbb\xbf  <svg width='9'>", "unsupported"),
    "PDF": (b"%PDF-1.7\n", "unsupported"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", "unsupported"),
    "ZIP": (b"PK\x03\x04aaaaaaaaaaaaaaaaaa", "not_a_picture"),
    "WAV": (b"RIFF\x24\0\0\0WAVEfmt ", "not_a_picture"),
    "half a JPEG": (saved(NOISE, "JPEG")[:400], "truncated"),
    "JPEG without its end": (saved(NOISE, "JPEG", quality=95)[:-200], "truncated"),
    "half a PNG": (saved(NOISE, "PNG")[:800], "truncated"),
    "head of a PNG": (saved(NOISE, "PNG")[:20], "truncated"),
    "half a GIF": (saved(NOISE, "GIF")[:500], "truncated"),
    "half a WebP": (saved(NOISE, "WEBP")[:100], "truncated"),
    "half a BMP": (saved(NOISE, "BMP")[:500], "truncated"),
    "half a TIFF": (saved(NOISE, "TIFF")[:500], "truncated"),
    "PNG with a wrong sum": (saved(NOISE, "PNG").replace(b"IDAT", b"IDAU"), "truncated"),
    "PNG of 50,000 squared": (png(50_000, 50_000, PIXELS), "too_large"),
    "PNG of 2**31": (png(2**31 - 1, 2**31 - 1, PIXELS), "too_large"),
    "PNG of no pixel": (png(0, 5, PIXELS), "truncated"),
    "GIF of 60,000 squared": (FAKE_GIF, "too_large"),
    "PNG with a profile bomb": (png(2, 2, PROFILE, PIXELS), "too_large"),
    "PNG with a text bomb": (png(2, 2, NOTE, PIXELS), "too_large"),
    "TIFF as a fax": (saved(Image.new("1", (9, 9)), "TIFF", compression="group4"), "unsupported"),
    "TIFF of floats": (saved(Image.new("F", (9, 9)), "TIFF"), "unsupported"),
}


SAVE = "; save it as JPEG, PNG, GIF, BMP, WEBP or TIFF"
UNKNOWN = "it begins with b{!r}, as no picture does that luban reads"
BOMB = "Image size ({} pixels) exceeds limit of "
SAID = {  # what is said word by word; behind a colon or a "limit of" Pillow goes on in its own words
    "no bytes": "the file has no bytes",
    "text": UNKNOWN.format("hello, t"),
    "text like a BMP": UNKNOWN.format("BMW is a"),
    "HTML": "HTML or XML; perhaps a page came in place of the picture",
    "SVG": f"SVG, a drawing without pixels{SAVE}",
    "SVG with mark": f"SVG, a drawing without pixels{SAVE}",
    "PDF": f"PDF{SAVE}",
    "HEIC": f"HEIC, AVIF or a video{SAVE}",
    "ZIP": UNKNOWN.format("PK\x03\x04aaaa"),
    "WAV": UNKNOWN.format("RIFF$\x00\x00\x00"),
    "half a JPEG": "a JPEG file, cut or damaged: ",
    "JPEG without its end": "a JPEG file, cut or damaged: ",
    "half a PNG": "a PNG file, cut or damaged: ",
    "head of a PNG": "a PNG file, cut or damaged: ",
    "half a GIF": "it begins as a GIF file, but has no header of one",
    "half a WebP": "a WEBP file, cut or damaged: ",
    "half a BMP": "a BMP file, cut or damaged: ",
    "half a TIFF": "a TIFF file, cut or damaged: ",
    "PNG with a wrong sum": "it begins as a PNG file, but has no header of one",
    "PNG of 50,000 squared": BOMB.format(50_000**2),
    "PNG of 2**31": BOMB.format((2**31 - 1) ** 2),
    "PNG of no pixel": "it begins as a PNG file, but has no header of one",
    "GIF of 60,000 squared": BOMB.format(60_000**2),
    "PNG with a profile bomb": "damaged or made to fill memory: ",
    "PNG with a text bomb": "damaged or made to fill memory: ",
    "TIFF as a fax": "TIFF with group4 compression; save it as PNG",
    "TIFF of floats": "pixels of 32 bits (mode F); scale them to 8 or 16 bits",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_by_kind(name: str) -> None:
    data, kind = REFUSED[name]
    with pytest.raises(PictureError) as caught:
        decode(data, size=(8, 8), channels=3)
    assert caught.value.kind == kind, caught.value
    assert "0x" not in caught.value.detail and len(caught.value.detail) < 400
    said, told = SAID[name], caught.value.detail
    assert told.startswith(said) if said.endswith((": ", "limit of ")) else told == said


def test_bombs_are_refused_in_little_memory() -> None:
    """Each in a fresh process: its peak must stay near that of the modules alone."""
    names = [
        "PNG of 50,000 squared",
        "PNG with a profile bomb",
        "PNG with a text bomb",
        "GIF of 60,000 squared",
    ]
    program = """
        import json, resource, sys
        import PIL.Image
        from luban.data.pictures import PictureError, decode
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for data in json.load(sys.stdin):
            try:
                decode(data.encode("latin-1"), size=(8, 8), channels=3)
            except PictureError:
                continue
            sys.exit("not refused")
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        input=json.dumps([REFUSED[name][0].decode("latin-1") for name in names]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 200, "mebibytes"


def of_mode(mode: str, pixels: int) -> bytes:
    """Return a picture of one colour with about so many pixels."""
    side = int(pixels**0.5)
    if mode == "I;16":
        return saved(Image.fromarray(np.zeros((side, side), np.uint16)), "PNG")
    if mode == "RGB with one colour transparent":
        return saved(Image.new("RGB", (side, side), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    form = "TIFF" if mode == "CMYK" else "PNG"
    return saved(Image.new(mode, (side, side)), form, **({"transparency": 0} if mode == "P" else {}))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16", "CMYK", "RGB with one colour transparent"]
)
def test_reading_takes_no_more_memory_than_it_is_judged_by(mode: str, whole: bool, tmp_path: Path) -> None:
    """The largest picture of each mode that is read, in a fresh process; and a larger one is refused before."""
    each = pictures._BYTES.get(mode, pictures._TRANSPARENT)[whole]
    most = min(pictures.MAX_BYTES // each, 16_000_000)
    (tmp_path / "picture").write_bytes(of_mode(mode, most))
    program = """
        import resource, sys
        import numpy as np
        from luban.data.pictures import decode, encode_png
        decode(encode_png(np.zeros((4, 4, 3), np.uint8)), size=(2, 2), channels=3)
        data = open(sys.argv[1], "rb").read()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        decode(data, size=None if sys.argv[2] == "True" else (8, 8), channels=3)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "picture"), str(whole)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) <= each * most + 4_000_000 < 200_000_000


def test_what_would_fill_the_memory_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(
        PictureError, match=r"7071 x 7071 pixels \(RGBA\) take 400 MB to read; the most is 190"
    ) as caught:
        decode(png(7071, 7071, PIXELS, colour=6), size=(8, 8), channels=3)
    assert caught.value.kind == "too_large"


def test_the_limit_is_on_what_is_decoded() -> None:
    data = saved(NOISE, "PNG")
    assert decode(data, size=None, channels=3, max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(PictureError, match="30 x 20 pixels; the most is 599"):
        decode(data, size=None, channels=3, max_pixels=599)


MUTATED = [
    saved(smooth(12, 9), form, **options)
    for form, options in (
        ("PNG", {}),
        ("JPEG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    )
]


@given(
    st.sampled_from(MUTATED),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 10_000) | st.none(),
)
def test_a_damaged_picture_is_read_or_refused(
    data: bytes, changes: list[tuple[int, int]], end: int | None
) -> None:
    broken = bytearray(data if end is None else data[: end % len(data)])
    for place, value in changes:
        if broken:
            broken[place % len(broken)] = value
    try:
        pixels = decode(bytes(broken), size=(6, 6), channels=3, max_pixels=10_000)
    except PictureError:
        return
    assert pixels.shape == (6, 6, 3) and pixels.dtype == np.uint8


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(PictureError):
        picture_size(data)
