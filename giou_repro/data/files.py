"""The files of which a data set is made, and what they hold: what a run on it depends on."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from giou_repro.data.annotations import files_below
from giou_repro.data.datasets import Source, find
from giou_repro.data.overlap import digest


def contents(dataset: str | Path) -> list[tuple[str, str]]:
    """(name, sha256) of every file that a run on a data set may open: annotations, lists and images, wherever they lie
    and by whatever links. Of a folder in an unknown format all files. Empty for generated scenes and what is not there.

    Names are relative to the data set and the same under every locale; times and the place of a copy do not count.
    """
    try:
        path = find(dataset)
    except FileNotFoundError:
        return []
    try:
        source = Source(dataset)
        files = set(source.format.files(path))
    except FileNotFoundError:
        files = set(files_below(path))
    root = path if path.is_dir() else path.parent
    files = sorted(file for file in files if file.is_file())
    names = [os.fsencode(os.path.relpath(file, root)).decode(errors="surrogateescape") for file in files]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return sorted(zip(names, pool.map(digest, files), strict=True))
