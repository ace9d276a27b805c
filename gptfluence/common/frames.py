"""The columns of tidy frames: one name for each thing, with one meaning in every frame and CSV of this project.

A frame has those of these columns that it needs. Tables made to be read (5 to 9) have their printed headings instead.
"""

from __future__ import annotations

COLUMNS = {
    # what a row is of
    "setting": "how GPTs are trained: fine_tuning or instruction_tuning",
    "model": "the GPT, by its name in the profile",
    "task": "the task of the test examples; over_tasks: all of them (`scoring.across_tasks`); average: the paper's plain mean",
    "regime": "how fast a GPT learns: learning (the profile's rates) or slow drift (a fraction of them)",
    "way": "what of a GPT is trained: full (all weights) or lora (adapters alone)",
    "metric": "loss (nats per target token), accuracy (0-1), bleu (0-100) or rouge_l (0-1)",
    "kind": "the kind of curriculum: alike (drawn as the training runs are), few, sorted, ..., unseen_tests, unseen_pool",
    "unseen": "which examples no simulator was fitted on: test, training or both",
    "method": "who predicts: an entry of the profile's `simulators:`, or a series that no method predicts (recorded, ceiling)",
    "variant": "what differs from the method's entry in the profile, e.g. markov_order=2; empty if nothing does",
    "encoder": "the text encoder of a method, by name; of costs whether its work is included or excluded",
    "reuse": "what the steps or the tests share, so that it costs each of them a part only: nothing, tests or tables",
    "batch": "of costs: how many training examples a step has",
    "interval": "the checkpoint interval: updates from one state that a simulator is fitted on to the next",
    "order": "the Markov order: how many of the last losses a step is predicted from",
    "choice": "how a curriculum was found: best (by a simulator's search), hardest, easiest or random",
    "candidate": "which one of a search's candidates it is, from 0; -1 if it is none of them",
    "seed": "number of a repetition of an experiment: what is drawn at random depends on it",
    "flipped": "the share of the pool (0-1) whose labels were flipped",
    "run": "one recorded run, by name; empty in rows about several runs",
    "runs": "over how many runs a value is taken",
    "fitted_on": "how many training runs the method was fitted on",
    "calibration_runs": "how many runs a band was calibrated on",
    "left_out": "how many training examples a curriculum leaves out; all: every such number together",
    "unit": "what a band is calibrated to hold: path (the losses of one test in one run) or run (all tests of a run at once)",
    "step": "updates made so far; 0 is before training",
    "epoch": "epochs that a simulator was fitted for so far, from 1",
    "example": "a test example, by its id or its position (figure 1: of a batch, the position of a training example)",
    # numbers
    "statistic": "what `value` is, e.g. all_steps_mse or r2_dev; ..._of_run: of a single run, where few have no interval",
    "value": "the number, in the unit of its statistic",
    "std": "population standard deviation over runs x test examples",
    "std_over_runs": "population standard deviation over runs",
    "low": "lower end of the 90% interval around `value`; empty for fewer than five runs",
    "high": "upper end of it",
    "undefined": "how many runs have no value",
    "diverged": "how many predicted trajectories diverged (see `simulators.base.diverged`)",
    "mse": "mean squared error over test examples at one step, the metric's unit squared",
    "mse_mean_trajectory": "the same of the mean training trajectory as a prediction",
    "simulated": "final loss that a simulator predicts, mean over test examples, nats per target token",
    "recorded": "the same, really trained",
    "flops": "floating-point operations of one step for one test example, two for a multiplication and its addition",
    "seconds": "time that the same takes",
    "paper": "the number that the paper reports in place of `value`",
    "paper_std": "the standard deviation that the paper reports beside it",
    "paper_flops": "multiply-adds that the paper reports for the same work, half as many as operations",
    "paper_seconds": "seconds that it reports for a sample; it does not say how many steps that is",
    # what is drawn
    "panel": "the panel of a figure, by its title",
    "case": "the same, in figure 4: task and metric",
    "series": "the line that a number belongs to: a method, recorded, or before (recorded, of the unchanged curriculum)",
    "of": "the method that a panel of bands is of; `series` tells its line from the recorded one",
    "curve": "what was measured while a simulator was fitted: training_loss or validation_mse",
    "repeat": "which line of a series it is: a seed or a run; the mean of all is drawn. Empty: it is the mean, or needs no repeat",
    "x": "where a number is drawn, in the unit that the axis of its panel names",
    "y": "how high it is drawn, in the unit of the other axis",
    "shown": "whether a test example stands out",
    "observed": "whether a simulator was told the value, or it is predicted",
    "best": "whether this epoch's weights were kept",
    # which options methods are to have
    "relative_to_mean": "all-steps MSE on validation runs over that of the mean training trajectory; over tasks the geometric mean",
    "relative_to_persistence": "the same over that of persistence",
    "ended": "how a fit in epochs ended: patience, max_epochs (the last) or divergence; over tasks how many by patience",
    "chosen": "whether these options of a method were chosen",
}

# The columns that hold what was measured, which another processor or version of torch moves a little. All others say what
# a row is of. (`best` follows from the numbers.)
MEASURED = frozenset(
    {"value", "std", "std_over_runs", "low", "high", "undefined", "diverged", "mse", "mse_mean_trajectory"}
    | {"simulated", "recorded", "flops", "seconds", "y", "best"}
)
