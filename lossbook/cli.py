"""The command `lossbook`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter

from lossbook.losses import catalogue


def main(arguments: list[str] | None = None) -> int:
    """Entry point: 0 when all went well, 2 when the input was refused."""
    parser = argparse.ArgumentParser(prog="lossbook", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    commands.add_parser("losses", help="the catalogue of the losses")

    fetch = commands.add_parser("data", help="download and verify data sets, or say where they are")
    fetch.add_argument("names", nargs="*", help="data sets; all that are there if none is named")

    run = commands.add_parser("run", help="run an experiment without a notebook; what has a row is not run again")
    run.add_argument("experiment")
    run.add_argument("--profile", default="quick")
    run.add_argument("--dataset", nargs="+", default=["digits"])
    run.add_argument("--model", nargs="+", default=["mlp"])
    run.add_argument("--losses", nargs="+", default=[], metavar="LOSS", help="for example cross_entropy 'fourier(s=2)'")
    run.add_argument("--noise", nargs="+", default=[], metavar="NOISE", help="for example 'symmetric 0.4'")
    run.add_argument("--seeds", nargs="+", type=int, default=[])
    run.add_argument("--epochs", type=int, default=0)
    run.add_argument("--learning-rates", nargs="+", type=float, default=[], help="one alone is used without tuning")
    run.add_argument("--out", default="", help="folder of the rows (default data/runs)")
    run.add_argument("--workers", type=int, default=None, help="processes on the CPU (default: one a core)")

    publish = commands.add_parser("publish", help="merge the rows of this machine into the table under data/results")
    publish.add_argument("experiment")
    publish.add_argument("--dataset", nargs="+", default=None)

    claims = commands.add_parser("claims", help="every claim of the sources and its verdict")
    claims.add_argument("--markdown", action="store_true", help="as the table of the README")

    given = parser.parse_args(arguments)
    try:
        return {"losses": _losses, "data": _data, "run": _run, "publish": _publish, "claims": _claims}[given.command](
            given
        )
    except ValueError as error:
        print(f"lossbook: {error}", file=sys.stderr)
        return 2


def _losses(given) -> int:
    table = catalogue()
    for name, row in table.iterrows():
        flags = [flag for flag in ("proper", "symmetric", "bounded", "convex", "smooth") if row[flag]]
        print(f"{name:16} {row['definition']}\n{'':16} {', '.join(flags)}")
        if row["hyper-parameters"]:
            print(f"{'':16} {row['hyper-parameters']}")
    return 0


def _data(given) -> int:
    from lossbook import data

    there = [name for name in data.NAMES if name == "digits" or (data.data_root() / f"{name}.npz").is_file()]
    for name in given.names or there:
        dataset = data.load(name)
        shape, train, test = dataset.x_train.shape[1:], len(dataset.y_train), len(dataset.y_test)
        print(f"{name:14} {train} training and {test} test images {shape}")
    return 0


def _run(given) -> int:
    from lossbook import sweep

    choices = ("profile", "losses", "noise", "seeds", "epochs", "learning_rates", "out")
    plans = [
        sweep.plan(given.experiment, dataset=dataset, model=model, **{key: getattr(given, key) for key in choices})
        for model in given.model
        for dataset in given.dataset
    ]
    for plan in plans:
        rows = sweep.run(plan, given.workers)
        status = ", ".join(f"{count} {name}" for name, count in Counter(rows["status"]).items())
        print(f"{given.experiment} {rows['dataset'].iloc[0]} {rows['model'].iloc[0]}: {status}")
    return 0


def _publish(given) -> int:
    from lossbook import results, sweep
    from lossbook.checks import check_name

    check_name("experiment", given.experiment, sweep.EXPERIMENTS)
    path = results.publish(given.experiment, given.dataset)
    print(f"{path.relative_to(results.PROJECT)}: {len(results.published(given.experiment))} rows")
    return 0


def _claims(given) -> int:
    from lossbook import claims

    print(claims.markdown() if given.markdown else claims.text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
