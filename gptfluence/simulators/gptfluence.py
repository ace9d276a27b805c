"""GPTfluence: a featurized, n-th order Markov simulator of training dynamics (paper, sections 3.2 and 3.3).

    yhat_t = sum_{j=1..n} alpha_j(c_t) y_{t-j} + beta(c_t),   alpha_j = sum_{i in c_t} A_ij,   beta = sum_{i in c_t} B_i

A and B come from frozen text features of the training and the test example, so that it also predicts for examples it
was not fitted on.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gptfluence.common.errors import ConfigurationError, unknown
from gptfluence.recording.dynamics import GPTDynamics
from gptfluence.simulators.encoded import EncodesTexts, TextEncoder
from gptfluence.simulators.fitting import TableModel, TableSimulator
from gptfluence.simulators.heads import HEADS
from gptfluence.tasks.base import TaskPool


class FeatureModel(TableModel):
    """Heads on the stored features of the fitted pool, float32 [pool, dimension], and tests, [tests, dimension]."""

    def __init__(self, kind: str, order: int, pool: Tensor, tests: Tensor) -> None:
        super().__init__()
        self.heads: nn.Module = HEADS[kind](pool.shape[1], order)
        self.register_buffer("pool", pool)
        self.register_buffer("tests", tests)

    def tables(self, pool: Tensor | None = None, tests: Tensor | None = None) -> Tensor:
        return self.heads(
            self.pool if pool is None else self.pool[pool], self.tests if tests is None else self.tests[tests]
        )


@dataclass(kw_only=True, eq=False)
class GPTfluence(EncodesTexts, TableSimulator):
    """The paper's simulator.

    markov_order: number n of previous values. Rollouts that observe fewer rows take the earlier ones as zero. For a score
        that is not measured at every step, lags above 1 are of values that stand between measured ones: leave it at 1
    heads: "mlp" (published code), "linear" (the paper's equations) or "concat" (published code); see `heads.py`
    encoder: a name that `gptfluence.models.encoders.load` knows, or an object with `name` and `encode(pool)`

    The other hyperparameters are those of `TableSimulator`. The paper's: learning_rate 1e-4, batch_size 128,
    weight_decay 1e-5, warmup_steps 200 (tables 6 and 8); `benchmarks/README.md` compares them with the defaults here.
    Features are stored with the weights, so a loaded simulator needs its encoder for unseen examples only.
    """

    name = "gptfluence"

    markov_order: int = 1
    heads: str = "mlp"
    encoder: str | TextEncoder = "minilm-cls"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.markov_order < 1:
            raise ConfigurationError(f"gptfluence: markov_order must be 1 or more, not {self.markov_order}")
        if self.heads not in HEADS:
            raise ConfigurationError(unknown("heads", self.heads, HEADS, where="gptfluence: "))
        self._check_encoder()

    @property
    def order(self) -> int:  # type: ignore[override]
        return self.markov_order

    def _checked_features(self, features: np.ndarray, examples: TaskPool, dimension: int | None = None) -> Tensor:
        features = np.asarray(features, np.float32)
        rows, wanted = len(examples), "dimension" if dimension is None else dimension
        fits = features.ndim == 2 and len(features) == rows and dimension in (None, features.shape[-1])
        if not fits or not np.isfinite(features).all():
            raise ConfigurationError(
                f"gptfluence: encoder {self._loaded_encoder().name!r} gave features {list(features.shape)} for "
                f"{examples.name}; finite values of shape [examples, {wanted}] = [{rows}, {wanted}] are needed, from "
                "the encoder that the simulator was fitted with"
            )
        return torch.tensor(features)

    def _build(self, train: GPTDynamics) -> FeatureModel:
        assert self.fitted is not None
        encoder = self._loaded_encoder()
        # One-hot ids differ between pool and tests, so the index encoder must see both at once.
        if hasattr(encoder, "encode_pair"):
            of_pool, of_tests = encoder.encode_pair(train.pool, train.tests)
        else:
            of_pool, of_tests = encoder.encode(train.pool), encoder.encode(train.tests)
        pool = self._checked_features(of_pool, train.pool)
        tests = self._checked_features(of_tests, train.tests, pool.shape[1])
        return self._started(pool, tests)

    def _started(self, pool: Tensor, tests: Tensor) -> FeatureModel:
        """The model of these features with its initial weights."""
        assert self.fitted is not None
        model = FeatureModel(self.heads, self.markov_order, pool, tests)
        model.heads.start_near_identity(model.pool, model.tests, self.fitted.batch_size)
        return model

    def untrained(self) -> GPTfluence:
        """The same simulator with the weights that a fit begins with: what it says before it has learned anything.

        Raises ConfigurationError if it is not fitted: the features are those of the fit.
        """
        self._require_fitted()
        other = copy(self)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            other._model = self._started(self._model.pool.cpu(), self._model.tests.cpu()).to(self.device)
        return other

    def _raw_tables(self, pool: TaskPool | None, tests: TaskPool | None) -> Tensor:
        return self._model.heads(self._features(pool, "pool"), self._features(tests, "tests"))

    def _features(self, examples: TaskPool | None, side: str) -> Tensor:
        assert self.fitted is not None
        stored = {self.fitted.pool_fingerprint: self._model.pool, self.fitted.tests_fingerprint: self._model.tests}
        if examples is None:
            return self._model.pool if side == "pool" else self._model.tests
        if examples.fingerprint in stored:
            return stored[examples.fingerprint]
        features = self._loaded_encoder().encode(examples)
        return self._checked_features(features, examples, self._model.pool.shape[1]).to(self._model.pool.device)

    def hyperparameters(self) -> dict[str, Any]:
        return super().hyperparameters() | {"device": "cpu"}

    def _empty(self, state: dict[str, Tensor]) -> FeatureModel:
        assert self.fitted is not None
        if (len(state["pool"]), len(state["tests"])) != (self.fitted.pool_size, self.fitted.tests_size):
            raise ValueError("features are not those of the pool and tests that config.json describes")
        return FeatureModel(self.heads, self.markov_order, state["pool"], state["tests"])
