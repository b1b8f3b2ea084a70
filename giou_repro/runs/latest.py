"""<results>/latest.html, which leads to the newest complete run of every notebook."""

import html
import json
import os
from pathlib import Path

from giou_repro.runs.files import lock, write_atomic

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>The newest runs</title>
<style>:root {{ color-scheme: light dark }} body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem }}</style></head>
<body><h1>The newest complete run of every notebook</h1><ul>
{rows}</ul></body></html>
"""


def write(results: Path) -> None:
    """Renew latest.html of the results folder."""
    with os.fdopen(lock(results / ".lock", wait=True)):
        newest = filter(None, (_newest(folder) for folder in sorted(results.glob("*/")) if folder.name != "published"))
        write_atomic(results / "latest.html", PAGE.format(rows="".join(map(_row, newest))))


def _newest(folder):
    """(Path of the newest complete run under a notebook's folder, its record); None where there is none."""
    for path in sorted(folder.glob("*/run.json"), reverse=True):  # names begin with the time
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and record.get("status") == "complete":
            return path.parent, record
    return None


def _row(run):
    """The page of a run, its report where it has one, its folder, and what it is of."""
    folder, record = run
    place = f"{folder.parent.name}/{folder.name}"
    names = ("notebook.html", "report.html")
    links = [f'<a href="{place}/{name}">{name}</a>' for name in names if (folder / name).is_file()]
    links.append(f'<a href="{place}/">folder</a>')
    of = {"scale": record["parameters"].get("scale"), "seed": record["seed"], "begun": record["started"][:16]}
    about = ", ".join(f"{name} {value}" for name, value in of.items() if value is not None)
    return f"<li><b>{html.escape(folder.parent.name)}</b>: {' · '.join(links)} ({html.escape(about)})</li>\n"
