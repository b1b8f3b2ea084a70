"""The device that a simulation or a training runs on, by its name."""

import torch


def resolve(name: str) -> torch.device:
    """The torch device of "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:1", with its index.

    Raises ValueError for a name or a device that cannot be used.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); use auto, cpu, cuda or cuda:1") from None
