"""The page stands alone and says what the tables say; the published ledger is renewed with it; verify tells numbers that moved."""

import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest

from giou_repro import claims, comparison, publish, report, runner, store, verify
from giou_repro.__main__ import main

PUBLISHED = store.project_folder() / "results" / "published"
FIRST = "01_metric"


def run_folder(results, notebook=FIRST, scale="laptop", status="complete", name="20260101T000000-000-abcdef0"):
    """A run folder with the published tables and figures of a notebook."""
    folder = results / notebook / name
    shutil.copytree(PUBLISHED / notebook, folder)
    run = store.Run(folder)
    run.update(status=status, run=name, parameters=run.record["parameters"] | {"scale": scale})
    return folder


class Page(HTMLParser):
    """Tags that are open, and every src and href."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.images = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open += [tag] * (tag not in ("meta", "img", "br"))
        self.links += [value for name, value in attributes if name == "href"]
        self.images += [value for name, value in attributes if name == "src"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    results = tmp_path_factory.mktemp("project") / "results"
    folder = run_folder(results)
    out = results / "pages" / "report.html"
    report.write(results, out)
    return folder, out


def test_the_page_stands_alone(written):
    folder, out = written
    text = out.read_text()
    page = Page(text)
    assert page.open == []
    assert "<script" not in text and "http" not in text.replace("https", "http").replace("http-equiv", "")
    assert page.images and all(image.startswith("data:image/png;base64,") for image in page.images)
    assert (out.parent / page.links[0]).resolve() == folder.resolve()
    assert all((out.parent / link).is_dir() for link in page.links)


def test_the_page_has_every_claim_with_its_verdict_in_words(written):
    folder, out = written
    rows = dict(re.findall(r"<b>(\w+)</b></td>.*?class=\"verdict \w+\">. ([a-z ]+)<", out.read_text()))
    runs = report.newest(folder.parents[1])
    assert rows == claims.ledger(runs).set_index("id").verdict.to_dict()


def test_the_page_marks_what_is_recalled(written):
    text = written[1].read_text()
    told = [value for row in claims.BOOK["paper"]["rows"] for value in row[4:]]
    assert text.count("<small>as recalled</small>") == sum(value.endswith("?") for value in told) > 30
    assert "No detector runs yet" in report.page({FIRST: PUBLISHED / FIRST}, PUBLISHED)


def test_the_newest_complete_run_of_the_scale_counts(tmp_path):
    old = run_folder(tmp_path, name="20260101T000000-000-abcdef0")
    new = run_folder(tmp_path, name="20260102T000000-000-abcdef0")
    run_folder(tmp_path, name="20260103T000000-000-abcdef0", status="running")
    small = run_folder(tmp_path, name="20260104T000000-000-abcdef0", scale="smoke")
    assert report.newest(tmp_path)[FIRST] == new != old
    assert report.newest(tmp_path, "smoke")[FIRST] == small
    assert report.newest(tmp_path, "paper")[FIRST] == PUBLISHED / FIRST  # none of that scale here


def test_detector_runs_are_tabled_beside_the_papers(tmp_path):
    from test_claims import detectors

    place = run_folder(tmp_path)
    other = shutil.copytree(place, tmp_path / "05_compare_losses" / place.name)
    store.Run(other).update(notebook="05_compare_losses")
    runs = detectors(0.05).assign(dataset="voc2007")
    runs.to_csv(other / "detectors.csv", index=False)
    for name, make in (("paper_tables", comparison.paper_table), ("paired", comparison.paired)):
        make(runs.assign(setting="voc2007, yolov3", disjoint=0.0)).to_csv(other / f"{name}.csv", index=False)
    text = report.page(report.newest(tmp_path), tmp_path)
    assert "<h3>voc2007, yolov3</h3>" in text
    mean = detectors(0.05).query("loss == 'giou'").AP.mean()
    (row,) = re.findall(r"YOLOv3, VOC 2007</td><td>GIoU</td>(.*?)</tr>", text)
    assert row.startswith(f'<td class="number">.477 <small>as recalled</small></td><td class="number">{mean:.3f}</td>')
    assert "<td>better</td>" in text
    Page(text)


@pytest.fixture
def project(tmp_path):
    """A project with one published run, a README with marks, and an empty ledger."""
    shutil.copytree(PUBLISHED / FIRST, tmp_path / "results" / "published" / FIRST)
    marks = publish.BEGIN + publish.END + "between\n" + publish.LEDGER_BEGIN + publish.LEDGER_END
    (tmp_path / "README.md").write_text(f"first\n{marks}last\n")
    return tmp_path


def test_the_command_writes_the_page_and_renews_the_ledger(project, capsys):
    assert main(["report", "--results", str(project / "results")]) == 0
    assert (project / "results" / "report.html").exists()
    table = pd.read_csv(project / "results" / "published" / "claims.csv")
    assert list(table) == claims.COLUMNS
    assert table.set_index("id").verdict.G3 == claims.HOLDS
    readme = (project / "README.md").read_text()
    assert readme.startswith("first\n") and "between" in readme and readme.endswith("last\n")
    assert "| G3 | 1 − GIoU is a metric: no detour over a third box is shorter. | **holds** |" in readme
    assert "report.html" in capsys.readouterr().out


def test_renewing_twice_changes_nothing(project):
    publish.refresh(project)
    first = (project / "README.md").read_text(), (project / "results" / "published" / "claims.csv").read_text()
    publish.refresh(project)
    assert first == ((project / "README.md").read_text(), (project / "results" / "published" / "claims.csv").read_text())
    assert publish.with_ledger("no marks", claims.ledger({})) == "no marks"


def test_the_readmes_ledger_is_what_the_published_runs_say():
    readme = (store.project_folder() / "README.md").read_text()
    assert publish.with_ledger(readme, claims.ledger(publish.published_runs(store.project_folder()))) == readme


def test_no_runs_at_all_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "project_folder", lambda: tmp_path)
    assert main(["report", "--results", str(tmp_path / "results")]) == 2
    assert "make some: giou-repro run 01_metric" in capsys.readouterr().err


def test_verify_takes_an_equal_run_and_tells_a_moved_number(tmp_path):
    now = run_folder(tmp_path)
    rows = pd.DataFrame(verify.compare(PUBLISHED / FIRST, now), columns=verify.COLUMNS)
    assert set(rows.ok) == {verify.YES}
    assert rows.tolerance[0] == 1e-9
    figure = pd.read_csv(now / "figure_1.csv")
    figure.loc[2, "iou"] += 1e-6
    figure.to_csv(now / "figure_1.csv", index=False)
    rows = pd.DataFrame(verify.compare(PUBLISHED / FIRST, now), columns=verify.COLUMNS)
    assert rows.ok.tolist() == [verify.NO] + [verify.YES] * (len(rows) - 1)
    assert "figure_1: iou, at a, 0.65" in rows.what[0]


def test_verify_widens_for_a_smaller_sample_and_leaves_other_parameters(tmp_path):
    folder = run_folder(tmp_path)
    run = store.Run(folder)
    before = run.record["parameters"]
    headline = next(headline for headline in verify.HEADLINES if headline.table == "rank_correlation")
    assert verify._tolerance(headline, before, before | {"n_pairs": 10_000}) == pytest.approx(2.5 / 100)
    assert verify._tolerance(headline, before, before | {"losses": ["iou"]}) is None
    run.update(parameters=before | {"losses": ["iou"]})
    assert {row[4] for row in verify.compare(PUBLISHED / FIRST, folder)} == {verify.SKIPPED}


@pytest.mark.parametrize(("moved", "status"), [(0, 0), (0.5, 1)])
def test_the_command_runs_what_is_published_again(project, tmp_path, monkeypatch, capsys, moved, status):
    """The runs themselves are tested with the runner: here one is handed over, with what it was asked for."""
    asked = []

    def rerun(name, given, results, progress):
        asked.append((name, given))
        table = pd.read_csv(run_folder(tmp_path / "again", name) / "rank_correlation.csv").assign(spearman=lambda t: t.spearman - moved)
        table.to_csv(tmp_path / "again" / name / "20260101T000000-000-abcdef0" / "rank_correlation.csv", index=False)
        return store.Run(tmp_path / "again" / name / "20260101T000000-000-abcdef0")

    monkeypatch.setattr(runner, "run_notebook", rerun)
    monkeypatch.setattr(store, "project_folder", lambda: project)
    publish.refresh(project)
    assert main(["verify", "--scale", "laptop"]) == status
    assert asked == [(FIRST, {"scale": "laptop"})]
    out = capsys.readouterr().out
    assert ("NO" in out) == bool(moved)
    assert "claims.csv, from the published tables" in out


def test_verify_tells_a_ledger_that_is_not_what_the_tables_say(project):
    publish.refresh(project)
    path = project / "results" / "published" / "claims.csv"
    runs = publish.published_runs(project)
    assert verify._claims(project, runs)[-1] == verify.YES
    path.write_text(path.read_text().replace(",holds,", ",does not hold,", 1))
    assert verify._claims(project, runs)[-1] == verify.NO


def test_the_notebook_writes_the_same_page(tmp_path):
    run_folder(tmp_path)
    run = runner.run_notebook("06_report", dict(scale="laptop"), tmp_path, progress=False)
    assert {"report.html", "claims.csv", "notebook.html"} <= set(run.record["outputs"])
    runs = report.newest(tmp_path)
    assert (run.folder / "report.html").read_text() == report.page(runs, run.folder)
    assert pd.read_csv(run.folder / "claims.csv").verdict.tolist() == claims.ledger(runs).verdict.tolist()
