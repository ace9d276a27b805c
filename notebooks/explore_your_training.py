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
# # Ask the training that you already run
#
# A training by transformers' `Trainer` (or TRL's `SFTTrainer`, with LoRA) is recorded by a callback: which examples made each
# update, and every test example's loss before training and after each update. From this one run and the GPT as it was before,
# the tangent simulator says what the losses would have been without some of the examples. Then the GPT is really trained
# again without them, and the answers are compared.
#
# ![A recorded training, what was simulated, and what training again gave](../figures/mini/explore_your_training.png)
#
# `papermill notebooks/explore_your_training.ipynb out.ipynb -p trainer SFTTrainer -p task webnlg`

# %% tags=["parameters"]
profile: str = "mini"
task: str = ""  # SST-2
trainer: str = "Trainer"  # or "SFTTrainer", with LoRA; needs trl, as `pip install trl` installs it
epochs: int = 3
learning_rate: float = 0.0  # 0: the profile's; four times that with LoRA
mask: list[int] = []  # training examples to leave out; default: every fourth of the run
coordinates: int = 0  # of the trained parameters, which the tangent simulator works on; 0: 6144, and with LoRA all
examples: int = 5  # drawn, besides the mean
overrides: list[str] = []  # changes to the profile, as field=value
output_dir: str = ""  # default: figures/<profile>, or build/<profile>/figures if parameters are changed

# %%
import pandas as pd
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

import gptfluence as gf
from gptfluence.common.errors import ConfigurationError
from gptfluence.experiments import trained_again

nb = gf.Notebook("explore_your_training", globals())
nb.choose("trainer", trainer, ["Trainer", "SFTTrainer"])
nb.choose("examples", examples, range(1, 12))
campaign = nb.study.campaign("fine_tuning", nb.task)
gpt, texts = nb.study.model(nb.model).load(), campaign.texts
drawn, optimizer = campaign.setting.curriculum, campaign.setting.recording.optimizer
rate = learning_rate or optimizer.learning_rate * (4 if trainer == "SFTTrainer" else 1)
folder = nb.study.artifacts / "trainings" / f"{nb.study.profile.name}-{nb.task}-{trainer}-{epochs}-{rate:g}"
torch.set_num_threads(1)  # the order of additions must not depend on the machine's cores
set_seed(0)

# %% [markdown]
# ## Your training
#
# A data set, a model, arguments: nothing of this knows that it will be recorded.


# %%
def rows(examples) -> Dataset:
    """As a Trainer takes them: the target's tokens are trained on, the prompt's are not."""
    parts = [[gpt.tokenizer(text)["input_ids"] for text in (example.prompt, example.target)] for example in examples]
    return Dataset.from_list([{"input_ids": a + b, "labels": [-100] * len(a) + b} for a, b in parts])


def pairs(examples) -> Dataset:
    """As SFTTrainer takes them."""
    return Dataset.from_list([{"prompt": example.prompt, "completion": example.target} for example in examples])


training, tests = texts.pool[: drawn.subset_size], texts.tests
arguments = {
    "output_dir": str(folder / "checkpoints"),
    "per_device_train_batch_size": max(1, drawn.batch_size // 2),
    "gradient_accumulation_steps": 2,
    "num_train_epochs": epochs,
    "learning_rate": rate,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "weight_decay": optimizer.weight_decay,
    "seed": 0,
    "bf16": False,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}

# %% [markdown]
# ## Recorded: the first line makes a recorder, the second hands it to the Trainer

# %%
if trainer == "Trainer":
    recorder = gf.TrainerRecorder(rows(tests), folder)
    training_of = Trainer(
        gpt.model,
        TrainingArguments(**arguments),
        DataCollatorForSeq2Seq(gpt.tokenizer),
        train_dataset=rows(training),
        callbacks=[recorder],
    )
else:
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    recorder = gf.TrainerRecorder(pairs(tests), folder)
    training_of = SFTTrainer(
        gpt.model,
        SFTConfig(**arguments),
        train_dataset=pairs(training),
        processing_class=gpt.tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
        callbacks=[recorder],
    )
training_of.train()
if recorder.stopped:
    raise ConfigurationError(f"the training was not recorded: {recorder.stopped}")
dynamics = gf.load_dynamics(folder)
dynamics

# %% [markdown]
# Who was in each update, at which rate, and what the losses of the tests did:

# %%
[run] = dynamics.runs
losses = dynamics.trajectories("loss")[0]
print("the first updates:", [run.curriculum.examples(row) for row in range(3)])
print("their learning rates:", run.learning_rate[:3])
print(f"mean loss before {losses[0].mean():.3f}, after {losses[-1].mean():.3f} nats per target token")

# %% [markdown]
# ## What if some examples had not been there?
#
# *Masked*: their places stay empty, and nobody else moves. *Left out*: all later examples move up, so the run is shorter. The
# simulator is fitted on the recorded run alone. Gradients are taken of the GPT as it was before training, which the folder
# names or keeps, and again after a sixth and after half of the run. (LoRA's first factors have none before training.)

# %%
curriculum = run.curriculum
chosen = mask or curriculum.used[::4].tolist()
changes = {
    "masked": curriculum.masked(chosen),
    "left out": curriculum.without(chosen),
    "all others masked": curriculum.masked([one for one in curriculum.used.tolist() if one not in set(chosen)]),
}
simulator = gf.TangentSimulator(
    coordinates=coordinates or (6144 if trainer == "Trainer" else 10**9),
    checkpoints=(max(1, curriculum.steps // 6), max(1, curriculum.steps // 2)),
).fit(dynamics)
predicted = {name: trained_again.predicted(simulator, dynamics, changed) for name, changed in changes.items()}

# %% [markdown]
# Then the GPT is trained again on each, from the folder: the same tokens, the same rates. Beside the simulator stand what
# costs nothing: *no change* says that the run would have ended as it did, *persistence* that nothing would have been learned.
# Errors are over tests at the last step, and a share of 0 is that of *no change*.

# %%
truth = {name: gf.train_again(folder, curriculum=changed).trajectories["loss"] for name, changed in changes.items()}
table = pd.DataFrame([trained_again.row(name, losses, predicted[name], truth[name]) for name in changes])
table

# %%
frame = trained_again.frame(losses, predicted["masked"], truth["masked"], examples)
labels = {"before": "recorded run (no change)", "recorded": "trained again"}
picture = gf.trajectories.plot_bands(frame, ylabel=gf.names.metric("loss", unit=True), labels=labels)
picture

# %%
caption = (
    f"A training by {trainer} of {gf.names.task(nb.task)}, recorded once, and what it would have been with {len(chosen)} of its "
    f"{len(curriculum.used)} examples masked: simulated by {gf.names.method('tangent')} from that one run, and then really "
    f"trained again. {nb.study.profile.subject} ({nb.model}){', LoRA' if trainer == 'SFTTrainer' else ''}. Panels: the mean of all "
    "tests, and those that are simulated to change most."
)
reading = gf.readings_beyond.of_trained_again(table)
nb.save_figure(picture, frame, caption=caption, sources=[dynamics], reading=reading)
