"""The page stands alone and says what the tables say; the published ledger is renewed with it; verify finds numbers
that moved."""

import contextlib
import shutil

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from test_detector_claims import detectors
from test_runner import check_outputs

from giou_repro.__main__ import main
from giou_repro.experiments import comparison
from giou_repro.report import claims, page, publish, verdicts, verify
from giou_repro.runs import runner, store

PUBLISHED = store.project_folder() / "results" / "published"
FIRST = "01_metric"


def copied_run(results, notebook=FIRST, scale="laptop", status="complete", name="20260101T000000-000-abcdef0"):
    """A run with the published tables and figures of a notebook."""
    shutil.copytree(PUBLISHED / notebook, results / notebook / name)
    run = store.Run(results / notebook / name)
    run._write_record(
        run.record | dict(status=status, run=name, parameters=run.record["parameters"] | {"scale": scale})
    )
    return run


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run of the reader's, and the page that the command writes of it."""
    results = tmp_path_factory.mktemp("project") / "results"
    run, out = copied_run(results), results / "pages" / "report.html"
    before = files(results)
    assert main(["report", "--results", str(results), "--out", str(out)]) == 0
    after = files(results)
    assert after.pop(out) and after == before  # nothing else is written
    return run, out, BeautifulSoup(out.read_text(), "html.parser")


def test_the_page_stands_alone(written):
    run, out, soup = written
    namespace = "http://www.w3.org/1998/Math/MathML"  # a name, which no browser asks for
    assert "<script" not in out.read_text() and "http" not in out.read_text().replace(namespace, "")
    images = soup.find_all("img")
    assert images and all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in images)
    linked = {(out.parent / link["href"]).resolve() for link in soup.select('a:not([href^="#"])')}
    assert {run.folder.resolve(), PUBLISHED / FIRST} <= linked
    assert all(path.is_dir() for path in linked)


def test_the_page_fits_a_phone_and_shows_no_code(written):
    _, out, soup = written
    assert soup.find("meta", attrs={"name": "viewport"})["content"].startswith("width=device-width")
    assert ".output_subarea, .text_cell_render { overflow-x: auto }" in out.read_text()
    boxes = [table.find_parent(class_=["output_subarea", "text_cell_render"]) for table in soup.find_all("table")]
    assert boxes and all(boxes)
    assert "import" not in soup.text and "display(" not in soup.text


def table_rows(soup, first):
    """The rows of the table whose first column has this name."""
    table = next(table for table in soup.find_all("table") if table.find("th").text.strip() == first)
    return [[cell.text.strip() for cell in row.find_all("td")] for row in table.find_all("tr")]


def test_the_page_has_every_claim_with_its_verdict_in_words_and_whose_it_is(written):
    run, _, soup = written
    both = {"published": publish.published_runs(store.project_folder()), "yours": {FIRST: run}}
    ledgers = {whose: claims.ledger(runs) for whose, runs in both.items()}
    expected = [(row.id, row.verdict, whose) for whose in both for row in ledgers[whose].itertuples() if row.run]
    shown = [(name, verdict[2:], whose) for name, _, verdict, whose, _ in filter(None, table_rows(soup, "id"))]
    assert sorted(shown) == sorted(expected)
    assert {whose for _, _, whose in shown} == {"published", "yours"}


def test_your_figure_is_shown_and_else_the_published(written):
    captions = [caption.parent.text for caption in written[2].find_all("em")]
    assert any(f"({FIRST}, yours)" in caption for caption in captions)
    assert not any(f"({FIRST}, published)" in caption for caption in captions)
    assert any("(02_loss_landscape, published)" in caption for caption in captions)


def test_the_papers_tables_mark_what_is_recalled():
    table = page.paper_tables({"published": publish.published_runs(store.project_folder())}).set_index(
        ["table", "loss"]
    )
    assert (table.AP["1", "ℓ2"], table.AP["1", "GIoU"]) == (".461", ".477 as recalled")
    marked = table.apply(lambda column: column.astype(str).str.endswith(" as recalled")).to_numpy().sum()
    assert marked == sum(value.endswith("?") for row in claims.BOOK["paper"]["rows"] for value in row[4:]) > 30
    alone = page.paper_tables({"published": {FIRST: store.Run(PUBLISHED / FIRST)}})
    assert set(alone.n) == {"–"} and alone["AP, measured"].isna().all()


def test_a_table_escapes_text_and_marks_verdicts_in_words():
    table = pd.DataFrame(
        dict(words=["<b>"], verdict=[verdicts.FAILS], run=['<a href="x">y</a>'], n=[1000], low=[2.5e-5])
    )
    soup = BeautifulSoup(page.styled(table).to_html(), "html.parser")
    assert [cell.text for cell in soup.find_all("td")] == ["<b>", f"✘ {verdicts.FAILS}", "y", "1,000", "2.5e-05"]


def test_the_newest_complete_run_of_the_scale_is_yours_and_what_is_published_stays(tmp_path):
    copied_run(tmp_path, name="20260101T000000-000-abcdef0")
    new = copied_run(tmp_path, name="20260102T000000-000-abcdef0")
    copied_run(tmp_path, name="20260103T000000-000-abcdef0", status="running")
    small = copied_run(tmp_path, name="20260104T000000-000-abcdef0", scale="smoke")
    shutil.copytree(new.folder, tmp_path / "published" / FIRST)

    def folders(scale="laptop"):
        sources = page.sources(tmp_path, scale)
        return {whose: {name: run.folder for name, run in runs.items()} for whose, runs in sources.items()}

    published = {path.parent.name: path.parent for path in PUBLISHED.glob("*/run.json")}
    assert folders() == {"published": published, "yours": {FIRST: new.folder}}
    assert folders("smoke")["yours"] == {FIRST: small.folder}
    assert folders("paper") == {"published": published}  # none of that scale here


def test_a_claim_without_any_run_is_not_tested_once():
    table = page.ledger({"published": {}, "yours": {FIRST: store.Run(PUBLISHED / FIRST)}})
    by_claim = table.groupby("id")[["whose", "verdict"]].apply(lambda rows: rows.to_numpy().tolist())
    assert by_claim.Z1 == [["published", verdicts.UNTESTED]]
    assert by_claim.G3 == [["published", verdicts.UNTESTED], ["yours", verdicts.HOLDS]]
    two = table[table.id.isin(["G3", "Z1"])]
    counted = page.counted(two).data.to_numpy().tolist()
    assert counted == [["published", "… not tested", "G3, Z1"], ["yours", "✔ holds", "G3"]]


def test_detector_runs_are_tabled_beside_the_papers(tmp_path):
    runs = detectors(0.05, n=6).assign(dataset="voc2007")  # one seed more than are published
    own = detector_run(tmp_path, runs)
    heading, _, _, setting, means, differences = page.reproduced("yours", own)
    assert (heading.data, setting.data.strip()) == ("### Yours", "#### voc, yolov3 (yours)")
    mean = runs.query("loss == 'giou'").AP.mean()
    means = means.data.set_index("loss").loc["GIoU"]
    assert (means.AP, means.weight, means.n) == (f"{mean:.3g}", "1", "6")
    assert differences.data.set_index(["loss", "against"]).AP["GIoU", "ℓ2"].endswith("better")
    sources = {"published": publish.published_runs(store.project_folder()), "yours": own}
    row = page.paper_tables(sources).set_index(["table", "loss"]).loc[("1", "GIoU")]
    assert (row.AP, row["AP, measured"], row.n) == (".477 as recalled", pytest.approx(mean), "6 yours")


def test_a_few_runs_of_yours_say_nothing(tmp_path):
    runs = detectors(0.05, n=1).replace({"loss": {"iou": "gone"}})  # a loss that cannot be imported
    own = detector_run(tmp_path, runs.assign(setting="yours alone", dataset="bccd"))
    heading, means, differences = page.reproduced("yours", own)[3:]
    assert heading.data.strip() == "#### yours alone (yours)"
    assert "gone" in means.data.loss.tolist()
    assert all(cell.endswith("too few seeds") for cell in differences.data.AP)


def detector_run(place, runs):
    """A run of 06 with the table of detector runs, after a run of 01: notebook → Run."""
    folder = place / "06_compare_losses" / "20260101T000000-000-abcdef0"
    shutil.copytree(PUBLISHED / FIRST, folder)
    run = store.Run(folder)
    run._write_record(run.record | dict(notebook="06_compare_losses"))
    runs.to_csv(folder / "detectors.csv", index=False)
    comparison.paired(runs).to_csv(folder / "paired.csv", index=False)
    return {FIRST: store.Run(PUBLISHED / FIRST), "06_compare_losses": run}


@pytest.fixture
def project(tmp_path):
    """A project with one published run, a README with marks, and an empty ledger."""
    shutil.copytree(PUBLISHED / FIRST, tmp_path / "results" / "published" / FIRST)
    (tmp_path / "README.md").write_text(f"first\n{publish.BEGIN}{publish.END}last\n")
    (tmp_path / "docs").mkdir()
    return tmp_path


def test_the_command_writes_into_the_results_folder_by_default(project, monkeypatch, capsys):
    monkeypatch.setattr(store, "project_folder", lambda: project)
    calls = []
    monkeypatch.setattr(page, "write", lambda *arguments: calls.append(arguments) or {})
    results = project / "results"
    assert main(["report"]) == 0
    assert calls == [(results / "report.html", results, "laptop")]
    assert str(results / "report.html") in capsys.readouterr().out


def test_a_sweep_ends_with_the_reports_address(tmp_path, monkeypatch, capsys):
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "report.html").write_text("")
    rows = pd.DataFrame(dict(notebook=["01_metric", "07_report"], run=["", str(tmp_path / "a run")]))
    rows = rows.assign(parameters="", status="ran", seconds=1.0, attempts=1, error="", last_lines="")
    monkeypatch.setattr("giou_repro.runs.places.connect", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("giou_repro.runs.sweep.run", lambda *_: rows)
    file = store.project_folder() / "sweeps" / "reproduce.yaml"
    assert main(["sweep", str(file), "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith(f"the report: {(tmp_path / 'a run' / 'report.html').as_uri()}\n")


def test_publishing_nothing_renews_what_is_made_of_the_published_runs(project, monkeypatch, capsys):
    monkeypatch.setattr(store, "project_folder", lambda: project)
    assert main(["publish"]) == 0
    table = pd.read_csv(project / "results" / "published" / "claims.csv")
    assert list(table) == claims.COLUMNS
    assert table.set_index("id").verdict.G3 == verdicts.HOLDS
    readme = (project / "README.md").read_text()
    assert readme.startswith("first\n") and readme.endswith("last\n") and "IoU: holds.** At ℓ2 distance 7" in readme
    page = (project / "docs" / "claims.md").read_text()
    assert "| [G3](#g3) | 1 − GIoU is a metric: it obeys the triangle inequality. | **holds** |" in page
    assert "\n### G3\n" in page and "(../results/published/01_metric)" in page
    assert "README.md" in capsys.readouterr().out
    first = files(project)
    publish.renew(project)
    assert files(project) == first


def test_no_runs_at_all_are_refused_with_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "project_folder", lambda: tmp_path)
    assert main(["report", "--results", str(tmp_path / "results")]) == 2
    assert "make some: giou-repro run 01_metric" in capsys.readouterr().err
    assert main(["publish"]) == 2
    assert "nothing is published" in capsys.readouterr().err


@pytest.mark.parametrize(("place", "results"), [("elsewhere/07_report/a-run", "elsewhere"), ("myrun", "results")])
def test_yours_are_around_the_run_or_the_projects(tmp_path, monkeypatch, place, results):
    monkeypatch.setattr(store, "project_folder", lambda: tmp_path)
    assert page.results_around(tmp_path / place) == tmp_path / results


def test_verify_takes_an_equal_run_and_finds_a_moved_number(tmp_path):
    now, published = copied_run(tmp_path), store.Run(PUBLISHED / FIRST)
    rows = pd.DataFrame(verify.compare(published, now), columns=verify.COLUMNS)
    assert set(rows.ok) == {verify.YES}
    assert rows.tolerance[0] == 1e-9
    figure = now.table("figure_1")
    figure.loc[2, "iou"] += 1e-6
    figure.to_csv(now.folder / "figure_1.csv", index=False)
    rows = pd.DataFrame(verify.compare(published, now), columns=verify.COLUMNS)
    assert rows.ok.tolist() == [verify.NO] + [verify.YES] * (len(rows) - 1)
    assert "figure_1: iou, at a, 0.65" in rows.what[0]


def test_verify_widens_for_a_smaller_sample_and_leaves_other_parameters(tmp_path):
    run = copied_run(tmp_path)
    before = run.parameters
    headline = next(headline for headline in verify.HEADLINES if headline.table == "rank_correlation")
    assert verify._tolerance(headline, before, before | {"n_pairs": 10_000}) == pytest.approx(2.5 / 100)
    assert verify._tolerance(headline, before, before | {"losses": ["iou"]}) is None
    run._write_record(run.record | dict(parameters=before | {"losses": ["iou"]}))
    assert {row["ok"] for row in verify.compare(store.Run(PUBLISHED / FIRST), run)} == {verify.SKIPPED}


def test_verify_takes_a_smaller_simulation_whose_search_ended_earlier(tmp_path):
    run = copied_run(tmp_path, "03_simulation")
    smaller = {"every_loss": False, "departure_points": 20, "sweep_points": 250}
    run._write_record(run.record | dict(parameters=run.parameters | smaller))
    run.table("step_sizes")[:-1].to_csv(run.folder / "step_sizes.csv", index=False)
    assert {row["ok"] for row in verify.compare(store.Run(PUBLISHED / "03_simulation"), run)} == {verify.YES}


@pytest.mark.parametrize(("moved", "status"), [(0, 0), (0.5, 1)])
def test_the_command_runs_what_is_published_again(project, tmp_path, monkeypatch, capsys, moved, status):
    """The runs themselves are tested with the runner: here one is handed over, and the call is kept."""
    calls = []

    def rerun(name, given, results, progress):
        calls.append((name, given))
        run = copied_run(tmp_path / "again", name)
        table = run.table("rank_correlation").assign(spearman=lambda t: t.spearman - moved)
        table.to_csv(run.folder / "rank_correlation.csv", index=False)
        return run

    monkeypatch.setattr(runner, "run_notebook", rerun)
    monkeypatch.setattr(store, "project_folder", lambda: project)
    publish.renew(project)
    assert main(["verify", "--scale", "laptop"]) == status
    assert calls == [(FIRST, {"scale": "laptop"})]
    out = capsys.readouterr().out
    assert ("NO" in out) == bool(moved)
    assert "claims.csv, from the published tables" in out


def test_verify_finds_a_ledger_that_is_not_what_the_tables_say(project):
    publish.renew(project)
    path = project / "results" / "published" / "claims.csv"
    runs = publish.published_runs(project)
    assert verify._claims(project, runs)["ok"] == verify.YES
    path.write_text(path.read_text().replace(",holds,", ",does not hold,", 1))
    assert verify._claims(project, runs)["ok"] == verify.NO


def test_the_notebook_writes_the_same_page(written, tmp_path):
    copied_run(tmp_path)
    run = runner.run_notebook("07_report", dict(scale="laptop"), tmp_path, progress=False)
    assert {"report.html", "claims.csv", "notebook.html"} <= set(run.record["outputs"])
    check_outputs(run.record)
    soup = BeautifulSoup((run.folder / "report.html").read_text(), "html.parser")
    assert all(table_rows(soup, first) == table_rows(written[2], first) for first in ("situation", "id", "table"))
    links = [(run.folder / link["href"]).resolve() for link in soup.select('a:not([href^="#"])')]
    assert links and all(path.is_dir() for path in links)
    columns = ["whose", "id", "verdict"]
    ledger = page.ledger(page.sources(tmp_path))
    assert run.table("claims")[columns].to_numpy().tolist() == ledger[columns].to_numpy().tolist()


def test_a_run_without_an_executed_copy_has_the_page_of_a_second_run(tmp_path, monkeypatch):
    run = store.start("07_report", tmp_path / "run", dict(scale="laptop"))
    calls = []
    monkeypatch.setattr(page, "write", lambda *arguments: calls.append(arguments))
    page.save(run, "results")
    assert calls == [(run.folder / "report.html", "results", "laptop")]
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title")]), run.folder / "notebook.ipynb"
    )
    page.save(run, "results")
    assert "<h1>Title</h1>" in (run.folder / "report.html").read_text() and len(calls) == 1
