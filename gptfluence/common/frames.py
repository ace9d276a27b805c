"""The columns of tidy frames: one name for each thing, with one meaning in every frame and CSV of this project.

A frame has those of these columns that it needs, in this order.
"""

from __future__ import annotations

COLUMNS = {
    "setting": "how GPTs are trained: fine_tuning or instruction_tuning",
    "model": "the GPT, by its name in the profile",
    "task": "the task of the test examples",
    "metric": "loss (nats per target token), accuracy (0-1), bleu (0-100) or rouge_l (0-1)",
    "kind": "the kind of curriculum: alike (drawn as the training runs are), few, sorted, ..., unseen_tests, unseen_pool",
    "unseen": "which examples no simulator was fitted on: test, training or both",
    "method": "who predicts: an entry of the profile's `simulators:`, or a series that no method predicts (recorded, ceiling)",
    "variant": "what differs from the method's entry in the profile, e.g. markov_order=2; empty if nothing does",
    "run": "one recorded run, by name",
    "runs": "over how many runs a value is taken",
    "fitted_on": "how many training runs the method was fitted on",
    "left_out": "how many training examples a curriculum leaves out",
    "step": "updates made so far; 0 is before training",
    "example": "position of a test example",
    "statistic": "what `value` is, e.g. all_steps_mse or r2_dev",
    "value": "the number, in the unit of its statistic",
    "std": "population standard deviation over runs x test examples",
    "std_over_runs": "population standard deviation over runs",
    "low": "lower end of the interval around `value`",
    "high": "upper end of it",
    "undefined": "how many runs have no value",
}
