"""Only complete runs of committed code are published, and the README's table is what they say."""

import pandas as pd
import pytest

from giou_repro import store
from giou_repro.publish import BEGIN, END, publish, with_table

PUBLISHED = store.project_folder() / "results" / "published"


@pytest.fixture
def finished(tmp_path):
    run = store.open_run("02_loss_landscape", tmp_path / "runs", dict(seed=0))
    run.save_table("small", pd.DataFrame(dict(a=[1])))
    run.save_table("large", pd.DataFrame(dict(a=range(100_000))))
    run.close("complete")
    run.update(dirty=False)
    (tmp_path / "README.md").write_text(f"first\n{BEGIN}old\n{END}last\n")
    return run


def test_small_tables_are_copied(finished, tmp_path):
    place = publish(finished.folder, tmp_path)
    assert sorted(path.name for path in place.iterdir()) == ["figures", "run.json", "small.csv"]
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("first\n") and readme.endswith("last\n") and "old" not in readme


def test_publishing_again_replaces(finished, tmp_path):
    publish(finished.folder, tmp_path)
    (finished.folder / "small.csv").write_text("a\n2\n")
    assert (publish(finished.folder, tmp_path) / "small.csv").read_text() == "a\n2\n"
    assert [path.name for path in (tmp_path / "results" / "published").iterdir()] == ["02_loss_landscape"]


@pytest.mark.parametrize(
    ("entries", "message"), [(dict(status="failed"), "only complete"), (dict(dirty=True), "not committed"), (dict(dirty=None), "not committed")]
)
def test_others_are_refused(finished, tmp_path, entries, message):
    finished.update(**entries)
    with pytest.raises(ValueError, match=message):
        publish(finished.folder, tmp_path)
    assert not (tmp_path / "results").exists()


def test_the_readmes_table_is_what_the_published_runs_say():
    readme = (store.project_folder() / "README.md").read_text()
    assert with_table(readme, PUBLISHED) == readme


@pytest.mark.parametrize("record", sorted(PUBLISHED.glob("*/run.json")), ids=lambda path: path.parent.name)
def test_published_runs_are_complete_and_of_committed_code(record):
    entries = store.Run(record.parent).record
    assert (entries["status"], entries["dirty"]) == ("complete", False)
