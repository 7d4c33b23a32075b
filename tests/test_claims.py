"""The table of claims: every row leads to a notebook, a heading and a test, and is shown where readers look."""

import ast
import json

import pytest

from lossbook import claims
from lossbook.results import PROJECT

CLAIMS = list(claims.load().itertuples())


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_notebook_and_heading_exist(claim):
    cells = json.loads((PROJECT / claim.notebook).read_text(encoding="utf-8"))["cells"]
    lines = [
        line.strip()
        for cell in cells
        if cell["cell_type"] == "markdown"
        for line in "".join(cell["source"]).split("\n")
    ]
    assert claim.heading in [line.lstrip("# ") for line in lines if line.startswith("#")]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.id)
def test_guarding_test_exists(claim):
    path, _, name = claim.test.partition("::")
    functions = [
        node.name for node in ast.parse((PROJECT / path).read_text()).body if isinstance(node, ast.FunctionDef)
    ]
    assert name in functions


def test_readme_shows_the_table():
    assert claims.markdown() in (PROJECT / "README.md").read_text(encoding="utf-8"), (
        "README.md shows other claims than data/claims.csv; paste the output of: lossbook claims --markdown"
    )


@pytest.mark.parametrize(
    ("source", "topics"),
    [
        ("fourier", "metric wasserstein fft differentiable derivatives likelihood accuracy cifar10 labels images"),
        ("study", "important unjustified poor divergence significant any tune"),
        ("pod", "features-alone not-optimal centroids-optimal no-softmax norm-adaptive decorrelation decision better "
         "converges"),
        ("rooted", "separability convex strict minimum-norm network faster-theory deep-faster deep-gain "
         "deep-transformer gan"),
    ],
)  # fmt: skip
def test_abstracts_are_covered(source, topics):
    """Each statement of the abstract has its row; what is asked beyond it is marked."""
    ours = {claim.id for claim in CLAIMS if claim.claim.endswith("(Ours.)")}
    wanted = {f"{source}-{topic}" for topic in topics.split()}
    assert wanted <= {claim.id for claim in CLAIMS} - ours


def test_statements_of_the_study_notes_are_covered():
    """Each loss that the notes treat, and each statement about it, has its row."""
    topics = {
        "classical": "mean median quantile huber-path gaussian laplace bernoulli categorical saturation logarithm",
        "recipe": "recipe weight-decay momentum weight-decay-prior weight-decay-sgd dropout-penalty momentum-ten",
        "robust": "influence constants robust tukey-gradient robust-network tukey-network",
        "focal": "focal-easy focal-gradient focal-forms focal-calibration focal-rare",
        "dice": "dice-definition dice-iou dice-imbalance dice-balance dice-empty dice-rare dice-needed",
        "perceptual": "perceptual-features perceptual-style perceptual-gradient perceptual-size perceptual-input "
        "perceptual-random perceptual-restoration",
        "ranking": "ranking-bound ranking-splits ranking-quicksort ranking-family ranking-optimal ranking-better",
        "distances": "wasserstein-line emd-histograms sliced sinkhorn wasserstein-dual wasserstein-conventions "
        "fid-wasserstein fid-measures fid-few fid-damage fid-missing fid-floor fourier-distances fourier-means",
    }
    wanted = {f"notes-{topic}" for line in topics.values() for topic in line.split()}
    assert wanted <= {claim.id for claim in CLAIMS}


@pytest.mark.parametrize(
    ("change", "message"),
    [(("holds: it is", "surely: it is"), "must begin with"), (("id,source", "name,source"), "columns")],
)
def test_damaged_table_is_refused(tmp_path, monkeypatch, change, message):
    text = claims.PATH.read_text(encoding="utf-8")
    assert change[0] in text
    damaged = tmp_path / "claims.csv"
    damaged.write_text(text.replace(*change, 1), encoding="utf-8")
    monkeypatch.setattr(claims, "PATH", damaged)
    with pytest.raises(ValueError, match=message):
        claims.load()
