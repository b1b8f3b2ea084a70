"""Images with boxes: generated scenes, Pascal VOC folders, COCO JSON and YOLO text, opened by `load` and checked as
they are opened.

A data set has `name`, `classes`, `split`, `has_masks`, `defects` (a list of `Defect`), `checksum` (sha256 over
annotations, image names and sizes), `len(ds)`, and `ds[i]` gives (image, target):

    image       uint8 (3, H, W), RGB
    boxes       float32 (n, 4), xyxy in continuous pixels of the image: (0, 0, W, H) is all of it; n may be 0
    labels      int64 (n,), 0 to C − 1, an index into `classes`
    difficult   bool (n,), VOC's flag;    crowd   bool (n,), COCO's flag
    area        float32 (n,), px²: COCO's own where it has one, or the box's
    masks       bool (n, H, W), where `has_masks`
    image_id    int: COCO's id, or the index

Opening a set reads the headers of its images, decodes none that seems whole, and repairs, drops or skips what is
defective, as `defects.ACTIONS` lists. `check` decodes everything. An image that is broken behind a sound header, or
changed since, raises `Unreadable` from `ds[i]`: a reader of a whole set catches it and goes on, so that no file ends a
training.
"""

import re
from pathlib import Path

from giou_repro.checkout import project_folder
from giou_repro.data import coco, foreign, generated, voc, yolo
from giou_repro.data.defects import Defect, Unreadable
from giou_repro.data.folder import Folder

DOWNLOADS = {
    "voc2007": {"trainval": "2007", "test": "2007-test"},  # split → torchvision's year
    "voc2012": {"trainval": "2012"},
}
FORMATS = (voc, yolo, coco)  # each has LAYOUT, sources(path): split → its reader, which gives a Folder, and files(path)


class Source:
    """A data set in files: path, format, and `readers`, split → what gives its annotations, "all" first where there is
    one; `exif` and `background` as in `load`. Raises FileNotFoundError."""

    def __init__(self, dataset: str | Path, exif: str | None = None, background: bool = False):
        self.path, self.exif, self.background = find(dataset), exif, background
        for self.format in FORMATS:
            self.readers = self.format.sources(self.path)
            if self.readers:
                return
        nothing = f"{self.path} holds no " + " and no ".join(data_format.LAYOUT for data_format in FORMATS)
        raise FileNotFoundError(
            "; ".join(filter(None, (nothing, foreign.recognise(self.path, foreign.FORMATS + foreign.LAYOUTS))))
        )

    def files(self) -> list[Path]:
        """All annotations, lists and images of its splits."""
        return self.format.files(self.path)

    def pick(self, split: str):
        """The reader of a split: of this name or, as COCO and Roboflow name them, train in train2017 and val in valid.
        Raises ValueError."""
        synonyms = {"val": {"val", "valid", "validation"}}.get(split, {split})
        close = [name for name in self.readers if synonyms & set(re.findall("[a-z]+", name.lower()))]
        if split in self.readers or len(close) == 1:
            return self.readers[split if split in self.readers else close[0]]
        in_json = self.format is coco and self.path.is_file()
        remedy = "; name the folder of the JSON files to reach others" if in_json else ""
        if split in ("train", "val") and not close:
            whole = next(iter(self.readers))
            remedy += f'; or divide it: train_split "{whole}[:80%]", val_split "{whole}[80%:]"'
        raise ValueError(f"{self.path} has no split {split!r}; it has {', '.join(close or self.readers)}{remedy}")

    def open(self, split: str, classes: tuple[str, ...] | None = None) -> Folder:
        """What `load` gives, and raises."""
        name, first, last = _part(split)
        reader = self.pick(name)
        try:
            ds = reader(classes and tuple(dict.fromkeys(classes)), self.background)
        except Unreadable as error:
            raise Unreadable(*error.defects, *self._other_format()) from None
        count = len(ds)
        ds.pictures = ds.pictures[round(first / 100 * count) : round(last / 100 * count)]
        if count and not len(ds):
            remedy = f"take a larger part, as {name}[:80%] or {name}[80%:]"
            raise ValueError(f"{self.path}: {split!r} holds none of the {count} images of {name!r}; {remedy}")
        ds.open(split, self.files, self.exif)
        if any(picture.objects for picture in ds.pictures):
            return ds
        if ds.pictures or not ds.defects:
            ds.defects.append(Defect("no object", ds.name, f"(in {len(ds)} images)"))
        what = "object" if ds.pictures else "image"
        about = f"{self.path}: no {what} of split {split!r} can be used; the splits are {', '.join(self.readers)}\n"
        raise Unreadable(*ds.defects, *self._other_format(), about=about)

    def _other_format(self):
        known = self.format is not yolo and foreign.recognise(self.path)
        return [Defect("another format", self.path.name, f"({known})")] if known else []


def load(
    dataset: str | Path,
    split: str,
    seed: int = 0,
    images: int = 1000,
    image_size: int = 128,
    classes: tuple[str, ...] | None = None,
    exif: str | None = None,
    background: bool = False,
) -> "Folder | generated.Scenes":
    """Open a split of a data set.

    dataset: "shapes" (generated: `images` scenes of `image_size` px from `seed`; see `generated`), "voc2007" or
    "voc2012" (see `download`), a Pascal VOC folder (VOC20xx, a VOCdevkit of several, or any folder of XML files), a
    COCO JSON, a folder of COCO JSON files, one a split, or a YOLO data.yaml or its folder. Images in files keep their
    own size, and all of them are taken. classes: the names to take, in this order; by default the VOC 20 where there is
    no other name, else the names of all annotations of the folder in alphabetical order, or COCO's categories and
    YOLO's names by id.

    exif: "follow" or "ignore" the orientation that photographs name, or None: by the annotated sizes, and where the
    format has none, as in YOLO text, follow. background: whether an image without a file of boxes (XML, text) is one
    without objects; by default it is skipped.

    split: a name that `splits` lists, or a part of it in files: "train[:80%]" are the first 80 % of its images,
    "train[80%:]" the rest.

    Raises FileNotFoundError where there is no such path, ValueError for a split it does not have or a part without an
    image, and `Unreadable`, a ValueError that lists the defects, where nothing of it can be used.
    """
    if dataset == "shapes":
        return generated.Scenes(split, seed, images, image_size)
    return Source(dataset, exif, background).open(split, classes)


def check_splits(dataset: str | Path, *names: str) -> None:
    """Raise as `load` does for a path or split that is not there, without reading annotations."""
    for name in names:
        if dataset == "shapes":
            generated.check_split(name)
        else:
            Source(dataset).pick(_part(name)[0])


def splits(dataset: str | Path) -> list[str]:
    """The names of the splits that `load` can open, "all" first where there is one. Raises FileNotFoundError."""
    return list(generated.STREAMS if dataset == "shapes" else Source(dataset).readers)


def download(name: str) -> Path:
    """Fetch "voc2007" (trainval and test) or "voc2012" (trainval) by torchvision into the project's data/; returns the
    folder."""
    if name not in DOWNLOADS:
        raise ValueError(f"{name!r} cannot be downloaded; there are {', '.join(DOWNLOADS)}")
    from torchvision.datasets import VOCDetection  # in the function, because it is of the extra `detection`

    for split, year in DOWNLOADS[name].items():
        VOCDetection(str(project_folder() / "data"), year=year, image_set=split, download=True)
    return find(name)


def find(dataset: str | Path) -> Path:
    """The path of a data set in files, given by its path or name. Raises FileNotFoundError."""
    path = Path(dataset)
    if dataset in DOWNLOADS:
        path = project_folder() / "data" / "VOCdevkit" / dataset.upper()
    if not path.exists():
        formats = f"give shapes, {', '.join(DOWNLOADS)}, a Pascal VOC folder, a COCO JSON or a YOLO data.yaml"
        remedy = f"fetch it: giou-repro data download {dataset}" if dataset in DOWNLOADS else formats
        raise FileNotFoundError(f"no data set at {path}; {remedy}")
    return path


def _part(split):
    """(name, first, last) of a split such as "train[20%:80%]", in per cent of its images; (name, 0, 100) where it is
    whole."""
    match = re.fullmatch(r"([^[]*)(?:\[(?:(\d+)%)?:(?:(\d+)%)?\])?", split)
    first, last = (int(match[2] or 0), int(match[3] or 100)) if match else (0, 0)
    if not first < last <= 100:
        raise ValueError(f"split {split!r}: a part is written as train[:80%], train[80%:] or train[20%:80%]")
    return match[1], first, last
