"""The notebooks of tables 1 and 3 to 12 and of figures 3, 5, 6 and 9, run in smoke size on one store.

Their scripts are executed in this process: that a notebook holds the cells of its script, and that papermill runs it, is
tested in test_notebooks.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import jupytext
import numpy as np
import pandas as pd
import pytest

from gptfluence.common.errors import ConfigurationError
from gptfluence.drawing import hyperparameters
from gptfluence.profile.load import load_profile
from gptfluence.scoring.across_tasks import RELATIVE
from gptfluence.study.study import Study
from gptfluence.workflow import catalogue
from gptfluence.workflow.notebook import NOTEBOOKS

pytestmark = pytest.mark.slow
TRIVIAL = {"persistence", "mean_trajectory", "counts"}
ALL = {*TRIVIAL, "simfluence", "gptfluence"}


@pytest.fixture(scope="module")
def execute(tmp_path_factory: pytest.TempPathFactory):
    """Run a notebook's script with some parameters; returns the folder of its outputs."""
    folder = tmp_path_factory.mktemp("tables")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPTFLUENCE_ARTIFACTS", str(folder / "artifacts"))

        def run(name: str, **parameters) -> Path:
            outputs = tmp_path_factory.mktemp(name)
            namespace: dict = {}
            for cell in jupytext.read(NOTEBOOKS / f"{name}.py").cells:
                if cell.cell_type == "code":
                    exec(compile(cell.source, name, "exec"), namespace)
                if "parameters" in cell.metadata.get("tags", []):
                    namespace |= {"profile": "smoke", "output_dir": str(outputs), **parameters}
            return outputs

        yield run


def read(outputs: Path, name: str) -> pd.DataFrame:
    facts = json.loads((outputs / f"{name}.json").read_text())
    shown = "html" if name.startswith("tab") else "png"
    assert {f"{name}.csv", f"{name}.{shown}"} < set(facts["files"])
    if "hyperparameters" not in name:
        assert "generated tasks" in facts["caption"]
    return pd.read_csv(outputs / f"{name}.csv", keep_default_na=True)


def check_statistics(frame: pd.DataFrame, groups: list[str]) -> None:
    """Errors are there for every row, MAE squared is no more than MSE, and R2_dev of the mean trajectory is 0."""
    keys = [*groups, "method", *(["variant"] if "variant" in frame else [])]
    wide = frame.fillna({"variant": ""}).pivot(index=keys, columns="statistic", values="value")
    assert np.isfinite(wide[["all_steps_mse", "all_steps_mae", "r2_dev"]]).all(axis=None)
    assert (wide["all_steps_mse"] >= wide["all_steps_mae"] ** 2 * (1 - 1e-6)).all()
    means = wide[wide.index.get_level_values("method") == "mean_trajectory"]
    assert len(means)
    np.testing.assert_allclose(means["r2_dev"], 0, atol=1e-3)


def test_table_1_has_every_model_task_and_method(execute):
    models = Study.load("smoke").setting("instruction_tuning").models
    outputs = execute("tab01_instruction_tuning_loss", models=models)
    frame = read(outputs, "tab01_instruction_tuning_loss")
    single = frame[~frame["task"].isin(["over_tasks", "average"])]
    whole = frame[(frame["task"] == "over_tasks") & (frame["method"] == "persistence")]
    assert len(whole) == 2 * 4
    assert (whole.loc[whole["statistic"] == "all_steps_mse_relative", "value"] == 1).all()
    cases = set(single[["model", "task", "method"]].itertuples(index=False, name=None))
    assert cases == {
        (model, task, name)
        for model in models
        for task in ("rte", "sst2", "webnlg")
        for name in Study.load("smoke").methods(setting="instruction_tuning")
    }
    check_statistics(single, ["model", "task"])
    paper = single.dropna(subset="paper")
    assert set(paper["model"]) == {"nano-smoke-1b"}  # the other stands for no Pythia
    tex = (outputs / "tab01_instruction_tuning_loss.tex").read_text()
    assert r"\caption{Loss simulation" in tex
    assert r"\label{tab:tab01_instruction_tuning_loss}" in tex


def test_tables_3_and_4_have_the_tasks_with_text_and_both_metrics(execute):
    three = read(execute("tab03_instruction_tuning_generation"), "tab03_instruction_tuning_generation")
    assert set(three["model"]) == set(
        catalogue.outputs(Study.load("smoke"))["tab03_instruction_tuning_generation"].models
    )
    four = read(execute("tab04_fine_tuning_generation"), "tab04_fine_tuning_generation")
    for frame in (three, four):
        assert set(frame["task"]) == {"webnlg"}
        assert set(frame["metric"]) == {"bleu", "rouge_l"}
        assert set(frame["method"]) == ALL
        check_statistics(frame, ["metric"])
        assert frame["paper"].notna().sum() == 2 * 2 * 3  # metrics, methods, statistics
    one = read(
        execute("tab04_fine_tuning_generation", metrics=["bleu"], methods=["persistence"]),
        "tab04_fine_tuning_generation",
    )
    kept = four[(four["metric"] == "bleu") & (four["method"] == "persistence")].reset_index(drop=True)
    pd.testing.assert_frame_equal(one, kept)


def test_tables_5_to_9_compare_profiles_each_by_itself(execute):
    outputs = execute("tab05_09_hyperparameters")
    rows = [row for row in catalogue.ROWS if catalogue.notebook_of(row) == "tab05_09_hyperparameters"]
    frames = {row.label: read(outputs, row.name) for row in rows}
    assert list(frames) == ["Table 5", "Table 6", "Table 7", "Table 8", "Table 9"]
    for label, one in frames.items():
        assert set(one["table"]) == {int(label.removeprefix("Table "))}
    assert {path.stem for path in outputs.glob("*.json")} == {row.name for row in rows}
    frame = pd.concat(frames.values())
    other = pd.concat(hyperparameters.compared(load_profile("paper")).values())
    keys = ["table", "parameter"]
    both = frame.merge(other, on=keys, suffixes=("", "_of_other"))
    assert (both["paper"] == both["paper_of_other"]).any()
    assert (both["profile"] != both["profile_of_other"]).any()
    assert (frame.loc[frame["differs"], "profile"] != frame.loc[frame["differs"], "paper"]).all()
    assert frame["differs"].any()
    assert not frame["differs"].all()


def test_table_10_and_figure_4_compare_orders_on_the_same_steps(execute):
    outputs = execute("tab10_markov_order", orders=[1, 3], tasks=["rte", "webnlg"])
    table, figure = read(outputs, "tab10_markov_order"), read(outputs, "fig04_markov_order")
    assert set(table["method"]) == TRIVIAL | {"gptfluence"}
    assert set(table.loc[table["method"] == "gptfluence", "variant"]) == {"markov_order=1", "markov_order=3"}
    assert table.loc[table["method"] != "gptfluence", "variant"].isna().all()
    cases = set(table[["metric", "task"]].itertuples(index=False, name=None))
    assert cases == {("loss", "rte"), ("loss", "webnlg")}
    for name in ("tab10_markov_order", "fig04_markov_order"):
        caption = json.loads((outputs / f"{name}.json").read_text())["caption"]
        assert "Not shown: BLEU and ROUGE-L, measured once in 2 steps, so that values of the last n steps" in caption
    check_statistics(table, ["metric", "task"])
    assert figure["run"].isna().sum() == 2 * 5 * 4  # cases; three baselines, and one method of two orders; statistics
    both = figure[(figure["order"] == 3) & (figure["statistic"] == "all_steps_mse")]["value"]
    assert set(both.round(9)) == set(
        table[(table["variant"] == "markov_order=3") & (table["statistic"] == "all_steps_mse")]["value"].round(9)
    )
    # a baseline was given three values, so on the same steps it does what it does with them
    study = Study.load("smoke")
    expected = study.campaign("fine_tuning", "rte").evaluate(["persistence"], observed=3)
    mean = expected[expected["statistic"] == "all_steps_mse"]["value"].mean()
    found = table[
        (table["task"] == "rte") & (table["method"] == "persistence") & (table["statistic"] == "all_steps_mse")
    ]
    assert found["value"].item() == pytest.approx(mean)


@pytest.mark.parametrize("setting", ["fine_tuning", "instruction_tuning"])
def test_tables_11_and_12_have_every_kind_of_unseen_examples(execute, setting):
    outputs = execute("tab11_12_unseen", setting=setting)
    name = "tab11_unseen_fine_tuning" if setting == "fine_tuning" else "tab12_unseen_instruction_tuning"
    frame = read(outputs, name)
    assert set(frame["method"]) == {*TRIVIAL, "gptfluence"}
    cases = set(frame[["unseen", "metric", "task"]].itertuples(index=False, name=None))
    of = {("loss", "rte"), ("loss", "webnlg"), ("bleu", "webnlg"), ("rouge_l", "webnlg")}
    assert cases == {(unseen, *case) for unseen in ("training", "test", "both") for case in of}
    check_statistics(frame, ["unseen", "metric", "task"])
    assert frame["paper"].notna().sum() == 3 * 4 * 3  # of GPTfluence alone
    assert set(frame.dropna(subset="paper")["method"]) == {"gptfluence"}
    with pytest.raises(ConfigurationError, match="'methods': value 'simfluence'"):
        execute("tab11_12_unseen", setting=setting, methods=["simfluence"])


def test_figures_3_5_and_6_have_a_value_for_everything_that_is_varied(execute):
    three = read(execute("fig03_checkpoint_interval", intervals=[1, 4]), "fig03_checkpoint_interval")
    five = read(execute("fig05_encoders", encoders=["nano-smoke", "index"]), "fig05_encoders")
    six = read(execute("fig06_model_sizes"), "fig06_model_sizes")
    assert set(three.dropna(subset="interval")["method"]) == {"simfluence", "gptfluence"}
    assert set(three[three["interval"].isna()]["method"]) == TRIVIAL
    assert set(three["interval"].dropna()) == {1, 4}
    assert set(five["encoder"].dropna()) == {"nano-smoke", "index"}
    assert list(six["model"].unique()) == ["nano-smoke", "nano-smoke-1b"]
    assert set(six["method"]) == ALL
    for frame, x in ((three, "interval"), (five, "encoder"), (six, "model")):
        assert not frame.duplicated([x, "method", "statistic", "run"]).any()
        errors = frame[frame["statistic"].isin(RELATIVE.values())]
        assert np.isfinite(errors["value"]).all()
        assert errors[["low", "high", "run"]].isna().all(axis=None)  # two runs have no interval, but a row each
        assert (frame["statistic"] == f"{RELATIVE['all_steps_mse']}_of_run").sum() == 2 * len(
            frame[frame["statistic"] == RELATIVE["all_steps_mse"]]
        )
        assert (errors.loc[errors["method"] == "persistence", "value"] == 1).all()
    # of the same GPT and the same baseline the same number, wherever it is shown
    same = [
        frame[(frame["method"] == "mean_trajectory") & (frame["statistic"] == RELATIVE["all_steps_mse"])]["value"].iloc[
            0
        ]
        for frame in (three, five, six)
    ]
    assert max(same) == pytest.approx(min(same))


def test_figure_9_has_every_epoch(execute):
    frame = read(execute("fig09_convergence", tasks=["sst2"]), "fig09_convergence")
    assert set(frame["method"]) == {"simfluence", "gptfluence"}
    for _, rows in frame.groupby(["method", "curve"]):
        assert list(rows["epoch"]) == list(range(1, len(rows) + 1))
        assert rows["best"].sum() == 1
    validation = frame[frame["curve"] == "validation_mse"]
    for _, rows in validation.groupby("method"):
        assert rows.loc[rows["best"], "value"].item() == rows["value"].min()


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("tab01_instruction_tuning_loss", {"models": ["nano-2b"]}, "'models': value 'nano-2b' is not known"),
        ("tab03_instruction_tuning_generation", {"metrics": ["loss"]}, "'metrics': value 'loss' is not known"),
        ("tab04_fine_tuning_generation", {"tasks": ["sst2"]}, "record one of these: bleu or rouge_l of sst2"),
        ("tab10_markov_order", {"orders": [8]}, "'orders': value '8' is not known"),
        ("tab10_markov_order", {"orders": [1.5]}, "'orders' must be of type list"),
        ("tab11_12_unseen", {"tasks": ["sst2"]}, "'tasks': value 'sst2' is not known; known: rte, webnlg"),
        (
            "tab11_12_unseen",
            {"setting": "tuning"},
            "'setting': value 'tuning' is not known; known: fine_tuning, instruction_tuning",
        ),
        ("fig03_checkpoint_interval", {"intervals": [0]}, "'intervals': value '0' is not known"),
        ("fig03_checkpoint_interval", {"coarsening": "skip"}, "'coarsening': value 'skip' is not known"),
        ("fig05_encoders", {"encoders": ["minilm"]}, "encoder 'minilm' is not known"),
        ("fig06_model_sizes", {"methods": ["tracing"]}, "'methods': value 'tracing' is not known"),
        ("fig09_convergence", {"methods": ["persistence"]}, "'methods': value 'persistence' is not known"),
        ("tab05_09_hyperparameters", {"tasks": ["rte"]}, "parameter 'tasks' is not known"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_is_allowed(execute, name, parameters, said):
    with pytest.raises(ConfigurationError, match=said):
        execute(name, **parameters)


def test_the_defaults_of_the_notebooks_are_those_of_the_plan():
    study = Study.load("smoke")
    outputs = catalogue.outputs(study)
    assert outputs["fig03_checkpoint_interval"].values == catalogue.INTERVALS
    for name in ("tab01_instruction_tuning_loss", "tab03_instruction_tuning_generation", "fig06_model_sizes"):
        assert outputs[name].needs
    needed = outputs["tab10_markov_order"].needs
    fitted = {variant.variant for pairs in needed.values() for _, variant in pairs}
    assert fitted == {f"markov_order={order}" for order in catalogue.orders(study)}
    steps = study.campaign("fine_tuning", "rte").dynamics().curricula[0].steps
    assert catalogue.orders(study) == [order for order in study.profile.markov_orders if order < steps]
