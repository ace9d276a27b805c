"""Simulators as models of the Hugging Face Hub: the files, a card, and the way there and back."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from huggingface_hub import ModelCard, ModelHubMixin

from gptfluence.common import hub
from gptfluence.common.errors import ArtifactError

if TYPE_CHECKING:
    from gptfluence.simulators.base import Fitted

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"  # the names that the Hugging Face Hub's model pages look for
CARD = """---
{{ card_data }}
---

# {{ kind }}, a simulator of training dynamics

A simulator of the Python package gptfluence. It was fitted on recorded trainings of a GPT, of {{ fitted.steps }} steps with
batches of {{ fitted.batch_size }}. For any order of the {{ fitted.pool_size }} training examples it predicts the
{{ fitted.metric }} of {{ fitted.tests_size }} test examples after each step.

    import gptfluence as gf

    simulator = gf.Simulator.from_pretrained("{{ name }}")
    predicted = simulator.simulate(curricula, observed)  # [curricula, steps + 1, tests]

An id in a curriculum is a position among the training examples, a column of `observed` and of `predicted` one of the test
examples. Neither the examples' texts nor the GPT are here, but what the simulator has learned from them is. Fingerprints in
`config.json` tell whether a pool is the one that the simulator was fitted on.

| | |
|---|---|
| pool | {{ fitted.pool_fingerprint }} |
| tests | {{ fitted.tests_fingerprint }} |
| chosen by | {{ report.selected_by }} |
{% for option, value in options.items() -%}
| {{ option }} | {{ value }} |
{% endfor -%}
"""


class Shared(
    ModelHubMixin,
    library_name="gptfluence",
    tags=["training-dynamics", "training-data-influence"],
    model_card_template=CARD,
):
    """What a simulator has of `ModelHubMixin`: `save_pretrained`, `push_to_hub` and `from_pretrained`.

    Tokens are those that huggingface_hub finds, or what is given to it; they are neither kept nor shown.
    """

    report: Any  # `FitReport`; None: not fitted

    @classmethod
    @abstractmethod
    def _read(cls, folder: Path) -> Self:
        """The simulator in `folder`."""

    @abstractmethod
    def _require_fitted(self) -> Fitted:
        """Raises ConfigurationError if nothing was fitted."""

    @abstractmethod
    def hyperparameters(self) -> dict[str, Any]:
        """For the card."""

    def save_pretrained(self, folder: str | Path, **by_push_to_hub: Any) -> Path:  # type: ignore[override]
        """Write `config.json` (hyperparameters, what was fitted), `model.safetensors` and a card into `folder`; return it.

        A card of an earlier simulator is written anew. Raises ArtifactError if `folder` cannot be written.
        """
        self._require_fitted()
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            card = folder / "README.md"
            if card.is_file() and "library_name: gptfluence" in card.read_text(encoding="utf-8", errors="replace"):
                card.unlink()
        except OSError as error:
            raise ArtifactError(f"simulator: cannot write to {folder}: {error}") from error
        super().save_pretrained(folder, **by_push_to_hub)
        return folder

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Share the simulator as the model `repo_id` ("user/name") of the Hugging Face Hub; returns the address of the commit.

        `Simulator.from_pretrained(repo_id)` loads it. Texts of examples are not in it; features or gradients of them are.

        options: of `ModelHubMixin.push_to_hub`, e.g. private=True. Raises HubUnreachableError where there is no network; errors
        of huggingface_hub (no right to write, say) as they are.
        """
        self._require_fitted()
        hub.require_reachable(repo_id, "the simulator cannot be shared")
        named = {"name": repo_id, **(options.pop("model_card_kwargs", None) or {})}
        return str(super().push_to_hub(repo_id, model_card_kwargs=named, **options))

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:  # type: ignore[override]
        """Load what `save_pretrained` wrote into a folder, or what `push_to_hub` shared as "user/name".

        `Simulator.from_pretrained` loads any class, a subclass only its own. options: of `snapshot_download`, for what is on the
        Hub: revision, token, cache_dir, force_download, local_files_only.

        Raises ArtifactError, naming the file, if it is missing, damaged or holds another simulator; HubUnreachableError if there
        is no such folder and no network.
        """
        if hub.is_name(folder):
            folder = hub.downloaded(str(folder), "model", [CONFIG_NAME, WEIGHTS_NAME], **options)
        return cls._read(Path(folder))

    def generate_model_card(self, *, name: str = "user/name", **options: Any) -> ModelCard:  # type: ignore[override]
        """name: that it has on the Hub"""
        facts = {"kind": type(self).__name__, "fitted": self._require_fitted(), "report": self.report}
        return super().generate_model_card(name=name, options=self.hyperparameters(), **facts, **options)
