"""Beyond the paper, on a very small study: shifted runs, counterfactuals, bands and other metrics, and what plans them."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from beyond_study import small_study  # noqa: F401
from gptfluence.common.errors import ConfigurationError
from gptfluence.experiments import band_coverage, shifted
from gptfluence.experiments.leave_out import SCORES, counterfactuals, leave_out
from gptfluence.gradients.products import Replayer
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.recording.recorder import single_thread
from gptfluence.recording.settings import Generation
from gptfluence.simulators.reference import MeanTrajectory
from gptfluence.simulators.replay import example_products, scored_losses
from gptfluence.study.campaign import Campaign
from gptfluence.study.study import Study
from gptfluence.tasks.base import Example, TaskPool
from gptfluence.workflow import catalogue
from gptfluence.workflow.row import needs_gpt

SIMULATORS = ["persistence", "mean_trajectory", "simfluence", "low_rank", "tangent"]


@pytest.fixture(scope="module")
def results(study) -> pd.DataFrame:
    kinds = ["alike", "sorted", "faster", "longer", "dropped"]
    frame, sources = shifted.explained(study.campaigns("fine_tuning", ["sst2"]), kinds, SIMULATORS, runs=2)
    assert len(sources) == len(kinds)
    return frame


def test_every_model_is_recorded_and_compared_with_its_own_mean(study):
    both = study.with_overrides("settings.fine_tuning.models=[nano-smoke, nano-14m]")
    names = ["persistence", "mean_trajectory"]
    campaigns = both.campaigns("fine_tuning", ["sst2"], models=["nano-14m", "nano-smoke"])
    frame, sources = shifted.explained(campaigns, ["alike", "few"], names, runs=1)
    assert [source.model for source in sources] == ["nano-14m"] * 2 + ["nano-smoke"] * 2
    frame = frame[frame["run"] == ""]
    table = frame.pivot(index=["model", "kind"], columns=["method", "statistic"], values="value")
    assert table["mean_trajectory"]["r2_dev"].to_numpy() == pytest.approx(0, abs=1e-4)
    assert table["mean_trajectory"]["all_steps_mse"].nunique() == 4


def test_every_simulator_kind_and_statistic_has_a_row(results, study):
    assert list(results.columns) == [*shifted.COLUMNS, *shifted.MORE]
    assert not results.duplicated(["task", "kind", "method", "statistic", "run"]).any()
    table = results[results["run"] == ""].pivot(index=["kind", "method"], columns="statistic", values="value")
    assert len(table) == 5 * len(SIMULATORS)
    refusing = {"mean_trajectory", "low_rank"}
    for (kind, name), row in table.iterrows():
        if kind == "longer" and name in refusing:  # refused, and said so
            assert np.isnan(row["r2_dev"])
        else:
            assert row["r2_dev"] == pytest.approx(1 - row["all_steps_mse"] / row["mse_mean_trajectory"])
    shorter = ["alike", "sorted", "faster", "dropped"]
    assert table.loc[[(k, "mean_trajectory") for k in shorter], "r2_dev"].to_numpy() == pytest.approx(0, abs=1e-4)
    assert table.loc[[(k, "mean_trajectory") for k in shorter], "deviation_spearman"].isna().all()
    assert table.xs("persistence", level="method")["change_spearman"].isna().all()


def test_few_runs_stand_one_by_one_and_five_have_intervals_and_a_kind_of_their_own(results, study):
    single = results[results["statistic"] == "r2_dev_of_run"]
    assert not results["statistic"].eq("r2_within").any()  # two runs of a kind say nothing about its spread
    assert results.loc[results["statistic"] == "r2_dev", ["low", "high"]].isna().all(axis=None)
    campaign = study.campaign("fine_tuning", "sst2")
    recorded = shifted.record(campaign, "sorted", 2)
    mean = campaign.dynamics().split()[0].trajectories().astype(float).mean(axis=0)
    truth = recorded.trajectories().astype(float)[:, 1:]
    rows = single[(single["kind"] == "sorted") & (single["method"] == "persistence")].set_index("run")
    assert list(rows.index) == recorded.names
    for run, name in enumerate(recorded.names):
        errors = [np.square(values - truth[run]).mean() for values in (recorded.trajectories()[run, :1], mean[1:])]
        assert rows.loc[name, "value"] == pytest.approx(1 - errors[0] / errors[1])
    five, _ = shifted.explained([campaign], ["sorted"], ["persistence", "mean_trajectory"], runs=5)
    assert not five["run"].any()
    table = five.set_index(["method", "statistic"])
    truth = shifted.record(campaign, "sorted", 5).trajectories().astype(float)[:, 1:]
    within = table.loc[("mean_trajectory", "r2_within")]
    assert within["value"] == pytest.approx(1 - np.square(truth - mean[1:]).mean() / truth.var(axis=0, ddof=1).mean())
    assert within["low"] < within["value"] < within["high"] <= 1
    assert within["value"] < table.loc[("mean_trajectory", "r2_dev"), "value"]


def test_unseen_examples_are_those_that_simulators_were_not_fitted_on(study):
    names = ["mean_trajectory", "simfluence", "tangent"]
    kinds = ["unseen_tests", "unseen_pool"]
    frame, sources = shifted.explained(study.campaigns("fine_tuning", ["rte", "sst2"]), kinds, names, runs=1)
    assert len(sources) == 3
    r2 = frame[frame["statistic"] == "r2_dev"].set_index(["task", "kind", "method"])["value"]
    assert set(r2.index.droplevel("method")) == {("rte", kind) for kind in kinds} | {("sst2", "unseen_tests")}
    assert r2.xs("simfluence", level="method").isna().all()  # refused, and not fitted on halves for that
    assert fits_of(study, "simfluence", "rte") == 1
    train, _, test = study.campaign("fine_tuning", "rte").dynamics().split()
    runs = np.concatenate([train.trajectories(), test.trajectories()]).astype(float)
    deviations = runs[[0, *range(len(train), len(runs))]] - runs[: len(train)].mean(axis=0)
    first = np.square(deviations[0] - deviations[1:])[:, 1:].mean() / np.square(deviations[1:])[:, 1:].mean()
    assert r2["rte", "unseen_tests", "one_run"] == pytest.approx(1 - first, abs=1e-4)
    assert ("rte", "unseen_pool", "one_run") not in r2.index
    assert np.isfinite(r2.xs("tangent", level="method")).all()
    # by hand: fitted on every other test example, against the others' own mean trajectory; then the other way round
    train, _, test = study.campaign("fine_tuning", "rte").dynamics().split()
    halves = [range(start, len(test.tests), 2) for start in (0, 1)]
    errors = np.zeros(2)
    for seen, unseen in (halves, halves[::-1]):
        asked, start = test.of_tests(unseen), test.of_tests(unseen).trajectories()[:, :1]
        fitted = study.campaign("fine_tuning", "rte").simulator("tangent", tests=seen)
        predicted = fitted.simulate(asked.curricula, start, tests=asked.tests)
        reference = train.of_tests(unseen).trajectories().astype(float).mean(axis=0)
        errors += [np.square(values - asked.trajectories())[:, 1:].sum() for values in (predicted, reference)]
    assert r2["rte", "unseen_tests", "tangent"] == pytest.approx(1 - errors[0] / errors[1], abs=1e-4)
    other = shifted.record(study.campaign("fine_tuning", "rte"), "unseen_pool", 1)
    assert not {e.id for e in other.pool} & {e.id for e in train.pool}
    assert other.tests.fingerprint == train.tests.fingerprint
    assert r2["rte", "unseen_pool", "mean_trajectory"] == pytest.approx(0, abs=1e-4)


def fits_of(study: Study, simulator: str, task: str) -> int:
    return len(list((study.artifacts / "simulators").glob(f"{simulator}-{task}-*")))


def test_asked_about_unseen_tests_alone_nothing_is_fitted_on_all_tests(study):
    variants = [study.variant("simfluence", max_epochs=2), study.variant("low_rank", rank=3)]
    before = [fits_of(study, variant.method, "rte") for variant in variants]
    frame, _ = shifted.explained([study.campaign("fine_tuning", "rte")], ["unseen_tests"], variants, runs=1)
    assert [fits_of(study, variant.method, "rte") for variant in variants] == [before[0], before[1] + 2]
    r2_dev = frame[frame["statistic"] == "r2_dev"]
    expected = {("simfluence", "max_epochs=2"), ("low_rank", "rank=3"), ("one_run", "")}
    assert set(zip(r2_dev["method"], r2_dev["variant"], strict=True)) == expected


def test_a_simulator_is_loaded_once_for_all_that_it_is_asked_and_alone(study, monkeypatch):
    loaded: list[weakref.ref] = []

    def load(_campaign: Campaign, _name: str, *_: object, **__: object) -> MeanTrajectory:
        assert all(reference() is None for reference in loaded)  # some hold gigabytes
        simulator = MeanTrajectory()
        loaded.append(weakref.ref(simulator))
        return simulator

    monkeypatch.setattr(Campaign, "simulator", load)
    monkeypatch.setattr(MeanTrajectory, "predict", lambda _self, asked, _observed, **_: np.zeros(len(asked)))
    campaign = study.campaign("fine_tuning", "rte")
    runs = campaign.dynamics()
    answers = campaign.predict_each(["mean_trajectory", "tangent"], [runs, runs.select(runs.names[:1])])
    assert len(loaded) == 2
    assert [len(answer.values[study.variant("tangent")]) for answer in answers] == [len(runs), 1]


def test_what_two_simulators_share_is_not_in_the_interval_of_their_difference(study):
    runs = study.campaign("fine_tuning", "sst2").dynamics()
    assert len(runs) == 7  # of all parts; enough for an interval
    truth, rng = runs.trajectories().astype(float), np.random.default_rng(0)
    mean = truth.mean(axis=0)
    luck = 0.5 * rng.normal(size=(len(runs), 1, 1))  # of a run, the same for both
    better, worse = (truth + np.sqrt(luck**2 + more) * (truth - mean) for more in (0.0, 0.02))
    found = shifted.difference(better, worse, runs, mean)
    values = [shifted.statistics(predicted, runs, mean)["r2_dev"] for predicted in (better, worse)]
    assert found.value == pytest.approx(values[0].value - values[1].value)
    assert found[:3] == pytest.approx((0.02, 0.02, 0.02))
    assert all(value.high - value.low > 0.02 for value in values)
    assert shifted.difference(better, better, runs, mean)[:3] == pytest.approx((0, 0, 0))


def test_shifted_runs_are_what_their_name_says(study):
    campaign = study.campaign("fine_tuning", "sst2")
    alike, faster, longer = (shifted.record(campaign, kind, 1) for kind in ("alike", "faster", "longer"))
    assert alike.names == ["test-000", "test-001"]
    assert faster.runs[0].learning_rate[0] == pytest.approx(2 * alike.runs[0].learning_rate[0])
    assert longer.curricula[0].steps == 2 * alike.curricula[0].steps
    assert faster.curricula[0] != shifted.draw(campaign, "longer", 1)[0]
    np.testing.assert_array_equal(faster.trajectories()[0, 0], alike.trajectories()[0, 0])  # from the same weights
    labels = np.array([example.label for example in alike.pool])
    ordered = labels[shifted.draw(campaign, "sorted", 1)[0].batches.ravel()]
    assert (np.diff(ordered) >= 0).all()
    with pytest.raises(ConfigurationError, match="did you mean 'sorted'"):
        shifted.record(campaign, "sortet", 1)


def test_beyond_its_end_the_last_mean_stands(study):
    train = study.campaign("fine_tuning", "sst2").dynamics().split()[0]
    mean = train.trajectories().mean(axis=0, dtype=float)
    steps = len(mean) - 1
    np.testing.assert_allclose(shifted.mean_trajectory(train, steps + 2), [*mean, mean[-1], mean[-1]])
    np.testing.assert_allclose(shifted.mean_trajectory(train, 3), mean[:4])


def test_simulators_of_fewer_runs_are_fitted_on_the_first_ones(study):
    campaigns = [study.campaign("fine_tuning", "sst2")]
    frame, _ = shifted.runs_needed(campaigns, ["mean_trajectory"], [1, 4])
    train, _, test = study.campaign("fine_tuning", "sst2").dynamics().split()
    values, truth = train.trajectories().astype(float), test.trajectories().astype(float)[:, 1:]
    r2 = frame[frame["statistic"] == "r2_dev"].set_index("fitted_on")["value"]
    errors = [np.square(values[:count].mean(axis=0)[1:] - truth).mean() for count in (1, 4)]
    assert r2[1] == pytest.approx(1 - errors[0] / errors[1], abs=1e-4)
    assert r2[4] == pytest.approx(0, abs=1e-4)
    with pytest.raises(ConfigurationError, match="5 is not 1 to 4"):
        shifted.runs_needed(campaigns, ["mean_trajectory"], [5])


def test_errors_by_step_are_those_of_the_runs(study):
    frame, _ = shifted.by_step([study.campaign("fine_tuning", "sst2")], ["persistence"])
    test = study.campaign("fine_tuning", "sst2").dynamics().split()[2].trajectories().astype(float)
    for row in frame.sample(5, random_state=0).itertuples():
        run = int(row.run.split("-")[1])
        assert row.mse == pytest.approx(np.square(test[run, 0] - test[run, row.step]).mean())


# --- leaving out -------------------------------------------------------------------------------------------------------


def test_counterfactuals_depend_on_seed_size_and_number_alone(study):
    base = study.campaign("fine_tuning", "sst2").held_out().curricula[0]
    both, one = counterfactuals(base, [1, 4], 3, seed=[0]), counterfactuals(base, [4], 3, seed=[0])
    assert both[3:] == one
    assert [len(found.dropped) for found in both] == [1, 1, 1, 4, 4, 4]
    for found in both:
        assert not np.isin(found.curriculum.batches, found.dropped).any()
    with pytest.raises(ConfigurationError, match="16 of 16 examples cannot be left out"):
        counterfactuals(base, [16], 3, seed=[0])
    with pytest.raises(ConfigurationError, match="draws must be 3 or more"):
        counterfactuals(base, [1], 2, seed=[0])


def test_leave_out_scores_are_rank_correlations_with_retrained_losses(study):
    names = ["mean_trajectory", "simfluence", "tangent"]
    frame, (base, recorded) = leave_out(
        study.campaign("fine_tuning", "sst2"), names, list(SCORES), sizes=[2, 4], draws=4
    )
    table = frame.pivot(index="left_out", columns="method", values="value")
    assert list(table.index) == ["2", "4", "all"]
    assert table["mean_trajectory"].isna().all()
    assert (frame["runs"] == frame["left_out"].map({"2": 4, "4": 4, "all": 8})).all()
    fitted = study.campaign("fine_tuning", "sst2").simulator("tangent")
    found = fitted.simulate(recorded.curricula, base.trajectories()[:1, :1])[:, -1]
    truth = recorded.trajectories()[:, -1]
    assert np.isnan(recorded.trajectories()[:, 1:-1]).all()  # nobody asks for them, and they are most of the work
    expected = np.mean([spearmanr(found[:, z], truth[:, z]).statistic for z in range(truth.shape[1])])
    assert table.loc["all", "tangent"] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert table[list(SCORES)].notna().all(axis=None)


def test_gradient_scores_are_sums_over_the_curriculum_of_products_of_gradients(study):
    base = study.campaign("fine_tuning", "sst2").held_out()
    run, recording = base.runs[0], base.spec.recording
    examples = np.unique(run.curriculum.batches).tolist()
    with single_thread(), Replayer(study.model(base.model).load(), base.pool, base.tests, recording) as recorder:
        products = example_products(recorder, run, SCORES, examples, seed=0)
        gradients = recorder.gradients("last_layer")  # at the final weights, which the recorder holds now
        one = gradients.gradient(recorder.pool_batch([examples[3]]))
        expected = np.empty(len(base.tests))
        for batch in recorder.test_batches:
            (values,) = gradients.products(batch, [one])
            expected[batch.rows.numpy()] = values.numpy()
    assert {name: sorted(of) for name, of in products.items()} == {"tracin_cp_10": list(range(8)), "grad_dot": [8]}
    np.testing.assert_allclose(products["grad_dot"][8][3], expected, rtol=1e-3, atol=1e-6)
    start, rates = np.ones(len(base.tests)), recording.optimizer.learning_rates(8)
    scored = scored_losses(products["grad_dot"], SCORES["grad_dot"], rates, examples, [run.curriculum], start)[0]
    by_hand = start.copy()
    for step in range(8):
        for example in run.curriculum.batches[step]:
            by_hand -= rates[step] * products["grad_dot"][8][examples.index(example)]
    np.testing.assert_allclose(scored, by_hand, rtol=1e-6)


# --- bands -------------------------------------------------------------------------------------------------------------


def test_bands_are_calibrated_on_runs_that_the_simulator_does_not_know(study):
    options = {"calibration": 2, "level": 0.7, "runs": 2}
    frame, paths, _ = band_coverage.covered(
        study.campaigns("fine_tuning", ["sst2"]), ["alike", "sorted", "longer"], ["mean_trajectory"], **options
    )
    assert set(frame["kind"]) == {"alike", "sorted"}  # no bands for longer runs
    assert (frame["calibration_runs"] == 3).all()
    dynamics = study.campaign("fine_tuning", "sst2").dynamics()
    values = {run.name: run.trajectories["loss"].astype(float)[1:] for run in dynamics.runs}
    mean = (values["train-000"] + values["train-001"]) / 2
    scale = np.sqrt(np.mean([np.square(mean - values[name]) for name in ("train-000", "train-001")], axis=(0, 2)))
    score = lambda name: (np.abs(mean - values[name]) / scale[:, None]).max(axis=0)  # noqa: E731
    calibrating = np.sort(np.concatenate([score(name) for name in ("train-002", "train-003", "validation-000")]))
    quantile = calibrating[int(np.ceil(0.7 * (len(calibrating) + 1))) - 1]
    expected = np.mean([(score(name) <= quantile * (1 + 1e-6)).mean() for name in ("test-000", "test-001")])
    row = frame[(frame["kind"] == "alike") & (frame["unit"] == "path") & (frame["statistic"] == "coverage")]
    assert row["value"].item() == pytest.approx(expected)
    assert set(paths["series"]) == {"recorded", "mean_trajectory"}


# --- other metrics ---------------------------------------------------------------------------------------------------


def test_the_ceiling_is_what_knowing_the_expected_score_would_reach(study):
    """Scores are a run's own level (variance 4) and luck (variance 1) at every step that is measured, 0, 2, 4, ..."""
    rng = np.random.default_rng(0)
    held = study.campaign("fine_tuning", "sst2").held_out()
    held = replace(held, spec=held.spec.model_copy(update={"generation": Generation(every=2)}))
    steps = held.curricula[0].steps

    def scored(level: np.ndarray) -> GPTDynamics:
        runs = []
        for run, own in zip(held.runs, level, strict=True):
            luck = rng.normal(size=(steps + 1, 4000))
            values = own + luck[np.arange(steps + 1) // 2 * 2]
            runs.append(replace(run, trajectories={"bleu": values.astype(np.float32)}))
        tests = TaskPool("tests", [Example(str(k), f"text {k}", " yes") for k in range(4000)])
        return replace(held, tests=tests, runs=runs)

    level = 2 * rng.normal(size=(len(held), 1, 4000))
    found = shifted._ceiling(scored(level), scored(level), np.zeros((steps + 1, 4000)), "bleu")
    assert found.value == pytest.approx(1 - 1 / 5, abs=0.01)


def test_other_metrics_have_their_rows_and_text_a_ceiling(tmp_path):
    few = (
        "settings.fine_tuning.runs={train: 3, validation: 1, test: 2}",
        "settings.fine_tuning.metrics=[bleu, accuracy]",
        "simulators.low_rank.rank=4",
    )
    study = Study.load("smoke", few, artifacts=tmp_path, jobs=1)
    simulators = ["mean_trajectory", "low_rank", "tangent"]
    campaigns = study.campaigns("fine_tuning", ["sst2", "webnlg"])
    frame, sources = shifted.other_metrics(campaigns, ["accuracy", "bleu", "rouge_l"], simulators)
    r2 = frame[frame["statistic"] == "r2_dev"].set_index(["task", "metric", "method"])["value"]
    expected = {("sst2", "accuracy", name) for name in simulators}
    expected |= {("webnlg", "bleu", name) for name in (*simulators, shifted.CEILING)}
    assert set(r2.index) == expected
    assert r2["webnlg", "bleu", shifted.CEILING] < 1
    assert len(sources) == 3  # the runs of both, and those recorded again


# --- the plan ----------------------------------------------------------------------------------------------------------


def test_the_paper_alone_leaves_out_what_goes_beyond_it(study):
    everything, paper = catalogue.chosen(study), catalogue.chosen(study, "paper")
    beyond = set(everything) - set(paper)
    assert {name.split("_")[0] for name in beyond} == {
        "ext00",
        "ext01",
        "ext02",
        "ext03",
        "ext04",
        "ext05",
        "ext06",
        "ext07",
        "explore",
    }
    assert "explore_quickstart" in paper
    assert all(name.startswith(("tab", "fig", "explore_quickstart")) for name in paper)
    assert set(catalogue.chosen(study, "ext*")) == {name for name in beyond if name.startswith("ext")}
    of_tasks = {name: {runs.task for runs in everything[name].needs} for name in everything if name.startswith("ext0")}
    assert of_tasks["ext01_explained_deviation"] == {"rte", "sst2", "webnlg"}
    assert of_tasks["ext03_runs_needed"] == {"sst2", "webnlg"}
    for pairs in catalogue.before(catalogue.chosen(study, "ext01*").values()).values():
        methods = {(metric, variant.method) for metric, variant in pairs}
        assert ("loss", "tangent") in methods
        assert ("loss", "persistence") not in methods


def test_what_needs_the_gpt_is_known(study):
    beyond = {name: output for name, output in catalogue.chosen(study).items() if name.startswith(("ext", "explore"))}
    assert [name for name, output in beyond.items() if not output.row.trains] == ["ext02_horizon"]
    assert needs_gpt(study.variant("tangent"))
    assert needs_gpt(study.variant("tracin_cp_all"))
    assert not needs_gpt(study.variant("gptfluence", markov_order=2))
    assert not needs_gpt(study.variant("simfluence"))


@pytest.mark.parametrize("profile", ["smoke", "mini", "laptop", "pythia", "paper"])
def test_profiles_have_what_goes_beyond_the_paper_and_keep_them_out_of_the_papers_tables(profile: str):
    study = Study.load(profile)
    for setting in study.profile.settings:
        assert not {"tangent", "low_rank"} & set(study.methods(setting=setting))
    output = catalogue.outputs(study)["ext01_explained_deviation"]
    expected = {"persistence", "mean_trajectory", "counts", "simfluence", "gptfluence", "low_rank", "tangent"}
    assert set(output.methods) == expected <= set(study.profile.simulators)
