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
# # Table 10 and figure 4: Markov order
#
# How many previous values should a prediction see? GPTfluence is fitted with several orders n. So that orders can be
# compared, all of them observe as many values as the highest needs, and are judged on the same steps after these. Baselines
# observe the same values. Only metrics that were measured at every step are shown: of others the last n values are no
# measurements.
#
# ![Figure 4, profile mini](../figures/mini/fig04_markov_order.png)
#
# Inputs: recorded runs and fitted simulators (made if missing). Outputs: `figures/<profile>/tab10_markov_order.*` and
# `fig04_markov_order.*`. With everything recorded, profile `mini` takes some minutes on two cores, for a fit of each order,
# task and metric.
#
# The default profile shows three of the paper's orders, profile `mini-all` all five.
#
# `papermill notebooks/tab10_markov_order.ipynb out.ipynb -p profile smoke -y 'orders: [1, 2]' -y 'tasks: [rte]'`

# %% tags=["parameters"]
profile: str = "mini"
model: str = ""  # the profile's first
orders: list[int] = []  # the profile's markov_orders, as far as runs are long enough
tasks: list[str] = []  # RTE and WebNLG
metrics: list[str] = []  # the loss, and BLEU and ROUGE-L if the profile measures them at every step
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import gptfluence as gf

nb = gf.Notebook("tab10_markov_order", globals())
dynamics = [campaign.dynamics() for campaign in nb.campaigns]
steps = dynamics[0].curricula[0].steps
nb.choose("orders", orders, range(1, steps))
nb.values, nb.tested

# %% [markdown]
# There is one simulator for each order, task and metric. All are judged on the steps after the first max(orders) values.

# %%
results = nb.evaluate(observed=max(nb.values)).drop(columns=["setting", "model"])
chosen = {one.variant: getattr(one.options, nb.row.varies) for one in nb.variants if one.variant}
results["order"] = results["variant"].map(chosen)
results.head(8)

# %%
summary = gf.summarize(results.drop(columns="order"))
table = gf.tables.methods_by_task(summary, gf.tables.reported(10), by=["metric"], average=False)
table

# %% [markdown]
# The spread over runs of the mean error, beside the spread over trajectories. The last columns count predictions that diverged
# and runs without a rank correlation.

# %%
gf.tables.spread(summary)

# %% [markdown]
# The same as a figure, with errors in the unit of each column's metric (MSE: its square). Bars are 90% intervals over runs,
# or small dots single runs where they are few. Lines without either are baselines, which have no order.

# %%
shown = results["task"].map(gf.names.task) + ": " + results["metric"].map(lambda name: gf.names.metric(name, unit=True))
frame = gf.sweeps.sweep(results.drop(columns="variant").assign(case=shown), "order", panel=["case"], relative=False)
fitted_on = len(dynamics[0].split()[0])
layout = {"panel": "case", "panel_height": 1.15}
picture = gf.sweeps.plot_sweep(frame, "order", xlabel="Markov order n", training_runs=fitted_on, **layout)
picture

# %%
about = (
    f"{nb.study.profile.subject} ({dynamics[0].model}), fine-tuning, {len(dynamics[0].split()[2])} held-out runs. Every order "
    f"observes the first {max(nb.values)} values and is judged on the {steps + 1 - max(nb.values)} steps after them"
)
setting = nb.study.setting(nb.setting)
held = [
    name for name in nb.row.metrics if name in setting.metrics and not nb.study.measures_every_step(nb.setting, name)
]
if held:
    about += (
        f". Not shown: {' and '.join(map(gf.names.metric, held))}, measured once in {setting.generation.every} steps, so that "
        "values of the last n steps are not known"
    )
caption = (
    f"GPTfluence of different Markov orders. Mean (standard deviation over runs and examples). Measured: {about}. Paper: "
    "table 10, Pythia-410M on the real tasks, with an unknown number of observed values. R2_dev = 1 - MSE / MSE of the "
    "mean training trajectory."
)
reading = gf.readings.best_variants(table, "gptfluence")
nb.save_table(table, caption=caption, sources=dynamics, reading=reading)
caption = (
    f"GPTfluence against its Markov order. {about}. Errors are in the unit of the column's metric, MSE in its square. "
    "1 - R2_dev = MSE / MSE of the mean training trajectory. "
    f"{gf.readings.known_mean(fitted_on, rest=True)} {gf.readings_beyond.INTERVALS}"
)
reading = gf.readings.of_sweep(frame, "order", "order")
nb.save_figure(picture, frame, "fig04_markov_order", caption=caption, sources=dynamics, reading=reading)
