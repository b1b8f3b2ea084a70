"""Parameters: how a notebook declares them, and that wrong values are refused before work starts, in JupyterLab as on
the command line."""

import json

import pytest
from IPython.core.interactiveshell import InteractiveShell

from giou_repro.runs import parameters, store
from giou_repro.training.config import DECLARED, LEARNING_RATES, SCALES


def notebook(folder, *lines):
    path = folder / "small.ipynb"
    cell = dict(cell_type="code", metadata=dict(tags=["parameters"]), source="\n".join(lines))
    path.write_text(json.dumps(dict(cells=[cell])))
    return path


@pytest.mark.parametrize(
    ("line", "right", "wrong"),
    [
        ("x = 0  # type: Seed", [0, 2**63 - 1], [-1, 2**63, True]),
        ("x = 9  # type: AtLeast[3]", [3], [2, 3.0]),
        ("x = None  # type: AtLeast[3]", [None, 3], [2]),
        ("x = 64  # type: ImageSize", [64, 416], [32, 100]),
        ("x = 0.5  # type: Share", [0, 0.99], [1.0, -0.1]),
        ("x = 1.0  # type: PositiveFloat", [2, 0.1], [0.0, float("inf")]),
        ('x = "a"  # type: Literal["a","b"]', ["b"], ["c"]),
        ('x = ["a"]  # type: list[Literal["a", "b c"]] with spaces', [["b c"]], [["c"]]),
        ("x: int | None = 1  # an annotation", [2, None], ["2"]),
        ("x = [1]  # type: list[int|None]", [[1, None]], [[], [1.5], 1]),
        ('x = "auto"  # without a type: that of the value', ["cpu"], [1]),
        ("x = [\n    1,  # an entry\n]  # type: list[int] over several lines", [[2]], [["a"]]),
    ],
)
def test_types(tmp_path, line, right, wrong):
    declared = parameters.declared(notebook(tmp_path, line))
    for value in right:
        assert parameters.check(declared, dict(x=value)) == dict(x=value)
    for value in wrong:
        with pytest.raises(parameters.ParameterError, match="parameter 'x' is"):
            parameters.check(declared, dict(x=value))


@pytest.mark.parametrize(
    "line",
    [
        "x = 1  # type: open('made','w')",
        "x = 1  # type: list[open('made','w')]",
        "x = 1  # type: AtLeast[open('made','w')]",
        "x = open('made', 'w')  # type: int",
        "x = 1  # type: complex",
        "x = 1  # type: int|",
        "x = None  # type: Literal[[1]]",
        "x: complex = 1",
    ],
)
def test_nothing_in_a_notebook_is_evaluated_when_it_is_listed(tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(parameters.ParameterError, match=r"small\.ipynb: parameter 'x' cannot be read from"):
        parameters.declared(notebook(tmp_path, line))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("01_metric", dict(n_pairs=50)),
        ("01_metric", dict(seed=2**64)),
        ("02_loss_landscape", dict(n_places=0)),
        ("02_loss_landscape", dict(n_pairs=999)),
        ("02_loss_landscape", dict(grid=2)),
        ("03_simulation", dict(step_sizes=[])),
        ("05_train_detector", dict(image_size=100)),
        ("05_train_detector", dict(warmup=1.0)),
        ("07_report", dict(scale="large")),
    ],
)
def test_both_ways_refuse_in_the_same_words(name, wrong, tmp_path, monkeypatch):
    with pytest.raises(parameters.ParameterError) as headless:
        parameters.check(parameters.declared(parameters.find_notebook(name)), wrong)
    with pytest.raises(parameters.ParameterError) as in_jupyterlab:
        parameters.check_notebook(name, wrong | dict(run_dir=None, another=1))
    assert str(in_jupyterlab.value) == str(headless.value)
    assert next(iter(wrong)) in str(headless.value)


@pytest.mark.parametrize(
    "path", sorted((store.project_folder() / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_a_wrong_value_ends_the_set_up_cell_before_there_is_a_run(path, tmp_path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    shell = InteractiveShell.instance()
    try:
        shell.run_cell(
            "".join(cells[1]["source"]) + f"\nscale = 'large'\nrun_dir = {str(tmp_path / 'run')!r}"
        ).raise_error()
        with pytest.raises(
            parameters.ParameterError,
            match="parameter 'scale' is 'large', but input should be 'smoke', 'laptop' or 'paper'",
        ):
            shell.run_cell("".join(cells[2]["source"])).raise_error()
    finally:
        InteractiveShell.clear_instance()
    assert not (tmp_path / "run").exists()


def test_what_a_training_says_of_its_defaults_is_what_they_are():
    for name in SCALES["paper"]:
        for budget in SCALES.values():
            assert f"{budget[name]:,}" in DECLARED[name].help
    for rate in LEARNING_RATES.values():
        assert f"{rate:g}" in DECLARED["learning_rate"].help
