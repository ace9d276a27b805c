"""Base classes: a method predicts recorded runs. A simulator is also fitted on runs and predicts any curriculum.

A simulator starts from the observed first rows of a trajectory and from then on sees its own predictions only.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gptfluence.common.errors import ArtifactError, ConfigurationError, OutOfReachError, unknown
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics, stack_curricula
from gptfluence.recording.settings import AdamW
from gptfluence.simulators.checks import checked_batches, checked_observed, checked_runs
from gptfluence.simulators.sharing import CONFIG_NAME, WEIGHTS_NAME, Shared
from gptfluence.tasks.base import TaskPool, fingerprint

if TYPE_CHECKING:
    from gptfluence.models.gpt import GPT

DIVERGENCE_FACTOR = 100.0
TOLD_THE_ANSWER = (
    "oracle",
    "update",
)  # such a word is in the name of a method that is told the answer, and of no other


def diverged(predicted: np.ndarray, scale: float) -> np.ndarray:
    """bool [curricula, tests]: trajectories that are not finite or leave +-100 x `scale` at some step.

    predicted: float [curricula, steps + 1, tests]
    scale: the largest absolute value among the training trajectories, in the metric's unit
    """
    with np.errstate(invalid="ignore"):
        return ~(np.abs(predicted) <= DIVERGENCE_FACTOR * scale).all(axis=1)


def carried(errors: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """The share of the error at each step that remains at later steps: float64 [steps], each 0 to 1.

    errors: float [runs, steps + 1, tests], recorded less predicted, of training runs; measured: int [rows], the steps that
    count; others share what holds for the last one before them. By least squares at each step against the mean of the later
    ones; 0 where there is no error to learn from.
    """
    last = measured[np.searchsorted(measured, np.arange(errors.shape[1]), side="right") - 1]
    errors = errors[:, last].astype(np.float64)
    later = errors[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:] / np.arange(errors.shape[1] - 1, 0, -1)[:, None]
    now = errors[:, :-1]
    size = np.square(now).sum(axis=(0, 2))
    return np.clip((now * later).sum(axis=(0, 2)) / np.maximum(size, 1e-30), 0, 1)


def _no_losses() -> np.ndarray:
    return np.empty(0)


@dataclass
class FitReport:
    """How a fit went. Errors are in the metric's unit squared, whether or not the simulator standardizes."""

    epochs: int = 0
    best_epoch: int = 0  # counted from 1; the epoch whose weights are kept; 0: those it started from
    training_loss: np.ndarray = field(default_factory=_no_losses, repr=False)  # float64 [epochs]; one-step MSE
    validation_mse: np.ndarray = field(default_factory=_no_losses, repr=False)  # float64 [epochs]; all-steps MSE
    seconds: float = 0.0
    selected_by: str = "nothing to select"  # the rule that chose the weights, in words
    diverged: bool = False  # validation rollouts of the weights that were kept diverged, or the training loss did
    diverged_trajectories: int = 0  # how many of these rollouts
    diverged_epochs: int = 0  # epochs in which at least one validation rollout diverged
    # "patience": by itself, when validation rollouts no longer got better; "max_epochs": at the last epoch, where the
    # schedule's rate is 0 (a longer schedule might have helped);
    # "divergence": the training loss was lost; "": nothing was fitted in epochs
    ended: str = ""


@dataclass(frozen=True)
class Fitted:
    """What a simulator was fitted on, as far as later calls must agree with it."""

    metric: str
    pool_fingerprint: str
    pool_size: int
    tests_fingerprint: str
    tests_size: int
    steps: int
    batch_size: int
    scale: float  # the largest absolute training value; what `diverged` is told


class Predictor(ABC):
    """Base of all methods. A method is a dataclass whose fields, with their defaults, are its options.

    To add one, write a class and a row of `simulators.methods.METHODS`.
    """

    name: ClassVar[str] = ""
    format: ClassVar[int] = 2  # of what is stored; another number where the same name stores something else
    needs: ClassVar[frozenset[str]] = frozenset()  # what `bind` gives it: "encoder" of texts, "tangents" of the GPT
    replays: ClassVar[bool] = False  # whether it predicts from the checkpoints of the very run that it explains
    metrics: ClassVar[tuple[str, ...] | None] = None  # what it predicts; None: any metric
    refuses_unseen: ClassVar[str] = (
        ""  # why it does not predict examples that it was not fitted on; empty: it predicts unseen examples, too
    )
    trivial: ClassVar[bool] = False  # a baseline that knows nothing of what texts say: a fit takes no time to speak of
    moved: ClassVar[dict[str, str]] = {}  # options of earlier versions, and what to write now

    def check_gpt(self, gpt: GPT) -> None:  # noqa: B027
        """Raises ModelError if the method cannot replay runs of this GPT. Asked before they are recorded."""

    @property
    def told_the_answer(self) -> bool:
        """Whether it is given what it is to predict, and so competes with no other method."""
        return False

    def problem_with_name(self, name: str) -> str:
        """Why a profile must not call this method `name`; empty if it may."""
        word = next((word for word in TOLD_THE_ANSWER if word in name), "")
        if not word or self.told_the_answer:
            return ""
        return f"a name with {word!r} in it is of methods that are told the answer; call it otherwise, with kind: {self.name}"

    def bind(
        self,
        dynamics: GPTDynamics,
        *,
        load_encoder: Callable[[str], Any] | None = None,
        together: Sequence[Predictor] = (),
    ) -> Self:
        """Give the method what it needs for these runs (see `needs`); returns itself.

        dynamics: all runs there are, whichever it is fitted on or predicts
        load_encoder: makes an encoder from its name in the profile; `models.encoders.load` if not given
        together: methods that the same runs are replayed for, so that one replay serves all
        """
        return self

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What its predictions depend on besides recorded runs, as JSON values."""

    @abstractmethod
    def predict(self, dynamics: GPTDynamics, observed: int = 1, *, metric: str = "loss") -> np.ndarray:
        """Predict the runs of `dynamics` from the first `observed` values of each: float32 [runs, steps + 1, tests].

        Raises ConfigurationError for a metric, a length or examples that it cannot predict.
        """


class Simulator(Predictor, Shared):
    """Base of all simulators: methods that are fitted on recorded runs and then predict any curriculum.

    After `fit`: `fitted` (what on) and `report` (how it went).
    """

    _classes: ClassVar[dict[str, type[Simulator]]] = {}

    fitted: Fitted | None = None
    report: FitReport | None = None

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("name"):
            Simulator._classes[cls.name] = cls

    # --- for subclasses -------------------------------------------------------------------------------------------

    @abstractmethod
    def _fit(self, train: GPTDynamics, validation: GPTDynamics | None, metric: str) -> FitReport:
        """Learn; `train` has been checked and `self.fitted` is set."""

    @abstractmethod
    def _prepare(self, pool: TaskPool | None, tests: TaskPool | None) -> Any:
        """What `_rollout` needs and curricula do not change; None stands for the fitted pool or tests."""

    @abstractmethod
    def _rollout(self, prepared: Any, batches: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """Predict float32 [curricula, steps + 1, tests].

        batches: int [curricula, steps, batch]; observed: float32 [curricula, k, tests]; both have been checked
        """

    @abstractmethod
    def _arrays(self) -> dict[str, np.ndarray]:
        """Everything learned, by name."""

    @abstractmethod
    def _restore(self, arrays: dict[str, np.ndarray]) -> None:
        """The opposite of `_arrays`. Raises KeyError or ValueError if `arrays` do not fit."""

    # --- for users ------------------------------------------------------------------------------------------------

    def fit(self, train: GPTDynamics, validation: GPTDynamics | None = None, *, metric: str = "loss") -> Self:
        """Learn from the runs of `train`; the all-steps MSE of rollouts over the runs of `validation` selects.

        Raises ConfigurationError if there are no runs, the metric was not recorded, runs differ in shape or the two
        sets differ in pool or tests; DataError if a recorded value is not finite.
        """
        if validation is not None and not len(validation):
            validation = None
        values, batches = checked_runs(train, metric, "train")
        if validation is not None:
            checked_runs(validation, metric, "validation")
            for part in ("pool", "tests"):
                if getattr(train, part).fingerprint != getattr(validation, part).fingerprint:
                    raise ConfigurationError(
                        f"fit: validation runs have other {part} than the training runs; pass runs of one study"
                    )
        self.fitted = Fitted(
            metric=metric,
            pool_fingerprint=train.pool.fingerprint,
            pool_size=len(train.pool),
            tests_fingerprint=train.tests.fingerprint,
            tests_size=len(train.tests),
            steps=batches.shape[1],
            batch_size=batches.shape[2],
            scale=float(np.abs(values).max()),
        )
        self.report = self._fit(train, validation, metric)
        return self

    def simulate(
        self,
        curricula: Sequence[Curriculum] | np.ndarray,
        observed: np.ndarray,
        *,
        pool: TaskPool | None = None,
        tests: TaskPool | None = None,
    ) -> np.ndarray:
        """Predict trajectories: float32 [curricula, steps + 1, tests], in the unit of the fitted metric.

        curricula: of equal shape, or int [curricula, steps, batch]; ids are positions in the pool
        observed: float [curricula, k, tests], k >= 1, from step 0 on; or [1, k, tests] for all. Kept as given in front;
            every later row follows from the curriculum and the rows before it (paper, section 3.3)
        pool, tests: the examples that ids and columns stand for, if not the fitted ones

        Raises ConfigurationError if shapes disagree, an id is outside the pool, or the simulator cannot predict for
        examples that it was not fitted on.
        """
        prepared, sizes = self._ready(pool, tests)
        batches = checked_batches(stack_curricula(curricula), sizes[0])
        observed = checked_observed(observed, len(batches), batches.shape[1], sizes[1])
        return self._rollout(prepared, batches, observed)

    def predict(self, dynamics: GPTDynamics, observed: int = 1, *, metric: str = "loss") -> np.ndarray:
        """`simulate` the runs of `dynamics`, trained with their optimizer, from the first `observed` values of each.

        Returns float32 [runs, steps + 1, tests]. Raises ConfigurationError for another metric than the fitted one.
        """
        fitted = self._require_fitted()
        if metric != fitted.metric:
            raise ConfigurationError(
                f"{self.name}: it was fitted on the {fitted.metric}, not {metric!r}; fit another one"
            )
        start = dynamics.trajectories(metric)[:, :observed]
        simulator = self.trained_with(dynamics.spec.recording.optimizer) if dynamics.spec else self
        return simulator.simulate(dynamics.curricula, start, pool=dynamics.pool, tests=dynamics.tests)

    def trained_with(self, optimizer: AdamW) -> Self:
        """A simulator of runs that are trained with `optimizer`; itself, if it knows nothing of how runs are trained."""
        return self

    def simulate_stream(
        self,
        curricula: np.ndarray | Sequence[Curriculum] | Iterable[np.ndarray],
        observed: np.ndarray,
        *,
        pool: TaskPool | None = None,
        tests: TaskPool | None = None,
        chunk: int = 512,
    ) -> Iterator[np.ndarray]:
        """`simulate` in pieces, for more curricula than fit in memory: yields float32 [<= chunk, steps + 1, tests].

        curricula: int [curricula, steps, batch], a sequence of Curriculum, or an iterable of such arrays (a generator
            that draws them, say), which are split further if longer than `chunk`
        observed: float [tests] or [1, tests] for every curriculum, [curricula, tests], or [curricula, k, tests]

        Arguments are checked at the call, each piece of an iterable when its turn comes.
        """
        if chunk < 1:
            raise ConfigurationError(f"simulate_stream: chunk must be 1 or more, not {chunk}")
        prepared, (pool_size, tests_size) = self._ready(pool, tests)
        observed = np.asarray(observed, np.float32)
        if observed.ndim == 1:
            observed = observed[None]
        if observed.ndim == 2:
            observed = observed[:, None]
        if isinstance(curricula, np.ndarray) or (
            isinstance(curricula, Sequence) and curricula and isinstance(curricula[0], Curriculum)
        ):
            stacked = checked_batches(stack_curricula(curricula), pool_size)
            checked_observed(observed, len(stacked), stacked.shape[1], tests_size)
            curricula = [stacked]

        def pieces() -> Iterator[np.ndarray]:
            done = 0
            for stretch in curricula:
                stretch = checked_batches(stretch, pool_size)
                for start in range(0, len(stretch), chunk):
                    batches = stretch[start : start + chunk]
                    rows = observed if len(observed) == 1 else observed[done : done + len(batches)]
                    yield self._rollout(
                        prepared, batches, checked_observed(rows, len(batches), batches.shape[1], tests_size)
                    )
                    done += len(batches)

        return pieces()

    def _save_pretrained(self, folder: Path) -> None:
        fitted, report = self._require_fitted(), asdict(self.report)
        curves = {key: report.pop(key) for key in ("training_loss", "validation_mse")}
        config = {
            "simulator": self.name,
            "format": self.format,
            "hyperparameters": self.hyperparameters(),
            "fitted": asdict(fitted),
            "report": report,
        }
        arrays = self._arrays() | {f"report.{key}": np.asarray(curve) for key, curve in curves.items()}
        try:
            save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, folder / WEIGHTS_NAME)
            (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ArtifactError(f"simulator: cannot write to {folder}: {error}") from error

    @classmethod
    def _read(cls, folder: Path) -> Self:
        path, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            name, version = config["simulator"], config["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"simulator: {path} cannot be read as a simulator's description: {error!r}") from error
        if name not in Simulator._classes:
            raise ArtifactError(unknown("simulator", name, Simulator._classes, where=f"{path}: "))
        found = Simulator._classes[name]
        if version != found.format:
            raise ArtifactError(f"{path}: format {version!r}, but this version reads {found.format}; fit again")
        if not issubclass(found, cls):
            raise ArtifactError(f"{path}: holds a {name!r}, not a {cls.name!r}; use Simulator.from_pretrained")
        try:
            simulator = found(**config["hyperparameters"])
            simulator.fitted = Fitted(**config["fitted"])
            report = FitReport(**config["report"])
        except (KeyError, TypeError, ConfigurationError) as error:
            raise ArtifactError(f"{path}: not a description of {name!r} that this version knows: {error}") from error
        try:
            arrays = load_file(weights)
            for key in ("training_loss", "validation_mse"):
                setattr(report, key, arrays.pop(f"report.{key}"))
            simulator._restore(arrays)
        except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
            message = f"{weights}: damaged, or not the weights of this {name!r}: {error!r}; fit again"
            raise ArtifactError(message) from error
        simulator.report = report
        return simulator

    # --- shared -----------------------------------------------------------------------------------------------------

    def hyperparameters(self) -> dict[str, Any]:
        """What this simulator was made with, defaults included, as JSON values."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.init}  # type: ignore[arg-type]

    def identity(self) -> dict[str, Any]:
        """What a fit depends on besides runs: kind, hyperparameters, the encoder's content, the tangents' coordinates."""
        hyperparameters = {**self.hyperparameters(), "encoder": self._encoder_fingerprint()}
        return {
            "simulator": [self.name, hyperparameters],
            "coordinates": self._coordinates_digest(),
            "format": self.format,
        }

    def _encoder_fingerprint(self) -> str | None:
        return None

    def _coordinates_digest(self) -> str | None:
        return None

    def _require_fitted(self) -> Fitted:
        if self.fitted is None or self.report is None:
            raise ConfigurationError(f"{self.name}: not fitted yet; call fit(train, validation) or load a fitted one")
        return self.fitted

    def _ready(self, pool: TaskPool | None, tests: TaskPool | None) -> tuple[Any, tuple[int, int]]:
        """`_prepare`, and the sizes [pool, tests]."""
        fitted = self._require_fitted()
        sizes = (fitted.pool_size if pool is None else len(pool), fitted.tests_size if tests is None else len(tests))
        return self._prepare(*self._recognised(pool, tests)), sizes

    def _recognised(self, pool: TaskPool | None, tests: TaskPool | None) -> tuple[TaskPool | None, TaskPool | None]:
        """None for the fitted pool and the fitted tests, told by their content. Raises OutOfReachError for others, if it must."""
        fitted = self._require_fitted()
        if pool is not None and pool.fingerprint == fitted.pool_fingerprint:
            pool = None
        if tests is not None and tests.fingerprint == fitted.tests_fingerprint:
            tests = None
        for unseen, what in ((pool, "training"), (tests, "test")):
            if unseen is not None and self.refuses_unseen:
                raise OutOfReachError(
                    f"{self.name}: {unseen.name} holds {what} examples that it was not fitted on; {self.refuses_unseen}"
                )
        return pool, tests


def fit_key(simulator: Simulator, dynamics: GPTDynamics, metric: str) -> str:
    """Twelve hexadecimal digits that name a fit on the training and validation runs of `dynamics`.

    simulator: bound to these runs. Equal keys mean equal fits.
    """
    train, validation, _ = dynamics.split()
    sums = dynamics.provenance["runs"]
    return fingerprint(
        {
            **simulator.identity(),
            "metric": metric,
            "dynamics": dynamics.provenance["folder"],
            "tests": dynamics.tests.fingerprint,
            "runs": [[sums[run] for run in part.names] for part in (train, validation)],
        }
    )
