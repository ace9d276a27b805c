"""The tasks that are known by name: one record each, from which everything that is said about a task is read.

A new task is a new record here. If its text is to be generated, the record names a module with a function
`row(dice, label, world)`, which returns a row: a dictionary with the fields that the layout's templates use. Text of
your own needs no record: a profile may name a JSON Lines file or a data set (`source: local`, `source: hub`) with its
templates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from gptfluence.common.errors import ConfigurationError
from gptfluence.tasks.rows import RowMapping

CONVERTED = "refs/convert/parquet"  # the branch of Parquet files that the Hub makes of a data set


@dataclass(frozen=True)
class HubSource:
    """Where a data set lives: a name on the Hugging Face Hub, or a folder of Parquet, JSON or CSV files."""

    path: str
    config: str | None = None
    revision: str | None = None
    pool_split: str = "train"
    test_split: str = "validation"


@dataclass(frozen=True)
class TaskRecord:
    """What is known of a task; everything but name and layout may be left out."""

    name: str
    layout: RowMapping  # how a row of the data set, or a generated one, becomes an example
    printed: str = ""  # in figures and tables; "": the name
    hub: HubSource | None = None
    generator: str | None = None  # module below `gptfluence.tasks` with `row(dice, label, world)`, e.g. "mini.sst2"
    packaged: str | None = None  # module and function of `tasks/packaged` that read it from a package on PyPI
    wordings: tuple[str, ...] = ()  # instructions that end in "{prompt}"; (): those for any task (instructions.GENERAL)

    @property
    def row(self) -> Callable[..., dict[str, Any]]:
        """Makes a row from dice, a label (0 or 1; None without labels) and a `mini.words.World`.

        Raises ConfigurationError if the task has no generator.
        """
        if self.generator is None:
            raise ConfigurationError(f"task {self.name!r}: no text is generated for it; use another `source`")
        return import_module(f"gptfluence.tasks.{self.generator}").row


_GLUE = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"

# The paper's six, in its order. Revisions are commits, but for WebNLG: its main branch holds a loading script, which
# `datasets` no longer runs. GLUE and BoolQ publish no labels of their test data; validation data serve instead.
_ALL = (
    TaskRecord(
        name="rte",
        printed="RTE",
        layout=RowMapping(
            prompt="{premise}\nClaim: {hypothesis}\nTrue or false?",
            target=" {label}",
            id="idx",
            label="label",
            labels={0: "true", 1: "false"},  # GLUE: 0 entailment, 1 not entailment
        ),
        hub=HubSource(path="nyu-mll/glue", config="rte", revision=_GLUE),
        generator="mini.rte",
        wordings=(
            "Read the text and say whether the claim follows from it.\n{prompt}",
            "Is the claim true if the text is?\n{prompt}",
            "Judge the claim by the text alone.\n{prompt}",
            "Answer only from what is said here.\n{prompt}",
        ),
    ),
    TaskRecord(
        name="sst2",
        printed="SST-2",
        layout=RowMapping(
            prompt="Review: {sentence}\nSentiment:",
            target=" {label}",
            id="idx",
            label="label",
            labels={0: "negative", 1: "positive"},
        ),
        hub=HubSource(path="nyu-mll/glue", config="sst2", revision=_GLUE),
        generator="mini.sst2",
        wordings=(
            "Is this review of a film positive or negative?\n{prompt}",
            "Tell how the writer felt about the film.\n{prompt}",
            "Decide on the tone of the review.\n{prompt}",
            "Did the reviewer like it? Say positive or negative.\n{prompt}",
        ),
    ),
    TaskRecord(
        name="boolq",
        printed="BoolQ",
        layout=RowMapping(
            prompt="{passage}\nQuestion: {question}?\nAnswer:",
            target=" {answer}",
            id=None,
            label="answer",
            labels={0: "no", 1: "yes"},
        ),
        hub=HubSource(path="google/boolq", revision="35b264d03638db9f4ce671b711558bf7ff0f80d5"),
        generator="mini.boolq",
        wordings=(
            "Answer the question with yes or no.\n{prompt}",
            "Read the passage, then reply yes or no.\n{prompt}",
            "Here is a passage and something to find out, yes or no.\n{prompt}",
            "Use the text to settle the question.\n{prompt}",
        ),
    ),
    TaskRecord(
        name="webnlg",
        printed="WebNLG",
        layout=RowMapping(prompt="Facts: {input}\nText:", target=" {target}", id="gem_id", references="references"),
        hub=HubSource(path="GEM/web_nlg", config="en", revision=CONVERTED),
        generator="mini.webnlg",
        wordings=(
            "Put these facts into words.\n{prompt}",
            "Write a sentence that says all of this.\n{prompt}",
            "Turn the list of facts into plain text.\n{prompt}",
            "Tell a reader what the data says.\n{prompt}",
        ),
    ),
    TaskRecord(
        name="wmt16_de_en",
        printed="WMT16 DE/EN",
        layout=RowMapping(prompt="German: {translation[de]}\nEnglish:", target=" {translation[en]}", id=None),
        hub=HubSource(
            path="wmt/wmt16", config="de-en", revision="41d8a4013aa1489f28fea60ec0932af246086482", test_split="test"
        ),
        generator="mini.wmt16_de_en",
        wordings=(
            "Translate from German to English.\n{prompt}",
            "How does one say this in English?\n{prompt}",
            "Give the English for the German sentence.\n{prompt}",
            "Write this again in English.\n{prompt}",
        ),
    ),
    TaskRecord(
        name="cnn_dm",
        printed="CNN/DailyMail",
        layout=RowMapping(prompt="Article: {article}\nSummary:", target=" {highlights}", id="id"),
        hub=HubSource(path="abisee/cnn_dailymail", config="3.0.0", revision="96df5e686bee6baa90b8bee7c28b81fa3fa6223d"),
        generator="mini.cnn_dm",
        wordings=(
            "Sum up the article.\n{prompt}",
            "What are the main points of this news?\n{prompt}",
            "Write the highlights of the story.\n{prompt}",
            "Tell it in brief.\n{prompt}",
        ),
    ),
    # real text from packages on PyPI, for machines that reach no hub
    TaskRecord(
        name="movies",
        printed="Film reviews",
        layout=RowMapping(
            prompt="Review: {sentence}\nSentiment:",
            target=" {label}",
            label="label",
            labels={0: "negative", 1: "positive"},
        ),
        packaged="ratings:movies",
        wordings=(
            "Is this sentence of a film review positive or negative?\n{prompt}",
            "Tell how the writer felt about the film.\n{prompt}",
            "Decide on the tone of the review.\n{prompt}",
            "Did the reviewer like it? Say positive or negative.\n{prompt}",
        ),
    ),
    TaskRecord(
        name="products",
        printed="Product reviews",
        layout=RowMapping(
            prompt="Customer: {sentence}\nSatisfied:",
            target=" {label}",
            label="label",
            labels={0: "no", 1: "yes"},
        ),
        packaged="ratings:products",
        wordings=(
            "Is this customer satisfied, yes or no?\n{prompt}",
            "Read what was bought and say whether it pleased.\n{prompt}",
            "Does the buyer like the product? Answer yes or no.\n{prompt}",
            "Judge the mood of the customer.\n{prompt}",
        ),
    ),
    TaskRecord(
        name="operations",
        printed="API descriptions",
        layout=RowMapping(
            prompt="Service: {service}\nOperation: {operation}\nInputs: {inputs}\nDescription:", target=" {sentence}"
        ),
        packaged="operations:operations",
        wordings=(
            "Say in one sentence what the operation does.\n{prompt}",
            "Write the description for the manual.\n{prompt}",
            "Turn these facts about an operation into a sentence.\n{prompt}",
            "Tell a programmer what this is for.\n{prompt}",
        ),
    ),
    TaskRecord(
        name="messages",
        printed="Messages DE/EN",
        layout=RowMapping(prompt="German: {de}\nEnglish:", target=" {en}"),
        packaged="messages:messages",
        wordings=(
            "Translate from German to English.\n{prompt}",
            "How does one say this in English?\n{prompt}",
            "Give the English for the German message.\n{prompt}",
            "Write this again in English.\n{prompt}",
        ),
    ),
)

RECORDS: dict[str, TaskRecord] = {record.name: record for record in _ALL}
TASKS = tuple(record.name for record in _ALL if record.generator)  # those that are generated, too
