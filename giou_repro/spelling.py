"""Names as users write them: a list of them, and the one message for a name that is not known."""

import difflib
import re

PLURALS = {"loss": "losses"}


def listed(text: str) -> list[str]:
    """The names in comma-separated text; commas in parentheses, as in "focaler(giou, u=0.9)", belong to a name."""
    return [name.strip() for name in re.split(r",(?![^()]*\))", text)]


def unknown(kind: str, name: str, known) -> str:
    """The message, with the closest name and all there are.

    As: unknown detector 'yolo3'; did you mean 'yolov3'? The detectors are yolov3, fcos.
    """
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {kind} {name!r}; {hint}The {PLURALS.get(kind, f'{kind}s')} are {', '.join(known)}"
