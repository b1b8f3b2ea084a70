"""The files of which a data set is made: what they hold, and which of them its splits share."""

import functools
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path

from giou_repro.data.annotations import Picture, files_below
from giou_repro.data.datasets import Source
from giou_repro.data.defects import Defect

ROLES = ("train", "val", "test", "dev")  # a split is known by those that its name contains


def compare(splits: dict[str, list[Picture]]) -> list[Defect]:
    """Defects of splits: of two that are equal, or that share images though one is for training and the other is not;
    of one for training that has less than half as many images as one for tests; of one without an object."""
    empty = [name for name, pictures in splits.items() if not any(picture.objects for picture in pictures)]
    defects = [Defect("no object", name, f"(in {len(splits[name])} images)") for name in empty if splits[name]]
    folds = {name: re.findall(r"(?<!\d)\d{1,3}(?!\d)", name) for name in splits}  # val_1 is part of train_2

    def in_folds(name):
        return any(folds[other] != folds[name] for other in splits if _roles(other) == _roles(name))

    for (a, first), (b, second) in combinations(splits.items(), 2):
        apart = _roles(a) and _roles(b) and not _roles(a) & _roles(b)
        apart = apart and not (folds[a] != folds[b] and in_folds(a) and in_folds(b))
        shared = in_both(first, second) if apart or len(first) == len(second) else 0
        if shared and (apart or shared == len(first)):
            defects.append(Defect("split in another", b, f"({shared} of {len(second)} images are in {a} too)"))
        sizes = sorted([(len(first), a), (len(second), b)])
        if apart and "train" in _roles(sizes[0][1]) and 2 * sizes[0][0] < sizes[1][0]:
            detail = "({} images; {} has {})".format(sizes[0][0], *reversed(sizes[1]))
            defects.append(Defect("smaller than a test split", sizes[0][1], detail))
    return defects


def _roles(name):
    return {role for role in ROLES if role in name.lower()}


def in_both(first: list[Picture], second: list[Picture]) -> int:
    """How many of the pictures `second` are in `first` too: the same file, or another one with the same bytes."""
    sizes = {picture.file.stat().st_size for picture in first} & {picture.file.stat().st_size for picture in second}
    digests = {digest(picture.file) for picture in first if picture.file.stat().st_size in sizes}
    return sum(picture.file.stat().st_size in sizes and digest(picture.file) in digests for picture in second)


def digest(path: Path) -> str:
    """sha256 of a file's content, read again where its size or time is another; of one that cannot be read, why."""
    try:
        state = path.stat()
        return _digest(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        return f"{path.name}: {error.strerror}"


@functools.cache
def _digest(path, size, time):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents(dataset: str | Path) -> list[tuple[str, str]]:
    """(name, sha256) of every file that a run on a data set may open: annotations, lists and images, wherever they lie
    and by whatever links. Of a folder in an unknown format all files. Empty for generated scenes and what is not there.

    Names are relative to the data set and the same under every locale; times and the place of a copy do not count.
    """
    try:
        source = Source(dataset)
        path, files = source.path, source.files()
    except FileNotFoundError:
        path, files = Path(dataset), files_below(Path(dataset))
    files = [file for file in dict.fromkeys(files) if file.is_file()]
    names = [os.path.relpath(file, path if path.is_dir() else path.parent) for file in files]
    with ThreadPoolExecutor() as pool:
        digests = pool.map(digest, files)
    return sorted(
        (os.fsencode(name).decode(errors="surrogateescape"), own) for name, own in zip(names, digests, strict=True)
    )
