"""What is told about a data set, and the exit status of `data check`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders import LAUGHS, SOUND, voc, xml

from giou_repro.__main__ import main
from giou_repro.data import datasets
from giou_repro.data.defects import ACTIONS, Unreadable


def test_the_command_lists_defects_and_its_exit_status_reports_them(tmp_path, capsys):
    sound = voc(tmp_path / "sound", {"a": xml(SOUND)})
    broken = voc(tmp_path / "broken", {"a": xml(SOUND, ("cell", 5, 5, 5, 9)), "b": LAUGHS}, train=["a", "absent"])
    assert main(["data", "check", str(sound)]) == 0
    assert "split all: no defects" in capsys.readouterr().out
    assert main(["data", "check", str(broken)]) == 1
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    table = [[word.strip() for word in line if word.strip()] for line in lines]
    assert ["a.jpg", "object 2 (cell)", "zero area", "dropped", "(5, 5, 5, 9)"] in table
    assert ["b.xml", "hostile XML", "image skipped", "(it declares a document type or an entity)"] in table
    assert ["absent.xml", "missing annotation", "image skipped", "('absent.xml' is not in Annotations, .)"] in table
    assert ["cell", "1", "1", "0", "0", "20.0"] in table
    for arguments in ([str(tmp_path / "nowhere")], [str(broken), "--split", "test"], ["voc2012"]):
        assert main(["data", "check", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "no data set at" in errors[0]
    assert "no split 'test'; it has all, train" in errors[1]
    assert "giou-repro data download voc2012" in errors[2]


def test_a_set_of_which_nothing_is_left_is_refused_with_the_reasons_and_still_reported(tmp_path, capsys):
    voc(tmp_path, {"a": LAUGHS, "b": ""})
    with pytest.raises(Unreadable, match="2 defects\n  1 hostile XML"):
        datasets.load(tmp_path, "all")
    assert main(["data", "check", str(tmp_path)]) == 1
    assert "nothing of it can be used" in capsys.readouterr().out


def test_every_kind_of_defect_is_explained():
    text = (Path(__file__).parents[1] / "data" / "README.md").read_text()
    assert [kind for kind, action in ACTIONS.items() if f"| {kind} | {action} |" not in text] == []


def test_help_needs_neither_torch_nor_pillow():
    code = "import sys, giou_repro\nfrom giou_repro.__main__ import main\ntry: main(['data', 'check', '--help'])\n"
    code += "except SystemExit: print({'torch', 'PIL', 'numpy'} & set(sys.modules))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    ).stdout
    assert answer.splitlines()[-1] == "set()"
