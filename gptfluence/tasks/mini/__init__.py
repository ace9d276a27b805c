"""Generated tasks: among others the paper's six in small, for machines with no hub and no GPU.

Each task is about invented words, and each word has a meaning (`words.World`): adjectives are good or bad (sst2), verbs
are kinds of deeds (rte), beings are of kinds that do things (boolq), relations have phrases (webnlg), German nouns have
English ones (wmt16_de_en), words for events and outcomes have headlines (cnn_dm). A GPT is pre-trained on texts about
other words, which teach it the format and what a meaning implies. The meanings of the words of pool and tests are in the
pool's examples alone. So each training example moves the loss of those tests that share a word with it.

Every prompt belongs to one of three regions, by its hash: a pool's, a test set's or the corpus's. So no test example of
any seed is in a pool of any seed, none is in the pre-training corpus, and changing one size changes nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import replace

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.tasks import instructions
from gptfluence.tasks.base import Example, Task, TaskPool
from gptfluence.tasks.mini.words import Dice, World
from gptfluence.tasks.records import RECORDS
from gptfluence.tasks.rows import examples_from_rows

# Tasks whose texts nano models are pre-trained on. They are part of what a nano model is, and so of the name of every
# recording with one: a new task does not belong here.
CORPUS_TASKS = ("rte", "sst2", "boolq", "webnlg", "wmt16_de_en", "cnn_dm")
CORPUS_SIZE = 3600  # texts of the corpus for each task
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
        region: TaskPool(f"{name}/{region}", tuple(_examples(name, region, size, World(seed, known=False))))
        for region, size in (("pool", pool_size), ("tests", test_size))
    }
    return Task(name, sets["pool"], sets["tests"])


def corpus(
    names: Iterable[str] = CORPUS_TASKS, *, seed: int = 0, examples_per_task: int = CORPUS_SIZE
) -> list[tuple[str, str]]:
    """Prompts and targets for pre-training small GPTs, all tasks mixed.

    A third of the texts speak of known words and their meanings. The others speak of the words of pools and tests, each twice,
    with the targets of two other texts, which have different labels: so the GPT has met these words, and learns that it
    cannot know their meanings. One text in four has an instruction before it.
    """
    dice, texts = Dice("corpus", seed), []

    def told(name: str, size: int, world: World) -> list[Example]:
        plain = _examples(name, "corpus", size, world)
        return [instructions.apply(example) if number % 4 == 0 else example for number, example in enumerate(plain)]

    for name in dict.fromkeys(names):
        known = told(name, examples_per_task // 3, World(seed, known=True))
        texts += [(example.prompt, example.target) for example in known]
        unknown = told(name, examples_per_task // 6 * 2, World(seed, known=False))
        for number, example in enumerate(unknown):  # labels come in pairs of both
            pair = (number // 2 + 1) % (len(unknown) // 2) * 2
            texts += [(example.prompt, other.target) for other in unknown[pair : pair + 2]]
    return dice.shuffled(texts)


def _examples(name: str, region: str, size: int, world: World) -> Iterator[Example]:
    if name not in RECORDS:
        raise ConfigurationError(unknown("task", name, [one.name for one in RECORDS.values() if one.generator]))
    layout, generate_row = replace(RECORDS[name].layout, id=None), RECORDS[name].row
    dice, seen = Dice("mini", name, region, world.seed, world.known), set[str]()
    wanted: list[int | None] = []
    for number in range(size):
        if not wanted:
            wanted = dice.shuffled((0, 1)) if layout.label else [None]
        label = wanted.pop()
        for _ in range(_PATIENCE):
            row = generate_row(dice, label, world)
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
