"""Only complete runs of committed code are published, and the README's table is what they say."""

import pandas as pd
import pytest

from giou_repro import claims, store
from giou_repro.publish import BEGIN, END, page, publish, published_runs, with_table


@pytest.fixture
def finished(tmp_path):
    run = store.open_run("02_loss_landscape", tmp_path / "runs", dict(seed=0, scale="paper"), runner=True)
    run.save_table("small", pd.DataFrame(dict(a=[1])))
    run.save_table("large", pd.DataFrame(dict(a=range(100_000))))
    run.close("complete")
    run.update(dirty=False)
    (tmp_path / "README.md").write_text(f"first\n{BEGIN}old\n{END}last\n")
    return run


def test_small_tables_are_copied(finished, tmp_path):
    place = publish(finished.folder, tmp_path)
    assert sorted(path.name for path in place.iterdir()) == ["run.json", "small.csv"]
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("first\n") and readme.endswith("last\n") and "old" not in readme


def test_publishing_again_replaces(finished, tmp_path):
    publish(finished.folder, tmp_path)
    (finished.folder / "small.csv").write_text("a\n2\n")
    assert (publish(finished.folder, tmp_path) / "small.csv").read_text() == "a\n2\n"
    assert sorted(path.name for path in (tmp_path / "results" / "published").iterdir()) == ["02_loss_landscape", "README.md", "claims.csv"]


REFUSED = [
    (dict(status="failed"), "it is failed"),
    (dict(dirty=True), "not committed"),
    (dict(dirty=None), "not committed"),
    (dict(runner=False), "not made by giou-repro run"),
    (dict(given=dict(losses=["giou", "scratch:mine"])), "scratch:mine is not part of the package"),
    (dict(parameters=dict(scale="smoke")), 'scale is not "paper"'),
]


@pytest.mark.parametrize(("entries", "message"), REFUSED)
def test_others_are_refused(finished, tmp_path, entries, message):
    finished.update(**entries)
    with pytest.raises(ValueError, match=message):
        publish(finished.folder, tmp_path)
    assert not (tmp_path / "results").exists()


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no run\.json; name results/<notebook>/<run-id>"):
        publish(tmp_path, tmp_path)


def test_what_cannot_be_tabled_leaves_all_as_it_was(finished, tmp_path):
    finished.update(notebook="03_simulation")  # without the tables of one
    readme = (tmp_path / "README.md").read_text()
    with pytest.raises(OSError):
        publish(finished.folder, tmp_path)
    assert (tmp_path / "README.md").read_text() == readme
    assert not (tmp_path / "results" / "published" / "03_simulation").exists()


def test_the_readmes_table_and_the_page_are_what_the_published_runs_say():
    project = store.project_folder()
    readme, runs = (project / "README.md").read_text(), published_runs(project)
    assert with_table(readme, runs) == readme
    assert page(runs, claims.ledger(runs)) == (project / "results" / "published" / "README.md").read_text()


def test_the_page_says_which_losses_cannot_be_told_apart(tmp_path):
    tables = {"paper_tables": "setting,loss,n,AP\ncells,l2,5,0.5\ncells,giou,5,0.52\ncells,iou,5,0.5\nfew,l2,2,0.1\n"}
    tables["paired"] = "setting,measure,loss,against,difference,low,high,verdict\n" + "".join(
        f"cells,{measure},{loss},l2,{gain},{gain - 0.01},{gain + 0.01},{verdict}\n"
        for measure in ("AP", "AP75")
        for loss, gain, verdict in (("giou", 0.02, "better"), ("iou", 0.0, "not distinguishable"))
    )
    for name, text in tables.items():
        (tmp_path / f"{name}.csv").write_text(text)
    ledger = claims.ledger({})
    told = page({"05_compare_losses": tmp_path}, ledger)
    assert "AP better: GIoU +0.020 (+0.010 to +0.030), not distinguishable: IoU +0.000 (-0.010 to +0.010)" in told
    assert "few" not in told and f"papers' {len(ledger)} claims" in told


@pytest.mark.parametrize("folder", published_runs(store.project_folder()).values(), ids=lambda path: path.name)
def test_published_runs_are_complete_and_of_committed_code(folder):
    entries = store.Run(folder).record
    assert (entries["status"], entries["dirty"]) == ("complete", False)
