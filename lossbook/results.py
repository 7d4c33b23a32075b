"""Rows of runs: written one file a run as each ends, read as one table, published into data/results, summarised."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import numpy
import pandas
import pyarrow
from pyarrow.parquet import ParquetFile
from scipy import stats

from lossbook import PROJECT
from lossbook.checks import check_name

PUBLISHED = PROJECT / "data" / "results"  # committed: one table an experiment
RUNS = PROJECT / "data" / "runs"  # this machine's own: one file a run, ignored by git


def write_atomically(path: Path, write) -> None:
    """Call write(temporary path) and move the file into place: readers see all of it or nothing, even after a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.stem}-{uuid.uuid4().hex}.tmp"  # processes of two machines may have one number
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def rows_folder(experiment: str, folder: str | Path | None = None) -> Path:
    """Where the rows of runs lie, each as <hash>.parquet: <folder>/<experiment>; folder defaults to data/runs."""
    return Path(folder or RUNS) / experiment


def write_row(row: dict[str, object], experiment: str, folder: str | Path | None = None) -> None:
    """Write the row of one run."""
    frame = pandas.DataFrame([row])
    path = rows_folder(experiment, folder) / f"{row['hash']}.parquet"
    write_atomically(path, lambda temporary: frame.to_parquet(temporary, index=False))


def published(experiment: str) -> pandas.DataFrame:
    """The committed table of an experiment; empty where there is none yet."""
    path = PUBLISHED / f"{experiment}.parquet"
    return _read(path).to_pandas() if path.is_file() else pandas.DataFrame({"hash": pandas.Series(dtype=str)})


def _read(path: Path) -> pyarrow.Table:
    try:
        return ParquetFile(path).read()
    except PermissionError:  # not damaged, and not to be deleted
        raise
    except (OSError, ValueError) as error:
        remedy = "restore it from the repository" if path.parent == PUBLISHED else "delete it and run the sweep again"
        raise ValueError(f"{path} is damaged ({error}); {remedy}") from error


def afresh() -> bool:
    """Whether a sweep also runs what the committed tables hold: LOSSBOOK_AFRESH is set, and not to 0, no or false."""
    return os.environ.get("LOSSBOOK_AFRESH", "").lower() not in ("", "0", "no", "false")


def load(experiment: str, folder: str | Path | None = None, with_published: bool = True) -> pandas.DataFrame:
    """All rows of an experiment: this machine's runs, and the published ones that it did not run itself.

    A row file that cannot be read is refused by name; delete it and run the sweep again.
    """
    tables = []
    for path in sorted(rows_folder(experiment, folder).glob("*.parquet")):
        tables.append(_read(path))
        if "hash" not in tables[-1].column_names or tables[-1]["hash"].to_pylist() != [path.stem]:
            raise ValueError(f"{path} holds the row of another run; delete it and run the sweep again")
    committed = PUBLISHED / f"{experiment}.parquet"
    if with_published and committed.is_file():
        tables.append(_read(committed))
    if not tables:
        return published(experiment).iloc[:0]
    # joined before they become a frame: a frame a file would take most of the time
    rows = pyarrow.concat_tables(tables, promote_options="permissive").to_pandas()
    return rows.drop_duplicates("hash", keep="first").reset_index(drop=True)


def publish(experiment: str, datasets: list[str] | None = None, folder: str | Path | None = None) -> Path:
    """Merge this machine's rows (of the named data sets) into the committed table and return its path."""
    rows = load(experiment, folder)
    own = rows[rows["hash"].isin([path.stem for path in rows_folder(experiment, folder).glob("*.parquet")])]
    if own.empty:
        raise ValueError(f"{experiment} has no rows under {Path(folder or RUNS)}; run the sweep first")
    if datasets:
        for name in datasets:
            check_name(f"dataset with rows of {experiment} here", name, sorted(own["dataset"].unique()))
        rows = pandas.concat([rows[rows["dataset"].isin(datasets)], published(experiment)]).drop_duplicates("hash")
    order = ["dataset", "model", "noise_kind", "noise_rate", "image_noise", "image_level", "loss", "seed", "hash"]
    order = [column for column in order if column in rows]
    rows = rows.sort_values(order).reset_index(drop=True)
    path = PUBLISHED / f"{experiment}.parquet"
    write_atomically(path, lambda temporary: rows.to_parquet(temporary, index=False, compression="zstd"))
    return path


def interval(values) -> tuple[float, float, int]:
    """Mean, half-width of its 95 % interval (Student's t; NaN for one value), and n.

    Values that are not finite are left out, and not counted in n. So are runs of tasks that diverged; a classifier that
    did has the accuracy of what it left.
    """
    values = numpy.asarray(values, dtype=float)
    values = values[numpy.isfinite(values)]
    n = len(values)
    if n < 2:
        return (values.mean() if n else numpy.nan), numpy.nan, n
    return values.mean(), stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / numpy.sqrt(n), n


def paired_differences(
    rows: pandas.DataFrame, baseline: str, by: list[str], value: str = "test_accuracy"
) -> pandas.DataFrame:
    """Each loss less the baseline, seed by seed: mean, 95 % half-width, n and the t-test's p, Holm-corrected.

    rows      one row a run with columns `loss`, `seed`, `by` and `value`
    baseline  the loss to compare with
    by        columns that name a setting; the differences are taken and the correction made inside each

    p is NaN, and not counted in the correction, where there is one seed or the differences do not vary.
    """
    keys = [*by, "seed"]
    reference = rows.loc[rows["loss"] == baseline, [*keys, value]].rename(columns={value: "reference"})
    paired = rows[rows["loss"] != baseline].merge(reference, on=keys, validate="many_to_one")
    difference = paired[value] - paired["reference"]  # of a run that diverged it may be no number
    paired["difference"] = difference.where(numpy.isfinite(difference))
    grouped = paired.groupby([*by, "loss"], sort=False)["difference"]
    frame = grouped.agg(difference="mean", half_width="sem", n="count").reset_index()
    error, freedom = frame["half_width"].copy(), frame["n"] - 1
    frame["half_width"] *= stats.t.ppf(0.975, freedom)
    frame["p"] = 2 * stats.t.sf((frame["difference"] / error).abs(), freedom)
    frame.loc[error * numpy.sqrt(frame["n"]) <= 1e-6, "p"] = numpy.nan
    frame["p_holm"] = frame.groupby(by, sort=False)["p"].transform(holm) if by else holm(frame["p"])
    return frame


def difference_table(rows: pandas.DataFrame, baseline: str, by: list[str]) -> pandas.DataFrame:
    """`paired_differences` for reading: a line a loss, a column a setting, "mean ± half-width" in percentage points.

    A star marks p < 0.05 after Holm's correction inside the setting. The baseline's own line is its mean accuracy.
    """
    table = paired_differences(rows, baseline, by)
    star = numpy.where(table["p_holm"] < 0.05, "*", "")
    table["cell"] = [
        f"{100 * d:+.2f} ± {100 * h:.2f}{s}"
        for d, h, s in zip(table["difference"], table["half_width"], star, strict=True)
    ]
    cells = table.pivot(index="loss", columns=by, values="cell")
    own = rows[rows["loss"] == baseline].groupby(by)["test_accuracy"].mean()
    cells.loc[f"{baseline} itself (%)"] = own.map("{:.2%}".format)
    return cells.loc[[f"{baseline} itself (%)", *(loss for loss in rows["loss"].unique() if loss in cells.index)]]


def provenance(rows: pandas.DataFrame, by: list[str]) -> pandas.DataFrame:
    """How many runs came from each device and version of torch, `by` further columns.

    How many networks a run was trained together with is left out of the device.
    """
    device = rows["device"].str.replace(r", \d+ networks together", "", regex=True)
    return rows.assign(device=device).groupby([*by, "device", "torch"]).size().rename("runs").reset_index()


def panel_rows(rows: pandas.DataFrame) -> pandas.DataFrame:
    """One line a run and noisy test set: `damage` (the kind), `level`, and the accuracy there as `test_accuracy`."""
    columns = ["dataset", "model", "loss", "seed", "panel_noise", "panel_accuracy"]
    long = rows[columns].explode(["panel_noise", "panel_accuracy"])
    long[["damage", "level"]] = long["panel_noise"].str.split(expand=True)
    return long.assign(level=long["level"].astype(float), test_accuracy=long["panel_accuracy"].astype(float))


def holm(p):
    """Holm's step-down correction of a Series, or of an array along its last axis; NaN stays NaN and does not count."""
    values = numpy.asarray(p, dtype=float)
    order = values.argsort(-1)  # NaN last
    ranked = numpy.take_along_axis(values, order, -1)
    left = numpy.isfinite(values).sum(-1, keepdims=True) - numpy.arange(values.shape[-1])
    stepped = numpy.maximum.accumulate(ranked * left, -1).clip(max=1.0)
    adjusted = numpy.empty_like(values)
    numpy.put_along_axis(adjusted, order, stepped, -1)
    return pandas.Series(adjusted, p.index) if isinstance(p, pandas.Series) else adjusted


def false_winners(others: int, seeds: int, studies: int = 10_000) -> dict[str, float]:
    """Share of simulated studies of nothing in which some loss is "significantly better" than the baseline, by test.

    A study has a baseline and so many other losses, all the same in law (normal), and so many runs of each. Welch's
    test takes them as independent, the paired one takes differences; each at 5 %, without a correction and with Holm's.
    """
    runs = numpy.random.default_rng(0).standard_normal((studies, others + 1, seeds))
    baseline, rest = numpy.broadcast_arrays(runs[:, :1], runs[:, 1:])
    better, shares = rest.mean(-1) > baseline.mean(-1), {}
    for name, p in (
        ("Welch", stats.ttest_ind(rest, baseline, axis=-1, equal_var=False).pvalue),
        ("paired", stats.ttest_rel(rest, baseline, axis=-1).pvalue),
    ):
        for test, value in ((name, p), (f"{name}, Holm", holm(p))):
            shares[test] = float(((value < 0.05) & better).any(-1).mean())
    return shares
