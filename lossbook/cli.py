"""The command `lossbook`."""

from __future__ import annotations

import argparse
import io
import math
import multiprocessing
import os
import shlex
import sys
import time
from collections import Counter
from pathlib import Path

from lossbook import __version__
from lossbook.losses import catalogue
from lossbook.losses._registry import FLAGS


def main(arguments: list[str] | None = None) -> int:
    """Entry point: 0 when all went well, 2 when the input was refused, 1 where a file failed, 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="lossbook", description=__doc__)
    parser.add_argument("--version", action="version", version=f"lossbook {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    commands.add_parser("losses", help="the catalogue of the losses")

    fetch = commands.add_parser("data", help="download and verify data sets, or list those that are there")
    fetch.add_argument("names", nargs="*", help="data sets; all that are there if none is named")

    run = commands.add_parser("run", help="run an experiment without a notebook; what has a row is not run again")
    run.add_argument("experiment", help="named as its notebook under notebooks/experiments; airbench has none")
    run.add_argument("--profile", default="quick", help="smoke (seconds), quick (minutes; the default) or paper")
    run.add_argument("--dataset", nargs="+", default=[], help="default: mostly digits; in the paper profile, all")
    run.add_argument("--model", nargs="+", default=[], help="default: mostly mlp; in the paper profile, all")
    run.add_argument("--losses", nargs="+", default=[], metavar="LOSS", help="for example cross_entropy 'fourier(s=2)'")
    run.add_argument("--noise", nargs="+", default=[], metavar="NOISE", help="for example 'symmetric 0.4'")
    run.add_argument("--seeds", nargs="+", type=int, default=[], help="default: those of the profile")
    run.add_argument("--epochs", type=int, default=0, help="default: 0, those of the profile")
    run.add_argument("--learning-rates", nargs="+", type=float, default=[], help="one alone is used without tuning")
    run.add_argument("--variant", nargs="+", default=[], help="parts of the experiment, such as 'sgd tuned'")
    run.add_argument("--out", default="", help="folder of the rows (default data/runs)")
    run.add_argument("--workers", type=int, help="processes (default: LOSSBOOK_WORKERS, or one a core; on a GPU, one)")
    run.add_argument("--minutes", type=float, default=math.inf, help="begin nothing that would end later than this")
    run.add_argument("--afresh", action="store_true", help="also run what the committed table holds")
    run.add_argument("--plan", action="store_true", help="say what is there and what the rest takes, and run nothing")

    publish = commands.add_parser("publish", help="merge the rows of this machine into the table under data/results")
    publish.add_argument("experiment")
    publish.add_argument("--dataset", nargs="+", default=None, help="default: all that have rows")
    publish.add_argument("--out", default="", help="folder of the rows, as it was given to run (default data/runs)")

    bench = commands.add_parser("bench", help="measure the speed tables, side by side, into data/results/bench")
    bench.add_argument("tables", nargs="*", help="all of them if none is named")

    figures = commands.add_parser("figures", help="redraw the figures of the committed tables, without training")
    figures.add_argument("notebooks", nargs="*", help="those that draw them, by name or path; all if none is named")

    claims = commands.add_parser("claims", help="every claim of the sources and its verdict")
    claims.add_argument("--markdown", action="store_true", help="as the table of the README")

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Greek letters gets question marks
    given = parser.parse_args(arguments)
    run_command = {
        "losses": _losses,
        "data": _data,
        "run": _run,
        "publish": _publish,
        "bench": _bench,
        "figures": _figures,
        "claims": _claims,
    }
    kept = ". Rows written before are kept; the same command goes on from them" if given.command == "run" else ""
    try:
        done = run_command[given.command](given)
        if sys.stdout:  # a daemon may have closed it
            sys.stdout.flush()
        return done
    except KeyboardInterrupt:
        print(f"lossbook: interrupted{kept}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read it has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ValueError as error:
        print(f"lossbook: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"lossbook: {error}{kept}", file=sys.stderr)
        return 1


def _losses(given) -> int:
    table = catalogue()
    for name, row in table.iterrows():
        flags = [flag for flag in FLAGS if row[flag]]
        print(f"{name:16} {row['definition']}\n{'':16} {', '.join(flags)}")
        if row["hyper-parameters"]:
            print(f"{'':16} {row['hyper-parameters']}")
    return 0


def _data(given) -> int:
    from lossbook import data

    status = 0
    for name in given.names or filter(data.is_there, data.ALL):
        try:
            dataset = data.load(name)
        except data.DataError as error:  # the others may be whole
            print(f"lossbook: {error}", file=sys.stderr)
            status = 2
            continue
        shape, train, test = dataset.x_train.shape[1:], len(dataset.y_train), len(dataset.y_test)
        kind = "examples" if name in data.TABLES else "images"
        print(f"{name:14} {train} training and {test} test {kind} {shape}")
    return status


def _run(given) -> int:
    from lossbook import results, sweep

    began = time.monotonic()
    if given.afresh:
        os.environ["LOSSBOOK_AFRESH"] = "1"  # the processes of the sweep read it, too
    if not given.minutes > 0:
        raise ValueError(f"--minutes {given.minutes:g} was given; allowed: a number above 0")
    choices = ("profile", "losses", "noise", "seeds", "epochs", "learning_rates", "out")
    choices = {key: getattr(given, key) for key in choices}
    plans = [
        sweep.plan(given.experiment, dataset=dataset, model=model, variant=variant, **choices)
        for dataset, model in sweep.pairs(given.experiment, given.profile, given.dataset, given.model)
        for variant in given.variant or sweep.variants(given.experiment)
    ]
    if given.plan:
        table = sweep.outlook(plans, given.workers)
        if not table["variant"].any():
            del table["variant"]
        table = table.astype({"pieces": object}).fillna({"pieces": "?"})
        print(table.to_string(index=False, float_format="{:.1f}".format, na_rep="?"))
        return 0
    if given.minutes < math.inf and (shortest := sweep.shortest_minutes(plans, given.workers)) > given.minutes:
        least = f"{shortest:.1f}" if shortest >= 1 else f"{shortest:.2g}"
        raise ValueError(f"--minutes {given.minutes:g} was given, and what is left takes {least} at least")
    for plan, rows in zip(plans, sweep.run_all(plans, given.workers, began + 60 * given.minutes), strict=True):
        states = Counter(rows.get("status", ()))
        if left := len(plan.grid) - len(rows):
            states["left; the same command goes on with them"] = left
        status = ", ".join(f"{count} {name}" for name, count in states.items())
        what = (given.experiment, plan.grid[0].dataset, plan.grid[0].model, plan.variant)
        print(f"{' '.join(filter(None, what))}: {status}", flush=True)
    out = f" --out {shlex.quote(given.out)}" if given.out else ""
    merges = f"lossbook publish {given.experiment}{out} merges them into the table of the figures and verdicts"
    print(f"rows: {results.rows_folder(given.experiment, plans[0].out)}; {merges}")
    return 0


def _publish(given) -> int:
    from lossbook import results, sweep
    from lossbook.checks import check_name, check_path

    check_name("experiment", given.experiment, sweep.experiments())
    path = results.publish(given.experiment, given.dataset, check_path("--out", given.out) if given.out else None)
    print(f"{path.relative_to(results.PROJECT)}: {len(results.published(given.experiment))} rows")
    return 0


def _bench(given) -> int:
    from lossbook import bench

    bench.run(given.tables)
    return 0


def _figures(given) -> int:
    os.environ.setdefault("MPLBACKEND", "agg")  # files, and no window
    from lossbook import figures, sweep
    from lossbook.checks import check_name

    known = {Path(notebook).stem: notebook for notebook in figures.notebooks()}
    names = [Path(notebook).stem for notebook in given.notebooks] or list(known)
    for name in names:
        check_name("notebook", name, known)
    chosen = [known[name] for name in names]
    if not chosen:
        raise ValueError(f"no notebook under {figures.FOLDER.parent} draws figures; run this inside the project")
    status, workers = 0, min(len(chosen), sweep.cores())  # drawing takes one core, and pyplot one thread a process
    with sweep.processes(workers, multiprocessing.get_context("spawn")) as pool:
        for notebook, drawing in [(notebook, pool.submit(figures.redraw, notebook)) for notebook in chosen]:
            try:
                drawing.result()
            except ValueError as error:  # the others may have all that they need
                print(f"lossbook: {notebook}: {error}", file=sys.stderr)
                status = 2
                continue
            print(notebook, flush=True)
    return status


def _claims(given) -> int:
    from lossbook import claims

    print(claims.markdown() if given.markdown else claims.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
