"""Statistics, tables and figures, as readers see them."""

import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lossbook import figures, results

# --- statistics -----------------------------------------------------------------------------------------------

accuracies = st.lists(st.floats(0, 1, width=16), min_size=2, max_size=8)


@settings(deadline=None)
@given(values=accuracies)
def test_interval_is_students(values):
    mean, half, n = results.interval([*values, math.nan])
    assert mean == pytest.approx(np.mean(values)) and n == len(values)
    scale = stats.sem(values)
    if scale > 1e-6:
        low, high = stats.t.interval(0.95, n - 1, loc=mean, scale=scale)
        assert (mean - half, mean + half) == (pytest.approx(low), pytest.approx(high))


def test_interval_of_one_value_and_of_none():
    assert results.interval([0.5])[::2] == (0.5, 1) and math.isnan(results.interval([0.5])[1])
    assert math.isnan(results.interval([])[0]) and results.interval([])[2] == 0


@settings(deadline=None)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12), order=st.randoms())
def test_holm_from_its_definition(p, order):
    """The i-th smallest of m is multiplied by m - i + 1, and none may fall below a smaller one."""
    ranked, m = sorted(p), len(p)
    definition = [max(min(1, (m - j) * ranked[j]) for j in range(i + 1)) for i in range(m)]
    places = list(range(m + 1))
    order.shuffle(places)
    series = pandas.Series([*ranked, math.nan]).iloc[places]
    adjusted = results.holm(series)
    assert list(adjusted.index) == list(series.index)
    assert list(adjusted.sort_index()[:-1]) == pytest.approx(definition) and math.isnan(adjusted[m])


def table(losses, seeds=range(5), setting=("a", "b"), seed=0):
    rng = np.random.default_rng(seed)
    rows = [(loss, s, k, rng.uniform()) for loss in losses for s in seeds for k in setting]
    return pandas.DataFrame(rows, columns=["loss", "seed", "setting", "test_accuracy"]).sample(frac=1, random_state=0)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 8))
def test_paired_differences_against_scipy(seed, n):
    rows = table(["ce", "brier", "mae"], range(n), seed=seed)
    found = results.paired_differences(rows, "ce", ["setting"]).set_index(["setting", "loss"])
    assert set(found.index) == set(itertools.product("ab", ["brier", "mae"]))
    wide = rows.pivot(index=["setting", "seed"], columns="loss", values="test_accuracy")
    for (setting, loss), row in found.iterrows():
        one, other = wide.loc[setting, loss], wide.loc[setting, "ce"]
        test = stats.ttest_rel(one, other)
        assert row["difference"] == pytest.approx((one - other).mean()) and row["n"] == n
        assert row["p"] == pytest.approx(test.pvalue)
        low, high = test.confidence_interval(0.95)
        assert row["half_width"] == pytest.approx((high - low) / 2)
    for _, group in found.groupby("setting"):
        small, large = sorted(group["p"])
        assert sorted(group["p_holm"]) == pytest.approx(sorted([min(1, 2 * small), min(1, max(2 * small, large))]))


def test_paired_differences_by_hand():
    rows = pandas.DataFrame(
        [("ce", 0, 0.5), ("ce", 1, 0.6), ("ce", 2, 0.7), ("brier", 0, 0.6), ("brier", 1, 0.8), ("mae", 9, 0.1)],
        columns=["loss", "seed", "test_accuracy"],
    )
    found = results.paired_differences(rows, "ce", [])
    (row,) = found.to_dict("records")  # differences 0.1 and 0.2; a seed without a partner does not count
    assert row["loss"] == "brier" and row["difference"] == pytest.approx(0.15) and row["n"] == 2
    assert row["half_width"] == pytest.approx(12.7062 * 0.05, rel=1e-4)
    assert row["p"] == row["p_holm"] == pytest.approx(2 / math.pi * math.atan(1 / 3))  # t = 3, one degree of freedom
    diverged = pandas.DataFrame([("ce", 3, 0.7), ("brier", 3, math.nan)], columns=rows.columns)
    pandas.testing.assert_frame_equal(results.paired_differences(pandas.concat([rows, diverged]), "ce", []), found)


def test_equal_differences_are_no_evidence_by_rounding():
    """One test image more for each seed: the spread is float32's alone, and no p-value of 1e-15 may come of it."""
    counts = {"ce": (301, 305, 310), "brier": (302, 306, 311)}
    rows = [
        (loss, seed, np.float32(n / 360).item()) for loss, numbers in counts.items() for seed, n in enumerate(numbers)
    ]
    rows = pandas.DataFrame(rows, columns=["loss", "seed", "test_accuracy"])
    found = results.paired_differences(rows, "ce", [])
    assert found["difference"].item() == pytest.approx(1 / 360, abs=1e-6) and found["p"].isna().all()


def test_two_rows_of_a_setting_and_seed_are_refused():
    """Where `by` leaves something out, pairs would be mixed and n inflated."""
    with pytest.raises(ValueError, match="not unique"):
        results.paired_differences(table(["ce", "brier"]), "ce", [])


def test_a_caption_names_the_data_sets_where_their_seeds_differ():
    rows = [("iris", loss, seed) for loss in ("ce", "brier") for seed in range(10)]
    rows += [("mnist", "ce", 0), ("mnist", "ce", 1), ("mnist", "brier", 0)]
    rows = pandas.DataFrame(rows, columns=["dataset", "loss", "seed"])
    assert figures.seeds_text(rows, "loss") == "10 (iris), 1 to 2 (MNIST)"
    assert figures.seeds_text(rows[rows["dataset"] == "iris"], "loss") == "10"


def test_a_figure_of_differences_cuts_intervals_and_never_means():
    accuracy = {"cross_entropy": (0.95, 0.95), "brier": (0.1, 0.3), "mae": (0.94, 0.95)}
    rows = [(loss, seed, value) for loss, values in accuracy.items() for seed, value in enumerate(values)]
    rows = pandas.DataFrame(rows, columns=["loss", "seed", "test_accuracy"])
    rows = rows.assign(dataset="mnist", model="mlp", noise_kind="none", noise_rate=0.0, setting="clean", epochs=1)
    rows = rows.assign(status="done")
    figure = figures.differences(rows, "cross_entropy", what="Nothing is done to the labels.")
    said = " ".join(figure.get_supxlabel().split())  # in one line
    assert said.startswith("Nothing is done to the labels. Last of 1 epochs.") and "diverged" not in said
    rows.loc[rows["loss"] == "brier", "status"] = "diverged"  # a mean that is far off because no run of it ended
    plt.close(figure)
    figure = figures.differences(rows, "cross_entropy")
    assert "A run that diverged counts" in " ".join(figure.get_supxlabel().split())
    (axis,) = figure.axes
    low, high = axis.get_xlim()
    means = [mean for bars in axis.containers for mean in bars[0].get_xdata()]
    assert min(means) == pytest.approx(-75) and all(low < mean < high for mean in means)
    ends = np.concatenate([bar[:, 0] for bars in axis.containers for bar in bars[2][0].get_segments()])
    assert ends.min() < low  # ±127 points, of two seeds
    plt.close(figure)


def test_provenance_leaves_out_how_many_networks_went_together():
    devices = ["one GPU, driver 1", "one GPU, driver 1, 12 networks together", "a CPU, 1 thread"]
    rows = pandas.DataFrame({"device": devices, "torch": "2.11", "mode": ["fast", "fast", "exact"]})
    found = results.provenance(rows, ["mode"]).set_index("device")["runs"]
    assert found.to_dict() == {"one GPU, driver 1": 2, "a CPU, 1 thread": 1}
    rows = pandas.DataFrame({"device": "a CPU, 1 thread", "torch": ["2.11", "2.12", "2.12"], "mode": "exact"})
    assert results.provenance(rows, ["mode"]).set_index("torch")["runs"].to_dict() == {"2.11": 1, "2.12": 2}


# --- tables and figures as they are read ------------------------------------------------------------------------


def rows_of(accuracies, seeds=3, **fields):
    rows = [
        (loss, seed, value + 0.01 * seed * (k + 1))
        for k, (loss, value) in enumerate(accuracies.items())
        for seed in range(seeds)
    ]
    frame = pandas.DataFrame(rows, columns=["loss", "seed", "test_accuracy"])
    base = dict(
        dataset="mnist",
        model="mlp",
        noise_kind="none",
        noise_rate=0.0,
        image_noise="none",
        image_level=0.0,
        epochs=3,
        status="done",
    )
    return frame.assign(**base | fields)


def test_a_table_of_differences_says_sign_interval_and_star():
    """One loss two points ahead, beyond chance, and one behind by 1.6."""
    seeds, base = range(4), [0.9, 0.8, 0.7, 0.85]
    ahead = {"ce": [0.0] * 4, "brier": [0.02, 0.021, 0.019, 0.02], "mae": [-0.01, -0.03, -0.004, -0.02]}
    rows = pandas.DataFrame(
        [(loss, s, "a", base[s] + d[s]) for loss, d in ahead.items() for s in seeds],
        columns=["loss", "seed", "setting", "test_accuracy"],
    )
    found = results.paired_differences(rows, "ce", ["setting"]).set_index("loss")
    table = results.difference_table(rows, "ce", ["setting"])
    assert list(table.index) == ["ce itself (%)", "brier", "mae"]
    assert table.loc["ce itself (%)"].item() == f"{np.mean(base):.2%}"
    assert found.loc["brier", "p_holm"] < 0.05
    assert table.loc["brier"].item() == f"+2.00 ± {100 * found.loc['brier', 'half_width']:.2f}*"
    assert table.loc["mae"].item().startswith("-1.60 ± ")


def test_the_star_is_of_the_corrected_p(monkeypatch):
    frame = pandas.DataFrame(
        {
            "setting": ["a"],
            "loss": ["mae"],
            "difference": [0.1],
            "half_width": [0.05],
            "n": [3],
            "p": [0.03],
            "p_holm": [0.06],
        }
    )
    monkeypatch.setattr(results, "paired_differences", lambda *given: frame)
    rows = pandas.DataFrame({"loss": ["ce", "mae"], "setting": "a", "test_accuracy": [0.5, 0.6]})
    assert results.difference_table(rows, "ce", ["setting"]).loc["mae"].item() == "+10.00 ± 5.00"


def test_points_of_a_figure_of_differences_stand_at_their_labels():
    accuracies = {"mae": 0.80, "cross_entropy": 0.95, "gce": 0.93, "brier": 0.94}  # not in the order of the labels
    figure = figures.differences(rows_of(accuracies), "cross_entropy")
    (axis,) = figure.axes
    labels = {
        round(place): text.get_text() for place, text in zip(axis.get_yticks(), axis.get_yticklabels(), strict=True)
    }
    points = axis.containers[0][0]
    found = {labels[round(y)]: x for x, y in zip(points.get_xdata(), points.get_ydata(), strict=True)}
    mean = rows_of(accuracies).groupby("loss")["test_accuracy"].mean()
    for loss in ("mae", "gce", "brier"):
        assert found[figures.look(loss).label] == pytest.approx(100 * (mean[loss] - mean["cross_entropy"]))
    plt.close(figure)


def drawn(axis):
    """Means and ends of bars, by label."""
    return {
        bars.get_label(): (bars[0].get_xdata(), bars[0].get_ydata(), [s[:, 1] for s in bars[2][0].get_segments()])
        for bars in axis.containers
    }


def test_accuracy_by_rate_draws_means_and_intervals_of_symmetric_noise_alone():
    rows = pandas.concat(
        [
            rows_of({"cross_entropy": 0.9 - r, "brier": 0.8 - r, "mae": 0.7 - r}, noise_kind=kind, noise_rate=r)
            for kind, r in (("none", 0.0), ("symmetric", 0.4), ("pair", 0.3))
        ]
    )
    figure = figures.accuracy_by_rate(rows)
    for axis in figure.axes[:1]:
        rates, means, ends = drawn(axis)["cross-entropy"]
        assert list(rates) == [0.0, 40.0]
        for mean, end, rate in zip(means, ends, (0.0, 0.4), strict=True):
            here = rows[(rows["loss"] == "cross_entropy") & (rows["noise_rate"] == rate)]["test_accuracy"]
            expected, half, _ = results.interval(here)
            assert mean == pytest.approx(100 * expected) and sorted(end) == pytest.approx(
                [100 * (expected - half), 100 * (expected + half)]
            )
    plt.close(figure)


def test_memorisation_draws_both_curves():
    rows = rows_of({"cross_entropy": 0.9, "brier": 0.8}, noise_kind="symmetric", noise_rate=0.4)
    curves = {
        name: [[level, level + 0.1]] * len(rows)
        for name, level in (("test_accuracy_curve", 0.5), ("memorised_curve", 0.2), ("recovered_curve", 0.6))
    }
    rows = rows.assign(**curves)
    failed = rows.iloc[:1].assign(seed=9, status="diverged", test_accuracy_curve=[[0.1]], memorised_curve=[[0.0]])
    figure = figures.memorisation(pandas.concat([rows, failed]))
    above, below = figure.axes[:2]
    assert list(above.lines[0].get_ydata()) == pytest.approx([50, 60]) and list(
        below.lines[0].get_ydata()
    ) == pytest.approx([20, 30])
    plt.close(figure)


def test_figures_show_a_loss_that_somebody_named():
    """In grey under its own name; and a loss that is missing on one set is missing there alone."""
    rows = rows_of({"cross_entropy": 0.9, "fourier(s=3)": 0.8}, noise_kind="symmetric", noise_rate=0.4).assign(
        test_accuracy_curve=[[0.5, 0.6]] * 6, memorised_curve=[[0.1, 0.2]] * 6, panel_noise=[["blur 1"]] * 6,
        panel_accuracy=[[0.7]] * 6,
    )  # fmt: skip
    rows = pandas.concat([rows, rows[rows["loss"] == "cross_entropy"].assign(dataset="cifar10")])
    for draw in (figures.accuracy_by_rate, figures.memorisation, figures.accuracy_by_image_noise):
        figure = draw(rows)
        legend = next(axis.get_legend() for axis in figure.axes if axis.get_legend())
        assert [text.get_text() for text in legend.get_texts()] == ["cross-entropy", "fourier(s=3)"]
        plt.close(figure)
    figure = figures.differences(rows, "cross_entropy")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["fourier(s=3)"]
    plt.close(figure)


def test_accuracy_by_image_noise_puts_each_level_in_its_place():
    names = ["gaussian 0.1", "gaussian 0.3"]
    rows = rows_of({"cross_entropy": 0.9, "brier": 0.8}).assign(
        panel_noise=[names] * 6, panel_accuracy=[[0.7, 0.4]] * 6
    )
    figure = figures.accuracy_by_image_noise(rows)
    levels, means, _ = drawn(figure.axes[0])["cross-entropy"]
    assert list(np.round(levels, 1)) == [0.0, 0.1, 0.3] and list(means) == pytest.approx([91, 70, 40])
    plt.close(figure)


def test_every_loss_has_a_name_and_a_look_of_its_own():
    labels = [look.label for look in figures.LOOKS.values()]
    assert len(set(labels)) == len(labels)


def test_a_data_set_is_published_from_where_it_was_run(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "PUBLISHED", tmp_path / "published")
    for dataset in ("mnist", "digits"):
        results.write_row({"hash": dataset, "dataset": dataset}, "experiment", tmp_path / dataset)
        results.publish("experiment", [dataset], tmp_path / dataset)
    with pytest.raises(ValueError, match="'mnist'; allowed: digits"):  # a table has it, this machine does not
        results.publish("experiment", ["mnist"], tmp_path / "digits")


def test_rows_that_were_run_again_replace_the_published_ones_of_their_data_set(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "PUBLISHED", tmp_path / "published")
    for seconds, folder in ((1.0, "old"), (2.0, "new")):
        results.write_row({"hash": "a", "dataset": "digits", "seconds": seconds}, "experiment", tmp_path / folder)
        results.publish("experiment", ["digits"], tmp_path / folder)
    assert results.published("experiment")["seconds"].tolist() == [2.0]
