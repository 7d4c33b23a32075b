"""The command: what it prints, what it writes, and what it refuses."""

import csv
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pandas
import pytest

import lossbook
from lossbook import data, figures, losses, results, sweep
from lossbook.cli import main

SMOKE = ["run", "noisy_labels", "--profile", "smoke", "--noise", "symmetric 0.4", "--seeds", "70", "--epochs", "1"]
ONE_RUN = [*SMOKE, "--losses", "brier"]


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "PROJECT", tmp_path)
    monkeypatch.setattr(results, "PUBLISHED", tmp_path / "data" / "results")
    monkeypatch.setattr(results, "RUNS", tmp_path / "data" / "runs")


def test_losses(capsys):
    assert main(["losses"]) == 0
    printed = capsys.readouterr().out
    for name in losses.names():
        assert f"\n{name} " in f"\n{printed}" and losses.lookup(name).definition in printed


def test_data(capsys):
    assert main(["data", "digits"]) == 0
    assert capsys.readouterr().out.split() == "digits 1437 training and 360 test images (8, 8)".split()
    assert main(["data"]) == 0
    there = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert there >= {"digits", *data.TABLES}


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out == f"lossbook {lossbook.__version__}\n"


def test_a_damaged_set_does_not_hide_the_others(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSBOOK_DATA", str(tmp_path))
    (tmp_path / "mnist.npz").write_bytes(b"no archive")
    assert main(["data", "mnist", "digits"]) == 2
    out, error = capsys.readouterr()
    assert out.startswith("digits ") and error.startswith("lossbook: ") and "mnist.npz" in error


def test_run_and_publish(capsys, tmp_path):
    assert main([*SMOKE, "--losses", "brier", "fourier(s=2)", "--workers", "1"]) == 0
    done, where = capsys.readouterr().out.splitlines()
    assert done == "noisy_labels digits mlp: 2 done" and "data/runs/noisy_labels" in where and "publish" in where
    assert main([*ONE_RUN, "--workers", "1", "--out", str(tmp_path / "rows")]) == 0
    assert len(list((tmp_path / "rows" / "noisy_labels").iterdir())) == 1
    assert main(["publish", "noisy_labels", "--dataset", "digits"]) == 0
    assert "2 rows" in capsys.readouterr().out.splitlines()[-1]
    table = pandas.read_parquet(tmp_path / "data" / "results" / "noisy_labels.parquet")
    assert set(table["loss"]) == {"brier", "fourier(s=2)"}
    assert main([*SMOKE, "--losses", "mae", "--workers", "1", "--out", str(tmp_path / "more rows")]) == 0
    (publish,) = re.findall("lossbook (publish .*) merges", capsys.readouterr().out)
    assert main(shlex.split(publish)) == 0
    assert set(results.published("noisy_labels")["loss"]) == {"brier", "fourier(s=2)", "mae"}
    shutil.rmtree(results.RUNS)
    assert main(["publish", "noisy_labels"]) == 2  # though a table is there, this machine has nothing to add
    assert "run the sweep first" in capsys.readouterr().err


def test_publishing_a_data_set_leaves_the_rows_of_others(tmp_path):
    for seconds in (1.0, 2.0):
        for dataset in ("mnist", "cifar10"):
            results.write_row({"hash": dataset, "dataset": dataset, "loss": "brier", "seconds": seconds}, "x")
        results.publish("x", ["mnist"] if seconds == 2 else None)
    assert results.published("x").set_index("dataset")["seconds"].to_dict() == {"mnist": 2.0, "cifar10": 1.0}


@pytest.mark.parametrize(
    ("stop", "code", "said"), [(KeyboardInterrupt(), 130, "interrupted"), (OSError(28, "No space left"), 1, "No space")]
)
def test_what_ends_a_sweep_is_said_in_a_line(stop, code, said, capsys, monkeypatch):
    def end(*given):
        raise stop

    monkeypatch.setattr(sweep, "train_together", end)
    assert main([*ONE_RUN, "--workers", "1"]) == code
    out, error = capsys.readouterr()
    assert not out and said in error and "kept" in error and error.count("\n") == 1
    monkeypatch.setattr(data, "load", end)  # of a command that writes no rows none are spoken of
    assert main(["data", "digits"]) == code
    out, error = capsys.readouterr()
    assert not out and said in error and "kept" not in error and error.count("\n") == 1


def test_plan_says_what_is_there_and_runs_nothing(capsys, tmp_path):
    assert main([*SMOKE, "--losses", "brier", "mae", "--plan"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    expected = dict(zip(header.split(), line.split(), strict=True))
    assert expected["runs"] == "2" and expected["there"] == "0" and expected["basis"] == "estimated"
    assert not list(tmp_path.rglob("*.parquet"))
    main([*ONE_RUN, "--workers", "1"])
    main([*SMOKE, "--losses", "brier", "mae", "--plan"])
    header, line = capsys.readouterr().out.splitlines()[-2:]
    expected = dict(zip(header.split(), line.split(), strict=True))
    assert expected["runs"] == "2" and expected["there"] == "1" and expected["basis"] == "measured"


def test_afresh_also_counts_what_is_published(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("LOSSBOOK_AFRESH", "0")  # put back afterwards
    assert main([*ONE_RUN, "--workers", "1"]) == main(["publish", "noisy_labels"]) == 0
    elsewhere = [*ONE_RUN, "--plan", "--out", str(tmp_path / "rows")]
    there = []
    for more in ([], ["--afresh"]):
        capsys.readouterr()
        assert main([*elsewhere, *more]) == 0
        header, line = capsys.readouterr().out.splitlines()
        there.append(dict(zip(header.split(), line.split(), strict=True))["there"])
    assert there == ["1", "0"]


def test_figures_are_drawn_by_processes_of_their_own(capsys, tmp_path, monkeypatch):
    cell = "import os, pathlib\nfor name in names:\n    pathlib.Path(name).write_text(str(os.getpid()))"
    *notebooks, broken = [str(tmp_path / "figures" / f"{name}.ipynb") for name in "abcd"]  # there, all code is figures
    drawn = [tmp_path / name for name in "abc"]
    cells = [cell.replace("names", repr([str(file)])) for file in drawn]
    (tmp_path / "figures").mkdir()
    for notebook, source in zip([*notebooks, broken], [*cells, "raise ValueError('no such table')"], strict=True):
        code = {"cell_type": "code", "metadata": {}, "source": source}
        Path(notebook).write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": "no code"}, code]}))
    monkeypatch.setattr(figures, "notebooks", lambda: notebooks)
    assert main(["figures"]) == 0 and capsys.readouterr().out.splitlines() == notebooks
    assert all(int(file.read_text()) != os.getpid() for file in drawn)
    for file in drawn:
        file.unlink()
    monkeypatch.setattr(figures, "notebooks", lambda: [*notebooks, broken])
    monkeypatch.setattr(sweep, "cores", lambda: 1)  # a process that draws begins with seconds of imports
    assert main(["figures", "d", notebooks[1], "a"]) == 2  # by name and by path; one that fails does not end the others
    assert [file.exists() for file in drawn] == [True, True, False]
    out, error = capsys.readouterr()
    assert out.splitlines() == [notebooks[1], notebooks[0]] and error == f"lossbook: {broken}: no such table\n"


def test_no_time_left_begins_nothing(capsys, tmp_path):
    assert main([*SMOKE, "--losses", "brier", "mae", "--workers", "1", "--minutes", "1e-6"]) == 2
    assert "--minutes 1e-06 was given, and what is left takes" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data", "mnits"], "mnist"),
        (["run", "noisy_lables"], "noisy_labels"),
        (["run", "noisy_labels", "--profile", "papr"], "paper"),
        (["run", "noisy_labels", "--dataset", "digits", "digit"], "digits"),
        (["run", "noisy_labels", "--model", "mpl"], "mlp"),
        (["run", "noisy_labels", "--losses", "brir"], "brier"),
        (["run", "noisy_labels", "--noise", "symmetric", "0.4"], "symmetric 0.4"),
        (["run", "noisy_labels", "--noise", "symmetric 2"], "noise_rate=2"),
        (["run", "noisy_labels", "--epochs", "-1"], "epochs=-1"),
        ([*ONE_RUN, "--workers", "-1"], "workers=-1"),
        ([*ONE_RUN, "--workers", "0"], "workers=0"),
        ([*ONE_RUN, "--minutes", "0"], "--minutes 0"),
        ([*ONE_RUN, "--out", "~no-such-user/rows"], "'~no-such-user/rows'"),
        ([*ONE_RUN, "--out", "rows\udcff"], "a path in UTF-8"),
        (["run", "noisy_images", "--noise", "gaussian 1e40"], "[0, 1000]"),
        (["run", "noisy_images", "--noise", "blur 1e308"], "[0, 1000]"),
        (["run", "noisy_labels", "--dataset", "iris"], "sets of images"),
        (["run", "regularised_likelihood", "--losses", "brier"], "allowed: seeds, epochs"),
        (["run", "loss_study", "--learning-rates", "0.1"], "allowed: losses, seeds, epochs"),
        (["run", "rooted_gan", "--epochs", "3"], "allowed: losses, seeds"),
        (["run", "pod", "--losses", "arcface"], "the quick profile"),
        (["run", "noisy_labels", "--profile", "paper", "--dataset", "mnits"], "mnist"),
        (["figures", "notebooks/experiments/pods.ipynb"], "'pods'"),
        (["publish", "noisy_lables"], "noisy_labels"),
        (["publish", "noisy_labels"], "noisy_labels"),
    ],
)
def test_refusals_exit_2_with_one_line_and_no_work(arguments, said, capsys, tmp_path):
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert not out and error.startswith("lossbook: ") and said in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("arguments", [[], ["lose"], ["run"], ["run", "noisy_labels", "--seeds", "one"]])
def test_a_wrong_command_line_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "usage: lossbook" in capsys.readouterr().err


def test_claims(capsys, request):
    assert main(["claims"]) == 0
    printed = capsys.readouterr().out
    with open(request.config.rootpath / "data" / "claims.csv", encoding="utf-8", newline="") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    assert ids and len(set(ids)) == len(ids) and all(key in printed for key in ids)
