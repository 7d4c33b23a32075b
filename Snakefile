"""One job a notebook, each run by papermill in a process of its own and written to build/, under the same path.

    snakemake --cores 2 --config profile=quick            every notebook
    snakemake --cores 2 --config profile=quick -- derivations    the derivations alone
    snakemake --cores 2 --config profile=paper            every notebook, the experiments once for each data set and network

A job runs again when its notebook, the part of the library it uses, or the profile has changed. The rows of single
runs (data/runs/) are no outputs here: the library keeps them, and a rerun skips those that are there.
"""

import json
import os
import re
import sys
from glob import glob
from pathlib import Path

from snakemake.exceptions import WorkflowError

PROFILES = ("smoke", "quick", "paper")

config.setdefault("profile", "quick")
if config["profile"] not in PROFILES:
    raise WorkflowError(f"profile={config['profile']} is unknown; allowed: {', '.join(PROFILES)}")
if unknown := set(config) - {"profile"}:
    raise WorkflowError(f"--config {', '.join(sorted(unknown))}: unknown; the only setting is profile=...")


def executed(pattern):
    """Where the executed copies of the notebooks go that match a pattern."""
    return [f"build/{notebook}" for notebook in sorted(glob(f"notebooks/{pattern}.ipynb", recursive=True))]


def library(*patterns):
    """The Python files of these parts of the library."""
    return sorted({path for pattern in patterns for path in glob(f"lossbook/{pattern}.py", recursive=True)})


def experiments():
    """Where the executed experiments go: a notebook each; of the paper profile, one for each data set and network."""
    if config["profile"] != "paper":
        return executed("experiments/*")
    from lossbook import sweep

    names = [Path(path).stem for path in sorted(glob("notebooks/experiments/*.ipynb"))]
    pairs = [(name, *pair) for name in names for pair in sweep.pairs(name, "paper")]
    return [f"build/notebooks/experiments/{name}/{dataset}-{model}.ipynb" for name, dataset, model in pairs]


def arguments(wildcards):
    """Profile, data set and network for papermill, where the experiment has them among its parameters."""
    values = {"profile": config["profile"], **{key: wildcards.get(key) for key in ("dataset", "model")}}
    notebook = Path("notebooks/experiments", f"{wildcards.name}.ipynb")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = "".join(line for c in cells if "parameters" in c["metadata"].get("tags", []) for line in c["source"])
    known = [key for key, value in values.items() if value and re.search(rf"^{key}\b", source, flags=re.MULTILINE)]
    return " ".join(f"-p {key} {values[key]}" for key in known)


def cores(wildcards):
    """One, so that small experiments run side by side; all of them where an experiment takes hours, two on a cluster."""
    if config["profile"] != "paper":
        return 1
    try:
        return workflow.cores
    except WorkflowError:
        return 2


wildcard_constraints:
    name="[^/]+",
    dataset="[^/-]+",
    model="[^/-]+",


rule all:
    input:
        executed("derivations/*"),
        experiments(),
        executed("figures/*"),
        executed("00_start_here"),


rule derivations:
    input:
        executed("derivations/*"),


# A copy has another name until it is complete, and stays under it where a cell fails. One thread a process: results
# that do not depend on the number of cores.
rule derivation:
    input:
        notebook="notebooks/derivations/{name}.ipynb",
        library=library("symbolic/**/*", "losses/**/*", "checks", "data", "figures", "models", "noise", "results"),
    output:
        "build/notebooks/derivations/{name}.ipynb",
    log:
        "build/notebooks/derivations/{name}.log",
    params:
        parameters="",
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    shell:
        """
        unset MPLBACKEND
        export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 LOSSBOOK_WORKERS={threads}
        running={output:q}
        running="${{running%.ipynb}}.running.ipynb"
        SECONDS=0
        {sys.executable:q} -m papermill -k python3 --cwd "$(dirname {input.notebook:q})" --no-progress-bar \
            --log-level WARNING {params.parameters} {input.notebook:q} "$running" > {log:q} 2>&1 || {{
            cat {log:q} >&2
            echo "FAILED   {input.notebook}: its cells up to the error are in $running" >&2
            exit 1
        }}
        mv "$running" {output:q}
        printf '%5d s  %s\n' "$SECONDS" {input.notebook:q}
        """


use rule derivation as experiment with:
    input:
        notebook="notebooks/experiments/{name}.ipynb",
        library=library("**/*"),
        table=lambda wildcards: glob(f"data/results/{wildcards.name}.parquet"),
    output:
        "build/notebooks/experiments/{name}.ipynb",
    log:
        "build/notebooks/experiments/{name}.log",
    params:
        parameters=arguments,
        afresh=os.environ.get("LOSSBOOK_AFRESH", ""),  # another value runs it again
    threads: cores
    resources:
        mem_mb=16000,
        runtime=480,


use rule experiment as experiment_of_a_pair with:
    output:
        "build/notebooks/experiments/{name}/{dataset}-{model}.ipynb",
    log:
        "build/notebooks/experiments/{name}/{dataset}-{model}.log",


use rule derivation as figure with:
    input:
        notebook="notebooks/figures/{name}.ipynb",
        library=library("**/*"),
        tables=sorted(glob("data/results/*.parquet") + glob("data/results/bench/*.csv")),
    output:
        "build/notebooks/figures/{name}.ipynb",
    log:
        "build/notebooks/figures/{name}.log",


use rule derivation as start_here with:
    input:
        notebook="notebooks/00_start_here.ipynb",
        library=library("claims", "losses/**/*", "checks"),
        claims=glob("data/claims.csv"),
    output:
        "build/notebooks/00_start_here.ipynb",
    log:
        "build/notebooks/00_start_here.log",


onstart:
    total, profile = len(executed("**/*") if config["profile"] != "paper" else rules.all.input), config["profile"]
    print(f"Running what has changed of {total} notebooks, profile {profile}; a line as each is done.", flush=True)
