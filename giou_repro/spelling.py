"""The one message for a name that is not known: it says the closest, and all there are."""

import difflib

PLURALS = {"loss": "losses"}


def unknown(kind: str, name: str, known) -> str:
    """As: unknown detector 'yolo3'; did you mean 'yolov3'? The detectors are yolov3, fcos."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {kind} {name!r}; {hint}The {PLURALS.get(kind, f'{kind}s')} are {', '.join(known)}"
