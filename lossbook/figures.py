"""The look of every figure, and where figures are kept. Figures of experiments are functions of the result tables."""

from __future__ import annotations

import hashlib
import json
import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

import matplotlib
import matplotlib.pyplot as plt
import numpy
import pandas
import seaborn
from matplotlib.figure import Figure

from lossbook import results

FOLDER = results.PROJECT / "figures"
RESOLUTION = 200  # of a PNG, in dots per inch


@dataclass(frozen=True)
class Look:
    """How a loss is drawn, in every figure."""

    label: str
    colour: str
    line: str
    marker: str


# Colours of the colour-blind-safe palette; line style and marker say the same a second time.
LOOKS = {
    "cross_entropy": Look("cross-entropy", "#000000", "-", "o"),
    "label_smoothing": Look("label smoothing", "#949494", "--", "s"),
    "brier": Look("Brier", "#0173b2", "-", "D"),
    "rps": Look("ranked probability", "#56b4e9", "--", "v"),
    "fourier(s=0.5)": Look("Fourier s = 1/2", "#c9b21a", "-", "<"),
    "fourier": Look("Fourier s = 1", "#d55e00", "-", "^"),
    "fourier(s=2)": Look("Fourier s = 2", "#de8f05", "--", ">"),
    "fourier(placement='permuted')": Look("Fourier s = 1, permuted", "#d55e00", ":", "x"),
    "mae": Look("MAE", "#029e73", "-", "P"),
    "gce": Look("GCE", "#029e73", "--", "h"),
    "sce": Look("SCE", "#ca9161", "-", "*"),
    "nce_rce": Look("NCE + RCE", "#cc78bc", "-.", "X"),
    "kl_divergence": Look("KL", "#000000", "--", "s"),
    "kl_divergence(class_reduction='mean')": Look("KL, mean over classes", "#949494", ":", "D"),
    "poisson": Look("Poisson", "#949494", "-.", "v"),
    "focal": Look("focal, γ = 1/2", "#56b4e9", "-", "<"),
    "focal(gamma=2)": Look("focal, γ = 2", "#56b4e9", "-", "<"),
    "rooted_logistic(k=2)": Look("rooted, convex, k = 2", "#de8f05", "-", "^"),
    "rooted_logistic": Look("rooted, convex, k = 3", "#d55e00", "-", ">"),
    "rooted_logistic(k=8)": Look("rooted, convex, k = 8", "#ca9161", "-", "v"),
    "rooted_bounded(k=2, m=2)": Look("rooted, bounded, k = 2", "#029e73", "--", "P"),
    "rooted_bounded": Look("rooted, bounded, k = 3", "#56b4e9", "--", "X"),
    "rooted_bounded(k=8, m=8)": Look("rooted, bounded, k = 8", "#cc78bc", "--", "h"),
    "bootstrap_soft": Look("soft bootstrap", "#949494", "-", "*"),
    "bootstrap_hard": Look("hard bootstrap", "#949494", "--", "*"),
    "js": Look("Jensen-Shannon", "#cc78bc", "-", "d"),
    "huber": Look("Huber, δ = 1", "#0173b2", "--", "s"),
    "log_cosh": Look("log-cosh", "#0173b2", ":", "d"),
    "hinge": Look("hinge", "#029e73", ":", "s"),
    "squared_hinge": Look("squared hinge", "#029e73", "-.", "d"),
    "categorical_hinge": Look("categorical hinge", "#c9b21a", "-.", "D"),
}


def look(loss: str) -> Look:
    """The look of a loss; grey with its own name for one without an entry."""
    return LOOKS.get(loss, Look(loss, "#949494", "-", "."))


def style() -> None:
    """Set the house style; call it once at the top of a notebook."""
    seaborn.set_theme(context="paper", style="ticks", palette="colorblind")
    matplotlib.rcParams.update(
        {
            "figure.figsize": (6.5, 3.2),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "savefig.dpi": RESOLUTION,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 9,
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "lines.linewidth": 1.4,
            "lines.markersize": 4,
            "pdf.fonttype": 42,
        }
    )


def caption(figure: Figure, text: str) -> None:
    """Write the caption under a figure: what is drawn, n, and what the intervals are."""
    width = int(figure.get_figwidth() * 17)
    wrapped = textwrap.fill(text, width)
    figure.supxlabel(wrapped, x=0.01, ha="left", fontsize=7.5, color="#444444")


def mark_levels(axis, levels: Iterable[float]) -> None:
    """A tick at each level of a damage; those close to zero, which would touch, have no number."""
    axis.set_xticks(levels, [f"{x:g}" if x == 0 or 7 * x >= max(levels) else "" for x in levels])


def label_below(panels, text: str) -> None:
    """The x label of panels that stand side by side, written once, under their middle."""
    panels[len(panels) // 2].set_xlabel(text, x=0.5 if len(panels) % 2 else -0.05)


def save(figure: Figure, name: str, made_by: str, sources: tuple[str, ...] = ()) -> None:
    """Keep a figure as figures/<name>.png and .pdf, with a JSON that says from what.

    made_by  the notebook that draws it, its path from the root of the project
    sources  result tables it is drawn from, their paths from the root; their hashes are recorded
    """

    def write(suffix: str, content) -> None:
        results.write_atomically(FOLDER / f"{name}.{suffix}", content)  # committed files, and a kill may come between

    # Laid out once, at the resolution of the PNG: the same in both files and in the notebook, and sooner done. With a
    # layout engine, also with one that does nothing, every file would be drawn twice.
    with matplotlib.rc_context({"figure.constrained_layout.use": False}):
        if engine := figure.get_layout_engine():
            dpi, figure.dpi = figure.dpi, RESOLUTION
            engine.execute(figure)
            figure.dpi = dpi
            figure.set_layout_engine(None)
        undated = {"CreationDate": None, "Creator": None, "Producer": None}
        write("png", lambda path: figure.savefig(path, format="png", dpi=RESOLUTION, metadata={"Software": None}))
        write("pdf", lambda path: figure.savefig(path, format="pdf", metadata=undated))
    record = {
        "figure": name,
        "made_by": made_by,
        "sources": {path: hashlib.sha256((results.PROJECT / path).read_bytes()).hexdigest() for path in sources},
        "matplotlib": matplotlib.__version__,
        "seaborn": seaborn.__version__,
    }
    write("json", lambda path: path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8"))


def close(figure: Figure) -> Figure:
    """Return the figure for display, closed, so that a notebook shows it once."""
    plt.close(figure)
    return figure


def notebooks() -> list[str]:
    """Notebooks that draw figures of committed tables, by their path from the root of the project.

    The largest come first: they have most to draw, and begun last they would keep all others waiting.
    """
    paths = sorted(results.PROJECT.glob("notebooks/*/*.ipynb"), key=lambda path: (-path.stat().st_size, path))
    names = [path.relative_to(results.PROJECT).as_posix() for path in paths]
    return [notebook for notebook in names if _drawing(notebook)]


def redraw(notebook: str) -> None:
    """Draw the figures of one of the `notebooks` again, in this process."""
    names = {"display": lambda *shown: None}
    for number, source in enumerate(_drawing(notebook), 1):
        exec(compile(source, f"{notebook}, figure cell {number}", "exec"), names)


def _drawing(notebook: str) -> list[str]:
    """What draws without training: under notebooks/figures all code cells, elsewhere those with the tag "figures"."""
    path = results.PROJECT / notebook
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # as a conflict that is not resolved leaves it
        raise ValueError(f"{path} is no notebook ({error}); restore it from the repository") from error
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    if path.parent.name != "figures":
        cells = [cell for cell in cells if "figures" in cell["metadata"].get("tags", ())]
    return ["".join(cell["source"]) for cell in cells]


# Groups of lines, a panel each, so that none holds more than seven; cross-entropy and Brier stand in all.
FOURIER_GROUP = (
    "cross_entropy",
    "brier",
    "fourier(s=0.5)",
    "fourier",
    "fourier(s=2)",
    "fourier(placement='permuted')",
    "rps",
)
ROBUST_GROUP = ("cross_entropy", "brier", "label_smoothing", "mae", "gce", "sce", "nce_rce")
OTHER_GROUP = ("cross_entropy", "brier", "bootstrap_soft", "bootstrap_hard", "js", "rooted_logistic", "rooted_bounded")
GROUPS = (FOURIER_GROUP, ROBUST_GROUP, OTHER_GROUP)
TITLES = {
    "digits": "digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR10",
    "mlp": "MLP",
    "cnn_small": "small CNN",
    "airbench": "airbench network",
    "vit": "vision transformer",
    "breast_cancer": "breast cancer",
}


def title(*names: str) -> str:
    """Names of data sets and networks as a reader writes them."""
    return ", ".join(TITLES.get(name, name) for name in names)


def seeds_text(rows: pandas.DataFrame, *by: str) -> str:
    """The number of seeds of each data set and `by` as a caption says it: "5", or "10 (iris, wine), 5 (digits)"."""
    return _by_dataset(rows.groupby(["dataset", *by])["seed"].nunique())


def _by_dataset(values: pandas.Series) -> str:
    """Whole numbers, indexed by data set: one where all agree, else with the names of the sets that have it."""
    names = {}
    for name, here in values.groupby("dataset", sort=False):
        low, high = int(here.min()), int(here.max())
        names.setdefault(f"{low}" if low == high else f"{low} to {high}", []).append(name)
    return ", ".join(f"{n} ({title(*sets)})" if len(names) > 1 else n for n, sets in names.items())


def runs_text(rows: pandas.DataFrame) -> str:
    """What a caption must say of the runs: epochs, number of seeds, what the intervals are."""
    epochs = _by_dataset(rows.set_index("dataset")["epochs"])
    keys = ("model", "loss", "noise_kind", "noise_rate", "setting")
    n = seeds_text(rows, *(key for key in keys if key in rows))
    return f"Last of {epochs} epochs. Points are means, bars 95 % t-intervals over n = {n} seeds."


def _shown(rows: pandas.DataFrame, usual: Iterable[str] = ()) -> list[str]:
    """The losses of the rows to draw: the usual ones, in their order, then those of no group, which somebody named."""
    there, known = rows["loss"].unique(), {*usual}.union(*GROUPS)
    return [loss for loss in usual if loss in there] + [loss for loss in there if loss not in known]


def _with_intervals(axis, x, groups, loss: str) -> None:
    """A line of percentages: the means of groups of shares, with their intervals."""
    summary = [results.interval(values) for values in groups]
    drawn = look(loss)
    axis.errorbar(
        x,
        [100 * mean for mean, _, _ in summary],
        yerr=[100 * half for _, half, _ in summary],
        color=drawn.colour,
        linestyle=drawn.line,
        marker=drawn.marker,
        label=drawn.label,
        capsize=1.5,
        elinewidth=0.8,
    )


def accuracy_by_rate(rows: pandas.DataFrame) -> Figure:
    """Test accuracy against the rate of symmetric noise: a column a data set and network, a row a group of losses."""
    rows = rows[rows["noise_kind"].isin(["symmetric", "none"])]
    settings = list(rows.groupby(["dataset", "model"], sort=False))
    baselines = ["cross_entropy", "brier"]
    groups = [[loss for loss in group if loss in set(rows["loss"])] for group in (*GROUPS, baselines + _shown(rows))]
    groups = [group for group in groups if not set(group) <= set(baselines)] or groups[:1]
    figure, axes = plt.subplots(
        len(groups), len(settings), figsize=(1.6 + 2.6 * len(settings), 0.6 + 2.3 * len(groups)), squeeze=False
    )
    for (names, here), column in zip(settings, axes.T, strict=True):
        for axis, group in zip(column, groups, strict=True):
            low = 100 * here[here["loss"].isin(group)].groupby(["loss", "noise_rate"])["test_accuracy"].mean().min() - 3
            for loss in group:
                by_rate = here[here["loss"] == loss].groupby("noise_rate")["test_accuracy"]
                _with_intervals(axis, [100 * rate for rate in by_rate.groups], [runs for _, runs in by_rate], loss)
            axis.set_ylim(low, min(axis.get_ylim()[1], 100.5))
            axis.set_xticks([100 * r for r in sorted(here["noise_rate"].unique())])
        column[0].set_title(title(*names))
        column[-1].set_xlabel("wrong labels (%)")
    for axis in axes[:, 0]:
        axis.set_ylabel("test accuracy (%)")
    for axis in axes[:, -1]:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption(figure, f"Test accuracy under symmetric label noise. {runs_text(rows)} A bar may leave the frame.")
    return figure


def memorisation(rows: pandas.DataFrame, kind: str = "symmetric", rate: float = 0.4) -> Figure:
    """Epoch by epoch: test accuracy, and the share of wrong training labels that the network has learnt by heart."""
    rows = rows[(rows["noise_kind"] == kind) & (rows["noise_rate"] == rate) & (rows["status"] == "done")]
    if rows.empty:
        caption(figure := plt.figure(figsize=(6.5, 0.5)), f"No run with {100 * rate:.0f} % {kind} label noise ended.")
        return figure
    settings = list(rows.groupby(["dataset", "model"], sort=False))
    usual = ("cross_entropy", "brier", "fourier", "fourier(placement='permuted')", "fourier(s=2)", "mae", "gce")
    named = {}
    figure, axes = plt.subplots(2, len(settings), figsize=(1.8 + 2.5 * len(settings), 4.4), squeeze=False, sharex="col")
    for (names, here), column in zip(settings, axes.T, strict=True):
        for loss in (shown := _shown(here, usual)):
            for axis, curve in zip(column, ("test_accuracy_curve", "memorised_curve"), strict=True):
                curves = 100 * numpy.stack(here.loc[here["loss"] == loss, curve])
                drawn, mean = look(loss), curves.mean(0)
                half = numpy.array([results.interval(epoch)[1] for epoch in curves.T])
                epochs = numpy.arange(1, len(mean) + 1)
                (named[drawn.label],) = axis.plot(epochs, mean, color=drawn.colour, linestyle=drawn.line)
                axis.fill_between(epochs, mean - half, mean + half, color=drawn.colour, alpha=0.15, linewidth=0)
        curves = [numpy.stack(here.loc[here["loss"] == loss, "test_accuracy_curve"]).mean(0) for loss in shown]
        # the first fifth may start below the frame
        lowest = min((curve[len(curve) // 5 :].min() for curve in curves), default=0)
        column[0].set_ylim(100 * lowest - 2, min(column[0].get_ylim()[1], 100.5))
        column[1].set_ylim(0, min(column[1].get_ylim()[1], 100.5))
        column[0].set_title(title(*names))
        column[-1].set_xlabel("epoch")
    axes[0, 0].set_ylabel("test accuracy (%)")
    axes[1, 0].set_ylabel("wrong labels\nmemorised (%)")
    axes[0, -1].legend(named.values(), named, loc="center left", bbox_to_anchor=(1.0, 0.5))
    text = runs_text(rows).replace("Points are means, bars", "Lines are means, bands").split(". ", 1)[1]
    caption(
        figure,
        f"Training with {100 * rate:.0f} % {kind} label noise. Memorised: share of the wrong labels (among "
        f"at most 5000 training examples) that the network predicts. Lines may begin below the frame. {text}",
    )
    return figure


def differences(rows: pandas.DataFrame, baseline: str, losses: tuple[str, ...] | None = None, what: str = "") -> Figure:
    """Paired differences in test accuracy to a baseline: a panel a setting, a point a loss and data set.

    rows  with a column `setting`; without one the noise is the setting
    what  what the settings are, for the caption; of noise it is said without

    The scale ends at twice the farthest mean, between 30 and 130 points: an interval may be cut, a mean never.
    """
    if "setting" not in rows:
        what = "Trained with wrong labels."
        if (rows["image_noise"] != "none").any():
            what = "Noise in the training images alone: blur in pixels, Gaussian in units of the range."
        rows = rows.assign(setting=setting_names(rows))
    table = results.paired_differences(rows, baseline, ["dataset", "model", "setting"])
    order = [loss for loss in losses or _shown(table, LOOKS) if (table["loss"] == loss).any()]
    sources = list(dict.fromkeys(zip(table["dataset"], table["model"], strict=True)))
    limit = min(130, max(30, 200 * table["difference"].abs().max()))
    settings = list(dict.fromkeys(rows.sort_values(["noise_kind", "noise_rate"], kind="stable")["setting"]))
    settings.sort(key=lambda name: (name != "clean", not name.startswith("symmetric")))
    lines = 1 if len(settings) <= 5 else 2
    columns = math.ceil(len(settings) / lines)
    width, height = 3.2 + max(3.2, 1.4 * columns), 0.3 + max(0.22, 0.06 * len(sources)) * len(order)
    figure, axes = plt.subplots(
        lines, columns, figsize=(width, 1.1 + lines * height), sharey=True, squeeze=False, gridspec_kw=dict(wspace=0.04)
    )
    for axis in axes.flat[len(settings) :]:
        axis.set_visible(False)
    named = {}
    for axis, setting in zip(axes.flat, settings, strict=False):
        there = table[table["setting"] == setting].set_index(["dataset", "model"])
        present = [source for source in sources if source in there.index]
        step = min(0.22, 0.8 / len(present))
        for place, source in enumerate(present):
            here, number = there.loc[[source]].set_index("loss").reindex(order), sources.index(source)
            named[title(*source)] = axis.errorbar(
                100 * here["difference"],
                numpy.arange(len(order)) + step * (place - (len(present) - 1) / 2),
                xerr=100 * here["half_width"],
                fmt="os^DvPX*"[number % 8],
                color=seaborn.color_palette("colorblind")[(0, 1, 2, 4, 7, 3, 5, 9)[number % 8]],
                capsize=1.5,
                elinewidth=0.9,
                markersize=3.5,
            )
        axis.axvline(0, color="#444444", linewidth=0.8)
        # most differences are within a point, a few losses fail by tens
        axis.set_xscale("symlog", linthresh=1, linscale=0.6)
        axis.set_xticks([-10, -1, 1, 10], ["−10", "−1", "1", "10"], fontsize=7)
        axis.set_xticks([-100, -30, -3, 3, 30, 100], minor=True)  # unlabelled: a narrow panel has no room for it
        axis.autoscale(axis="x")  # anew, on this scale
        low, high = axis.get_xlim()
        axis.set_xlim(max(min(low, -10), -limit), min(max(high, 10), limit))
        axis.set_title(setting)
    axes[0, 0].set_yticks(range(len(order)), [look(loss).label for loss in order])
    axes[0, 0].set_ylim(len(order) - 0.3, -0.7)  # the first at the top, in all panels
    label_below(axes[-1], f"test accuracy minus that of {look(baseline).label} (points)")
    axes[0, -1].legend(named.values(), named, loc="center left", bbox_to_anchor=(1.0, 0.5))
    text = runs_text(rows).replace("Points are means, bars", "Points are mean differences over shared seeds, bars")
    scale = "Scales differ: linear from -1 to 1, logarithmic beyond; ticks at 1, 3, 10, 30 and 100."
    lost = (
        "A run that diverged counts with the accuracy of what it left." if (rows["status"] == "diverged").any() else ""
    )
    caption(figure, " ".join(filter(None, (what, text, lost, scale))))
    return figure


def setting_names(rows: pandas.DataFrame) -> pandas.Series:
    """A noise setting as a reader writes it: "clean", "symmetric 40 %", "gaussian 0.3"."""
    names = []
    for kind, rate, image, level in zip(
        rows["noise_kind"], rows["noise_rate"], rows["image_noise"], rows["image_level"], strict=True
    ):
        if kind != "none":
            names.append(f"{kind} {100 * rate:.0f} %")
        elif image != "none":
            names.append(f"{image.replace('_', ' & ')} {level:g}")
        else:
            names.append("clean")
    return pandas.Series(names, index=rows.index)


def accuracy_by_image_noise(rows: pandas.DataFrame) -> Figure:
    """Networks trained on clean images, tested on noisy ones: a row a data set, a column a kind of noise."""
    rows = rows[rows["image_noise"] == "none"]
    settings = list(rows.groupby(["dataset", "model"], sort=False))
    kinds = list(dict.fromkeys(name.split()[0] for name in rows["panel_noise"].iloc[0]))
    units = {
        "gaussian": "standard deviation / range",
        "salt_pepper": "share of pixels",
        "blur": "standard deviation (pixels)",
    }
    shown = _shown(rows, LOOKS)
    figure, axes = plt.subplots(
        len(settings),
        len(kinds),
        figsize=(1.7 + 2.0 * len(kinds), 0.7 + 2.2 * len(settings)),
        squeeze=False,
        sharey="row",
    )
    for ((dataset, _), here), line in zip(settings, axes, strict=True):
        panel = results.panel_rows(here)
        for axis, kind in zip(line, kinds, strict=True):
            for number, loss in enumerate(shown):
                clean = here.loc[here["loss"] == loss, "test_accuracy"]
                by_level = panel[(panel["loss"] == loss) & (panel["damage"] == kind)].groupby("level")["test_accuracy"]
                levels = numpy.array([0.0, *by_level.groups])
                apart = 0.009 * levels[-1] * (number - (len(shown) - 1) / 2)  # so that no bar hides another
                _with_intervals(axis, levels + apart, [clean, *(runs for _, runs in by_level)], loss)
            mark_levels(axis, levels)
        line[0].set_ylim(top=min(line[0].get_ylim()[1], 100.5))
        line[0].set_ylabel(f"{title(dataset)}\ntest accuracy (%)")
    axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axis, kind in zip(axes[-1], kinds, strict=True):
        axis.set_xlabel(units[kind])
    for axis, kind in zip(axes[0], kinds, strict=True):
        axis.set_title({"gaussian": "Gaussian noise", "salt_pepper": "salt and pepper", "blur": "blur"}[kind])
    network = title(rows["model"].iloc[0])
    trained = f"Trained on clean images, tested on noisy ones ({network})"
    caption(figure, f"{trained}; losses are set apart sideways. {runs_text(rows)} A bar may leave the frame.")
    return figure
