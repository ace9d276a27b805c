"""Generated tasks: among others the paper's six in small, for machines with no hub and no GPU.

What a pool teaches is what its tests need: the tone of invented words (sst2), what verbs imply (rte), what invented
beings can do (boolq), the phrases of relations (webnlg), words and endings (wmt16_de_en), headlines (cnn_dm). So each
training example moves the loss of some test examples more than that of others, and some tests stay hard.

Every prompt belongs to one of three regions, by its hash: a pool's, a test set's or the corpus's. So no test example of
any seed is in a pool of any seed, none is in the pre-training corpus, and changing one size changes nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.tasks.base import Example, Task, TaskPool
from gptfluence.tasks.mini.words import Dice
from gptfluence.tasks.records import RECORDS
from gptfluence.tasks.rows import examples_from_rows

# Tasks whose texts nano models are pre-trained on. They are part of what a nano model is, and so of the name of every
# recording with one: a new task does not belong here.
CORPUS_TASKS = ("rte", "sst2", "boolq", "webnlg", "wmt16_de_en", "cnn_dm")
_REGIONS = ("pool", "pool", "tests", "tests", "corpus")  # two fifths, two fifths and one fifth of all prompts
_PATIENCE = 2000  # candidates in a row that were all taken or of another region: the texts are used up


def generate(name: str, *, pool_size: int = 200, test_size: int = 200, seed: int = 0) -> Task:
    """The generated task `name`, e.g. "sst2": the same text for the same arguments, anywhere.

    Labels are balanced (to one, for odd sizes) in pool and tests. A smaller pool is the beginning of a larger one, and
    so are tests. All prompts differ. Raises ConfigurationError for an unknown task, a size below 1, or more examples
    than the generator has texts for (some thousands).
    """
    for size_name, size in (("pool_size", pool_size), ("test_size", test_size)):
        if size < 1:
            raise ConfigurationError(f"task {name!r}: {size_name}: {size} is not a size; at least 1 is needed")
    sets = {
        region: TaskPool(f"{name}/{region}", tuple(_examples(name, region, size, seed)))
        for region, size in (("pool", pool_size), ("tests", test_size))
    }
    return Task(name, sets["pool"], sets["tests"])


def corpus(names: Iterable[str] = CORPUS_TASKS, *, seed: int = 0, examples_per_task: int = 1000) -> list[str]:
    """Texts for training a tokenizer and pre-training small GPTs, all tasks mixed.

    Each joins the prompt of one example and the target of another one of its task: words, grammar and layout are there
    to learn, but which target belongs to which prompt is not. That is left to the pools.
    """
    dice, texts = Dice("corpus", seed), []
    for name in dict.fromkeys(names):
        examples = list(_examples(name, "corpus", examples_per_task, seed))
        targets = dice.shuffled([example.target for example in examples])
        texts += [example.prompt + target for example, target in zip(examples, targets, strict=True)]
    return dice.shuffled(texts)


def _examples(name: str, region: str, size: int, seed: int) -> Iterator[Example]:
    if name not in RECORDS:
        raise ConfigurationError(unknown("task", name, [one.name for one in RECORDS.values() if one.generator]))
    layout, generate_row = replace(RECORDS[name].layout, id=None), RECORDS[name].row
    dice, seen = Dice("mini", name, region, seed), set[str]()
    wanted: list[int | None] = []
    for number in range(size):
        if not wanted:
            wanted = dice.shuffled((0, 1)) if layout.label else [None]
        label = wanted.pop()
        for _ in range(_PATIENCE):
            row = generate_row(dice, label)
            example = examples_from_rows([row], layout, lambda _: f"generated task {name!r}", task=name)[0]
            if example.prompt not in seen and _region(example.prompt) == region:
                break
        else:
            raise ConfigurationError(
                f"task {name!r}: there are not {size} different generated texts for the {region}, only about {number}; "
                "ask for fewer"
            )
        seen.add(example.prompt)
        yield replace(example, id=f"{name}-{region}-{number:04d}")


def _region(prompt: str) -> str:
    return _REGIONS[int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4]) % len(_REGIONS)]
