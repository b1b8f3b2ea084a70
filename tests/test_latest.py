"""results/latest.html leads to the newest complete run of every notebook."""

from bs4 import BeautifulSoup

from giou_repro.runs import store


def made(results, notebook, status="complete", names=()):
    run = store.open_run(notebook, results / notebook, {"scale": "smoke", "seed": 3})
    for name in names:
        run.save(name, "text")
    run.close(status)
    return run.folder


def test_it_links_the_newest_complete_run_and_its_pages(tmp_path):
    made(tmp_path, "01_metric")
    new = made(tmp_path, "01_metric", names=["notebook.html"])
    made(tmp_path, "01_metric", "failed")
    report = made(tmp_path, "07_report", names=["notebook.html", "report.html"])
    soup = BeautifulSoup((tmp_path / "latest.html").read_text(), "html.parser")
    assert [item.b.text for item in soup.find_all("li")] == ["01_metric", "07_report"]
    assert "scale smoke, seed 3" in soup.li.text
    targets = [(tmp_path / link["href"]).resolve() for link in soup.find_all("a")]
    assert targets == [new / "notebook.html", new, report / "notebook.html", report / "report.html", report]


def test_a_run_in_a_folder_of_its_own_writes_nothing_beside_it(tmp_path):
    store.start("01_metric", tmp_path / "mine" / "run", {}).close("complete")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_page_that_cannot_be_written_leaves_the_run_complete(tmp_path):
    (tmp_path / "latest.html").mkdir()
    assert store.Run(made(tmp_path, "01_metric")).complete
