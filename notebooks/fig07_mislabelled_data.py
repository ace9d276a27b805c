# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Figure 7: finding mislabelled training data
#
# Some labels of the training pool are flipped, 40% as in the paper. Each method scores every training example, and
# the examples are inspected from the most suspect down. *Left: the higher a curve, the sooner the flips are found; random
# inspection finds, in expectation, the share that it inspects. Middle: flipped labels among the inspected are corrected, and
# the GPT is trained again. A good order restores the accuracy after few inspections. Right: the area under the ROC curve of
# each seed's scores; 0.5 is chance.*
#
# | method | score of an example |
# |---|---|
# | TracIn-CP | its self-influence: the squared norm of its own gradient, summed over checkpoints |
# | GPTfluence | the simulated factor on its own loss; with the option `target: deviation` what it adds to its own loss |
# | GPTfluence (untrained) | the same with the weights that the fit began with: what text features give without any learning |
# | Tangent simulator | how much lower its own final loss is in a simulated run with it than without it |
# | Own training loss | its loss, averaged over the steps of the run |
#
# None of them is told a right label of the pool.
#
# ![Figure 7, profile mini](../figures/mini/fig07_mislabelled_data.png)
#
# Inputs: runs on the flipped pool and simulators fitted on them (made if missing). Outputs:
# `figures/<profile>/fig07_mislabelled_data.*`. From nothing, profile `mini` takes about 75 seconds of one core for each seed.
#
# Twenty seeds, with 20% of the labels flipped as well, take about 50 minutes of one core, by this command:
#
# `papermill notebooks/fig07_mislabelled_data.ipynb out.ipynb -p profile mini -y 'seeds: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]' -y 'flipped_fractions: [0.4, 0.2]' -p output_dir figures/mini-20-seeds`
#
# It can be stopped at any time, and the next call goes on. Several calls may run at once, each with some of the seeds (and
# without `output_dir`): what they have made, a last call with all seeds finds.

# %% tags=["parameters"]
profile: str = "mini"
task: str = ""  # SST-2, or the first whose targets are labels
seeds: list[int] = [0, 1]  # which labels are flipped, and the order of training
flipped_fractions: list[float] = [0.4]  # the paper's; a row of panels for each
inspected: list[float] = [0.0, 0.2, 0.4, 1.0]  # shares of the pool after whose correction the GPT is trained again
runs: int = 6  # recorded on the flipped pool, to fit simulators on
tests: int = 200  # that accuracies are measured on
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf
from gptfluence.experiments import mislabelled
from gptfluence.scoring import intervals as interval_rules

nb = gf.Notebook("fig07_mislabelled_data", globals())
experiments = [
    mislabelled.Experiment(nb.study, nb.task, seed=seed, flipped_fraction=fraction, runs=runs, tests=tests)
    for fraction in flipped_fractions
    for seed in seeds
]
first = experiments[0]
print(f"{first.flipped.sum()} of {len(first.flipped)} labels flipped, {first.curriculum.steps} steps of training")

# %% [markdown]
# Score, inspect, correct, train again from the same weights on the same batches. Rows without a repeat are means over seeds.

# %%
frame = mislabelled.results(experiments, inspected)
means = frame[frame["repeat"].isna()]
means[means["panel"] == gf.inspection.AUC].drop(columns=["panel", "repeat", "x"]).round(3)

# %% [markdown]
# Does the GPT learn the labels at all? Its accuracy on the tests before training, after training with the flipped labels, and
# with all labels right.

# %%
learned = mislabelled.accuracies(experiments)
learned.round(3)

# %%
picture = gf.inspection.plot_inspection(frame)
picture

# %%
shares = " and ".join(f"{fraction:.0%}" for fraction in flipped_fractions)
intervals = (
    "with 90% intervals; dots: single seeds"
    if len(seeds) >= interval_rules.FEWEST
    else f"without intervals, which need {interval_rules.FEWEST} seeds; dots: single seeds"
)
few = " (twenty by the command in the notebook, which takes longer)" if len(seeds) < 20 else ""
accuracies = "; ".join(
    f"{row['before']:.2f} before training, {row['flipped']:.2f} after training with {fraction:.0%} of the labels flipped, "
    f"{row['right']:.2f} with all of them right"
    for fraction, row in learned.iterrows()
)
star = " Star: what the paper's text gives; its curves come without numbers." if "paper" in set(frame["series"]) else ""
caption = (
    f"Finding mislabelled training data: {gf.names.task(nb.task)}, {shares} of the labels of {len(first.flipped)} training "
    f"examples flipped (in the paper 40%). {nb.study.profile.subject} ({first.dynamics.model}). Means over {len(seeds)} "
    f"seed{'s' * (len(seeds) > 1)}{few}, {intervals}. Random: its exact expectation, with the range of 90% of single "
    f"orders (its accuracies are of one order a seed). Accuracy on {tests} tests: {accuracies}. Simulators are fitted on "
    f"{runs} runs. GPTfluence's score: {first.score_of_gptfluence}. TracIn-CP: 10 checkpoints, parameters of the last transformer block.{star}"
)
reading = gf.inspection.of_inspection(frame)
nb.save_figure(
    picture,
    frame,
    caption=caption,
    sources=[experiment.dynamics for experiment in experiments],
    reading=reading,
)
