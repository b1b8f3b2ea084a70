"""The splits of Pascal VOC folders and COCO files, whole and in parts."""

from pathlib import Path

import pytest
from builders import SOUND, coco, entry, picture, voc, xml

from giou_repro.data import datasets
from giou_repro.data.defects import Unreadable


def test_a_split_can_be_taken_in_parts(tmp_path):
    ids = [f"{number:02}" for number in range(10)]
    voc(tmp_path, {id: xml(SOUND) for id in ids}, train=ids)
    parts = {
        name: [Path(picture.name).stem for picture in datasets.load(tmp_path, name).pictures]
        for name in ("train[:80%]", "train[80%:]", "all[15%:30%]")
    }
    assert parts == {"train[:80%]": ids[:8], "train[80%:]": ids[8:], "all[15%:30%]": ids[2:3]}
    for wrong in ("train[:8]", "train[80%:20%]", "train[:120%]", "train[:80%"):
        with pytest.raises(ValueError, match=r"train\[:80%\]"):
            datasets.load(tmp_path, wrong)


def test_a_part_without_an_image_is_refused_with_what_there_is(tmp_path):
    voc(tmp_path, {id: xml(SOUND) for id in "abc"}, train="abc", val="")
    with pytest.raises(
        ValueError,
        match=r"'train\[50%:51%\]' holds none of the 3 images of 'train'; take a larger part, as train\[:80%\]",
    ):
        datasets.load(tmp_path, "train[50%:51%]")
    for split in ("val", "val[:80%]"):
        with pytest.raises(
            Unreadable,
            match=r"no image of split 'val.*' can be used; the splits are all, train, val\nval.txt: empty list",
        ):
            datasets.load(tmp_path, split)


def test_a_list_or_a_folder_named_all_takes_no_image_twice_and_hides_none(tmp_path):
    ids = datasets.load(voc(tmp_path / "lists", dict.fromkeys("abc", xml(SOUND)), all="ab", train="a"), "all").pictures
    assert [picture.name for picture in ids] == ["a.jpg", "b.jpg", "c.jpg"]
    assert datasets.splits(tmp_path / "lists") == ["all", "lists/all", "train"]
    assert len(datasets.load(tmp_path / "lists", "lists/all")) == 2
    for split in ("all", "more"):
        picture(tmp_path / "folders" / split / "a.jpg")
        (tmp_path / "folders" / split / "a.xml").write_text(xml(SOUND))
    assert datasets.splits(tmp_path / "folders") == ["all", "all/all", "more"]
    assert len(datasets.load(tmp_path / "folders", "all")) == 2


def test_the_lines_of_a_list_may_name_the_xml_or_say_whether_the_class_is_there(tmp_path):
    voc(
        tmp_path,
        dict.fromkeys(("a", "b", "b 1"), xml(SOUND)),
        cell_train=["a  1", "b -1"],
        more=["a.xml", "b 1", "b  0"],
    )
    found = {split: datasets.load(tmp_path, split).pictures for split in ("cell_train", "more")}
    assert {split: [picture.name for picture in pictures] for split, pictures in found.items()} == {
        "cell_train": ["a.jpg", "b.jpg"],
        "more": ["a.jpg", "b 1.jpg", "b.jpg"],
    }


def test_a_set_that_is_not_divided_says_how_to_divide_it(tmp_path):
    undivided = voc(tmp_path / "voc", {"a": xml(SOUND)}), coco(tmp_path / "json" / "a.json", [entry()])
    trained = coco(tmp_path / "train" / "train" / "_annotations.coco.json", [entry()]).parents[1]
    for path, split, whole in ((undivided[0], "train", "all"), (undivided[1], "val", "all"), (trained, "val", "train")):
        with pytest.raises(
            ValueError, match=rf'no split .* train_split "{whole}\[:80%\]", val_split "{whole}\[80%:\]"'
        ):
            datasets.check_splits(path, split)
        datasets.check_splits(path, f"{whole}[:80%]", f"{whole}[80%:]")
    datasets.check_splits("shapes", "train", "val")
    for wrong in ("all", "train[:80%]"):
        with pytest.raises(ValueError, match="shapes have the splits train, val, test"):
            datasets.check_splits("shapes", wrong)
