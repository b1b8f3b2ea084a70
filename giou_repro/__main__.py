"""The command line: giou-repro run | train | sweep | predict | evaluate | compare | check | losses | data | publish |
report | verify | doctor; each has --help. A command raises what is wrong; `main` prints it."""

import argparse
import ast
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

from giou_repro.runs import parameters, store
from giou_repro.spelling import listed

COMMANDS = {}  # words → (function, its arguments)
SCALES = ("smoke", "laptop", "paper")
TRAINING = "05_train_detector"
EXTRAS = {"run": "notebooks", "sweep": "sweeps"}  # that a command needs; others need all
EXTRAS |= dict.fromkeys(("train", "data", "predict", "evaluate", "compare", "check"), "detection")
TRAINING_HELP = """What notebook 05_train_detector runs. Killed, the same command goes on from its checkpoint.
Resized images are kept in data/cache, or in $GIOU_REPRO_CACHE.
Several GPUs: torchrun --nproc-per-node 2 --max-restarts 3 -m giou_repro train …"""


def main(arguments=None) -> int:
    """Parse the command line and return the exit status: 0, 1 where a run failed, 2 where the command was wrong."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that a run that is ended marks itself failed
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda received, _: sys.exit(128 + received))
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # or every kernel prints a debugger's warning
    os.environ.setdefault("PYTHONUTF8", "1")  # for kernels and workers, whatever the locale
    for stream in (sys.stdout, sys.stderr):
        getattr(stream, "reconfigure", dict)(errors="replace")
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser(training=arguments[:1] == ["train"]).parse_args(arguments)
        return int(options.command(options) or 0)
    except KeyboardInterrupt:
        print("giou-repro: interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, store.RunFailed) as error:
        by_system = isinstance(error, OSError) and error.errno
        reason = store.describe(error, error.filename or "the results") if by_system else error
        if getattr(error, "name", None):  # of a module that is not there
            reason = f"{reason}; {arguments[0]} needs pip install 'giou-repro[{EXTRAS.get(arguments[0], 'all')}]'"
        print(f"giou-repro: {reason}", file=sys.stderr)
        return 1 if store.is_full(error) or isinstance(error, store.RunFailed) else 2


def _parser(training):
    """The parser of all commands; `training` says to read the flags of `train` from the notebook's parameters."""
    parser = argparse.ArgumentParser(prog="giou-repro", description="Which box-regression loss to use, measured.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data = commands.add_parser("data", help="check a data set, or fetch one").add_subparsers(
        required=True, metavar="WHAT"
    )
    for words, (function, arguments) in COMMANDS.items():
        parent = data if words.startswith("data ") else commands
        command = parent.add_parser(words.split()[-1], help=function.__doc__, description=function.__doc__)
        command.set_defaults(command=function)
        for names, options in arguments:
            command.add_argument(*names, **options)
    if training:
        flags = commands.choices["train"]
        flags.description = TRAINING_HELP
        for parameter in parameters.declared(parameters.find_notebook(TRAINING)).values():
            if parameter.name != "run_dir":
                text = f"{parameter.help} ({json.dumps(parameter.default)})".replace("%", "%%")
                flags.add_argument(f"--{parameter.name.replace('_', '-')}", metavar="VALUE", help=text)
    return parser


def argument(*names, **options):
    """What argparse's add_argument takes."""
    return names, options


def command(words, *arguments):
    """Make a function a command; its docstring is the command's help."""

    def add(function):
        COMMANDS[words] = function, arguments
        return function

    return add


def _results(options):
    return Path(options.results or store.project_folder() / "results")


RESULTS = argument("--results", metavar="FOLDER", help="where run folders are; the project's results/ by default")
LOSSES = argument("--losses", type=listed, help="comma-separated, your own as my_module:mine")
PARAMETER = argument(
    *("-p", "--parameter"),
    nargs=2,
    action="append",
    default=[],
    metavar=("NAME", "VALUE"),
    help="a notebook's parameter; VALUE as JSON, or plain text",
)


@command(
    "run",
    argument("notebooks", nargs="+", metavar="NOTEBOOK", help="its name, as 03_simulation, or a path"),
    argument("--scale", help="smoke (seconds), laptop (minutes on 2 cores) or paper (the paper's size)"),
    argument("--seed", help="a whole number"),
    *(LOSSES, PARAMETER, RESULTS),
    argument("--parameters", action="store_true", help="list the notebooks' parameters and stop"),
)
def _run(options):
    """run notebooks, headless, into new folders under results/"""
    paths = [parameters.find_notebook(name) for name in options.notebooks]
    if options.parameters:
        for path in paths:
            print(path.stem)
            for parameter in parameters.declared(path).values():
                print(f"  {parameter.name:<16} {parameter.default!r:<12} {parameter.help}")
        return
    checked = [_given(path, options, ("scale", "seed")) for path in paths]  # all, before the first runs
    from giou_repro.runs import runner

    for run in [runner.run_notebook(path, given, options.results) for path, given in zip(paths, checked, strict=True)]:
        _print_outputs(run)


def _given(path, options, flags):
    """The parameters of a command line for the notebook at a path, checked; `flags` are those with a flag of their own.

    Text parameters stay text, the others are read as JSON or as Python writes it.
    """
    declared = parameters.declared(path)
    given = {"losses": options.losses} if getattr(options, "losses", None) else {}
    for name, text in [*((name, getattr(options, name, None)) for name in flags), *options.parameter]:
        if text is not None:
            given[name] = text
            if name not in declared or declared[name].type is not str:
                with suppress(ValueError, SyntaxError):
                    given[name] = ast.literal_eval(text)
                with suppress(ValueError):
                    given[name] = json.loads(text)
    given = parameters.check(declared, given)
    _check_data(parameters.resolved(declared, given))
    if given.get("results") not in (None, options.results) and not Path(given["results"]).is_dir():
        raise FileNotFoundError(f"parameter 'results': there is no folder {given['results']}")
    return given


def _check_data(values):
    """Raise OSError or ValueError where the data set of resolved parameters, or a split that they name, is missing."""
    if {"dataset", "train_split", "val_split"} <= set(values):
        from giou_repro.data import datasets  # in the function, because it brings torch

        datasets.check_splits(values["dataset"], values["train_split"], values["val_split"])


def _print_outputs(run):
    record = run.record
    print(f"\n{record['notebook']}: {record['status']} in {record['wall_seconds']:.0f} s, in {run.folder}")
    for kind, suffix in (("page", ".html"), ("figures", ".png"), ("tables", ".csv")):
        print(f"  {kind:<8} {'  '.join(name for name in record['outputs'] if name.endswith(suffix))}")


@command("train", PARAMETER, RESULTS)
def _train(options):
    """train one detector, without a kernel"""
    from giou_repro.experiments import detector
    from giou_repro.training import loop, ranks  # in the function, because they need the extra `detection`

    path = parameters.find_notebook(TRAINING)
    declared = parameters.declared(path)
    given = _given(path, options, declared)
    values = parameters.resolved(declared, given)
    config = loop.configure(**{name: value for name, value in values.items() if name != "run_dir"})
    sets = loop.open_sets(config)  # what cannot be trained on is refused before anything is written
    rank, world = ranks.join()
    folder = _results(options) / path.stem
    run = store.open_run(path, folder, values, given, runner=True, resume=True) if rank == 0 else None
    if ranks.broadcast(run and run.complete, world):
        return run and print(f"this run is complete already, in {run.folder}")
    with store.ending(run):
        if run:
            print(f"{path.stem} in {run.folder}", flush=True)
            run.update(parameters=config.model_dump(), declared_outputs=loop.OUTPUTS)
        trained = loop.train(config, run, sets)
        if run:
            trained.save(run)
            run.save_figure("curves", detector.plot_curves(trained.curves, trained.loss))
            run.save_figure("detections", detector.plot_detections(trained.val, trained.detections, trained.names))
            run.save_figure("thresholds", detector.plot_thresholds(trained.thresholds))
    if run:
        print(detector.describe_training(trained.evaluation.iloc[0], trained.curves).replace("**", "").replace("`", ""))
        _print_outputs(run)


@command(
    "sweep",
    argument("file", metavar="FILE", help="as sweeps/reproduce.yaml; docs/sweeps.md says what it may hold"),
    argument("--workers", type=int, metavar="N", help="runs at a time; one a core by default, 8 jobs on a cluster"),
    argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster that runs, as tcp://host:8786"),
    argument("--cluster", choices=("slurm", "pbs", "lsf"), help="start the workers as jobs, by the file's cluster:"),
    argument("--scale", help="smoke, laptop or paper, instead of the file's"),
    *(LOSSES, RESULTS),
    argument("--dry-run", action="store_true", help="list the runs, and which are complete already, and stop"),
)
def _sweep(options):
    """run many runs from a file, on this machine or a cluster; the same command runs what is left over"""
    from giou_repro.runs import places, sweep, sweepfile

    results = _results(options)
    file = sweepfile.read(options.file, workers=options.workers)
    cells = sweepfile.expand(file, options.scale, options.losses, options.results)
    if options.dry_run:
        return print(sweep.report(sweep.planned(cells, results)))
    for cell in cells:
        _check_data(cell.parameters)
    path = sweep.table_path(file, results)  # what cannot be written is told before anything starts
    with places.connect(file, cells, options.scheduler, options.cluster) as place:
        rows = sweep.run(file, cells, results, place)
    print(f"{sweep.report(rows)}\ntable in {path}")
    for page in [Path(folder, "report.html") for folder in rows.run if folder]:
        if page.is_file():
            print(f"the report: {page.resolve().as_uri()}")
    return 0 if rows.status.isin(["ran", "complete already"]).all() else 1


@command(
    "predict",
    argument("run", metavar="RUN", help="the folder of a training, as results/05_train_detector/…"),
    argument("images", nargs="+", metavar="IMAGE", help="images, or folders of images"),
    argument("--out", metavar="FOLDER", help="where the files go; results/predictions/ and the run's name by default"),
    argument("--score", type=float, default=0.3, help="boxes below it are not drawn, but written; 0.3 by default"),
    argument("--truth", metavar="FILE", help="COCO annotations of the images, whose ids the results take"),
    argument("--no-pictures", action="store_true", help="write the boxes alone"),
)
def _predict(options):
    """find objects by a trained run: a picture of each image with its boxes, and detections.json in COCO's format"""
    from giou_repro.experiments import detector
    from giou_repro.training import predict

    out = Path(options.out or store.project_folder() / "results" / "predictions" / Path(options.run).resolve().name)
    found = predict.predict(options.run, options.images, options.truth)
    boxes, images = detector.save_found(found, out, None if options.no_pictures else options.score)
    print(f"{boxes} boxes in {images} images, in {out}")
    return 0 if images else 1


@command(
    "evaluate",
    argument("truth", metavar="TRUTH", help="a COCO annotation file"),
    argument("detections", metavar="DETECTIONS", help="a COCO results file, of any framework"),
    argument("--per-class", action="store_true", help="the AP of each class, too"),
)
def _evaluate(options):
    """AP of detections by the rules of COCO, VOC 2007 and VOC 2010, by IoU and GIoU, and what makes the difference"""
    from giou_repro.training import evaluate_files

    print(evaluate_files.report(options.truth, options.detections, options.per_class))


@command(
    "compare",
    argument("runs", metavar="RUNS.csv", help="a row a run: loss, seed, and a column a measure, higher being better"),
    argument("--against", metavar="LOSS", help="compare with this one; the first of the table by default"),
    argument("--measures", type=listed, help="comma-separated; all other columns of numbers by default"),
    argument("--fresh-images", action="store_true", help="each seed had test images of its own, drawn anew"),
)
def _compare(options):
    """which loss is better in a table of runs, seed by seed, and the least gain that so many seeds can show"""
    from giou_repro.experiments import runs_table

    chosen = (options.runs, options.against, options.measures)
    print(runs_table.describe(runs_table.compare(*chosen, unpaired=not options.fresh_images)))


@command(
    "check",
    argument("loss", metavar="LOSS", help="your own as my_module:mine, or a name"),
    argument("--like", metavar="LOSS", help="say at which weight its gradient is as large as that of this loss"),
    argument("--run", metavar="RUN", help="the training whose model and validation images --like takes"),
)
def _check(options):
    """is a loss safe to train with? Finite, differentiable, symmetric, flat somewhere? A verdict a line, and exit
    status 1 where one fails"""
    from giou_repro import registry
    from giou_repro.experiments import loss_check

    if bool(options.like) != bool(options.run):
        raise ValueError("--like LOSS and --run RUN go together: gradients are compared on the positives of a training")
    name, like = (text and registry.select(text)[0] for text in (options.loss, options.like))
    table = loss_check.check(name)
    print(f"{loss_check.text(table)}\n{registry.label(name)}: {loss_check.describe(table)}")
    if like:
        from giou_repro.training import equal_gradient

        print(equal_gradient.describe(equal_gradient.compare(options.run, name, like)))
    return bool((table.verdict == "fails").any())


@command("losses", argument("--markdown", action="store_true", help="as the table of LOSSES.md"))
def _losses(options):
    """list the losses: formula, range, space, paper"""
    from giou_repro.registry import table

    print(table(markdown=options.markdown), end="")


@command(
    "data check",
    argument("path", metavar="PATH", help="a Pascal VOC folder, a COCO JSON or its folder, a YOLO data.yaml, a name"),
    argument("--split", help="one of its splits; all of it by default"),
    argument("--classes", type=listed, help="comma-separated; any other is unknown"),
    argument("--exif", choices=("follow", "ignore"), help="photographs' orientation; else as the annotated sizes are"),
    argument("--background", action="store_true", help="an image without a file of boxes has no objects, and is kept"),
)
def _data_check(options):
    """list every defect of a data set, and what is done about each; exit status 1 where something is lost, 3 where all
    is kept or converted"""
    from giou_repro.data.report import report

    classes = options.classes and tuple(options.classes)
    return report(options.path, options.split, classes, options.exif, options.background)


@command("data download", argument("name", help="voc2007 or voc2012"))
def _data_download(options):
    """fetch Pascal VOC into data/"""
    from giou_repro.data import datasets

    print(datasets.download(options.name))


@command(
    "publish",
    argument(
        "runs",
        nargs="*",
        metavar="RUN_FOLDER",
        help="of committed code, at scale paper; without one, README's tables, claims.csv and the page are renewed",
    ),
)
def _publish(options):
    """copy complete runs to results/published/ and renew what is made of them"""
    from giou_repro.report import publish

    for run in options.runs:
        print(publish.add(run))
    if not options.runs:
        print("\n".join(f"renewed: {path}" for path in publish.renew()))


@command(
    "report",
    RESULTS,
    argument("--out", metavar="FILE", help="the page; report.html in the results folder by default"),
    argument("--scale", choices=SCALES, default="laptop", help="smaller runs do not count; laptop by default"),
)
def _report(options):
    """write the report, one page, from the newest runs and those published"""
    from giou_repro.report import page

    out = Path(options.out or _results(options) / "report.html")
    for whose, runs in page.write(out, _results(options), options.scale).items():
        print("\n".join(f"{whose:<11}{name:<20}{run.folder}" for name, run in runs.items()))
    print(f"the report: {out}")


@command(
    "verify",
    argument("--scale", choices=SCALES, help="smaller samples get wider tolerances; as published by default"),
    RESULTS,
)
def _verify(options):
    """run again what is published and compare; exit status 1 where a number is not what it was"""
    from giou_repro.report import verify

    table = verify.run_again(options.scale, results=options.results)
    print(table.to_string(index=False, na_rep="–", float_format="{:.4g}".format))
    return bool((table.ok == verify.NO).any())


@command("doctor")
def _doctor(options):
    """say what is wrong with the environment, and the remedy"""
    from giou_repro.runs import doctor

    return bool(doctor.report(store.project_folder() / "requirements.lock"))


if __name__ == "__main__":
    sys.exit(main())
