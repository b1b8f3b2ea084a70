"""The page stands alone and says what the tables say; the published ledger is renewed with it; verify tells numbers
that moved."""

import re
import shutil
from html.parser import HTMLParser

import pandas as pd
import pytest

from giou_repro.__main__ import main
from giou_repro.report import claims, page, publish, verify
from giou_repro.runs import runner, store

PUBLISHED = store.project_folder() / "results" / "published"
FIRST = "01_metric"


def run_folder(results, notebook=FIRST, scale="laptop", status="complete", name="20260101T000000-000-abcdef0"):
    """A run folder with the published tables and figures of a notebook."""
    folder = results / notebook / name
    shutil.copytree(PUBLISHED / notebook, folder)
    run = store.Run(folder)
    run._write_record(
        run.record | dict(status=status, run=name, parameters=run.record["parameters"] | {"scale": scale})
    )
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
    page.write(results, out)
    return folder, out


def test_the_page_stands_alone(written):
    folder, out = written
    text = out.read_text()
    page = Page(text)
    assert page.open == []
    assert "<script" not in text and "http" not in text.replace("https", "http").replace("http-equiv", "")
    assert page.images and all(image.startswith("data:image/png;base64,") for image in page.images)
    linked = {(out.parent / link).resolve() for link in page.links}
    assert {folder.resolve(), PUBLISHED / FIRST} <= linked
    assert all(path.is_dir() for path in linked)


def test_the_page_has_every_claim_with_its_verdict_in_words_and_whose_it_is(written):
    folder, out = written
    rows = re.findall(r"<b>(\w+)</b></td>.*?class=\"verdict \w+\">. ([a-z ]+)</span><br><small>(\w+)<", out.read_text())
    both = {"published": publish.published_runs(store.project_folder()), "yours": {FIRST: folder}}
    ledgers = {whose: claims.ledger(runs) for whose, runs in both.items()}
    said = {(row.id, row.verdict, whose) for whose, table in ledgers.items() for row in table.itertuples() if row.run}
    assert set(rows) == said and len(rows) == len(said)
    assert {whose for _, _, whose in rows} == {"published", "yours"}


def test_the_page_marks_what_is_recalled(written):
    text = written[1].read_text()
    told = [value for row in claims.BOOK["paper"]["rows"] for value in row[4:]]
    assert text.count("<small>as recalled</small>") == sum(value.endswith("?") for value in told) > 30
    alone = page.page({"published": {FIRST: PUBLISHED / FIRST}}, PUBLISHED)
    assert "No detector runs to set beside them yet" in alone


def test_the_newest_complete_run_of_the_scale_is_yours_and_what_is_published_stays(tmp_path):
    run_folder(tmp_path, name="20260101T000000-000-abcdef0")
    new = run_folder(tmp_path, name="20260102T000000-000-abcdef0")
    run_folder(tmp_path, name="20260103T000000-000-abcdef0", status="running")
    small = run_folder(tmp_path, name="20260104T000000-000-abcdef0", scale="smoke")
    shutil.copytree(new, tmp_path / "published" / FIRST)
    published = publish.published_runs(store.project_folder())
    assert page.sources(tmp_path) == {"published": published, "yours": {FIRST: new}}
    assert page.sources(tmp_path, "smoke")["yours"] == {FIRST: small}
    assert page.sources(tmp_path, "paper") == {"published": published}  # none of that scale here


def test_a_claim_without_any_run_is_not_tested_once():
    table = page.ledger({"published": {}, "yours": {FIRST: PUBLISHED / FIRST}})
    verdicts = table.groupby("id")[["whose", "verdict"]].apply(lambda rows: rows.to_numpy().tolist())
    assert verdicts.Z1 == [["published", claims.UNTESTED]]
    assert verdicts.G3 == [["published", claims.UNTESTED], ["yours", claims.HOLDS]]


def test_your_figure_is_shown_and_else_the_published(written):
    _, out = written
    captions = re.findall(r"\((\w+), (\w+)\)</figcaption>", out.read_text())
    assert (FIRST, "yours") in captions and (FIRST, "published") not in captions
    assert ("02_loss_landscape", "published") in captions


def test_detector_runs_are_tabled_beside_the_papers(tmp_path):
    from test_claims import detectors

    runs = detectors(0.05).assign(dataset="voc2007")
    found = {"published": publish.published_runs(store.project_folder()), "yours": detector_run(tmp_path, runs)}
    text = page.page(found, tmp_path)
    assert "<h4>voc, yolov3 (yours)</h4>" in text
    mean = detectors(0.05).query("loss == 'giou'").AP.mean()
    (row,) = re.findall(r"YOLOv3, VOC 2007</td><td>GIoU</td>(.*?)</tr>", text)
    assert row.startswith(f'<td class="number">.477 <small>as recalled</small></td><td class="number">{mean:.3f}</td>')
    assert row.endswith('<td class="number">5 yours</td>')
    assert re.search(r"<td>GIoU</td><td>ℓ2</td><td>\+0\.0\d\d \(.*?\) better</td>", text)
    Page(text)


def test_a_few_runs_of_yours_leave_the_published_detectors_as_they_are(tmp_path):
    from test_claims import detectors

    published = publish.published_runs(store.project_folder())
    runs = detectors(0.05, n=1).replace({"loss": {"iou": "gone"}})  # a loss that cannot be imported
    found = {
        "published": published,
        "yours": detector_run(tmp_path, runs.assign(setting="yours alone", dataset="bccd")),
    }
    text, alone = page.page(found, tmp_path), page.page({"published": published}, tmp_path)
    told = re.findall(r"<h4>(.*?) \(published\)</h4>(.*?)<h", alone)
    assert told and all(f"<h4>{name} (published)</h4>{tables}" in text for name, tables in told)
    (row,) = re.findall(r"<td>AP, yours alone; 1 paired seeds</td>.*?</tr>", text)
    assert "gone 0." in row and "too few seeds." in row and not re.search("better|worse", row)
    assert text.count("Seeds 5 to 9 were added") == 1  # a remark on the published runs is not one on yours


def detector_run(place, runs):
    """A run of 06 with the table of detector runs: notebook → folder."""
    folder = place / "06_compare_losses" / "20260101T000000-000-abcdef0"
    shutil.copytree(PUBLISHED / FIRST, folder)
    run = store.Run(folder)
    run._write_record(run.record | dict(notebook="06_compare_losses"))
    runs.to_csv(folder / "detectors.csv", index=False)
    return {"06_compare_losses": folder}


@pytest.fixture
def project(tmp_path):
    """A project with one published run, a README with marks, and an empty ledger."""
    shutil.copytree(PUBLISHED / FIRST, tmp_path / "results" / "published" / FIRST)
    marks = publish.BEGIN + publish.END + "between\n" + "".join(publish.LEDGER)
    (tmp_path / "README.md").write_text(f"first\n{marks}last\n")
    return tmp_path


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_command_writes_the_page_and_nothing_else(project, monkeypatch, capsys):
    monkeypatch.setattr(store, "project_folder", lambda: project)
    before, page = files(project), project / "results" / "report.html"
    assert main(["report"]) == 0
    after = files(project)
    assert after.pop(page) and after == before
    assert str(page) in capsys.readouterr().out


def test_publishing_nothing_renews_what_is_made_of_the_published_runs(project, monkeypatch, capsys):
    monkeypatch.setattr(store, "project_folder", lambda: project)
    assert main(["publish"]) == 0
    table = pd.read_csv(project / "results" / "published" / "claims.csv")
    assert list(table) == claims.COLUMNS
    assert table.set_index("id").verdict.G3 == claims.HOLDS
    readme = (project / "README.md").read_text()
    assert readme.startswith("first\n") and "between" in readme and readme.endswith("last\n")
    assert "| G3 | 1 − GIoU is a metric: no detour over a third box is shorter. | **holds** |" in readme
    assert "README.md" in capsys.readouterr().out
    first = files(project)
    publish.renew(project)
    assert files(project) == first


def test_no_runs_at_all_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "project_folder", lambda: tmp_path)
    assert main(["report", "--results", str(tmp_path / "results")]) == 2
    assert "make some: giou-repro run 01_metric" in capsys.readouterr().err
    assert main(["publish"]) == 2
    assert "nothing is published" in capsys.readouterr().err


@pytest.mark.parametrize(("place", "found"), [("elsewhere/07_report/a-run", "elsewhere"), ("myrun", "results")])
def test_yours_are_around_the_page_or_the_projects(project, tmp_path, monkeypatch, place, found):
    monkeypatch.setattr(store, "project_folder", lambda: project)
    mine = {name: run_folder(tmp_path / name) for name in ("elsewhere", "results")}
    assert page.write(None, tmp_path / place / "report.html")["yours"] == {FIRST: mine[found]}


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
    run._write_record(run.record | dict(parameters=before | {"losses": ["iou"]}))
    assert {row[4] for row in verify.compare(PUBLISHED / FIRST, folder)} == {verify.SKIPPED}


@pytest.mark.parametrize(("moved", "status"), [(0, 0), (0.5, 1)])
def test_the_command_runs_what_is_published_again(project, tmp_path, monkeypatch, capsys, moved, status):
    """The runs themselves are tested with the runner: here one is handed over, with what it was asked for."""
    asked = []

    def rerun(name, given, results, progress):
        asked.append((name, given))
        table = pd.read_csv(run_folder(tmp_path / "again", name) / "rank_correlation.csv").assign(
            spearman=lambda t: t.spearman - moved
        )
        table.to_csv(tmp_path / "again" / name / "20260101T000000-000-abcdef0" / "rank_correlation.csv", index=False)
        return store.Run(tmp_path / "again" / name / "20260101T000000-000-abcdef0")

    monkeypatch.setattr(runner, "run_notebook", rerun)
    monkeypatch.setattr(store, "project_folder", lambda: project)
    publish.renew(project)
    assert main(["verify", "--scale", "laptop"]) == status
    assert asked == [(FIRST, {"scale": "laptop"})]
    out = capsys.readouterr().out
    assert ("NO" in out) == bool(moved)
    assert "claims.csv, from the published tables" in out


def test_verify_tells_a_ledger_that_is_not_what_the_tables_say(project):
    publish.renew(project)
    path = project / "results" / "published" / "claims.csv"
    runs = publish.published_runs(project)
    assert verify._claims(project, runs)[-1] == verify.YES
    path.write_text(path.read_text().replace(",holds,", ",does not hold,", 1))
    assert verify._claims(project, runs)[-1] == verify.NO


def test_the_notebook_writes_the_same_page(tmp_path):
    run_folder(tmp_path)
    run = runner.run_notebook("07_report", dict(scale="laptop"), tmp_path, progress=False)
    assert {"report.html", "claims.csv", "notebook.html"} <= set(run.record["outputs"])
    found = page.sources(tmp_path)
    assert (run.folder / "report.html").read_text() == page.page(found, run.folder)
    table = pd.read_csv(run.folder / "claims.csv")
    columns = ["whose", "id", "verdict"]
    assert table[columns].to_numpy().tolist() == page.ledger(found)[columns].to_numpy().tolist()
