"""The claims of the sources and their verdicts: the table of data/claims.csv."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pandas

from lossbook import PROJECT

PATH = PROJECT / "data" / "claims.csv"
COLUMNS = ("id", "source", "claim", "verdict", "notebook", "heading", "test")
SOURCES = {
    "fourier": "The Fourier Loss Function (arXiv 2102.02979)",
    "study": "Evaluating the Impact of Loss Function Variation in Deep Learning for Classification (arXiv 2210.16003)",
    "pod": "POD Loss (arXiv 2111.15449)",
    "notes": "Study notes on the classical losses",
    "rooted": "Accelerated Neural Network Training with Rooted Logistic Objectives (arXiv 2310.03890)",
}
VERDICTS = ("holds", "holds if", "fails", "open")  # what a verdict begins with


def load() -> pandas.DataFrame:
    """Every claim, a row each; ValueError where the table is not as it should be.

    id        short and unique; source: key of the source; claim: one sentence
    verdict   begins with holds, holds if, fails or open
    notebook  path from the root; heading: its heading that shows the verdict; test: the test that guards it
    """
    if not PATH.is_file():
        raise ValueError(f"{PATH} is not there; run this inside the project, which holds the claims")
    try:
        claims = pandas.read_csv(PATH, dtype=str, keep_default_na=False)
    except ValueError as error:  # also of an empty file, and of what is not UTF-8
        raise ValueError(f"{PATH} is damaged ({error}); restore it from the repository") from error
    if tuple(claims.columns) != COLUMNS or claims["id"].duplicated().any() or (claims == "").any(axis=None):
        raise ValueError(f"{PATH} is damaged; allowed: the columns {', '.join(COLUMNS)}, unique ids, no empty cell")
    if unknown := set(claims["source"]) - set(SOURCES):
        raise ValueError(f"{PATH}: source {', '.join(sorted(unknown))}; allowed: {', '.join(SOURCES)}")
    wrong = claims[~claims["verdict"].str.startswith(VERDICTS)]
    if len(wrong):
        raise ValueError(f"{PATH}: the verdict of {', '.join(wrong['id'])} must begin with {', '.join(VERDICTS)}")
    return claims


def text() -> str:
    """The claims as paragraphs for a terminal."""
    paragraphs = []
    for source, rows in load().groupby("source", sort=False):
        paragraphs.append(f"{SOURCES[source]}\n{'=' * len(SOURCES[source])}")
        for row in rows.itertuples():
            where = f"{row.notebook} · {row.heading}"
            lines = [f"{row.id}  {row.claim}", f"→ {row.verdict}", f"  {where}"]
            paragraphs.append("\n".join(textwrap.fill(line, 100, subsequent_indent="    ") for line in lines))
    return "\n\n".join(paragraphs)


def markdown(root: str = "") -> str:
    """The claims as Markdown, a table a source; root is the way from the page that shows it to that of the project."""
    lines = []
    for source, rows in load().groupby("source", sort=False):
        lines += ["", f"### {SOURCES[source]}", "", "| claim | verdict | shown in |", "|---|---|---|"]
        for row in rows.itertuples():
            claim, verdict = (cell.replace("|", r"\|") for cell in (row.claim, row.verdict))  # a bar ends a cell
            lines.append(f"| {claim} | {verdict} | [{Path(row.notebook).stem}]({root}{row.notebook}) |")
    return "\n".join(lines[1:])
