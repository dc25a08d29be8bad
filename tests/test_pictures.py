"""Folders of pictures: what is a class, what is an image, and what its pixels are."""

import os
import struct
import unicodedata
import zlib

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from core.datasets import DataSettings, load
from core.errors import UserError
from core.pictures import list_classes
from scripts.exchange import foreign

GREY = np.linspace(0, 255, 64).reshape(8, 8).round()


def save(path, level=0, size=8):
    """A picture of one grey level; its format is the extension's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size, size, 3), level, np.uint8)).save(path)
    return path


def classes(folder):
    """{class: image files below the folder}, as they are numbered."""
    names, files, labels = list_classes(folder)
    return {name: [str(file.relative_to(folder)) for file, label in zip(files, labels, strict=True)
                   if label == i] for i, name in enumerate(names)}


def pixels(folder, size=8):
    return load(DataSettings(f"folder:{folder}", size=size)).images


def png16(path, values):
    """A PNG of 16 bits a channel, which Pillow itself writes for grey alone. `values` (H, W, C)."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks))


# --- names -----------------------------------------------------------------------------------


def test_a_plain_tree_is_read_as_torchvision_reads_it(tmp_path):
    """Rows in its order; classes too, but for numbers."""
    for name in ("b/2.png", "b/10.png", "b/x/1.jpg", "b/x.png", "a/Z.PNG", "a/a.JPEG", "a-/1.bmp"):
        save(tmp_path / name)
    expected = ImageFolder(str(tmp_path))
    names, files, labels = list_classes(tmp_path)
    assert names == expected.classes == ["a", "a-", "b"]
    assert list(zip(map(str, files), labels, strict=True)) == expected.samples


@pytest.mark.parametrize("litter", [
    ".ipynb_checkpoints/1.png", "__MACOSX/a/1.png", "@eaDir/1.png", ".git/x.png",
    "__pycache__/c.py", "a/._1.png", "a/.hidden.png", "a/@eaDir/1.png", "a/Thumbs.db",
    "a/.thumbnails/1.png", "a/__MACOSX/._1.png", "a/desktop.ini", "$RECYCLE.BIN/1.png",
    ".DS_Store"])
def test_what_systems_leave_is_no_class_and_no_image(tmp_path, capsys, litter):
    save(tmp_path / "a/1.png")
    save(tmp_path / "b/1.png")
    (tmp_path / litter).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / litter).write_bytes((tmp_path / "a/1.png").read_bytes())
    assert classes(tmp_path) == {"a": ["a/1.png"], "b": ["b/1.png"]}
    assert capsys.readouterr().err == ""


def test_imported_pictures_have_the_same_litter(tmp_path):
    for name in ("flat/0.png", "flat/1.png", "tree/a/0.png", "tree/b/1.png"):
        save(tmp_path / name, int(name[-5]))
    for name in ("flat/._0.png", "tree/.x/7.png", "tree/a/._0.png"):
        save(tmp_path / name, 99)
    assert foreign.read(tmp_path / "flat").values[:, 0, 0, 0].tolist() == [0, 1]
    found = foreign.read(tmp_path / "tree")
    assert found.labels.tolist() == [0, 1]
    assert found.values[:, 0, 0, 0].tolist() == [0, 1]


def test_other_files_are_left_out_with_a_note(tmp_path, capsys):
    save(tmp_path / "a/1.png")
    save(tmp_path / "beside.png")
    (tmp_path / "a/list.csv").write_text("1.png")
    (tmp_path / "README").write_text("beside classes, nobody takes it for an image")
    assert classes(tmp_path) == {"a": ["a/1.png"]}
    [line] = capsys.readouterr().err.splitlines()
    assert line == (f"note: {tmp_path}: left out, as no image by its name or beside the class "
                    "folders: 2 files (.csv, .png)")


@pytest.mark.parametrize("extension", ["PNG", "Jpg", "JPEG", "bmp", "TIFF", "webp", "PPM", "gif"])
def test_extensions_count_in_any_case(tmp_path, extension):
    save(tmp_path / f"a/x.{extension}", 77)
    assert (pixels(tmp_path) == 77).all()


def test_numbers_that_are_equal_are_ordered_by_text(tmp_path):
    """Otherwise by the order of the listing, which differs between file systems."""
    for name in ("1", "01", "001", "2"):
        save(tmp_path / name / "x.png")
    assert list(classes(tmp_path)) == ["001", "01", "1", "2"]


def test_names_are_compared_in_one_unicode_form(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    for name in (decomposed, "ez", "f"):
        save(tmp_path / "mac" / name / "1.png")
    for name in (composed, "ez", "f"):
        save(tmp_path / "linux" / name / "1.png")
    assert list(classes(tmp_path / "mac")) == list(classes(tmp_path / "linux"))
    save(tmp_path / "linux" / decomposed / "1.png")
    with pytest.raises(UserError, match="the same name in two Unicode forms"):
        list_classes(tmp_path / "linux")


@pytest.mark.parametrize("inside", [None, "Thumbs.db", "notes.txt", ".1.png"])
def test_a_class_without_an_image_is_refused(tmp_path, inside):
    save(tmp_path / "a/1.png")
    (tmp_path / "void").mkdir()
    if inside:
        (tmp_path / "void" / inside).write_text("no image")
    with pytest.raises(UserError, match="there is none in void/"):
        list_classes(tmp_path)


# --- splits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("tops", "advice"), [
    (("train", "val", "test"), "{}/train, and {}/val as its test set (test= or --test)"),
    (("train", "test"), "{}/train, and {}/test as its test set (test= or --test)"),
    (("Training", "Validation"),
     "{}/Training, and {}/Validation as its test set (test= or --test)"),
    (("train", "valid", "labels"), "{}/train, and {}/valid as its test set (test= or --test)"),
    (("train",), "{}/train"), (("val",), "{}/val")])
def test_splits_in_the_place_of_classes_are_recognised(tmp_path, tops, advice):
    for top in tops:
        save(tmp_path / top / "cat/1.png")
        save(tmp_path / top / "dog/1.png")
    with pytest.raises(UserError) as caught:
        list_classes(tmp_path)
    kind = "is a split, not a class" if len(tops) == 1 else "are splits, not classes"
    assert str(caught.value).endswith(f"{kind}; name "
                                      + advice.format(*[tmp_path] * advice.count("{}")))


def test_a_class_of_trains_is_a_class(tmp_path):
    for name in ("train/1.png", "bus/1.png"):
        save(tmp_path / "two" / name)
    save(tmp_path / "one/train/1.png")
    save(tmp_path / "nested/train/steam/1.png")
    save(tmp_path / "nested/bus/1.png")
    assert list(classes(tmp_path / "two")) == ["bus", "train"]
    assert list(classes(tmp_path / "one")) == ["train"]
    assert list(classes(tmp_path / "nested")) == ["bus", "train"]


# --- links and pipes -------------------------------------------------------------------------


@pytest.mark.parametrize(("link", "to"), [
    ("a/up", ".."), ("a/self", "."), ("a/x/back", ".."), ("a/top", "../.."), ("a/root", "/"),
    ("a/other", "../b"), ("b/other", "../a"), ("c", "a"), ("c", ".")])
def test_a_link_whose_images_would_count_twice_is_refused(tmp_path, link, to):
    for name in ("a/1.png", "a/x/1.png", "b/1.png"):
        save(tmp_path / "set" / name)
    (tmp_path / "set" / link).symlink_to(to)
    with pytest.raises(UserError, match="would count twice"):
        list_classes(tmp_path / "set")


def test_links_out_of_the_folder_are_followed(tmp_path):
    """Classes are often links to a larger disk, images to another tree."""
    save(tmp_path / "disk/cats/1.png")
    image = save(tmp_path / "elsewhere.png")
    save(tmp_path / "set/dog/1.png")
    (tmp_path / "set/cat").symlink_to(tmp_path / "disk/cats")
    (tmp_path / "set/dog/2.png").symlink_to(image)
    assert classes(tmp_path / "set") == {"cat": ["cat/1.png"], "dog": ["dog/1.png", "dog/2.png"]}
    (tmp_path / "disk/cats/loop").symlink_to(tmp_path / "disk")
    with pytest.raises(UserError, match=r"cats.*would count twice"):
        list_classes(tmp_path / "set")


@pytest.mark.parametrize("link", ["b", "a/2.png"])
def test_a_link_to_nothing_is_refused(tmp_path, link):
    save(tmp_path / "a/1.png")
    (tmp_path / link).symlink_to("nothing")
    with pytest.raises(UserError, match=rf"{link}: .*repair or remove it"):
        list_classes(tmp_path)
    (tmp_path / link).unlink()
    (tmp_path / link).symlink_to(tmp_path / link)       # to itself
    with pytest.raises(UserError, match=rf"{link}: .*repair or remove it"):
        list_classes(tmp_path)


def test_a_pipe_is_no_image(tmp_path):
    save(tmp_path / "a/1.png")
    os.mkfifo(tmp_path / "a/2.png")
    with pytest.raises(UserError, match=r"2\.png: not a readable image"):
        list_classes(tmp_path)


# --- pixels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "dtype", "extension"), [
    (8, np.uint16, "png"), (10, np.uint16, "png"), (12, np.uint16, "tiff"), (14, np.uint16, "png"),
    (8, np.int32, "tiff"), (12, np.int32, "tiff"), (20, np.int32, "tiff"), (31, np.int32, "tiff")])
def test_grey_of_another_range_is_refused(tmp_path, bits, dtype, extension):
    (tmp_path / "a").mkdir()
    values = (GREY / 255 * (2**bits - 1)).astype(dtype)
    Image.fromarray(values).save(tmp_path / f"a/x.{extension}")
    with pytest.raises(UserError, match=rf"x\.{extension}: its values reach .* in 8 bits"):
        pixels(tmp_path)


@pytest.mark.parametrize(("most", "factor", "refused"), [
    (65_535, 1, True), (65_535, 257, False), (1020, 4, False), (255, 1, False)])
@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6"])
def test_a_ppm_of_more_than_8_bits_is_scaled_or_refused(tmp_path, kind, most, factor, refused):
    levels = np.repeat(GREY[..., None], 1 if kind in ("P2", "P5") else 3, axis=2).astype(int)
    body = " ".join(map(str, (levels * factor).ravel())).encode() if kind in ("P2", "P3") \
        else (levels * factor).astype(">u2" if most > 255 else np.uint8).tobytes()
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.ppm").write_bytes(f"{kind}\n8 8\n{most}\n".encode() + body)
    if refused:
        with pytest.raises(UserError, match=r"x\.ppm: its .* in 8 bits"):
            pixels(tmp_path)
    else:
        assert np.abs(pixels(tmp_path)[0].astype(int) - levels).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_grey_of_16_bits_keeps_its_upper_8(tmp_path, dtype):
    (tmp_path / "a").mkdir()
    Image.fromarray((GREY * 257).astype(dtype)).save(tmp_path / "a/1.tiff")
    Image.fromarray((GREY * 0).astype(dtype)).save(tmp_path / "a/2.tiff")       # black is black
    found = pixels(tmp_path)
    np.testing.assert_array_equal(found[0, :, :, 1], GREY)
    assert not found[1].any()


def test_negative_values_and_floats_are_refused(tmp_path):
    for dtype, words in ((np.int32, "reach from -255"), (np.float32, "no known range")):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray((-GREY).astype(dtype)).save(tmp_path / "a/x.tiff")
        with pytest.raises(UserError, match=words):
            pixels(tmp_path)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_of_16_bits_of_a_small_range_is_refused(tmp_path, channels):
    """Pillow keeps the upper byte of it without a word."""
    values = np.repeat(GREY[..., None], channels, axis=2)
    png16(tmp_path / "a/x.png", values * 257)
    np.testing.assert_array_equal(pixels(tmp_path)[0, :, :, 0], GREY)
    for bits in (8, 12, 14):
        values[..., :3] = GREY[..., None] * (2**bits - 1) // 255
        if channels in (2, 4):
            values[..., -1] = 65535         # opaque
        if channels == 2:
            values[..., 0] = GREY * (2**bits - 1) // 255
        png16(tmp_path / "a/x.png", values)
        with pytest.raises(UserError, match=r"x\.png: its 16 bits a channel"):
            pixels(tmp_path)


def test_the_orientation_of_a_camera_is_applied(tmp_path):
    """Orientation 6: the viewer turns the stored image by 90 degrees clockwise."""
    stored = np.zeros((8, 8, 3), np.uint8)
    stored[:, :4] = 255                                 # left half white
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    Image.fromarray(stored).save(tmp_path / "a/x.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path)[0], np.rot90(stored, -1))    # upper half white


@pytest.mark.filterwarnings("error")
def test_transparency_is_dropped(tmp_path):
    (tmp_path / "a").mkdir()
    colours = np.arange(64, dtype=np.uint8).reshape(8, 8)
    alpha = (colours % 2 * 255).astype(np.uint8)
    rgb = np.stack([colours, colours + 60, colours + 120], axis=2)
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "a/1.png")
    Image.fromarray(np.dstack([colours, alpha])).save(tmp_path / "a/2.png")
    palette = Image.fromarray(colours).convert("P")
    palette.save(tmp_path / "a/3.png", transparency=bytes(range(256)))
    palette.save(tmp_path / "a/4.gif", transparency=3)
    found = pixels(tmp_path)
    np.testing.assert_array_equal(found[0], rgb)
    for row in (1, 2, 3):
        np.testing.assert_array_equal(found[row], np.dstack([colours] * 3))


def test_of_an_animation_the_first_image_counts(tmp_path):
    (tmp_path / "a").mkdir()
    first, second = (Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (40, 200))
    for extension in ("gif", "webp", "png", "tiff"):
        lossless = {"lossless": True} if extension == "webp" else {}
        first.save(tmp_path / f"a/x.{extension}", save_all=True, append_images=[second], **lossless)
    assert (pixels(tmp_path) == 40).all()


def test_cmyk_is_pillows(tmp_path):
    (tmp_path / "a").mkdir()
    cyan = np.zeros((8, 8, 4), np.uint8)
    cyan[..., 0] = 255
    Image.frombytes("CMYK", (8, 8), cyan.tobytes()).save(tmp_path / "a/x.tiff")
    assert (pixels(tmp_path) == [0, 255, 255]).all()


def test_a_strip_that_would_fill_the_memory_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (20_000, 1)).save(tmp_path / "a/x.png")
    with pytest.raises(UserError, match=r"x\.png: 20000 by 1 pixels"):
        pixels(tmp_path, size=224)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rest", [b"", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff", b"\0" * 40])
def test_a_broken_exif_is_read_past(tmp_path, rest):
    save(tmp_path / "a/x.jpg")
    plain = (tmp_path / "a/x.jpg").read_bytes()
    segment = b"Exif\0\0" + rest
    (tmp_path / "a/x.jpg").write_bytes(
        plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:])
    assert pixels(tmp_path).shape == (1, 8, 8, 3)
