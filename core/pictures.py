"""Folders of pictures: which files are images of which class, and what a picture is as pixels.

Decided once, for folders that are data sets and for pictures that are imported:

    hidden names (.x, ._x.png), __MACOSX, @eaDir, Thumbs.db and the like are no classes, no images
    names are compared in Unicode's NFC form; extensions in any case
    links are followed, also out of the folder, unless they lead to a folder that is read already,
        or to one above: its images would count twice, or for ever
    a class without an image, and train/ and val/ where classes should be, are refused
    EXIF's orientation is applied: pixels are as a viewer shows them
    transparency is dropped: the stored colours count (also a palette's); CMYK by Pillow's plain
        formula, colour profiles are ignored; of an animation or of pages the first one
    16 bits a channel keep the upper 8, if the image uses the upper half of the range: one of 8, 12
        or 14 bits that was stored so would come out dark or black and is refused. Floats are too
"""

import contextlib
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core import reading
from core.distributed import note
from core.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP", "GIF")      # no EPS: it would be run
# How a picture becomes size x size pixels, always bilinear and antialiased: `squash` its two sides
# alike, as D-VAE's 224 set; `crop`: the shorter side to `size`, the centre kept; `centre`: the
# shorter side to 8/7 of `size`, the centre kept, as ImageNet's test images (256 and 224) and UC's.
Fit = Literal["squash", "crop", "centre"]
MOST_PIXELS = 89_478_485        # Pillow warns from there on, and takes twice as many
# What systems leave in folders, beside names that begin with a dot.
LITTER = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information",
          "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__pycache__"}
TRAIN = ("train", "training")
TEST = ("val", "valid", "validation", "test", "testing")     # in the order of preference


def visible(entry: Path) -> bool:
    """Whether a name is somebody's file, and not a system's."""
    return not entry.name.startswith(".") and entry.name.casefold() not in LITTER


def is_picture(entry: Path) -> bool:
    """By its name."""
    return entry.suffix.lower() in EXTENSIONS


# --- folders ---------------------------------------------------------------------------------


def list_classes(path: Path, chosen: Sequence[str] | None = None, *, notes: bool = True
                 ) -> tuple[list[str], list[Path], np.ndarray]:
    """Class names, image files and their labels (int64) of a folder with one folder per class, or
    of the `chosen` ones of them, in order of their names too.

    Classes are numbered in the order of their names (of their numbers, where names are numbers);
    rows are ordered by class name, folder and file name, as torchvision's ImageFolder has them.
    `notes`: say what is left out. Raises UserError that names what cannot be used.
    """
    folders = class_folders(path)
    if chosen is not None:
        if lacking := sorted(set(chosen) - set(folders)):
            raise UserError(f"{path}: no folder of the class '{lacking[0]}'")
        folders = {name: folders[name] for name in chosen}
    classes = sorted(folders, key=lambda name: (0, int(name), name) if name.isdecimal()
                     else (1, 0, name))     # '2' before '10', which order of text would permute
    seen, left_out = {}, [entry for entry in sorted(path.iterdir()) if visible(entry)
                          and is_picture(entry) and entry.is_file()]
    files: list[Path] = []
    labels: list[int] = []
    for name in sorted(folders):
        pictures = list(pictures_below(folders[name], path, seen, left_out))
        if not pictures:
            raise UserError(f"{path}: expected one folder of images per class, but there is none "
                            f"in {name}/; remove it or fill it")
        files += pictures
        labels += [classes.index(name)] * len(pictures)
    if left_out and notes:
        names = sorted({entry.suffix.lower() or entry.name for entry in left_out})
        count = "1 file" if len(left_out) == 1 else f"{len(left_out)} files"
        note(f"{path}: left out, as no image by its name or beside the class folders: {count} "
             f"({', '.join(names[:5])})")
    return classes, files, np.array(labels, np.int64)


def class_folders(path: Path) -> dict[str, Path]:
    """The folders of the classes, by name. Raises UserError if there are none."""
    if not path.is_dir():
        raise UserError(f"{path}: a file, and no folder with a folder of images per class"
                        if path.exists() else f"{path}: no such folder")
    entries = [entry for entry in sorted(path.iterdir()) if visible(entry)]
    folders = by_class_name([entry for entry in entries if is_folder(entry)])
    refuse_splits(path, folders)
    if not folders:
        raise UserError(f"{path}: expected one folder of images per class, found none"
                        + ("; put the images that lie in it into a folder for each class"
                           if any(map(is_picture, entries)) else ""))
    return folders


def is_folder(entry: Path) -> bool:
    """A folder or a link to one. Raises UserError for a link to nothing: without it, the classes
    after it would be numbered otherwise."""
    if entry.is_symlink() and not entry.exists():
        raise UserError(f"{entry}: a link that leads nowhere; repair or remove it")
    return entry.is_dir()


def by_class_name(folders: list[Path]) -> dict[str, Path]:
    """Class names in NFC: macOS writes 'é' as two characters, which sort otherwise."""
    found: dict[str, Path] = {}
    for folder in folders:
        name = unicodedata.normalize("NFC", folder.name)
        if name in found:
            raise UserError(f"{folder} and {found[name]} have the same name in two Unicode forms; "
                            "merge or rename them")
        found[name] = folder
    return found


def refuse_splits(path: Path, folders: dict[str, Path]) -> None:
    """Raise UserError where train/ and val/ lie in the place of classes."""
    by_name = {name.casefold(): folder.name for name, folder in folders.items()}
    train, test = ([by_name[name] for name in names if name in by_name] for names in (TRAIN, TEST))
    alone = len(folders) == 1 and len(train + test) == 1
    if alone:           # a class of trains has images in it, a split has classes
        inside = [entry for entry in next(iter(folders.values())).iterdir() if visible(entry)]
        alone = any(map(Path.is_dir, inside)) and not any(map(is_picture, inside))
    if len(train + test) < 2 and not alone:
        return
    verb = "is a split, not a class" if alone else "are splits, not classes"
    named = f"name {path / (train or test)[0]}"
    if train and test:
        named += f", and {path / test[0]} as its test set (test= or --test)"
    raise UserError(f"{path}: {', '.join(train + test)} {verb}; {named}")


def pictures_below(top: Path, root: Path, seen: dict[Path, Path], left_out: list[Path]
                   ) -> Iterator[Path]:
    """Image files at any depth, by folder and name. `seen` gathers the folders that were read, by
    where they really are, and `left_out` other files. Raises UserError for a folder that is read
    twice."""
    found, waiting = [], [top]
    while waiting:
        folder = waiting.pop()
        real = folder.resolve()
        if real in seen or root.resolve().is_relative_to(real):
            raise UserError(f"{folder}: a link to {seen.get(real, real)}, whose images would count "
                            "twice; remove it")
        seen[real] = folder
        for entry in sorted(folder.iterdir()):
            if not visible(entry):
                continue
            if entry.is_dir():
                waiting.append(entry)
            elif not is_picture(entry):
                left_out.append(entry)
            elif not entry.is_file():           # a link to nothing, a pipe that would never end
                raise UserError(f"{entry}: not a readable image; repair or remove it")
            else:
                found.append(entry)
    yield from sorted(found, key=lambda file: (str(file.parent), file.name))


# --- pictures --------------------------------------------------------------------------------


def read_squares(files: list[Path], size: int, what: str) -> np.ndarray:
    """uint8 (N, size, size, 3), by `crop`. Raises UserError that names a file that is no image."""
    from tqdm import tqdm

    images = np.empty((len(files), size, size, 3), np.uint8)
    for i, file in enumerate(tqdm(files, desc=what, disable=None, leave=False)):
        images[i] = read_square(file, size, "crop")
    return images


def read_square(file: Path, size: int, fit: Fit) -> np.ndarray:
    """One picture as uint8 (size, size, 3); by `centre`, the middle of 8/7 of that size, one that
    has the size already stays as it is. Raises UserError that names a file that is no image."""
    from torchvision.transforms import CenterCrop, Compose, Resize

    side = round(size * 8 / 7) if fit == "centre" else size
    transform = Resize((size, size)) if fit == "squash" else Compose(
        [Resize(side), CenterCrop(size)])
    with opened(file) as image:
        short, long = sorted(image.size)
        if short == long == size:
            return np.asarray(to_rgb(image, file))
        if fit != "squash" and side * side * long > MOST_PIXELS * short:
            raise UserError(f"{file}: {long} by {short} pixels are too long a strip to be "
                            f"enlarged to size={size}; remove or crop it")
        return np.asarray(transform(to_rgb(image, file)))


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A Pillow image of one of FORMATS, not yet decoded. Raises UserError for what is none, also
    where that shows inside the block, and for one that would fill the memory."""
    from PIL import Image

    with reading.regular(file) as source, warnings.catch_warnings():
        # a bomb is an error here, and a broken EXIF none
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(source, formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise UserError(f"{file} is {image.width}x{image.height}, too large for an "
                                    f"image (at most {MOST_PIXELS:,} pixels)")
                yield image
        except (UserError, MemoryError):
            raise
        except Exception:               # decoders raise whatever a broken file makes them
            raise UserError(f"{file}: not a readable image; repair or remove it") from None


def is_deep(image) -> bool:
    """Whether a Pillow image, not yet loaded, has more than 8 bits a channel on disk."""
    if not image.tile:
        return False
    arguments = image.tile[0].args
    if image.format == "PPM" and isinstance(arguments, tuple):      # (mode, largest value)
        return arguments[-1] > 255
    return ";16" in str(arguments)


def to_rgb(image, file: Path):
    """A Pillow image, not yet loaded, as RGB; the module's docstring says how. Raises UserError
    for a range that cannot be told."""
    from PIL import Image, ImageOps

    deep = is_deep(image)
    if image.mode == "F":
        raise UserError(f"{file}: floats have no known range; store it in 8 bits")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        levels = np.asarray(image)
        lowest, highest = int(levels.min()), int(levels.max())
        if lowest < 0 or highest > 65_535 or 0 < highest < 2**15:
            raise UserError(f"{file}: its values reach from {lowest:,} to {highest:,}, and 16 bits "
                            "from 0 to 65,535: it would come out dark or wrong; store it in 8 bits")
        return Image.fromarray((levels >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P":               # through RGBA: else Pillow warns of transparency
        image = image.convert("RGBA")
    image = image.convert("RGB")
    if deep and max(highest for _, highest in image.getextrema()) < 128:
        raise UserError(f"{file}: its 16 bits a channel use less than half of the range: it would "
                        "come out dark or black; store it in 8 bits")
    return image
