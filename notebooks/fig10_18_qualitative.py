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
# # Figures 10-18: recorded and simulated trajectories
#
# Each panel is one test example in one held-out run: what was recorded (black), and what each method predicts from the
# first value alone (the dot). Examples are chosen by their place in the ranking of GPTfluence's error, from well predicted
# to badly predicted, so that the gallery does not flatter.
#
# Of these figures, figure 16 (fine-tuning, loss) can be drawn so far.
#
# ![Figure 16, profile mini](../figures/mini/fig16_fine_tuning_loss.png)
#
# Inputs: recorded runs and fitted simulators (made if missing). Outputs: `figures/<profile>/fig16_fine_tuning_loss.*`.
#
# `papermill notebooks/fig10_18_qualitative.ipynb out.ipynb -p profile smoke -p figure 16 -p examples 2`

# %% tags=["parameters"]
profile: str = "mini"
figure: int = 16
tasks: list[str] = []  # all of the profile's
methods: list[str] = []  # all of the profile's
examples: int = 2  # panels for each task
overrides: list[str] = []  # changes to the profile
output_dir: str = ""  # figures/<profile>

# %%
import gptfluence as gf

nb = gf.Notebook("fig10_18_qualitative", globals())
nb.choose("figure", figure, [16])
nb.choose("examples", examples, range(1, 9))
simulated = {task: nb.study.simulate("fine_tuning", task, methods=nb.methods) for task in nb.tasks}

# %% [markdown]
# One panel for each chosen (task, test example), in the first held-out run, as a tidy frame.

# %%
frame = gf.figures.trajectory_frame(simulated, metric="loss", examples=examples)
frame.head()

# %%
picture = gf.figures.plot_trajectories(frame, metric="loss")
picture

# %%
recorded = [test for test, _ in simulated.values()]
caption = (
    f"Loss of test examples while fine-tuning on a held-out curriculum, recorded and simulated from the value before "
    f"training. {nb.study.profile.title} ({recorded[0].model}). Panels of a task: examples from the best to the worst "
    "predicted by the first method fitted, at equal ranks."
)
nb.save_figure(picture, frame, "fig16_fine_tuning_loss", caption=caption, sources=recorded)
print(gf.figures.reading(frame))
