"""The look of every figure, and where figures are kept. Figures of experiments are functions of the result tables."""

from __future__ import annotations

import hashlib
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import seaborn
from matplotlib.figure import Figure

PROJECT = Path(__file__).resolve().parent.parent
FOLDER = PROJECT / "figures"


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
    "fourier(s=0.5)": Look("Fourier s = 1/2", "#ece133", "-", "<"),
    "fourier": Look("Fourier s = 1", "#d55e00", "-", "^"),
    "fourier(s=2)": Look("Fourier s = 2", "#de8f05", "--", ">"),
    "fourier(placement='permuted')": Look("Fourier s = 1, permuted", "#d55e00", ":", "x"),
    "mae": Look("MAE", "#029e73", "-", "P"),
    "gce": Look("GCE", "#029e73", "--", "h"),
    "sce": Look("SCE", "#ca9161", "-", "*"),
    "nce_rce": Look("NCE + RCE", "#cc78bc", "-.", "X"),
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
            "savefig.dpi": 200,
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


def save(figure: Figure, name: str, made_by: str, sources: tuple[str, ...] = ()) -> None:
    """Keep a figure as figures/<name>.png and .pdf, with a JSON that says from what.

    made_by  the notebook that draws it, its path from the root of the project
    sources  result tables it is drawn from, their paths from the root; their hashes are recorded
    """
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / f"{name}.png", metadata={"Software": None})
    figure.savefig(FOLDER / f"{name}.pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    record = {
        "figure": name,
        "made_by": made_by,
        "sources": {path: hashlib.sha256((PROJECT / path).read_bytes()).hexdigest() for path in sources},
        "matplotlib": matplotlib.__version__,
        "seaborn": seaborn.__version__,
    }
    (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")


def close(figure: Figure) -> Figure:
    """Return the figure for display, closed, so that a notebook shows it once."""
    plt.close(figure)
    return figure
