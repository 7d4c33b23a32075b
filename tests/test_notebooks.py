"""What every notebook keeps to, and a run of each experiment at its smallest size."""

import ast
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from lossbook import figures, sweep

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = [p for p in sorted(ROOT.glob("notebooks/**/*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
DERIVATIONS = [path for path in NOTEBOOKS if path.parent.name == "derivations"]
EXPERIMENTS = [path for path in NOTEBOOKS if path.parent.name == "experiments"]

SECTIONS = ("Claim", "Derive", "Check", "Limits", "Verdict")
MACHINE_PATH = re.compile(r"(?<![\w.])(/(home|root|tmp|work|Users)/|[A-Z]:\\+Users\\)")
PROGRESS_BAR = re.compile(r"\r|\d+%\|| \d+(\.\d+)?(it/s|s/it)")
IMAGES = ("image/png", "image/jpeg")
MAX_BYTES = 1_500_000
MAX_PARAMETERS = 10


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.relative_to(ROOT).as_posix())


def read(path):
    return nbformat.read(path, as_version=4)


def cells(notebook, kind):
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def parameters_cells(notebook):
    return [cell for cell in cells(notebook, "code") if "parameters" in cell.metadata.get("tags", [])]


def texts(notebook):
    """All that a notebook says, without the images: their base64 text may spell anything."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            data = {mime: text for mime, text in output.get("data", {}).items() if mime not in IMAGES}
            yield json.dumps([output.get("text", ""), data], ensure_ascii=False)
    yield json.dumps([notebook.metadata, [cell.metadata for cell in notebook.cells]])


def problems_of_outputs(notebook):
    """Why the committed outputs are not those of one clean run, if they are not."""
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "its kernelspec is not python3"
    code = cells(notebook, "code")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        yield "its code cells were not executed once each, in order: restart the kernel and run all"
    outputs = [output for cell in code for output in cell.outputs]
    if not outputs:
        yield "it has no outputs"
    for output in outputs:
        if output.output_type == "error":
            yield f"it has an error: {output.ename}: {output.evalue}"
        if output.output_type == "stream" and output.name == "stderr":
            yield f"it wrote to stderr: {output.text[:100]!r}"
        if output.output_type == "stream" and PROGRESS_BAR.search(output.text):
            yield f"it shows a progress bar: {output.text[:100]!r}"
        if any("widget" in mime for mime in output.get("data", {})):
            yield "it has the output of a widget"
    if "widgets" in notebook.metadata:
        yield "it has the state of widgets"
    if any("injected-parameters" in cell.metadata.get("tags", []) for cell in code):
        yield "it is the output of papermill, with the parameters of another run"
    for text in texts(notebook):
        if match := MACHINE_PATH.search(text):
            yield f"it names a path of one machine: {text[max(0, match.start() - 20) : match.end() + 40]!r}"


def problems_of_parameters(notebook):
    """Why the parameters cell is not a short list of plain literals, each with a comment, if it is not."""
    found = parameters_cells(notebook)
    if not found:
        return
    if len(found) > 1:
        yield "it has several cells tagged parameters"
    source = found[0].source
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    statements = ast.parse(source).body
    if not 1 <= len(statements) <= MAX_PARAMETERS:
        yield f"it has {len(statements)} parameters; from 1 to {MAX_PARAMETERS} are allowed"
    for statement in statements:
        line = ast.unparse(statement)
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if len(targets) != 1 or not isinstance(targets[0], ast.Name) or not hasattr(statement, "value"):
            yield f"no plain assignment: {line}"
            continue
        if not isinstance(getattr(statement, "annotation", ast.Name()), ast.Name):
            yield f"no plain annotation, which papermill cannot read: {line}"
        try:
            ast.literal_eval(statement.value)
        except ValueError:
            yield f"no plain literal: {line}"
        if statement.end_lineno not in commented:
            yield f"no comment beside: {line}"


def problems_of_derivation(notebook):
    """Why a derivation is not prose that leads from the claim to the verdict, if it is not."""
    prose = sum(len(cell.source.split()) for cell in cells(notebook, "markdown"))
    code = sum(len(cell.source.split()) for cell in cells(notebook, "code"))
    if prose < code:
        yield f"it has {prose} words of prose beside {code} of code; at least half should be prose"
    if any(cell.source.rstrip().endswith(";") for cell in cells(notebook, "code")):
        yield "a cell ends in a semicolon, which nbval does not honour: assign what it would show to a name"
    headings = [
        heading
        for cell in cells(notebook, "markdown")
        for heading in re.findall(r"^## +(\w+)", cell.source, flags=re.MULTILINE)
    ]
    first = [headings.index(section) if section in headings else -1 for section in SECTIONS]
    if -1 in first or first != sorted(first):
        yield f"its level-2 headings begin with {headings}; needed, in this order: {', '.join(SECTIONS)}"


@each(NOTEBOOKS)
def test_notebook_is_committed_from_one_clean_run(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert path.stat().st_size < MAX_BYTES
    assert list(problems_of_outputs(notebook)) == []


@each(NOTEBOOKS)
def test_parameters_are_few_plain_and_explained(path):
    assert list(problems_of_parameters(read(path))) == []


@each(DERIVATIONS)
def test_derivation_is_prose_from_claim_to_verdict(path):
    assert list(problems_of_derivation(read(path))) == []


@each([*NOTEBOOKS, ROOT / "README.md"])
def test_rows_of_tables_have_the_cells_of_their_heads(path):
    """A bar in a cell ends it, and what comes behind is lost."""
    pages = [path.read_text(encoding="utf-8")]
    if path.suffix == ".ipynb":
        pages = [cell.source for cell in cells(read(path), "markdown")]
    for page in pages:
        for table in re.findall(r"(?:^\|.*\n?)+", page, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


@each(NOTEBOOKS)
def test_readme_names_the_notebook(path):
    assert path.relative_to(ROOT).as_posix() in (ROOT / "README.md").read_text(encoding="utf-8")


def papermill(path, folder, **parameters):
    """Run a notebook in a process of its own, from a folder that is not the notebook's."""
    arguments = [text for name, value in parameters.items() for text in ("-p", name, str(value))]
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    environment["LOSSBOOK_WORKERS"] = "1"  # the tests are side by side already
    command = [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar", *arguments]
    return subprocess.run(
        [*command, str(path), str(folder / "executed.ipynb")],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


DRAWN = {
    record["figure"]: record
    for record in map(json.loads, (path.read_text() for path in ROOT.glob("figures/*.json")))
    if record["sources"]
}


@pytest.mark.parametrize("notebook", figures.notebooks())
def test_figures_of_a_table_are_redrawn_without_training(notebook, tmp_path, monkeypatch):
    def refused(*arguments, **options):
        raise AssertionError("a figure of a committed table wants no runs")

    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    for name in ("run", "run_all", "settings"):
        monkeypatch.setattr(sweep, name, refused)
    figures.redraw(notebook)
    assert not figures.plt.get_fignums()  # all closed
    drawn = {record["figure"]: record for record in map(json.loads, (p.read_text() for p in tmp_path.glob("*.json")))}
    assert drawn and set(drawn) == {name for name, record in DRAWN.items() if record["made_by"] == notebook}
    for name, record in drawn.items():
        assert record["sources"] == DRAWN[name]["sources"], "the table has changed since: make figures"
        assert (tmp_path / f"{name}.png").stat().st_size > 5000 and (tmp_path / f"{name}.pdf").stat().st_size > 2000


def test_every_figure_of_a_table_has_a_notebook_that_redraws_it():
    assert {record["made_by"] for record in DRAWN.values()} == set(figures.notebooks())


@each(EXPERIMENTS)
def test_experiment_runs_at_smoke_size(path, tmp_path):
    out = tmp_path / "out"
    done = papermill(path, tmp_path, profile="smoke", out=out)
    assert done.returncode == 0, done.stderr[-4000:]
    assert any(out.rglob("*.parquet")), f"no table in the folder that out names; it has {list(out.rglob('*'))}"


@each(EXPERIMENTS)
def test_experiment_has_the_parameters_that_it_takes(path):
    (cell,) = parameters_cells(read(path))
    given = {statement.targets[0].id for statement in ast.parse(cell.source).body if isinstance(statement, ast.Assign)}
    assert given - {"model"} == {"profile", "dataset", "out", *sweep.changes_of(path.stem)}


@each(EXPERIMENTS)
def test_experiment_refuses_an_unknown_parameter(path, tmp_path):
    """What papermill would only warn of is refused before any work."""
    notebook = read(path)
    code = [cell.source for cell in cells(notebook, "code")]
    names = {"__name__": "__main__"}
    exec(parameters_cells(notebook)[0].source, names)
    names |= {"profil": "smoke", "out": str(tmp_path / "out")}
    first = next(i for i, source in enumerate(code) if "sweep.settings" in source)
    assert first <= 2 and "sweep.run" not in code[1]  # after the parameters there is at most a cell of imports
    for source in code[1:first]:
        exec(source, names)
    with pytest.raises(ValueError, match=r"'profil'.*'profile'"):
        exec(code[first], names)
    assert not (tmp_path / "out").exists(), "it worked before it refused"


def test_papermill_passes_the_refusal_on(tmp_path):
    refused = papermill(
        ROOT / "notebooks/experiments/noisy_labels.ipynb", tmp_path, profil="smoke", out=tmp_path / "out"
    )
    message = refused.stderr.rpartition("Error: ")[2]
    assert refused.returncode != 0
    assert re.search(r"\bprofil\b", message) and re.search(r"\bprofile\b", message), refused.stderr[-4000:]


KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def sound_notebook():
    printed = new_code_cell("print(2)", execution_count=2, outputs=[new_output("stream", text="2\n")])
    parameters = new_code_cell('profile = "quick"  # smoke, quick or paper', execution_count=1)
    parameters.metadata["tags"] = ["parameters"]
    prose = new_markdown_cell("\n\n".join(f"## {section} in two words" for section in SECTIONS))
    return new_notebook(cells=[prose, parameters, printed], metadata={"kernelspec": KERNEL})


def problems(notebook):
    return [
        *problems_of_outputs(notebook),
        *problems_of_parameters(notebook),
        *problems_of_derivation(notebook),
    ]


def test_checks_accept_a_sound_notebook():
    assert problems(sound_notebook()) == []


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda prose, parameters, printed: printed.update(outputs=[]), "no outputs"),
        (lambda prose, parameters, printed: printed.update(execution_count=None), "in order"),
        (lambda prose, parameters, printed: printed.outputs[0].update(name="stderr"), "stderr"),
        (lambda prose, parameters, printed: printed.outputs[0].update(text="\r 50%|#"), "progress bar"),
        (lambda prose, parameters, printed: printed.update(source='open("/home/x")'), "path of one machine"),
        (lambda prose, parameters, printed: printed.update(outputs=[new_output("error")]), "an error"),
        (lambda prose, parameters, printed: parameters.update(source="x = 1"), "no comment"),
        (lambda prose, parameters, printed: parameters.update(source="x = f(1)  # why"), "no plain literal"),
        (lambda prose, parameters, printed: parameters.update(source="x = y = 1  # why"), "no plain assign"),
        (lambda prose, parameters, printed: parameters.update(source="x = 1  # why\n" * 11), "11 parameters"),
        (lambda prose, parameters, printed: printed.update(source="plot(2);"), "semicolon"),
        (lambda prose, parameters, printed: prose.update(source=prose.source[9:]), "level-2 headings"),
        (lambda prose, parameters, printed: printed.update(source="x = 1\n" * 30), "words of prose"),
    ],
)
def test_checks_refuse_a_spoilt_notebook(spoil, problem):
    notebook = sound_notebook()
    spoil(*notebook.cells)
    assert any(problem in found for found in problems(notebook))


@pytest.mark.parametrize("profile", ["quick", "paper"])
def test_snakemake_runs_each_experiment_once_or_on_every_set_of_the_paper_profile(profile):
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--printshellcmds", "--forceall", "--nolock"]
    done = subprocess.run(
        [*command, "--cores", "1", "--config", f"profile={profile}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    calls = re.findall(r"-m papermill .*? (-p .*?) notebooks/experiments/(\w+)\.ipynb", done.stdout + done.stderr)
    wanted = []
    for path in EXPERIMENTS:
        names = {line.split()[0] for line in parameters_cells(read(path))[0].source.splitlines()}
        for dataset, model in sweep.pairs(path.stem, "paper") if profile == "paper" else [("", "")]:
            given = {"profile": profile, "dataset": dataset, "model": model}
            given = [f"-p {key} {value}" for key, value in given.items() if value and key in names]
            wanted.append((" ".join(given), path.stem))
    assert sorted(calls) == sorted(wanted)
