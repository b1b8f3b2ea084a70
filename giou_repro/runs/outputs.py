"""How a run's tables, arrays and figures are written as bytes, and its tables read."""

import io
from pathlib import Path


def csv(table) -> bytes:
    """A pandas table, without its index."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def read_csv(path: Path):
    """The table that `csv` wrote to a path, as pandas has it."""
    import pandas as pd  # in the function, so that the command line can answer without it

    return pd.read_csv(path, encoding="utf-8")


def npz(arrays: dict) -> bytes:
    """NumPy arrays (name → array), compressed."""
    import numpy as np  # in the function, so that the command line can answer without it

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def image(figure, suffix: str) -> bytes:
    """A matplotlib figure as "png" or "pdf", without dates: equal figures are equal bytes."""
    metadata = {"pdf": {"CreationDate": None, "Producer": None}, "png": {"Software": None}}
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, metadata=metadata[suffix])
    return buffer.getvalue()
