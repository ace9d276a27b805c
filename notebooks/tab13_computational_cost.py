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
# # Table 13: computational cost
#
# What does it cost to predict one step for one test example? FLOPs are counted by torch while each method runs (matrix
# products and attention, where a multiplication and its addition are two). Seconds are measured on one thread of this
# machine. TracIn-CP needs gradients of the GPT at a checkpoint of the run that it explains. Simfluence looks numbers up.
# GPTfluence multiplies small networks, and can use some of its results again for all steps and all curricula.
#
# [Table 13, profile mini](../figures/mini/tab13_computational_cost.md)
#
# Inputs: the GPT, the texts of one task and the text encoder. No recorded runs are needed. Outputs:
# `figures/<profile>/tab13_computational_cost.*`. It takes about a minute with a nano GPT, and with SmolLM2-135M eleven minutes
# for one batch size and one repeat. Seconds differ from run to run, FLOPs do not.
#
# `papermill notebooks/tab13_computational_cost.ipynb out.ipynb -p profile smoke -y 'batch_sizes: [4, 8]' -p repeats 1`

# %% tags=["parameters"]
profile: str = "mini"
model: str = ""  # the profile's first
task: str = ""  # the profile's first
batch_sizes: list[int] = [4, 8, 16]  # the paper's is 8
repeats: int = 5  # of each measurement; the median is taken
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import pandas as pd

import gptfluence as gf
from gptfluence.drawing import costs as printed
from gptfluence.experiments.cost import cost
from gptfluence.gradients.products import Replayer

nb = gf.Notebook("tab13_computational_cost", globals())
campaign = nb.study.campaign("fine_tuning", nb.task, model=nb.model)
texts, recording = campaign.texts, campaign.setting.recording
nb.choose("batch_sizes", batch_sizes, range(1, len(texts.pool) + 1))
nb.choose("repeats", repeats, range(1, 1001))
encoder = gf.encoders.load(gf.encoders.DEFAULT)  # without a cache, so that its cost is seen

# %%
with Replayer(nb.study.model(nb.model).load(), texts.pool, texts.tests, recording) as recorder:
    costs = pd.concat(
        cost(recorder, batch_size=size, encoder=encoder, repeats=repeats).assign(batch=size)
        for size in sorted(set(batch_sizes))
    )
costs.head()

# %% [markdown]
# How cost grows with the batch: FLOPs of one step for one test example. Some rows share their cost. With "tests", one
# gradient of the batch serves all tests, and with "tables", something is computed once for all steps. Such rows hold the share
# of one step and test.

# %%
costs.pivot(index=["method", "variant", "encoder", "reuse"], columns="batch", values=["flops", "seconds"])

# %% [markdown]
# Beside the paper's numbers for a batch of 8. Its FLOPs are multiply-adds (half as many), without the encoder. It gives
# seconds for a "sample" and does not say how many steps that is. They stand beside the row with the encoder, because the
# multiply-adds alone do not take as long.

# %%
costs = printed.beside_paper(costs, gf.paper.table(13))
table = printed.table(costs)
table

# %%
caption = (
    f"Cost of one step for one test example. Measured on {nb.study.profile.subject} ({nb.model}), task "
    f"{gf.names.task(nb.task)}: FLOPs are counted by torch (matrix products and attention, two for a multiplication and "
    "its addition; k, M, G, T: thousands, millions, billions, trillions), times are the median on one CPU thread. Where work is "
    "shared by several tests or steps, the share of one is given. Paper: table 13, Pythia-410M, batches of 8. Its FLOPs are "
    "multiply-adds, without the encoder. It does not say how many steps a sample is, and its seconds stand beside the row "
    "with the encoder."
)
nb.save_table(table, caption=caption, sources=[], reading=gf.readings_beyond.of_costs(costs))
