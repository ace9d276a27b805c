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
# # Beyond the paper: all weights or LoRA, recorded by a Trainer
#
# The same GPT is fine-tuned by transformers' `Trainer` on the same curricula in two ways: all of its weights, or LoRA's adapters
# alone. The callback `gf.TrainerRecorder` records every run. Simulators are fitted on four runs of each way, and one more
# selects. *R²dev is the share of a curriculum's own effect that is predicted: 1 is perfect, 0 is the mean of the training
# runs.* The *linear datamodelling score* asks of curricula that leave a quarter of a held-out run's examples out whether a
# method ranks their final losses rightly. All of these are really trained.
#
# ![Explained deviation and leave-out scores of both ways](../figures/laptop/ext08_adapters.png)
#
# The tangent simulator knows the gradients of what is trained, so of LoRA those of the adapters alone. Of their coordinates
# it can keep all. Before training the gradients of LoRA's first factors are 0, because the second factors are. So gradients are
# taken again after a sixth and after half of the first training run, here for both ways.
#
# Inputs: none. Runs are trained if missing, one after the other (of SmolLM2-135M minutes each; `benchmarks/lora_runs.py` records
# them on another machine). Outputs: `figures/<profile>/ext08_adapters.*`.
#
# `papermill notebooks/ext08_adapters.ipynb out.ipynb -p profile laptop`

# %% tags=["parameters"]
profile: str = "mini"  # has nano GPTs only, so name one in `models`, or take profile laptop
tasks: list[str] = []  # default: the first
models: list[str] = []  # default: the profile's first that is no nano GPT
methods: list[str] = []  # mean trajectory, counts, GPTfluence, low-rank deviations, tangent simulator
train: int = 4  # runs that simulators are fitted on; one more selects
held_out: int = 6  # of each kind
sets: int = 16  # curricula that leave a quarter of the examples out
times: float = 0.0  # LoRA's learning rate over that of all weights; 0: as chosen on other runs (adapters.TIMES)
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import pandas as pd

import gptfluence as gf
from gptfluence.experiments import adapters

nb = gf.Notebook("ext08_adapters", globals())
[campaign] = nb.campaigns
tuned = adapters.ways(campaign, times=times or adapters.TIMES)
drawn = adapters.Drawn.of(campaign, train=train, validation=1, held_out=held_out, sets=sets)
for way, one in tuned.items():
    print(f"{adapters.WAYS[way]}: learning rate {one.recording.optimizer.learning_rate:g}")

# %%
found = [adapters.measured(campaign, one, drawn, nb.methods) for one in tuned.values()]
results = pd.concat([frame for frame, _ in found], ignore_index=True)
sources = [runs for _, recorded in found for runs in recorded]
results.pivot_table(index=["way", "kind", "statistic"], columns="method", values="value", sort=False).round(2)

# %%
scores = {"r2_dev": "R²dev", "lds": "datamodelling score"}
frame = results.assign(
    panel=results["way"].map(adapters.WAYS), x=results["kind"] + ": " + results["statistic"].map(scores)
).rename(columns={"method": "series"})
frame = frame[frame.groupby(["series", "x"])["value"].transform(lambda values: values.notna().any())]
picture = gf.points.plot_intervals(
    frame, xlabel="curricula", ylabel="score (1: perfect)", floor=-1.0, training_runs=train
)
picture

# %%
rates = ", ".join(f"{adapters.WAYS[way]} {one.recording.optimizer.learning_rate:g}" for way, one in tuned.items())
lora = adapters.LORA
caption = (
    f"A GPT fine-tuned by a Trainer in two ways, recorded by the callback: all weights, or LoRA (rank {lora.rank}, alpha {lora.alpha:g}, "
    f"all linear layers). {nb.study.profile.subject} ({campaign.model}), {gf.names.task(campaign.task)}, "
    f"{drawn.train[0].steps} steps of {drawn.train[0].batch_size} examples, learning rates: {rates}. "
    f"{train} training runs and one that selects. R2_dev = 1 - MSE / MSE(mean training trajectory) of the loss, on {held_out} held-out "
    f"runs drawn alike and {held_out} that repeat few examples. Left out: linear datamodelling score of final losses over {sets} curricula "
    f"that leave a quarter of a held-out run's examples out, others in their places. Of {gf.names.method('tangent')} with LoRA all "
    f"coordinates are kept. {gf.readings.known_mean(train)} {gf.readings_beyond.INTERVALS_OF_SETS}"
)
ends = {way: runs[0].trajectories("loss").mean(axis=(0, 2)) for way, (_, runs) in zip(tuned, found, strict=True)}
learned = ", ".join(f"{adapters.WAYS[way]} {losses[0]:.2f} and {losses[-1]:.2f}" for way, losses in ends.items())
reading = f"{gf.readings.best_points(frame)}\nMean loss of the training runs before and after: {learned}."
nb.save_figure(picture, results, caption=caption, sources=sources, reading=reading)
