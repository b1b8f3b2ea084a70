"""README and the pages of docs/: links lead somewhere, commands parse, tables are whole, README stays short."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from giou_repro import __main__ as command_line

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *(ROOT / folder / "README.md" for folder in ("data", "results/published")),
]
FENCED = re.compile(r"^```.*?^```", re.M | re.S)
LINK = re.compile(r"\]\(([^()\s]+)\)")
COMMAND = re.compile(r"(?:^ {4}|`)((?:giou-repro|make) [^`\n]*)", re.M)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(page):
    """What GitHub names the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pages
def test_links_lead_somewhere(page):
    for address in LINK.findall(FENCED.sub("", page.read_text())):
        place, _, anchor = address.partition("#")
        if "://" in address:
            continue
        target = (page.parent / place).resolve() if place else page
        assert target.exists() and target.is_relative_to(ROOT), address
        assert not anchor or anchor in anchors(target), address


@pages
def test_commands_parse(page):
    if page.name == "CHANGELOG.md":
        pytest.skip("tells of commands that are gone")
    for text in COMMAND.findall(page.read_text()):
        optional_given = re.sub(r"\[(--[^]]*)\]", r"\1", text.partition(" #")[0])
        words = shlex.split(optional_given.replace("…", "").replace("--help", ""))
        if words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        elif " ".join(words[1:]) not in command_line.COMMANDS:  # its name alone is talked of, not given
            command_line._parser(training=words[1] == "train").parse_args(words[1:])


@pages
def test_tables_are_whole(page):
    """A row that no heading stands above shows as text: a blank line has split its table."""
    for block in re.findall(r"(?:^\|.*\n)+", page.read_text(), re.M):
        rows = block.splitlines()
        assert len(rows) > 2 and re.fullmatch(r"\|( ?:?-+:? ?\|)+", rows[1]), rows[0]
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, rows[0]


@pages
def test_pictures_say_what_they_show(page):
    assert "![](" not in page.read_text()


def test_readme_is_short_and_its_findings_are_one_small_block():
    readme = (ROOT / "README.md").read_text()
    assert readme.startswith("# ") and readme.splitlines()[0].endswith("?")
    assert len(readme.split()) < 1_100
    assert len(re.findall(r"^- \*\*", readme, re.M)) == 5
    assert len(re.findall(r"^\|", readme, re.M)) < 12
