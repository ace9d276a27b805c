"""What simulators with a text encoder share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np

from gptfluence.common.errors import ConfigurationError
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.base import Predictor, Simulator
from gptfluence.tasks.base import TaskPool


@runtime_checkable
class TextEncoder(Protocol):
    """What these simulators ask of an encoder; `gptfluence.models.encoders` has some."""

    name: str

    def encode(self, pool: TaskPool) -> np.ndarray:
        """float32 [examples, dimension]"""


class EncodesTexts(Simulator):
    """A simulator with an option `encoder`: a name that `models.encoders.load` knows, or a `TextEncoder`.

    A name is loaded when the encoder is first needed, or by `bind`, then with a cache beside the runs.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"encoder"})
    encoder: str | TextEncoder

    def _check_encoder(self) -> None:
        if not isinstance(self.encoder, (str, TextEncoder)):
            raise ConfigurationError(
                f"{self.name}: encoder must be a name or have `name` and `encode`, not a {type(self.encoder).__name__}"
            )

    def bind(
        self,
        dynamics: GPTDynamics,
        *,
        load_encoder: Callable[[str], Any] | None = None,
        together: Sequence[Predictor] = (),
    ) -> Self:
        """Load the encoder, with a cache of features beside these runs; returns itself."""
        if isinstance(self.encoder, str):
            self.encoder = (load_encoder or _loader(dynamics))(self.encoder)
        return self

    def _loaded_encoder(self) -> TextEncoder:
        if isinstance(self.encoder, str):
            from gptfluence.models import encoders  # loads transformers: only when it is needed

            self.encoder = encoders.load(self.encoder)
        return self.encoder

    def hyperparameters(self) -> dict[str, Any]:
        return super().hyperparameters() | {"encoder": getattr(self.encoder, "name", self.encoder)}

    def _encoder_fingerprint(self) -> str:
        encoder = self._loaded_encoder()
        return getattr(encoder, "fingerprint", encoder.name)  # one of the user's own may have none


def _loader(dynamics: GPTDynamics) -> Callable[[str], TextEncoder]:
    from gptfluence.models import encoders

    cache = dynamics.source.artifacts / "features" if dynamics.source else None
    return partial(encoders.load, cache=cache)
