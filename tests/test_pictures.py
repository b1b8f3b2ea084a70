"""Image files of any kind, and that no broken one ends the reading."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from builders import HEIGHT, SOUND, WIDTH, kinds, picture, voc, xml
from PIL import Image

from giou_repro.data import datasets
from giou_repro.data.defects import Unreadable
from giou_repro.data.pictures import decode, header, levels_of
from giou_repro.data.report import check


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("1", "png"), ("LA", "png")]
)
def test_images_of_other_colours_are_converted(tmp_path, mode, suffix):
    voc(tmp_path, {"a": xml(SOUND)})
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    path = picture(tmp_path / "JPEGImages" / f"a.{suffix}", mode)
    ds = datasets.load(tmp_path, "all")
    assert (kinds(ds.defects), ds.defects[0].detail) == (["not RGB"], f"(mode {mode})")
    with Image.open(path) as image:
        assert np.array_equal(ds[0][0].permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    voc(tmp_path, {"a": xml(SOUND)})
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    ramp = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "JPEGImages" / "a.png")
    image = datasets.load(tmp_path, "all")[0][0]
    assert (int(image.min()), int(image.max()), int(image[0].float().mean())) == (0, 255, 127)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_followed_where_the_annotated_size_is_the_turned_one(tmp_path, orientation):
    """Orientations 5 to 8 exchange the sides; the annotation says whether its maker saw that."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name, size in (("stored", (WIDTH, HEIGHT)), ("seen", (HEIGHT, WIDTH))):
        picture(voc(tmp_path / name, {"a": xml(SOUND, size=size)}) / "JPEGImages" / "a.jpg", exif=exif)
    stored, seen = (datasets.load(tmp_path / name, "all") for name in ("stored", "seen"))
    upright, left = ["EXIF not followed"] * (orientation > 1), stored[0][0]
    assert (kinds(stored.defects), left.shape) == (upright, (3, HEIGHT, WIDTH))
    if orientation < 5:
        assert kinds(seen.defects) == [*upright, "size mismatch"]
        assert seen[0][0].shape == left.shape
    else:
        turned = {5: left.mT, 6: left.flip(1).mT, 7: left.flip(1, 2).mT, 8: left.mT.flip(1)}[orientation]
        assert kinds(seen.defects) == ["turned by EXIF"]
        assert torch.equal(seen[0][0], turned)


@pytest.mark.parametrize("orientation", [1, 2, 3, 6])
def test_exif_is_followed_or_ignored_where_the_user_says_so(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(voc(tmp_path, {"a": xml(SOUND)}) / "JPEGImages" / "a.jpg", exif=exif)
    ignored, followed = (datasets.load(tmp_path, "all", exif=choice) for choice in ("ignore", "follow"))
    left, size = ignored[0][0], ["size mismatch"] * (orientation == 6)
    assert kinds(ignored.defects) == ["EXIF not followed"] * (orientation > 1)
    assert kinds(followed.defects) == ["turned by EXIF"] * (orientation > 1) + size
    turned = {1: left, 2: left.flip(2), 3: left.flip(1, 2), 6: left.flip(1).mT}[orientation]
    assert torch.equal(followed[0][0], turned)
    assert (ignored.stamp == followed.stamp) == (orientation == 1)  # their resized copies are apart


def chunk(kind, content):
    """One chunk of a PNG, with its checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_picture_that_breaks_late_is_skipped_by_who_reads(tmp_path):
    """A PNG with sound checksums around pixels that are none, an image that goes missing, and one that changes its
    size."""
    voc(tmp_path, {id: xml(SOUND) for id in "abcd"})
    images = tmp_path / "JPEGImages"
    (images / "a.jpg").unlink()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0))
    (images / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"no pixels") + chunk(b"IEND", b""))
    ds = datasets.load(tmp_path, "all")
    assert (len(ds), ds.defects) == (4, [])
    (images / "b.jpg").unlink()
    Image.new("RGB", (10, 10)).save(images / "c.jpg")
    for index in range(3):
        with pytest.raises(Unreadable, match=r"unreadable image .*: image skipped"):
            ds[index]
    assert ds[3][0].shape == (3, HEIGHT, WIDTH)
    table = check(ds)
    assert [one.file for one in ds.defects] == ["a.png", "b.jpg", "c.jpg"]
    assert table[["class", "objects", "images"]].values.tolist() == [["cell", 1, 1], ["all", 1, 1]]


def test_a_header_is_read_without_decoding_and_a_bomb_is_not_opened(tmp_path, monkeypatch):
    path = picture(tmp_path / "a.jpg")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert header(path)[:3] == (WIDTH, HEIGHT, "RGB")
    size = struct.pack(">II", 30000, 30000)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(Unreadable, match="pixels"):
        header(tmp_path / "bomb.png")


@pytest.mark.filterwarnings("ignore")  # Pillow's, of what it reads all the same
def test_damaged_files_of_any_kind_never_raise_anything_else(tmp_path):
    """A few hundred random cuts and flips of every format, opened and read."""
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "webp", "bmp", "gif", "tif"):
        buffer = io.BytesIO()
        Image.open(picture(tmp_path / f"sound.{suffix}")).save(
            buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
        )
        sound = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
        assert header(tmp_path / f"sound.{suffix}")[:2] == (WIDTH, HEIGHT)
        for turn in range(40):
            damaged = sound.copy()[: rng.integers(1, len(sound)) if turn % 2 else len(sound)]
            damaged[rng.integers(0, min(len(damaged), 400), 8)] = rng.integers(0, 256, 8)
            file = tmp_path / f"damaged.{suffix}"
            file.write_bytes(damaged.tobytes())
            try:
                header(file)
                decode(file, turn=False)
            except Unreadable as error:
                assert kinds(error.defects) == ["unreadable image"]


@pytest.mark.parametrize(
    ("values", "white", "suffix"),
    [
        (np.uint16([[0, 4095], [1000, 200]]), 4095, "png"),
        (np.uint16([[0, 16000], [1000, 200]]), 16383, "tif"),
        (np.uint16([[0, 60000], [1000, 200]]), 65535, "png"),
        (np.float32([[0, 1], [0.25, 0.2]]), 1, "tif"),
        (np.float32([[0, 255], [51, 20]]), 255, "tif"),
        (np.float32([[0, 1e6], [51, np.nan]]), 1e6, "tif"),
        (np.int32([[0, 4000], [51, 7]]), 4095, "tif"),
    ],
)
def test_more_than_8_bits_are_scaled_by_what_the_whole_set_holds(tmp_path, values, white, suffix):
    """A dark image and a bright one, each a split: a value is one shade in both, and in a part of either."""
    voc(tmp_path, {id: xml(SOUND, size=(30, 30)) for id in "ab"}, train="a", val="b")
    for id, share in (("a", 0.125), ("b", 1)):
        (tmp_path / "JPEGImages" / f"{id}.jpg").unlink()
        whole = np.kron((values * share).astype(values.dtype), np.ones((15, 15), values.dtype))
        Image.fromarray(whole).save(tmp_path / "JPEGImages" / f"{id}.{suffix}")
    for split, share in (("train", 0.125), ("val", 1)):
        ds = datasets.load(tmp_path, split)
        expected = np.nan_to_num((values * share).astype(values.dtype) / white * 255)
        assert np.abs(ds[0][0][1, ::15, ::15].numpy() - expected).max() <= 0.5
        assert kinds(ds.defects)[0] == "more than 8 bits"
        assert ds.defects[0].detail == f"(from 0 to {white:g})"


def test_colours_of_16_bits_are_scaled_too_and_negative_values_are_not_cut_off(tmp_path):
    rows = b"".join(b"\0" + np.full(3 * WIDTH, 4000, ">u2").tobytes() for _ in range(HEIGHT))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0))
    deep = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(deep)
    assert header(tmp_path / "a.png")[3]
    assert abs(int(decode(tmp_path / "a.png", False, levels_of([tmp_path / "a.png"])).max()) - 4000 / 4095 * 255) < 16
    signed = np.linspace(-1, 1, WIDTH * HEIGHT, dtype=np.float32).reshape(HEIGHT, WIDTH)
    Image.fromarray(signed).save(tmp_path / "a.tif")
    assert levels_of([tmp_path / "a.tif"]) == (-1, 1)
    expected = np.round((signed + 1) / 2 * 255)
    assert np.array_equal(decode(tmp_path / "a.tif", False, (-1, 1)), np.dstack([expected] * 3))
