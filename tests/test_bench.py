"""The tables of costs: their rows, and that both sides of a comparison compute what they are said to compute."""

import functools
import itertools
import math
import time
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch

from lossbook import bench, data, losses, results
from lossbook.losses import spectral

EACH = pytest.mark.parametrize("classes", [10, 100])


@pytest.fixture(scope="module")
def costs():
    return bench.loss_cost(quick=True)


# --- the clock -----------------------------------------------------------------------------------------------


def test_sides_take_turns(monkeypatch):
    """On a clock that no other process disturbs: the number of turns follows from the first time of each side."""
    order = []

    class Undisturbed(bench.Timer):
        def timeit(self, number):
            super().timeit(number)
            return SimpleNamespace(mean=0.004)

    monkeypatch.setattr(bench, "Timer", Undisturbed)

    def side(name):
        return lambda: (order.append(name), time.sleep(0.004))

    seconds = bench.timed({"one": side("one"), "other": side("other")})
    assert set(seconds) == {"one", "other"} and min(seconds.values()) >= 0.004
    turns = [name for name, _ in itertools.groupby(order)]
    assert len(turns) >= 8 and turns == ["one", "other"] * (len(turns) // 2)


def test_a_side_is_called_with_one_thread():
    threads = []
    bench.timed({"side": lambda: threads.append(torch.get_num_threads())}, quick=True)
    assert set(threads) == {1}


def test_the_compiler_is_looked_for(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert bench.compiler() is None


# --- losses --------------------------------------------------------------------------------------------------


def test_every_loss_has_its_row_at_every_number_of_classes(costs):
    for _, table in costs.groupby("classes"):
        assert set(table["what"]) == set(losses.names())
        ours = table[table["what"] == "fourier"]
        assert set(ours["against"]) == {bench.FUSED, bench.GEOMLOSS, "ot.emd2"}
        assert ours["target"].notna().sum() == 3
    assert set(costs["classes"]) == {10, 100}
    np.testing.assert_allclose(costs["ratio"], costs["seconds"] / costs["seconds_against"])
    assert (costs[["seconds", "seconds_against"]] > 0).all(axis=None) and costs["leaves_out"].str.len().min() > 0
    better = costs[costs["mode"] == "better of both"]
    assert len(better) == 2 and better["note"].str.startswith("nothing compiled").all()


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_the_better_of_eager_and_compiled_is_taken_on_each_side(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # no C++, and seconds
    monkeypatch.setattr(bench, "compiler", lambda: "there")
    rows = {row["mode"]: row for row in bench._against_fused(*bench._examples(8, 10, torch.device("cpu")), False)}
    assert set(rows) == {"eager", "compiled", "better of both"}
    for side in ("seconds", "seconds_against"):
        assert rows["better of both"][side] == min(rows["eager"][side], rows["compiled"][side])
    assert rows["better of both"]["target"] == 1.3 and not rows["better of both"]["note"]


@EACH
@pytest.mark.parametrize("name", bench.COUNTERPARTS)
def test_counterparts_compute_the_same_number_where_they_are_said_to(name, classes):
    other = bench.COUNTERPARTS[name]
    logits, labels, soft = bench._examples(16, classes, torch.device("cpu"))
    target = soft if other.soft else labels
    ours, theirs = losses.create(name, num_classes=classes)(logits, target), other.function(logits, target)
    slopes = [torch.autograd.grad(value, logits)[0] for value in (ours, theirs)]
    same = torch.allclose(ours, theirs, rtol=1e-5) and torch.allclose(*slopes, rtol=1e-4, atol=1e-8)
    assert same == other.same_number


@EACH
def test_emd2_is_the_distance_between_cumulative_sums(classes):
    logits, labels, _ = bench._examples(8, classes, torch.device("cpu"))
    difference = torch.softmax(logits, -1) - torch.nn.functional.one_hot(labels, classes)
    torch.testing.assert_close(bench.emd2(logits, labels), difference.cumsum(-1).abs().sum(-1).mean())


def test_sinkhorn_between_two_points_is_half_their_squared_distance():
    logits = torch.full((3, 10), -1e4).scatter(1, torch.tensor([[0], [2], [9]]), 1e4)
    expected = (0.3**2 + 0.1**2 + 0.9**2) / 2 / 3
    assert bench.sinkhorn(logits, torch.tensor([3, 1, 0])).item() == pytest.approx(expected, rel=1e-3)


# --- the quadratic form or the FFT ---------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 10, 31, 200, 512, 513])
def test_both_ways_and_the_loss_agree_on_either_side_of_the_crossover(classes):
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(5, classes, generator=random, dtype=torch.float64)
    labels = torch.randint(classes, (5,), generator=random)
    expected = losses.create("fourier", num_classes=classes)(logits, labels)
    torch.testing.assert_close(bench.by_fft(logits, labels), expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(bench.by_form(logits, labels), expected, rtol=1e-10, atol=0)


def test_crossover_says_what_the_loss_does():
    table = bench.crossover(quick=True).set_index("classes")
    assert table["ratio"].notna().all() and table.index.is_monotonic_increasing
    for classes, row in table.iterrows():
        assert (row["used"] == "FFT") == (classes > spectral.LARGEST_QUADRATIC_FORM)
    assert set(table["used"]) == {"FFT", "quadratic form"}


# --- images --------------------------------------------------------------------------------------------------


def test_images_are_two_classes_of_mass_one():
    digits = data.load("digits")
    for size in (8, 20):
        pair = bench.image_pair(digits, size)
        assert pair.shape == (2, size, size) and (pair >= 0).all()
        torch.testing.assert_close(pair.sum((1, 2)), torch.ones(2))
    first = torch.from_numpy(digits.x_test[0]).float()
    torch.testing.assert_close(bench.image_pair(digits, 8)[0], first / first.sum())


def test_distance_of_images_is_the_quadratic_form_on_the_grid():
    one, other = bench.image_pair(data.load("digits"), 8).double()
    form = spectral.quadratic_form(64, placement=tuple((i, j) for i in range(8) for j in range(8)))
    u = (one - other).flatten().numpy()
    assert losses.fourier_distance(one, other, dims=2).item() == pytest.approx(math.sqrt(u @ form @ u))


def test_transport_between_two_pixels_is_half_their_squared_distance():
    import geomloss

    one, other = torch.zeros(2, 10, 10)
    one[1, 2], other[4, 6] = 1.0, 1.0
    clouds = (*bench._cloud(one), *bench._cloud(other))
    for value in (
        bench._pot(*clouds, exact=True),
        bench._pot(*clouds, exact=False),
        geomloss.SamplesLoss("sinkhorn")(*clouds).item(),
    ):
        assert value == pytest.approx((0.3**2 + 0.4**2) / 2, rel=1e-3)


def test_image_table_says_what_a_side_could_not_do(monkeypatch, tmp_path):
    monkeypatch.setenv("LOSSBOOK_DATA", str(tmp_path))  # no MNIST there, and none is fetched
    monkeypatch.setattr(bench, "GEOMLOSS_PAIRS", 300**2)
    monkeypatch.setattr(bench, "SINKHORN_PAIRS", 300**2)
    table = bench.image_distance(quick=True)
    assert set(table["dataset"]) == {"digits"} and list(table["size"]) == [16, 16, 28, 28]
    done = table["seconds_against"].notna()
    assert list(done) == [True, True, False, False]
    assert table.loc[~done, "note"].str.contains("not done").all() and (table["seconds"] > 0).all()


# --- what is kept --------------------------------------------------------------------------------------------


def test_a_table_is_written_with_where_it_comes_from(costs, monkeypatch, tmp_path):
    monkeypatch.setattr(results, "PUBLISHED", tmp_path)
    path = bench.write(costs, "loss_cost")
    assert path == tmp_path / "bench" / "loss_cost.csv" and list(path.parent.iterdir()) == [path]
    read = pandas.read_csv(path)
    assert set(costs.columns) < set(read.columns) and {"device", "torch", "commit", "cpu"} <= set(read.columns)
    np.testing.assert_allclose(read["ratio"], costs["ratio"], rtol=1e-3)


def test_rows_of_other_processors_stay(costs, monkeypatch, tmp_path):
    monkeypatch.setattr(results, "PUBLISHED", tmp_path)
    for cpu, factor in (("AVX2", 1), ("AVX512", 2), ("AVX2", 3)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda cpu=cpu: cpu)
        origin = dict(commit="012345678901", sources="00e1234567890123")  # read as numbers, neither would be left
        monkeypatch.setattr(bench.training, "provenance", lambda device, origin=origin: origin)
        path = bench.write(costs.assign(seconds=factor * costs["seconds"]), "loss_cost")
    assert path.read_text().count(",012345678901,00e1234567890123,") == 2 * len(costs)
    read = pandas.read_csv(path)
    assert len(read) == 2 * len(costs)
    for cpu, factor in (("AVX2", 3), ("AVX512", 2)):
        rows = read[read["cpu"] == cpu]
        np.testing.assert_allclose(rows["seconds"], factor * costs["seconds"], rtol=1e-3)


def test_processes_share_the_clock_of_a_grid(monkeypatch):
    """A run of three seconds in one of two processes, of two epochs: the first run of each process does not count."""

    def trained(stacks, workers):
        return [
            [dict(seed=c.seed, seconds=3.0 if c.seed < 1000 else 99.0, test_accuracy=0.5) for c in s] for s in stacks
        ]

    monkeypatch.setattr(bench.sweep, "trained", trained)
    configs = [bench.training.Config(epochs=2, seed=seed) for seed in range(4)]
    seconds, accuracy, _ = bench._grid_seconds(configs, torch.device("cpu"))
    assert (seconds, accuracy) == (3 / 2 / 2, 0.5)


def test_grid_of_runs_does_what_the_loop_does():
    """Both learn; our runs see every training image; either mode has its row; the loop's accuracy stands beside."""
    table = bench.many_runs(quick=True)
    assert (
        set(table["mode"]) == {"exact", "fast"}
        and (table["ratio"] == table["seconds"] / table["seconds_against"]).all()
    )
    assert (table[["test_accuracy", "accuracy_against"]] > 0.15).all(axis=None) and (table["runs"] == 2).all()


def test_stacking_says_what_the_sweep_does():
    table = bench.stacking(quick=True)
    assert set(table["dataset"]) == {"digits"} and (table["together"] == 2).all()


def test_tables_are_written_with_their_provenance(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "PROJECT", tmp_path)
    monkeypatch.setattr(results, "PUBLISHED", tmp_path / "data" / "results")
    monkeypatch.setattr(bench, "TABLES", {"stacking": lambda device: bench.stacking(device, quick=True)})
    monkeypatch.setattr(bench.training, "default_device", lambda: torch.device("cpu"))
    bench.run(["stacking"])
    table = pandas.read_csv(tmp_path / "data" / "results" / "bench" / "stacking.csv")
    assert {"device", "torch", "commit", "cpu", "leaves_out"} <= set(
        table.columns
    ) and "stacked" in capsys.readouterr().out
    with pytest.raises(ValueError, match="stacking"):
        bench.run(["staking"])


def test_published_tables_say_where_they_come_from():
    """Those of a GPU stand beside those of a CPU, with its driver; and grids of runs reach their goals on both."""
    tables = {path.stem: pandas.read_csv(path) for path in (results.PUBLISHED / "bench").glob("*.csv")}
    assert set(tables) >= {*bench.TABLES, "many_runs_gpu", "loss_cost_gpu", "crossover_gpu"}
    for name, table in tables.items():
        wanted = "NVIDIA .*, driver .*, CUDA" if name.endswith("_gpu") else "CPU.* thread"
        assert table["device"].str.contains(wanted).all() and table[["torch", "commit", "leaves_out"]].notna().all(
            axis=None
        )
    for name in ("many_runs", "many_runs_gpu"):
        for cpu, table in tables[name].groupby("cpu"):
            if cpu == "AVX2":  # no matrix units, which `fast` is for
                table = table[table["mode"] == "exact"]
            assert set(table["batch"]) == {128, 512} and (table["ratio"] <= table["target"]).all()
