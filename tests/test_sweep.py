"""Sweeps: bad input refused before work, kills and full disks survived, tuning blind to the test set, statistics."""

import itertools
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lossbook import losses, results, sweep
from lossbook.tasks import rooted_gan
from lossbook.training import Config, canonical_loss

ONE = dict(profile="smoke", losses=["cross_entropy", "brier"], noise=["symmetric 0.4"], seeds=[70], epochs=1)
MANY = dict(profile="smoke", losses=["brier"], noise=["symmetric 0.4"], seeds=list(range(70, 78)), epochs=3)


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Neither the published tables nor the runs of this machine."""
    monkeypatch.setattr(results, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr(results, "RUNS", tmp_path / "runs")


def small(out, **changes):
    return sweep.plan("noisy_labels", **(ONE | changes), out=str(out))


def counted(monkeypatch):
    """The configurations that are trained from here on."""
    trained, train = [], sweep.train_together
    monkeypatch.setattr(sweep, "train_together", lambda configs: trained.extend(configs) or train(configs))
    return trained


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_results(one, other):
    """Up to the rounding of sums, which is another where other runs are trained together: an image of 360 may turn."""
    columns = ["hash", "test_accuracy", "validation_accuracy", "realised_noise_rate"]
    pandas.testing.assert_frame_equal(
        *(rows[columns].sort_values("hash").reset_index(drop=True) for rows in (one, other)), rtol=0, atol=1 / 100
    )


# --- plans ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(experiment="noisy_lables"), "noisy_labels"),
        (dict(profile="quik"), "quick"),
        (dict(dataset="digit"), "digits"),
        (dict(model="mpl"), "mlp"),
        (dict(model=["mlp"]), "mlp"),
        (dict(losses=["brir"]), "brier"),
        (dict(losses=["fourier(s=-1)"]), "s=-1"),
        (dict(losses=["fourier(symbl='sin')"]), "symbol"),
        (dict(losses="brier"), "losses='brier'"),
        (dict(losses=5), "losses=5"),
        (dict(losses=[5]), "5"),
        (dict(noise=["symetric 0.4"]), "symmetric"),
        (dict(noise=["symmetric 1.4"]), "1.4"),
        (dict(noise=["symmetric -0.1"]), "-0.1"),
        (dict(noise=["symmetric nan"]), "nan"),
        (dict(noise=["symmetric"]), "symmetric 0.4"),
        (dict(noise=[0.4]), "symmetric 0.4"),
        (dict(noise="symmetric 0.4"), "a list"),
        (dict(noise=["gaussian 0.1"]), "noise_kind"),
        (dict(experiment="noisy_images", noise=["symmetric 0.4"]), "image_noise"),
        (dict(dataset="kmnist", noise=["asymmetric 0.4"]), "kmnist"),
        (dict(seeds=[-1]), "seed=-1"),
        (dict(seeds=["0"]), "seed='0'"),
        (dict(seeds=[1000]), "1000"),
        (dict(experiment="ranking", dataset="", model="", seeds=[0.5]), "seed=0.5"),
        (dict(losses=[["brier"]]), "['brier']"),
        (dict(losses="brier"), "-y 'losses: [...]'"),
        (dict(dataset="digits", model="airbench"), "28x28"),
        (dict(dataset="iris"), "sets of images"),
        (dict(experiment="noisy_images", dataset="iris"), "sets of images"),
        (dict(experiment="rooted_deep", variant="adam few images", profile="paper", dataset="iris"), "sets of images"),
        (
            dict(experiment="loss_study", variant="sgd same", dataset="iris", losses=["fourier(placement=[2,0])"]),
            "3 points",
        ),
        (dict(profile="paper", dataset="mnist", model="vit"), "vit"),
        (dict(seeds=3), "seeds=3"),
        (dict(epochs=-1), "epochs=-1 was given; allowed: a whole number"),
        (dict(epochs=1.5), "epochs=1.5"),
        (dict(epochs="3"), "epochs='3'"),
        (dict(learning_rates=["0.1"]), "learning_rate='0.1'"),
        (
            dict(experiment="airbench", profile="paper", dataset="cifar10", model="airbench", learning_rates=[1, 2]),
            "holds no images out",
        ),
        (dict(experiment="loss_study", variant="sgd matched", losses=["kl_divergence(clip=0.5)"]), "no gradient"),
        (dict(losses=[f"huber(delta=1{400 * '0'})"]), "(0, inf)"),
        (dict(out=5), "out=5"),
    ],
)
def test_bad_plans_are_refused_before_any_work(changes, said, tmp_path):
    out = tmp_path / "rows"
    with pytest.raises(ValueError) as error:
        sweep.plan(**(dict(experiment="noisy_labels", profile="smoke", out=str(out)) | changes))
    assert said in str(error.value)
    assert not list(tmp_path.iterdir())


def test_parameters_of_a_notebook():
    """From `globals()`: IPython's own names, modules and functions pass; a misspelt parameter does not."""
    around = {"__name__": "__main__", "_i1": "x = 1", "In": [], "Out": {}, "math": math, "plan": sweep.plan}
    plan = sweep.settings("noisy_labels", {**around, "profile": "smoke", "dataset": "digits", "seeds": [3]})
    assert plan == sweep.plan("noisy_labels", "smoke", seeds=[3])
    for name, near in (("datset", "dataset"), ("seed", "seeds"), ("lossses", "losses")):
        with pytest.raises(ValueError, match=f"unknown parameter of noisy_labels '{name}'.*'{near}'"):
            sweep.settings("noisy_labels", {**around, name: "mnist"})
    for experiment, name in (("loss_study", "learning_rates"), ("regularised_likelihood", "losses"), ("pod", "noise")):
        with pytest.raises(ValueError, match=f"unknown parameter of {experiment} '{name}'; allowed: profile, dataset"):
            sweep.settings(experiment, {**around, name: []}, sweep.variants(experiment)[0])


@pytest.mark.parametrize(
    ("experiment", "dataset", "model", "loss", "written"),
    [
        *(("rooted_gan", "fashion_mnist", "style_small", loss, canonical_loss(loss)) for loss in rooted_gan.LOSSES[1:]),
        ("rooted_linear", "separable", "linear", "rooted_logistic", "rooted_logistic(k=3)"),
        ("rooted_linear", "separable", "linear", "rooted_bounded(m=3)", "rooted_bounded(k=3, m=3)"),
    ],
)
def test_a_loss_of_a_task_is_known_by_its_meaning(experiment, dataset, model, loss, written):
    grid = sweep.plan(experiment, "paper", dataset, model, losses=[loss]).grid
    assert grid and {run.loss for run in grid} == {written}


@pytest.mark.parametrize(
    ("experiment", "loss"), [("segmentation", "focal(gamma=0.5)"), ("robust_regression", "huber(delta=1.0)")]
)
def test_a_loss_of_the_catalogue_is_not_one_of_a_task_that_has_its_name(experiment, loss):
    with pytest.raises(ValueError, match="unknown loss"):
        sweep.plan(experiment, losses=[loss])


def test_values_count_and_not_how_they_are_written():
    """The spec of a head, and whole numbers of NumPy."""
    one, other = (sweep.plan("pod", losses=[f"pod(decorrelation={weight})"]) for weight in ("0.0", "0"))
    assert one == other and {run.loss for run in one.grid} == {"pod(decorrelation=0.0)"}
    for experiment in ("noisy_labels", "pod"):
        plans = [sweep.plan(experiment, "smoke", seeds=seeds) for seeds in ([0, 1], np.arange(2))]
        assert plans[0] == plans[1]
        assert [run.hash for run in plans[0].grid] == [run.hash for run in plans[1].grid]


@pytest.mark.parametrize(
    ("experiment", "profile", "dataset", "model"),
    [
        *itertools.product(sweep.EXPERIMENTS, ["smoke", "quick"], ["digits", "kmnist", "cifar100"], ["mlp"]),
        *itertools.product(sweep.EXPERIMENTS, ["paper"], ["mnist", "kmnist", "cifar10"], ["mlp", "cnn_small", "cnn8"]),
    ],
)
def test_every_plan_stands(experiment, profile, dataset, model):
    made_for = {"regularised_likelihood": "mlp", "airbench": "airbench"}.get(experiment, model)
    for variant in sweep.variants(experiment):
        if model != made_for:
            with pytest.raises(ValueError, match=f"allowed: {made_for}"):
                sweep.plan(experiment, profile, dataset, model, variant=variant)
        else:
            stands(sweep.plan(experiment, profile, dataset, model, variant=variant))


@pytest.mark.parametrize("profile", sweep.PROFILES)
def test_airbench_is_of_one_network(profile):
    """Nothing but the profile is named: the plan is of the network and the data set that the recipe is made for."""
    plan = sweep.plan("airbench", profile)
    stands(plan)
    assert {(config.dataset, config.model) for config in plan.grid} == {("cifar10", "airbench")}


def stands(plan):
    assert plan.grid and len({config.hash for config in plan.grid}) == len(set(plan.grid))
    for config in plan.tuning:
        assert config.seed == sweep.TUNING_SEED and config.noise_kind == config.image_noise == "none"
    assert not {config.seed for config in plan.grid} & {sweep.TUNING_SEED}
    if plan.tuning:  # the same rates for every loss, or the same multiples of its own
        rates = pandas.DataFrame([(c.loss, c.learning_rate) for c in plan.tuning]).groupby(0)[1].agg(tuple)
        multiples = [[rate / of[0] for rate in of] for of in rates]
        assert np.allclose(multiples, multiples[0], rtol=1e-3) and len(multiples[0]) > 1
        assert rates.nunique() == 1 or plan.experiment == "loss_study"
        assert set(rates.index) == {config.loss for config in plan.grid}
    settings = pandas.DataFrame([(c.loss, c.noise_kind, c.noise_rate, c.image_noise, c.seed) for c in plan.grid])
    assert settings.groupby(0).size().nunique() == 1  # paired: every loss in every setting with every seed


# --- running, again, killed, together, on a full disk ---------------------------------------------------------


def test_a_second_run_trains_nothing(tmp_path, monkeypatch):
    trained = counted(monkeypatch)
    rows = sweep.run(small(tmp_path), workers=1)
    assert len(trained) == len(rows) == 2 and set(rows["status"]) == {"done"}
    before = contents(tmp_path)
    again = sweep.run(small(tmp_path), workers=1)
    assert len(trained) == 2 and contents(tmp_path) == before
    pandas.testing.assert_frame_equal(again, rows)
    # one more seed costs that seed alone
    assert len(sweep.run(small(tmp_path, seeds=[70, 71]), workers=1)) == 4 and len(trained) == 4


def test_workers_give_the_same_rows(tmp_path):
    same_results(sweep.run(small(tmp_path / "two"), workers=2), sweep.run(small(tmp_path / "one"), workers=1))


def test_noisy_images_are_judged_on_the_panel(tmp_path):
    plan = sweep.plan("noisy_images", "smoke", losses=["brier"], seeds=[70], epochs=1, out=str(tmp_path))
    rows = sweep.run(plan, workers=1)
    assert set(rows["image_noise"]) == {"none", "gaussian"} and set(rows["panel_accuracy"].map(len)) == {12}


def elsewhere(out, workers=1, epochs=(3,)):
    """A sweep in a process of its own, with its folder of rows, once the first is there."""
    plans = [f"sweep.plan('noisy_labels', **{MANY | {'epochs': n}!r}, out=sys.argv[1])" for n in epochs]
    code = (
        "import sys, pathlib, signal; from lossbook import results, sweep\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which what a shell began with & would ignore
        "results.PUBLISHED = pathlib.Path(sys.argv[1]) / 'none'\n"
        f"sweep.run_all([{', '.join(plans)}], workers={workers})"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(out)])
    folder = out / "noisy_labels"
    while process.poll() is None and not list(folder.glob("*.parquet")):
        time.sleep(0.01)
    return process, folder


def test_a_killed_sweep_leaves_whole_rows_and_resumes(tmp_path, monkeypatch):
    process, folder = elsewhere(tmp_path)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = results.load("noisy_labels", tmp_path)  # every row file is whole
    assert 1 <= len(left) == len(list(folder.glob("*.parquet"))) < 8
    before, trained = contents(tmp_path), counted(monkeypatch)
    rows = sweep.run(small(tmp_path, **MANY), workers=1)
    assert len(rows) == 8 and len(trained) == 8 - len(left)
    assert before.items() <= contents(tmp_path).items()
    same_results(sweep.run(small(tmp_path / "whole", **MANY | {"seeds": [77]}), workers=1), rows[rows["seed"] == 77])


def test_workers_end_with_a_killed_sweep(tmp_path):
    psutil = pytest.importorskip("psutil")
    process, _ = elsewhere(tmp_path, workers=2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(children) >= 2 and not psutil.wait_procs(children, timeout=60)[1]


def test_an_interrupted_sweep_ends_what_is_under_way(tmp_path):
    """Interrupted alone, as by `kill -INT`: nobody reads what its workers would go on with."""
    psutil = pytest.importorskip("psutil")
    process, _ = elsewhere(tmp_path, workers=2, epochs=(1, 10_000))
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0 and not psutil.wait_procs(children, timeout=60)[1]


def test_two_sweeps_on_one_folder(tmp_path):
    process, folder = elsewhere(tmp_path)
    rows = sweep.run(small(tmp_path, **MANY), workers=1)
    assert process.wait() == 0 and len(rows) == 8
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{h}.parquet" for h in rows["hash"])
    same_results(results.load("noisy_labels", tmp_path), rows)


def test_a_damaged_row_is_named(tmp_path):
    sweep.run(small(tmp_path), workers=1)
    for content in (lambda whole: whole[: len(whole) // 2], lambda whole: b""):
        path = next((tmp_path / "noisy_labels").glob("*.parquet"))
        whole = path.read_bytes()
        path.write_bytes(content(whole))
        with pytest.raises(ValueError) as error:
            sweep.run(small(tmp_path), workers=1)
        assert str(path) in str(error.value) and "delete" in str(error.value)
        path.write_bytes(whole)


def test_a_row_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    sweep.run(small(tmp_path), workers=1)
    monkeypatch.setattr(results, "ParquetFile", refuse)
    with pytest.raises(PermissionError):
        results.load("noisy_labels", tmp_path)


def test_writers_of_one_file_do_not_meet_in_a_temporary_one(tmp_path, monkeypatch):
    """Processes on two machines, or in two containers, may have the same number."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "row"

    def write(text: str, meanwhile=lambda: None):
        def whole(temporary):
            temporary.write_text(text[:1])
            meanwhile()
            temporary.write_text(text)

        results.write_atomically(path, whole)

    write("one", lambda: write("two"))
    assert path.read_text() == "one" and list(contents(tmp_path)) == ["row"]


def test_a_full_disk_leaves_what_was_written(tmp_path, monkeypatch):
    write, calls = pandas.DataFrame.to_parquet, []

    def full(self, path, **options):
        calls.append(path)
        write(self, path, **options)
        if len(calls) > 1:  # half a file is on disk when the space ends
            os.truncate(path, 100)
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pandas.DataFrame, "to_parquet", full)
    with pytest.raises(OSError, match="No space left"):
        sweep.run(small(tmp_path), workers=1)
    monkeypatch.undo()
    assert len(contents(tmp_path)) == len(results.load("noisy_labels", tmp_path, with_published=False)) == 1


def test_published_rows_are_run_again_where_that_is_asked_for(tmp_path, monkeypatch):
    """On this machine's rows alone; what was published stays where it is until the new row takes its place."""
    monkeypatch.setattr(results, "PUBLISHED", tmp_path / "published")
    plan = small(tmp_path / "elsewhere")
    first = sweep.run(plan, workers=1)
    results.publish("noisy_labels", folder=tmp_path / "elsewhere")
    later = replace(plan, out=tmp_path / "here")
    assert not sweep.missing(later, later.grid) and len(sweep.run(later, workers=1)) == len(first)
    assert not contents(tmp_path / "here")  # nothing was run
    monkeypatch.setenv("LOSSBOOK_AFRESH", "1")
    assert len(sweep.missing(later, later.grid)) == len(first)
    line = sweep.outlook([later], workers=1).iloc[-1]
    assert line["there"] == 0 and line["basis"] == "measured"  # what it takes is known nevertheless
    second = sweep.run(later, workers=1)
    assert len(contents(tmp_path / "here")) == len(first) and not sweep.missing(later, later.grid)
    pandas.testing.assert_series_equal(second["test_accuracy"], first["test_accuracy"])
    assert len(results.published("noisy_labels")) == len(first)
    results.publish("noisy_labels", folder=tmp_path / "here")
    kept = results.published("noisy_labels").set_index("hash")["seconds"]
    assert kept.to_dict() == second.set_index("hash")["seconds"].to_dict()
    for word in ("", "0", "no", "No", "false", "FALSE"):
        monkeypatch.setenv("LOSSBOOK_AFRESH", word)
        assert not results.afresh()


def test_a_diverged_run_does_not_stop_the_rest(tmp_path):
    bad = Config(optimiser="sgd", learning_rate=1e25, epochs=1, train_size=300, batch_size=64)
    good = Config(epochs=1, train_size=300, batch_size=64)
    rows = sweep.run(sweep.Plan("noisy_labels", (), (bad, good), tmp_path), workers=1)
    assert list(rows["status"]) == ["diverged", "done"] and list(rows["hash"]) == [bad.hash, good.hash]


# --- stacks, costs and pieces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_stacks_hold_every_run_once_and_only_what_goes_together(device):
    plan = sweep.plan("noisy_labels", "paper", "mnist", "mlp")
    quick = sweep.plan("noisy_labels", "quick", "digits", "mlp")
    networks = sweep.plan("noisy_labels", "quick", "digits", "cnn_small")
    configs = [*plan.tuning, *plan.grid, *quick.grid, *networks.grid]
    made = sweep.stacks(configs, workers=2, device=device)
    assert sorted(c.hash for stack in made for c in stack) == sorted(c.hash for c in configs)
    for stack in made:
        assert len(stack) == 1 or (len({c.group for c in stack}) == 1 and stack[0].group is not None)
    sizes = {(s[0].dataset, s[0].model): len(s) for s in made}
    assert sizes["digits", "cnn_small"] == 1 < sizes["digits", "mlp"]
    assert (sizes["mnist", "mlp"] > 1) == (device == "cuda")


def test_several_plans_are_run_in_one_call(tmp_path):
    """What tunes comes first; each plan gets the rows of its own grid, in its order, as it would alone."""
    other = dict(learning_rates=[1e-3, 1e-2], losses=["brier"])
    plans = [small(tmp_path / "all"), small(tmp_path / "all", **other)]
    together = sweep.run_all(plans, workers=1)
    for plan, rows in zip(plans, together, strict=True):
        assert list(rows["hash"]) == [config.hash for config in plan.chosen(results.load("noisy_labels", plan.out))]
    same_results(together[0], sweep.run(small(tmp_path / "one"), workers=1))
    same_results(together[1], sweep.run(small(tmp_path / "two", **other), workers=1))


def test_every_worker_gets_a_stack():
    grid = sweep.plan("noisy_labels", "smoke", losses=["cross_entropy", "brier", "mae"], seeds=[0, 1]).grid
    assert [len(stack) for stack in sweep.stacks(grid, workers=3, device="cpu")] == [4, 4, 4]
    assert {len(stack) for stack in sweep.stacks(grid, workers=6, device="cpu")} == {1}


def test_a_gpu_has_one_process_unless_more_are_asked_for(monkeypatch):
    monkeypatch.setenv("LOSSBOOK_WORKERS", "2")  # of the CPU
    assert sweep._workers(None) == 2 and sweep._workers(3) == 3
    monkeypatch.setattr(sweep, "default_device", lambda: torch.device("cuda"))
    assert sweep._workers(None) == 1 and sweep._workers(3) == 3


def test_the_deadline_leaves_the_rest_for_the_next_call(tmp_path, monkeypatch):
    """A run that is expected to end in time is begun; a second is not, and the next call trains it alone."""
    plan = small(tmp_path)
    monkeypatch.setattr(sweep, "VALUES_TOGETHER", {"cpu": 0, "cuda": 0})
    now = time.monotonic()
    monkeypatch.setattr(sweep, "expected_seconds", lambda config, rows: (1000.0, "measured"))
    clock = itertools.chain([now, now], itertools.repeat(now + 1000))
    monkeypatch.setattr(sweep.time, "monotonic", lambda: next(clock))
    first = sweep.run(plan, workers=1, deadline=now + 1500)
    monkeypatch.undo()
    monkeypatch.setattr(results, "PUBLISHED", tmp_path / "published")
    trained = counted(monkeypatch)
    assert len(first) == 1 and len(sweep.run(plan, workers=1)) == 2
    assert [config.hash for config in trained] == list({config.hash for config in plan.grid} - set(first["hash"]))


def test_what_is_named_twice_is_one_run(tmp_path):
    changes = dict(losses=["fourier", "fourier(s=1)"], seeds=[70, 70], noise=["none 0", "symmetric 0"])
    assert len(small(tmp_path, **changes).grid) == 1


def test_what_a_notebook_cannot_do_without_is_put_before_what_is_named():
    given = dict(profile="smoke", losses=["fourier", "brier"], noise=["pair 0.4"])
    plan = sweep.settings("noisy_labels", given, losses=["cross_entropy", "brier"], noise=["none 0"])
    assert list(dict.fromkeys(config.loss for config in plan.grid)) == ["cross_entropy", "brier", "fourier"]
    assert {config.noise_kind for config in plan.grid} == {"none", "pair"}
    again = given | {"kind": "ring", "plan": plan}  # what the cells after it have made, when they are run again
    assert sweep.settings("noisy_labels", again, losses=["brier"]).grid
    assert sweep.settings("noisy_labels", dict(profile="smoke"), losses=["gce"]) == sweep.plan("noisy_labels", "smoke")
    with pytest.raises(ValueError, match="losses='brier'"):
        sweep.settings("noisy_labels", dict(losses="brier"), losses=["gce"])


def test_a_folder_that_cannot_be_written_is_met_before_any_run(tmp_path, monkeypatch):
    trained = counted(monkeypatch)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file.*cannot be written"):
        sweep.run(small(tmp_path / "file"), workers=1)
    assert not trained


def test_where_one_run_fails_the_rows_of_the_others_are_kept(tmp_path, monkeypatch):
    """A run that cannot be done stands between others: those under way end, and are written."""
    monkeypatch.setattr(sweep, "VALUES_TOGETHER", {"cpu": 0, "cuda": 0})
    plan = small(tmp_path, **MANY)
    wrong = plan.grid[0]
    object.__setattr__(wrong, "train_size", 10**6)
    rows = []
    with pytest.raises(ValueError, match="train_size=1000000"):
        for found in sweep.trained([[config] for config in plan.grid[:3]], 2):
            rows += found
    assert 1 <= len(rows) <= 2


def test_a_row_under_the_name_of_another_is_refused(tmp_path):
    sweep.run(small(tmp_path), workers=1)
    one, other = sorted((tmp_path / "noisy_labels").glob("*.parquet"))
    one.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match=f"{one.name} holds the row of another run"):
        results.load("noisy_labels", tmp_path)


def test_with_a_deadline_nothing_waits_for_a_worker(tmp_path, monkeypatch):
    """Whether there is time is asked when a worker is free, and all workers have ended when the last row is there."""
    monkeypatch.setattr(sweep, "VALUES_TOGETHER", {"cpu": 0, "cuda": 0})
    stacks, asked = sweep.stacks(small(tmp_path, **MANY).grid), []
    rows = sweep.trained(stacks, 2, lambda stack: asked.append(stack) or len(asked) <= 3)
    first = next(rows)
    assert len(asked) == 2 < len(stacks)
    assert len([first, *rows]) == 3 and not multiprocessing.active_children()


def test_a_stack_that_is_longer_than_the_time_is_cut(tmp_path, monkeypatch):
    """Eight runs of five seconds, and half a minute: a part takes at most half, and is begun if all of it fits."""
    trained, asked = [], []
    monkeypatch.setattr(sweep, "expected_seconds", lambda config, rows: (5.0, "measured"))
    monkeypatch.setattr(
        sweep, "trained", lambda pieces, _, fits: asked.append(fits) or trained.extend(pieces) or iter(())
    )
    monkeypatch.setattr(sweep.time, "monotonic", lambda: 0.0)
    plan = small(tmp_path, **MANY)
    assert [len(stack) for stack in sweep.stacks(plan.grid, 1)] == [8]
    sweep.run(plan, workers=1, deadline=30.0)
    assert [len(part) for part in trained] == [3, 3, 2]
    assert asked[0](list(plan.grid[:5])) and not asked[0](list(plan.grid[:6]))
    assert {config.hash for part in trained for config in part} == {config.hash for config in plan.grid}
    assert sweep.shortest_minutes([plan], 1) == 5 / 60


@pytest.mark.parametrize("workers", [1, 2])
def test_what_there_is_no_time_for_does_not_keep_the_rest_waiting(workers, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "VALUES_TOGETHER", {"cpu": 0, "cuda": 0})
    stacks = sweep.stacks(small(tmp_path, **MANY).grid)
    long = stacks[:2]  # as many as there are workers, and more
    rows = [row for rows in sweep.trained(stacks[:4], workers, lambda stack: stack not in long) for row in rows]
    assert {row["hash"] for row in rows} == {config.hash for stack in stacks[2:4] for config in stack}


def test_a_process_has_the_environment_of_its_own_sweep(monkeypatch):
    """Also where another sweep of this program has started the process that it is a fork of."""
    for value in ("one", "two"):
        monkeypatch.setenv("LOSSBOOK_OF_A_TEST", value)
        with sweep.processes(1, sweep._context()) as pool:
            assert pool.submit(os.getenv, "LOSSBOOK_OF_A_TEST").result(timeout=60) == value


def test_the_path_of_the_temporary_folder_may_be_long(tmp_path):
    (long := tmp_path / ("long" * 25)).mkdir()
    program = "from lossbook import sweep as s\nwith s.processes(1, s._context()) as pool: pool.submit(abs, 1).result()"
    environment = os.environ | {"TMPDIR": str(long)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, timeout=120).returncode == 0


class Killed:
    """A process that reads it from its pipe ends, as one does that the system kills."""

    def __reduce__(self):
        return os._exit, (9,)


def test_a_killed_process_is_told_in_words(tmp_path):
    with pytest.raises(OSError, match="fewer --workers"):
        list(sweep.trained([[Killed()], [Killed()]], 2))


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal there tells processes otherwise")
def test_an_interruption_is_heard_by_the_sweep_alone():
    """A terminal sends it to all its processes."""
    with sweep.processes(1, sweep._context()) as pool:
        worker = pool.submit(os.getpid).result(timeout=60)
        os.kill(worker, signal.SIGINT)
        assert pool.submit(os.getpid).result(timeout=60) == worker


class Slow:
    """A process that reads it from its pipe is busy for ten minutes."""

    def __reduce__(self):
        return time.sleep, (600,)


@pytest.mark.skipif(sys.platform == "win32", reason="a signal there goes to no thread of its own")
def test_an_interruption_that_comes_to_another_thread_is_heard(tmp_path):
    """The system may hand it to any: the sweep does not sleep until the next run ends."""
    rows = sweep.trained([small(tmp_path).grid[:1], [Slow()]], 2)
    assert len(next(rows)) == 1
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(1, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            next(rows)
    finally:
        signal.signal(signal.SIGINT, before)


def test_expected_cost_is_measured_where_rows_are_there(tmp_path):
    plan = small(tmp_path)
    before, basis = sweep.expected_seconds(plan.grid[0], results.load("noisy_labels", tmp_path))
    assert basis == "estimated" and 0 < before < 60
    rows = sweep.run(plan, workers=1)
    after, basis = sweep.expected_seconds(plan.grid[0], rows)
    assert basis == "measured" and after == pytest.approx(rows["seconds"].median())
    longer = sweep.plan("noisy_labels", **ONE | dict(epochs=7)).grid[0]
    assert sweep.expected_seconds(longer, rows)[0] == pytest.approx(7 * after / plan.grid[0].epochs)
    for other in (
        dict(mode="fast"),
        dict(batch_size=100),
        dict(train_size=1000),
        dict(views=2),
        dict(dataset="wine", batch_size=16),
        dict(model="cnn_small"),
    ):
        assert sweep.expected_seconds(replace(longer, **other), rows)[1] == "estimated", other


def test_without_momentum_steps_are_ten_times_as_long():
    """Among the rates that are tried, and nowhere else in the recipe."""
    rates = {}
    for variant in sweep.variants("regularised_likelihood"):
        tuning = sweep.plan("regularised_likelihood", "paper", "mnist", "mlp", variant=variant).tuning
        momentum = {run.optimiser for run in tuning}
        assert momentum == {"sgd_plain" if variant in ("without momentum", "without all three") else "sgd"}
        rates[variant] = sorted(run.learning_rate for run in tuning)
    whole = rates["whole recipe"]
    assert rates["without dropout"] == rates["without weight decay"] == whole and len(whole) == 5
    for variant in ("without momentum", "without all three"):
        assert rates[variant] == pytest.approx([10 * rate for rate in whole])


def test_operations_are_those_of_three_passes():
    assert sweep._operations("digits", "mlp") == 3 * 2 * (64 * 256 + 2 * 256 * 256 + 256 * 10)


def test_an_outlook_counts_no_more_processes_than_runs(monkeypatch, tmp_path):
    plan = sweep.plan("noisy_labels", "smoke", out=tmp_path)
    plan = replace(plan, tuning=(), grid=plan.grid[:2])
    monkeypatch.setattr(sweep, "expected_seconds", lambda run, rows: (500.0, "measured"))
    line = sweep.outlook([plan], workers=8).iloc[0]
    assert line["minutes"] == pytest.approx(500 / 60) and line["pieces"] == 2  # of under eight minutes


def test_cost_of_a_task_is_known_from_another_machine_or_not_at_all(monkeypatch):
    plan = sweep.plan("pod", "paper", "mnist", "mlp")
    rows = pandas.DataFrame([vars(plan.grid[0]) | {"seconds": 7.0, "device": "a CPU elsewhere, 1 thread"}])
    for device, expected in (("a CPU, 1 thread", (7.0, "measured elsewhere")), ("a GPU", (0.0, sweep.UNKNOWN))):
        monkeypatch.setattr(sweep, "provenance", lambda _, device=device: {"device": device})
        assert sweep.expected_seconds(plan.grid[0], rows) == expected
    tuning = sweep.outlook([plan]).iloc[0]  # without any rows
    assert tuning["runs"] > tuning["there"] == 0 and tuning[["minutes", "pieces"]].isna().all()


@pytest.mark.parametrize(
    ("experiment", "change"),
    [
        ("distances", dict(images=100)),
        ("rooted_gan", dict(steps=100)),
        ("rooted_gan", dict(pretraining_steps=20)),
        ("rooted_linear", dict(question="noise")),
        ("segmentation", dict(train_size=64)),
    ],
)
def test_a_row_tells_the_cost_of_runs_of_its_size_alone(experiment, change, monkeypatch):
    monkeypatch.setattr(sweep, "provenance", lambda _: {"device": "a CPU, 1 thread"})
    run = sweep.plan(experiment, "paper").grid[0]
    rows = pandas.DataFrame([vars(run) | {"seconds": 7.0, "device": "a CPU, 1 thread"}])
    assert sweep.expected_seconds(run, rows) == (7.0, "measured")
    assert sweep.expected_seconds(replace(run, **change), rows) == (0.0, sweep.UNKNOWN)
    assert sweep.expected_seconds(run, rows.drop(columns=list(change))) == (0.0, sweep.UNKNOWN)


def test_runs_of_several_kinds_count_each_at_its_cost(monkeypatch, tmp_path):
    monkeypatch.setattr(sweep, "provenance", lambda _: {"device": "a CPU, 1 thread"})
    plan, kinds = sweep.plan("rooted_linear", "smoke", out=tmp_path), {}
    for run in plan.grid:
        kinds.setdefault((run.question, run.rule), []).append(run)
    for seconds, (run, *_) in enumerate(kinds.values(), 1):
        assert sweep.outlook([plan], workers=1).iloc[0]["basis"] == sweep.UNKNOWN
        row = vars(run) | {"hash": run.hash, "seconds": float(seconds), "device": "a CPU, 1 thread"}
        results.write_row(row, "rooted_linear", tmp_path)
    left = sweep.outlook([plan], workers=1).iloc[0]
    assert left["there"] == len(kinds) > 3 and left["basis"] == "measured"
    expected = sum(seconds * (len(runs) - 1) for seconds, runs in enumerate(kinds.values(), 1))
    assert left["minutes"] == pytest.approx(expected / 60)


def test_cost_of_a_plan_counts_the_passes_that_are_left(monkeypatch, tmp_path):
    plan = sweep.plan("segmentation", "paper", out=tmp_path)
    monkeypatch.setattr(sweep, "provenance", lambda _: {"device": "a CPU, 1 thread"})
    monkeypatch.setattr(results, "published", lambda name: pandas.DataFrame({"hash": []}))
    passes = sorted({run.epochs for run in plan.grid})
    short, long = ([run for run in plan.grid if run.epochs == epochs] for epochs in passes)
    for run in short:
        row = vars(run) | {"hash": run.hash, "seconds": 12.0, "device": "a CPU, 1 thread"}
        results.write_row(row, "segmentation", tmp_path)
    left = sweep.outlook([replace(plan, tuning=())], workers=1).iloc[0]
    assert left["there"] == len(short) and left["minutes"] == pytest.approx(len(long) * 12 * passes[1] / passes[0] / 60)
    half = replace(plan, tuning=(), grid=tuple(short + long[::2]))
    lines = sweep.outlook([half, replace(plan, tuning=())], workers=1)  # what both hold takes its time once
    assert (lines["runs"] - lines["there"]).tolist() == [len(long[::2]), len(long)]
    assert lines["minutes"].sum() == pytest.approx(left["minutes"])


def test_on_a_gpu_a_small_network_alone_costs_its_steps(monkeypatch):
    monkeypatch.setattr(sweep, "default_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(sweep, "provenance", lambda device: {"device": "a GPU without rows"})
    alone, stacked = (sweep.plan("noisy_labels", "paper", "mnist", model).grid[0] for model in ("cnn_small", "mlp"))
    rows = results.published("noisy_labels")
    seconds, basis = sweep.expected_seconds(alone, rows)
    assert basis == "estimated" and seconds == pytest.approx(6 * 60000 / 256 * sweep.SECONDS_PER_STEP["cuda"])
    assert sweep.expected_seconds(stacked, rows)[0] < 15 * 60000 / 512 * sweep.SECONDS_PER_STEP["cuda"]


def test_the_paper_profile_covers_three_data_sets():
    assert {dataset for dataset, _ in sweep.pairs("noisy_labels", "paper")} == {"mnist", "fashion_mnist", "cifar10"}
    assert sweep.pairs("noisy_labels", "paper", ["cifar10"]) == [("cifar10", "cnn_small"), ("cifar10", "airbench")]
    assert sweep.pairs("noisy_labels", "paper", ["cifar10"], ["resnet18"]) == [("cifar10", "resnet18")]
    assert sweep.pairs("noisy_labels", "quick") == [("", "")]  # what the experiment takes by default
    assert sweep.pairs("noisy_labels", "paper", ["kmnist"]) == [("kmnist", "")]
    held = [("cifar10", "cnn_small"), ("cifar10", "airbench")]
    assert sweep.pairs("noisy_labels", "paper", ["kmnist", "cifar10"]) == [*held, ("kmnist", "")]
    assert sweep.pairs("ranking", "paper", ["cifar10", "mnsit"]) == [("cifar10", "cnn_small"), ("mnsit", "")]
    with pytest.raises(ValueError, match="mnist"):
        sweep.plan("ranking", "paper", "mnsit")


def test_matched_rates_undo_the_scale_of_the_gradient():
    """Losses that are the same but for a factor get rates whose product with that factor is the same."""
    same, matched = (
        sweep.plan("loss_study", "paper", "mnist", "mlp", variant=f"sgd {name}") for name in ("same", "matched")
    )
    assert len({config.learning_rate for config in same.grid}) == 1
    rates = {config.loss: config.learning_rate for config in matched.grid}
    assert rates["cross_entropy"] == rates["kl_divergence"] == same.grid[0].learning_rate
    assert rates["poisson"] == pytest.approx(10 * rates["cross_entropy"], rel=1e-3)
    assert set(rates) > set(losses.names())  # every loss of the catalogue


@pytest.mark.parametrize("experiment", sweep.experiments())
def test_shuffled_classes_and_brier_stand_beside_the_fourier_loss(experiment):
    for profile, variant in itertools.product(("smoke", "paper"), sweep.variants(experiment)):
        for dataset, model in sweep.pairs(experiment, profile)[:1]:
            names = {run.loss for run in sweep.plan(experiment, profile, dataset, model, variant=variant).grid}
            if any(name.startswith("fourier") for name in names) and experiment in sweep.EXPERIMENTS:
                assert {sweep.SHUFFLED, "brier"} <= names


@pytest.mark.parametrize("experiment", ["noisy_labels", "ranking"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(seeds=[2**63]), "below 2^63"),
        (dict(seeds=[10**30]), "below 2^63"),
        (dict(dataset=0), "dataset=0"),
        (dict(model=False), "model=False"),
        (dict(epochs=None), "epochs=None"),
    ],
)
def test_what_no_row_can_hold_and_what_only_looks_empty_is_refused(experiment, changes, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        sweep.plan(experiment, "smoke", **changes)


def test_a_variant_is_named():
    assert sweep.variants("noisy_labels") == [""] and len(sweep.variants("loss_study")) == 5
    with pytest.raises(ValueError, match="sgd same"):
        sweep.plan("loss_study", "smoke")
    with pytest.raises(ValueError, match="'sgd tuned'"):
        sweep.plan("loss_study", "smoke", variant="sgd tuend")


# --- tuning ---------------------------------------------------------------------------------------------------


def tuned(validation, test):
    """A plan with three rates for each of two losses, and the rows of its tuning."""
    pairs = list(itertools.product(("brier", "mae"), (1e-4, 1e-3, 1e-2)))
    tuning = tuple(Config(loss=loss, learning_rate=rate, seed=sweep.TUNING_SEED) for loss, rate in pairs)
    rows = [
        dict(
            hash=c.hash,
            loss=c.loss,
            learning_rate=c.learning_rate,
            status="done",
            validation_accuracy=v,
            test_accuracy=t,
        )
        for c, v, t in zip(tuning, validation, test, strict=True)
    ]
    return sweep.Plan("noisy_labels", tuning, (Config(loss="mae"), Config(loss="brier")), None), pandas.DataFrame(rows)


@settings(deadline=None, max_examples=30)
@given(
    validation=st.permutations([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
    test=st.lists(st.floats(0, 1), min_size=6, max_size=6),
)
def test_tuning_takes_the_best_validation_accuracy_and_is_blind_to_the_test(validation, test):
    plan, rows = tuned(validation, test)
    rates = {config.loss: config.learning_rate for config in plan.chosen(rows)}
    assert rates == {
        loss: (1e-4, 1e-3, 1e-2)[int(np.argmax(validation[start : start + 3]))]
        for loss, start in (("brier", 0), ("mae", 3))
    }
    assert plan.chosen(rows.drop(columns="test_accuracy")) == plan.chosen(rows)
    stranger = rows.assign(hash="another sweep", validation_accuracy=1.0)
    assert plan.chosen(pandas.concat([stranger, rows])) == plan.chosen(rows)


def test_a_tie_in_tuning_does_not_depend_on_the_order_of_the_rows():
    """Published rows come after own ones: a tie must not fall otherwise once rows are published."""
    plan, rows = tuned([0.9] * 6, [0.5] * 6)
    assert plan.chosen(rows) == plan.chosen(rows[::-1].reset_index(drop=True))


def test_a_run_that_diverged_is_not_chosen():
    """Of logits that are no numbers the first class is taken, which some images have."""
    plan, rows = tuned([0.9, 0.2, 0.1] * 2, [0.5] * 6)
    rates = {config.learning_rate for config in plan.chosen(rows.assign(status=["diverged", "done", "done"] * 2))}
    assert rates == {1e-3}


def test_rows_that_no_paper_profile_holds_do_not_hide_the_others():
    def frame(configs):
        made = {"hash": [config.hash for config in configs], "status": "done", "validation_accuracy": 0.5}
        return pandas.DataFrame(map(vars, configs)).assign(**made)

    paper = sweep.plan("noisy_labels", "paper", "mnist", "mlp", losses=["brier"], seeds=[0])
    grid = paper.chosen(frame(paper.tuning))
    results.PUBLISHED.mkdir(parents=True)
    others = [Config(dataset="breast_cancer"), Config(model="vit")]
    frame([*paper.tuning, *grid, *others]).to_parquet(results.PUBLISHED / "noisy_labels.parquet")
    assert set(sweep.published("noisy_labels")["hash"]) == {config.hash for config in grid}


def test_a_folder_may_be_that_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sweep.plan("noisy_labels", "smoke", out="~/rows").out == tmp_path / "rows"


def test_tuning_runs_first_and_decides(tmp_path):
    tuning = tuple(Config(loss="brier", learning_rate=rate, epochs=1, seed=1000) for rate in (1e-6, 3e-3))
    grid = (Config(loss="brier", learning_rate=1e-6, epochs=1, seed=70),)
    rows = sweep.run(sweep.Plan("noisy_labels", tuning, grid, tmp_path), workers=1)
    assert list(rows["learning_rate"]) == [3e-3] and list(rows["seed"]) == [70]
    assert len(list((tmp_path / "noisy_labels").glob("*.parquet"))) == 3


def test_a_plan_counts_the_grid_of_each_loss_that_is_tuned(tmp_path):
    plan, rows = tuned([0.1, 0.3, 0.2, 0.1, 0.2, 0.3], [0.5] * 6)
    plan = replace(plan, out=tmp_path)
    of_brier = plan.of(["brier"])
    for config in (*of_brier.tuning, *of_brier.chosen(rows)):
        score = dict(zip(rows["hash"], rows["validation_accuracy"], strict=True)).get(config.hash)
        row = (
            vars(config)
            | {"hash": config.hash, "validation_accuracy": score, "seconds": 1.0, "device": "a CPU"}
            | {"status": "done"}
        )
        results.write_row(row, "noisy_labels", tmp_path)
    ahead = sweep.outlook([plan], workers=1)
    assert list(ahead["runs"]) == [6, 2] and list(ahead["there"]) == [3, 1]


def test_of_equal_scores_the_lower_rate_is_chosen():
    tuning = tuple(Config(loss="brier", learning_rate=rate, seed=sweep.TUNING_SEED) for rate in (1e-3, 1e-2, 1e-4))
    rows = pandas.DataFrame(
        [
            dict(hash=c.hash, loss=c.loss, learning_rate=c.learning_rate, status="done", validation_accuracy=0.9)
            for c in tuning
        ]
    )
    (chosen,) = sweep.Plan("noisy_labels", tuning, (Config(loss="brier"),), None).chosen(rows)
    assert chosen.learning_rate == 1e-4


# --- publication ----------------------------------------------------------------------------------------------


def test_publishing_merges_without_loss(tmp_path):
    sweep.run(small(tmp_path / "a"), workers=1)
    sweep.run(small(tmp_path / "b", seeds=[71]), workers=1)
    results.publish("noisy_labels", folder=tmp_path / "a")
    first = results.published("noisy_labels")
    # what is published is not run again, and is not lost when others are added, nor by naming data sets
    assert not sweep.missing(small(tmp_path / "c"), small(tmp_path / "c").grid)
    results.publish("noisy_labels", ["digits"], tmp_path / "b")
    both = results.published("noisy_labels")
    with pytest.raises(ValueError, match="'mnist'; allowed: digits"):
        results.publish("noisy_labels", ["mnist"], tmp_path / "b")
    pandas.testing.assert_frame_equal(results.published("noisy_labels"), both)
    assert len(first) == 2 and len(both) == 4 and set(first["hash"]) <= set(both["hash"])
    assert set(both.columns) == set(first.columns)
    one = both.set_index("hash").loc[first["hash"].iloc[0]]
    assert list(one["train_loss_curve"]) == list(first["train_loss_curve"].iloc[0])
    with pytest.raises(ValueError, match="run the sweep first"):
        results.publish("noisy_labels", folder=tmp_path / "none")
    pandas.testing.assert_frame_equal(results.published("noisy_labels"), both)


def test_publishing_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="noisy_labels"):
        results.publish("noisy_labels", folder=tmp_path)
    assert not contents(tmp_path)
