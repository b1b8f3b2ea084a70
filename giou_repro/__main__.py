"""The command line: giou-repro run | train | sweep | losses | data | publish | report | verify | doctor; each has
--help. Thin."""

import argparse
import contextlib
import json
import os
import signal
import sys

TRAIN = {  # the parameters of 05_train_detector that have a flag of their own
    "detector": "yolov3, faster_rcnn, mask_rcnn, retinanet or fcos",
    "dataset": "shapes (generated), a Pascal VOC folder, or a COCO JSON",
    "loss": "a name in LOSSES, or my_module:mine",
    "weight": "of the box loss",
    "scale": "smoke, laptop or paper",
    "seed": "a whole number",
}
TRAIN_HELP = """Killed, the same command goes on from its checkpoint. Resized images are kept in data/cache, or in $GIOU_REPRO_CACHE.
Several GPUs: torchrun --nproc-per-node 2 --max-restarts 3 -m giou_repro train …"""


def main(arguments=None):
    """Parse the command line and return the exit status: 0, 1 where a run failed, 2 where the command was wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that a run that is ended marks itself failed
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        return options.command(options)
    except KeyboardInterrupt:
        print("giou-repro: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        from giou_repro.runs import store

        if not store.is_full(error):
            raise
        print(f"giou-repro: {store.describe(error, error.filename or 'the results')}", file=sys.stderr)
        return 1


def _parser():
    parser = argparse.ArgumentParser(prog="giou-repro", description="Which box-regression loss to use, measured.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", help="run notebooks, headless", description="Run notebooks into fresh folders under results/."
    )
    run.add_argument("notebooks", nargs="+", metavar="NOTEBOOK", help="its name, as 03_simulation, or a path")
    run.add_argument("--scale", help="smoke (seconds), laptop (minutes on 2 cores) or paper (the paper's size)")
    run.add_argument("--seed", help="a whole number")
    run.add_argument("--losses", help="comma-separated, your own as my_module:mine")
    run.add_argument(
        "-p",
        "--parameter",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="VALUE as JSON, or plain text",
    )
    run.add_argument("--results", metavar="FOLDER", help="where run folders go; the project's results/ by default")
    run.add_argument("--parameters", action="store_true", help="list the notebooks' parameters and stop")
    run.set_defaults(command=_run)

    train = commands.add_parser(
        "train",
        help="train one detector, without a kernel",
        description="What notebook 05_train_detector runs. " + TRAIN_HELP,
    )
    for name, text in TRAIN.items():
        train.add_argument(f"--{name}", help=text)
    train.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="any other parameter"
    )
    train.add_argument("--results", metavar="FOLDER", help="where run folders go; the project's results/ by default")
    train.add_argument("--parameters", action="store_true", help="list the parameters and stop")
    train.set_defaults(command=_train, notebooks=["05_train_detector"], losses=None)

    sweep = commands.add_parser(
        "sweep", help="run many runs from a file, on this machine or a cluster; the same command runs what is left over"
    )
    sweep.add_argument("file", metavar="FILE", help="as sweeps/reproduce.yaml; docs/sweeps.md says what it may hold")
    sweep.add_argument(
        "--workers", type=_count, metavar="N", help="runs at a time; one a core by default, 8 jobs on a cluster"
    )
    place = sweep.add_mutually_exclusive_group()
    place.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster that runs, as tcp://host:8786")
    place.add_argument(
        "--cluster",
        choices=("slurm", "pbs", "lsf"),
        help="start the workers as jobs, by the options under cluster: in the file",
    )
    sweep.add_argument("--scale", help="smoke, laptop or paper, instead of the file's")
    sweep.add_argument("--losses", help="comma-separated, your own as my_module:mine, instead of the file's")
    sweep.add_argument("--results", metavar="FOLDER", help="where run folders go; the project's results/ by default")
    sweep.add_argument("--dry-run", action="store_true", help="list the runs, and which are complete already, and stop")
    sweep.set_defaults(command=_sweep)

    losses = commands.add_parser("losses", help="list the losses: formula, range, space, paper")
    losses.add_argument("--markdown", action="store_true", help="as the table of LOSSES.md")
    losses.set_defaults(command=_losses)

    data = commands.add_parser("data", help="check a data set, or fetch one").add_subparsers(
        required=True, metavar="WHAT"
    )
    check = data.add_parser(
        "check", help="list every defect of a data set, and what is done about each; exit status 1 where there is one"
    )
    check.add_argument(
        "path",
        metavar="PATH",
        help="a Pascal VOC folder, a COCO JSON or a folder of such, or a name: voc2007, voc2012, shapes",
    )
    check.add_argument("--split", help="one of its splits; all of it by default")
    check.add_argument("--classes", help="comma-separated; any other is unknown")
    check.set_defaults(command=_data_check)
    download = data.add_parser("download", help="fetch Pascal VOC into data/")
    download.add_argument("name", help="voc2007 or voc2012")
    download.set_defaults(command=_data_download)

    publish = commands.add_parser(
        "publish", help="copy complete runs to results/published/ and renew what is made of them"
    )
    renewed = "without one, the README's tables, claims.csv and the page are renewed alone"
    publish.add_argument("runs", nargs="*", metavar="RUN_FOLDER", help=f"of committed code, at scale paper; {renewed}")
    publish.set_defaults(command=_publish)

    report = commands.add_parser("report", help="write the report, one page, from the newest runs and those published")
    report.add_argument("--results", metavar="FOLDER", help="where run folders are; the project's results/ by default")
    report.add_argument("--out", metavar="FILE", help="the page; report.html in the results folder by default")
    report.add_argument(
        "--scale",
        choices=("smoke", "laptop", "paper"),
        default="laptop",
        help="smaller runs do not count; laptop by default",
    )
    report.set_defaults(command=_report)

    verify = commands.add_parser(
        "verify", help="run again what is published and compare; exit status 1 where a number is not what it was"
    )
    verify.add_argument(
        "--scale",
        choices=("smoke", "laptop", "paper"),
        help="smaller samples get wider tolerances; as published by default",
    )
    verify.add_argument("--results", metavar="FOLDER", help="where run folders go; the project's results/ by default")
    verify.set_defaults(command=_verify)

    doctor = commands.add_parser("doctor", help="say what is wrong with the environment, and the remedy")
    doctor.set_defaults(command=_doctor)
    return parser


def _run(options):
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # or every kernel prints a debugger's warning
    from giou_repro.runs import parameters

    where = ""
    try:
        paths = [parameters.find_notebook(name) for name in options.notebooks]
        declared = [parameters.declared(path) for path in paths]
        if options.parameters:
            for path, known in zip(paths, declared, strict=True):
                print(f"{path.stem}\n" + "\n".join(f"  {p.name:<16}{p.default!r:<12} {p.help}" for p in known.values()))
            return 0
        given = []
        for path, known in zip(paths, declared, strict=True):
            where = f"{path.stem}: "
            given.append(parameters.check(known, _given(options, known)))
            _check_data(parameters.resolved(known, given[-1]))
    except (FileNotFoundError, parameters.ParameterError) as error:
        print(f"giou-repro: {where}{error}", file=sys.stderr)
        return 2
    from giou_repro.runs import runner

    runs = []
    for path, values in zip(paths, given, strict=True):
        try:
            runs.append(runner.run_notebook(str(path), values, options.results))
        except RuntimeError as error:
            print(f"giou-repro: {error}", file=sys.stderr)
            return 1
    for run in runs:
        _print_outputs(run)
    return 0


def _check_data(values):
    """Raise ParameterError where the data set of resolved parameters, or a split of it that they name, is not there."""
    from giou_repro.runs.parameters import ParameterError

    if {"dataset", "train_split", "val_split"} <= set(values):
        from giou_repro.data import datasets  # here, because it brings torch

        try:
            datasets.check_splits(values["dataset"], values["train_split"], values["val_split"])
        except (OSError, ValueError) as error:
            raise ParameterError(str(error)) from None


def _given(options, declared):
    """The parameters of a command line: name → value. Text parameters stay text, the others are read as JSON."""
    words = [(name, getattr(options, name)) for name in TRAIN if getattr(options, name, None) is not None]
    given = {
        name: _value(text, name in declared and declared[name].type is str)
        for name, text in [*words, *options.parameter]
    }
    return given | (
        {"losses": [name.strip() for name in options.losses.split(",")]} if options.losses is not None else {}
    )


def _value(text, is_text):
    try:
        return text if is_text else json.loads(text)
    except json.JSONDecodeError:
        return text


def _print_outputs(run):
    record = run.record
    print(f"\n{record['notebook']}: {record['status']} in {record['wall_seconds']:.0f} s, in {run.folder}")
    for kind, suffix in (("page", ".html"), ("figures", ".png"), ("tables", ".csv")):
        print(f"  {kind:<8} {'  '.join(name for name in record['outputs'] if name.endswith(suffix))}")


def _train(options):
    if options.parameters:
        return _run(options)
    from giou_repro.runs import parameters, store

    path = parameters.find_notebook("05_train_detector")
    declared = parameters.declared(path)
    try:
        from giou_repro.training import loop  # here, because they need the extra `detection`

        given = parameters.check(declared, _given(options, declared))
        values = parameters.resolved(declared, given)
        config = loop.configure(**{name: value for name, value in values.items() if name != "run_dir"})
        sets = loop.open_sets(config)  # what cannot be trained on is refused before anything is written
    except (ImportError, OSError, ValueError) as error:
        print(f"giou-repro: {error}", file=sys.stderr)
        return 2
    rank, world = loop.join()
    results = os.path.join(options.results or store.project_folder() / "results", path.stem)
    try:
        run = store.resume_or_open(path.stem, results, values, given, runner=True, wait=True) if rank == 0 else None
    except OSError as error:
        print(f"giou-repro: no run folder can be made in {results}: {store.describe(error, results)}", file=sys.stderr)
        return 2
    if loop.shared(run and run.complete, world):
        if rank == 0:
            print(f"this run is complete already, in {run.folder}")
        return 0
    return _train_into(run, config, sets)


def _train_into(run, config, sets):
    from giou_repro.experiments import detector
    from giou_repro.runs import store
    from giou_repro.training import loop

    try:
        if run:
            print(f"{run.record['notebook']} in {run.folder}", flush=True)
            run.update(parameters=config.model_dump(), declared_outputs=loop.OUTPUTS)
        trained = loop.train(config, run, sets)
        if run:
            loop.save(trained, run)
            run.save_figure("curves", detector.plot_curves(trained.curves, trained.loss))
            run.save_figure("detections", detector.plot_detections(trained.val, trained.detections, trained.names))
            run.save_figure("thresholds", detector.plot_thresholds(trained.thresholds))
            run.close("complete")
    except BaseException as error:
        reason = store.describe(error, run.folder if run else "the results")
        with contextlib.suppress(OSError):  # without space even for that the run stays "running", as after a kill
            if run:
                run.close("failed", error=reason)
        if not isinstance(error, loop.TrainingError | ValueError | OSError):
            raise
        print(f"giou-repro: {reason if store.is_full(error) else error}", file=sys.stderr)
        return 1
    if run:
        print(detector.describe_training(trained.evaluation.iloc[0], trained.curves).replace("**", "").replace("`", ""))
        _print_outputs(run)
    return 0


def _count(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _sweep(options):
    from giou_repro.runs import parameters, store, sweep

    results = options.results or store.project_folder() / "results"
    losses = [name.strip() for name in options.losses.split(",")] if options.losses is not None else None
    try:
        file = sweep.read(options.file)
        cells = sweep.expand(file, options.scale, losses, options.results)
        if options.dry_run:
            print(sweep.report(sweep.planned(cells, results)))
            return 0
        for cell in cells:
            _check_data(cell.parameters)
        with sweep.connect(file, cells, options.workers, options.scheduler, options.cluster) as place:
            rows = sweep.run(file, cells, results, place)
    except (sweep.SweepError, parameters.ParameterError, sweep.SchedulerLost) as error:
        print(f"giou-repro: {error}", file=sys.stderr)
        return 1 if isinstance(error, sweep.SchedulerLost) else 2
    print(f"{sweep.report(rows)}\ntable in {sweep.table_path(file, results)}")
    return 0 if rows.status.isin(["ran", "complete already"]).all() else 1


def _losses(options):
    from giou_repro.registry import table

    print(table(markdown=options.markdown), end="")
    return 0


def _data_check(options):
    from giou_repro.data import datasets

    classes = tuple(name.strip() for name in options.classes.split(",")) if options.classes else None
    try:
        return 1 if datasets.report(options.path, options.split, classes) else 0
    except (OSError, ValueError, ImportError) as error:
        print(f"giou-repro: {error}", file=sys.stderr)
        return 2


def _data_download(options):
    from giou_repro.data import datasets

    try:
        print(datasets.download(options.name))
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"giou-repro: {error}", file=sys.stderr)
        return 2
    return 0


def _publish(options):
    from giou_repro.report import publish

    try:
        for run in options.runs:
            print(publish.publish(run))
        if not options.runs:
            print("\n".join(f"renewed: {path}" for path in publish.renew()))
    except (OSError, ValueError) as error:
        print(f"giou-repro: {error}", file=sys.stderr)
        return 2
    return 0


def _report(options):
    from pathlib import Path

    from giou_repro.report import page
    from giou_repro.runs import store

    results = Path(options.results or store.project_folder() / "results")
    out = Path(options.out or results / "report.html")
    try:
        found = page.write(results, out, options.scale)
    except (OSError, ValueError) as error:
        print(f"giou-repro: {error}", file=sys.stderr)
        return 2
    for whose, runs in found.items():
        print("\n".join(f"{whose:<11}{name:<20}{folder}" for name, folder in runs.items()))
    print(f"the report: {out}")
    return 0


def _verify(options):
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # or every kernel prints a debugger's warning
    from giou_repro.report import verify

    try:
        table = verify.verify(options.scale, results=options.results)
    except FileNotFoundError as error:
        print(f"giou-repro: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"giou-repro: {error}", file=sys.stderr)
        return 1
    print(table.to_string(index=False, na_rep="–", float_format="{:.4g}".format))
    return 1 if (table.ok == verify.NO).any() else 0


def _doctor(options):
    from giou_repro.runs import doctor, store

    return 1 if doctor.report(store.project_folder() / "requirements.lock") else 0


if __name__ == "__main__":
    sys.exit(main())
