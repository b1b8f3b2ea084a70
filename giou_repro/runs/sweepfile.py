"""The file of a sweep: its schema, and the cells, one a run, that its jobs stand for."""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from giou_repro.runs import parameters
from giou_repro.runs.parameters import Seed
from giou_repro.spelling import unknown

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: 1e-3 is one, which PyYAML takes for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _seconds(value):
    """The seconds in 90, "90s", "30m", "12h" or "2d"."""
    written = re.fullmatch(r"([\d.]+)([smhd]?)", str(value))
    if not written:
        raise ValueError(f"{value!r} is not a time; write 90s, 30m, 12h or 2d")
    return float(written[1]) * UNITS[written[2]]


def _listed(value):
    return [value] if isinstance(value, str | dict) else value


Seconds = Annotated[PositiveFloat, BeforeValidator(_seconds)]


class Job(BaseModel, extra="forbid", frozen=True):
    """Notebooks × parameters × grid × seeds. ``after: all`` starts when every run of the jobs above has ended, and
    reads their results."""

    notebooks: Annotated[list[str], Field(min_length=1), BeforeValidator(_listed)]
    parameters: Annotated[list[dict[str, Any]], Field(min_length=1), BeforeValidator(_listed)] = [{}]
    grid: dict[str, Annotated[list, Field(min_length=1)]] = {}
    seeds: Annotated[list[Seed], Field(min_length=1)] | None = None
    scale: str | None = None
    after: Literal["all"] | None = None
    gpus: Literal[0, 1] = 0


class SweepFile(BaseModel, extra="forbid", frozen=True):
    """A sweep file: its jobs in order, and what holds for all of them. `cluster` are options for dask-jobqueue."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    jobs: Annotated[list[Job], Field(min_length=1)]
    scale: str | None = None
    timeout: Seconds | None = None
    run_timeout: Seconds | None = None
    retries: NonNegativeInt = 2
    workers: PositiveInt | None = None
    cluster: dict[str, Any] = {}


def read(path: str | Path, workers: int | None = None) -> SweepFile:
    """The SweepFile at `path`, named after the file where it gives no name; `workers` replaces the file's. Raises
    ValueError, naming the wrong key."""
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if not isinstance(content, dict):
            raise ValueError("a sweep file has keys, at least jobs; see docs/sweeps.md")
        content = {"name": path.stem} | {str(key): value for key, value in content.items()}
        return SweepFile(**content | ({} if workers is None else {"workers": workers}))
    except ValidationError as error:
        raise ValueError(f"{path}: " + "; ".join(_problem(problem) for problem in error.errors())) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def _problem(problem):
    """One of pydantic's errors, as "jobs[1].seeds: …"."""
    *place, name = problem["loc"]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])[1:]
    if problem["type"] == "extra_forbidden":
        return f"{key}: {unknown('key', name, (Job if place else SweepFile).model_fields)}"
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}"


@dataclass(frozen=True, eq=False)
class Cell:
    """One run: the notebook's path, the caller's and all parameters, how many GPUs, and its stage (0, 1, … from
    ``after: all``)."""

    notebook: Path
    given: dict
    parameters: dict
    gpus: int
    stage: int

    @property
    def label(self) -> str:
        """The caller's parameters as text."""
        return " ".join(f"{name}={value}" for name, value in self.given.items() if name != "results")


def expand(
    file: SweepFile, scale: str | None = None, losses: list[str] | None = None, results: str | Path | None = None
) -> list[Cell]:
    """The cells of a SweepFile in their order, seeds outermost, so that what is done early is paired; each only once.

    `scale` and `losses` replace the file's; a grid over ``loss`` runs over `losses`. Where a notebook has a parameter
    ``results``, it is the folder `results`. Raises ValueError, naming the job, where a notebook or parameter does not
    exist or has the wrong type.
    """
    cells, stage = {}, 0
    for number, job in enumerate(file.jobs):
        stage += bool(job.after)
        defaults = dict(scale=job.scale or file.scale, results=results and str(results))
        for name in job.notebooks:
            try:
                path = parameters.find_notebook(name)
                declared = parameters.declared(path)
                known, overrides = (
                    {name: value for name, value in values.items() if name in declared and value is not None}
                    for values in (defaults, dict(scale=scale, losses=losses))
                )
                for combination in _combinations(job, losses):
                    given = parameters.check(declared, known | combination | overrides)
                    cell = Cell(path, given, parameters.resolved(declared, given), job.gpus, stage)
                    cells.setdefault((stage, path, json.dumps(cell.parameters)), cell)
            except (FileNotFoundError, ValueError) as error:
                raise ValueError(f"jobs[{number}], {name}: {error}") from None
    if losses and not any({"loss", "losses"} & set(cell.given) for cell in cells.values()):
        raise ValueError("losses were given, but no job of this sweep has a parameter loss or losses")
    return list(cells.values())


def _combinations(job, losses):
    grid = job.grid | ({"loss": losses} if losses and "loss" in job.grid else {})
    axes = [[{"seed": seed} for seed in job.seeds] if job.seeds else [{}], job.parameters]
    axes += [[{name: value} for value in values] for name, values in grid.items()]
    for parts in itertools.product(*axes):
        pairs = [pair for part in parts for pair in part.items()]
        combination = dict(pairs)
        if len(combination) < len(pairs):
            twice = sorted({name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1})
            raise ValueError(f"{', '.join(twice)} is set twice, in two of parameters, grid and seeds")
        yield combination
