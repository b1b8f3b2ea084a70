"""The command line: giou-repro run | losses | publish | doctor. Thin; `giou-repro COMMAND --help` says what each takes."""

import argparse
import json
import os
import signal
import sys


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


def _parser():
    parser = argparse.ArgumentParser(prog="giou-repro", description="Which box-regression loss to use, measured.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run notebooks, headless", description="Run notebooks into fresh folders under results/.")
    run.add_argument("notebooks", nargs="+", metavar="NOTEBOOK", help="its name, as 03_simulation, or a path")
    run.add_argument("--scale", help="smoke (seconds), laptop (minutes on 2 cores) or paper (the paper's size)")
    run.add_argument("--seed", help="a whole number")
    run.add_argument("--losses", help="comma-separated, your own as my_module:mine")
    run.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="VALUE as JSON, or plain text")
    run.add_argument("--results", metavar="FOLDER", help="where run folders go; the project's results/ by default")
    run.add_argument("--parameters", action="store_true", help="list the notebooks' parameters and stop")
    run.set_defaults(command=_run)

    losses = commands.add_parser("losses", help="list the losses: formula, range, space, paper")
    losses.add_argument("--markdown", action="store_true", help="as the table of LOSSES.md")
    losses.set_defaults(command=_losses)

    publish = commands.add_parser("publish", help="copy complete runs of committed code to results/published/ and renew the README's table")
    publish.add_argument("runs", nargs="+", metavar="RUN_FOLDER")
    publish.set_defaults(command=_publish)

    doctor = commands.add_parser("doctor", help="say what is wrong with the environment, and the remedy")
    doctor.set_defaults(command=_doctor)
    return parser


def _run(options):
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # or every kernel prints a debugger's warning
    from giou_repro import runner

    where = ""
    try:
        paths = [runner.find_notebook(name) for name in options.notebooks]
        declared = [runner.declared_parameters(path) for path in paths]
        if options.parameters:
            for path, parameters in zip(paths, declared, strict=True):
                print(f"{path.stem}\n" + "\n".join(f"  {p.name:<16}{p.default!r:<12} {p.help}" for p in parameters.values()))
            return 0
        given = []
        for path, parameters in zip(paths, declared, strict=True):
            where = f"{path.stem}: "
            given.append(runner.check_parameters(parameters, _given(options, parameters)))
    except (FileNotFoundError, runner.ParameterError) as error:
        print(f"giou-repro: {where}{error}", file=sys.stderr)
        return 2
    runs = []
    for path, parameters in zip(paths, given, strict=True):
        try:
            runs.append(runner.run_notebook(str(path), parameters, options.results))
        except (runner.RunFailed, RuntimeError) as error:
            print(f"giou-repro: {error}", file=sys.stderr)
            return 1
    for run in runs:
        _print_outputs(run)
    return 0


def _given(options, declared):
    """The parameters of a command line: name → value. Text parameters stay text, the others are read as JSON."""
    words = [(name, getattr(options, name)) for name in ("scale", "seed") if getattr(options, name) is not None]
    given = {name: _value(text, name in declared and declared[name].type is str) for name, text in [*words, *options.parameter]}
    return given | ({"losses": [name.strip() for name in options.losses.split(",")]} if options.losses is not None else {})


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


def _losses(options):
    from giou_repro.losses import table

    print(table(markdown=options.markdown), end="")
    return 0


def _publish(options):
    from giou_repro.publish import publish

    try:
        for run in options.runs:
            print(publish(run))
    except (OSError, ValueError) as error:
        print(f"giou-repro: {error}", file=sys.stderr)
        return 2
    return 0


def _doctor(options):
    from giou_repro import doctor, store

    return 1 if doctor.report(store.project_folder() / "requirements.lock") else 0


if __name__ == "__main__":
    sys.exit(main())
