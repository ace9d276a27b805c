"""Tangents of a GPT: how the outputs that decide an example's loss move when parameters move, to first order.

An *output* is the logit of one candidate for one scored token, less the logsumexp of all tokens that are no candidate:

    f_a = z_a - log sum_{b not a candidate} exp z_b        loss = log(1 + sum_a exp f_a) - f_target        (exact)

so that outputs that move linearly give a convex loss with the right curvature. Candidates are the label words of a
classification example, else the target and the likeliest tokens of the base model. Gradients are kept at a sample of
the parameters' coordinates, drawn with probability p_c proportional to how strongly the pool's losses depend on them;
sums over coordinates weigh each by 1 / (n p_c), which makes them unbiased. (Neural tangent features: Jacot et al. 2018,
arXiv:1806.07572; the sample of coordinates keeps element-wise optimizers such as AdamW exact, which random projections,
e.g. TRAK, arXiv:2303.14186, do not.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from gptfluence.common import files
from gptfluence.common.errors import ArtifactError, ConfigurationError, DataError
from gptfluence.common.settings import canonical
from gptfluence.gradients.coordinates import Coordinates, Tangents, digest_of, sample
from gptfluence.gradients.outputs import OutputGradients
from gptfluence.models.gpt import GPT, ModelSource
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.fed import Fed, FedTokens
from gptfluence.recording.logits import ScoredLogits, example_losses
from gptfluence.recording.recorder import build_optimizer, decayed_names, update, update_loss
from gptfluence.recording.settings import Recording
from gptfluence.recording.tokens import Batch, TokenizedExample, bucketed, collate, label_words, tokenize
from gptfluence.tasks.base import Example, TaskPool, fingerprint

FORMAT = 3


class TangentFeatures:
    """Takes tangents of any examples by one GPT, at the same coordinates and checkpoints; what is taken is cached."""

    def __init__(
        self,
        gpt: GPT | ModelSource,
        pool: TaskPool,
        recording: Recording,
        *,
        coordinates: int = 8192,
        candidates: int = 12,
        mass: float = 0.99,
        reference: Curriculum | None = None,
        checkpoints: Sequence[int] = (),
        cache: Path | None = None,
        device: str = "cpu",
        seed: int = 0,
        tokens: FedTokens | None = None,
    ) -> None:
        """
        Args:
            gpt: the base model, as it is before training, or its source, which is loaded only when gradients are to be
                taken. It is given back as it came.
            pool: examples whose losses say which coordinates matter.
            recording: how runs are recorded: which tokens are trained on and measured, and the optimizer.
            coordinates: how many are sampled; as many as the model has, or more: all are kept.
            candidates, mass: of a token of free text, the likeliest `candidates` at most, and no more than it takes to
                reach this probability; the target is always one.
            reference, checkpoints: a curriculum to train on, of positions in `pool`, and the steps of it after which
                tangents are taken again; the steps before training need not be named.
            cache: folder for what was taken; a source is needed to tell GPTs apart there.
            device: where a GPT that is loaded from its source computes; numbers agree between devices to rounding.
            seed: of the sample.
            tokens: those of the pool and of all examples that are asked for, where a Trainer fed them (`Source.tokens`); None:
                what the GPT's tokenizer makes of the texts.

        Raises ConfigurationError that names the argument.
        """
        if coordinates < 1 or candidates < 1 or not 0 < mass <= 1:
            raise ConfigurationError(
                f"tangents: coordinates ({coordinates}) and candidates ({candidates}) must be 1 or more, mass ({mass}) "
                "above 0 and at most 1"
            )
        if cache is not None and isinstance(gpt, GPT):
            raise ConfigurationError("tangents: a cache needs a ModelSource, which tells this GPT from others")
        self._given, self.pool, self.recording, self.cache, self.seed = gpt, pool, recording, cache, seed
        self.tokens = tokens
        self.size, self.candidates, self.mass, self.device = coordinates, candidates, mass, device
        self.reference, self.checkpoints = reference, _checked_steps(reference, checkpoints)
        self._states: list[dict[str, torch.Tensor]] | None = None
        self._coordinates: Coordinates | None = None
        self._base, self._run, self.fingerprint = self._fingerprints()

    def _fingerprints(self) -> tuple[str, str, str]:
        """Of what is taken before training, however it goes on; of the reference run; of both."""
        trained = {
            "format": FORMAT,
            "model": self._given.name if isinstance(self._given, GPT) else self._given.identity(),
            "pool": self.pool.fingerprint,
            "tokens": [self.recording.train_tokens, self.recording.truncation],
        }
        if self.tokens is not None:
            trained["fed"] = digest_of(*(each.ids for each in self._tokens(self.pool, trained=True)))
        base = fingerprint([trained, self.size, self.candidates, self.mass, self.seed])
        run = [canonical(self.recording.optimizer), self.reference.fingerprint if self.reference else None]
        whole = fingerprint([base, self.recording.loss_tokens, *run, self.checkpoints])
        return base, fingerprint([trained, *run]), whole

    @cached_property
    def gpt(self) -> GPT:
        if isinstance(self._given, GPT):
            return self._given
        loaded = self._given.load()
        loaded.model.to(self.device)
        return loaded

    def _tokens(self, examples: TaskPool, *, trained: bool) -> Sequence[TokenizedExample | Fed]:
        """trained: of examples of the pool, else of tests; a Trainer may have fed the two differently."""
        if self.tokens is not None:
            return self.tokens.of(examples, trained=trained)
        return tokenize(examples, self.gpt, truncation=self.recording.truncation)

    @cached_property
    def _parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.gpt.model.named_parameters() if p.requires_grad}

    @cached_property
    def _slopes(self) -> OutputGradients:
        return OutputGradients(self.gpt.model, self._parameters, self.coordinates.index)

    # --- what is asked for ---

    @property
    def coordinates(self) -> Coordinates:
        """The sampled coordinates: drawn, or read from the cache, when first asked for."""
        if self._coordinates is None:
            sampled = self._cached(self._folder(0), "coordinates", self._draw)
            drawn = digest_of(sampled["index"])
            later = [
                self._cached(self._folder(k), f"coordinates-{drawn}", partial(self._moved, sampled, k))
                for k in self._later
            ]
            path = [np.zeros_like(sampled["initial"]), *(one["displacement"] for one in later)]
            steps = np.array([0, *self.checkpoints])
            self._coordinates = Coordinates(**sampled, steps=steps, displacement=np.stack(path))
        return self._coordinates

    def of(self, examples: TaskPool, *, trained: bool) -> Tangents:
        """Tangents of `examples`: of the tokens that are trained on, or of those that are measured.

        Raises DataError (text too long, no target), RecordingError, ArtifactError (damaged cache).
        """
        which = self.recording.train_tokens if trained else self.recording.loss_tokens
        base = self._at(examples, which, trained, 0)
        later = [self._at(examples, which, trained, checkpoint, base) for checkpoint in self._later]
        outputs, tokens = [len(one["token"]) for one in base], [int(one["token"][-1]) + 1 for one in base]
        ends, several = np.cumsum(outputs), {}
        for key in ("outputs", "gradients", "scale"):
            known = base[0][key]
            several[key] = np.empty((1 + len(later), ends[-1], *known.shape[1:]), known.dtype)
            for checkpoint, taken in enumerate((base, *later)):
                for end, one in zip(ends, taken, strict=True):
                    part = one.pop(key)  # there may be gigabytes: not twice
                    several[key][checkpoint, end - len(part) : end] = part
        before = np.repeat(np.cumsum([0, *tokens[:-1]]), outputs)
        return Tangents(
            **several,
            token=np.concatenate([one["token"] for one in base]) + before,
            **{key: np.concatenate([one[key] for one in base]) for key in ("target", "word")},
            example=np.repeat(np.arange(len(examples)), tokens),
        )

    def along_reference(self, examples: TaskPool) -> np.ndarray:
        """The losses of `examples` while the reference run is trained once more, float32 [steps + 1, examples], nats.

        Trained without dropout and in float32, once for each set that is asked about. Raises ConfigurationError if there is
        no reference, and what `of` raises.
        """
        reference = self.reference
        if reference is None:
            raise ConfigurationError(
                "tangents: there is no reference run to follow; give `reference` and `checkpoints`"
            )
        name = f"losses-{self.recording.loss_tokens}-{self.recording.token_budget}-{examples.fingerprint}"
        return self._cached(f"{self._run}-losses", name, partial(self._measured, examples, reference))["losses"]

    def _at(
        self,
        examples: TaskPool,
        which: str,
        trained: bool,
        checkpoint: int,
        base: Sequence[dict[str, np.ndarray]] | None = None,
    ) -> list[dict[str, np.ndarray]]:
        """Of each example what `_take` takes; the GPT is brought to the checkpoint when the first one is not cached.

        base: what was taken before training, which says what the outputs are
        """
        drawn = digest_of(self.coordinates.index)
        known_tokens = None if self.tokens is None else self.tokens.of(examples, trained=trained)
        with ExitStack() as stack:
            ready: list[tuple[ScoredLogits, list[Batch]]] = []

            def make(row: int) -> dict[str, np.ndarray]:
                if not ready:
                    batches = self._batches(examples, which, trained=trained)
                    ready.append((stack.enter_context(self._brought_to(checkpoint)), batches))
                scored, batches = ready[0]
                known = (base[row]["token"], base[row]["word"]) if base else None
                return self._take(scored, batches[row], examples[row], known)

            taken = []
            for row, example in enumerate(examples):
                outputs = digest_of(base[row]["token"], base[row]["word"]) if base else ""
                named = [example.to_dict(), drawn, outputs]
                if known_tokens is not None:  # the text need not tell them
                    named.append(digest_of(known_tokens[row].ids, known_tokens[row].scored(which)))
                key = fingerprint(named)
                taken.append(self._cached(self._folder(checkpoint), f"{which}-{key}", partial(make, row)))
            return taken

    @property
    def _later(self) -> range:
        return range(1, len(self.checkpoints) + 1)

    def _folder(self, checkpoint: int) -> str:
        return f"{self._base}-{self._run}-{self.checkpoints[checkpoint - 1]}" if checkpoint else self._base

    def _cached(self, folder: str, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """What `make` gives, once for all features that share it."""
        if self.cache is None:
            return make()
        place = self.cache / f"{self._given.name}-{folder}" / name

        def save(new: Path) -> None:
            arrays = {key: np.ascontiguousarray(value) for key, value in make().items()}
            save_file(arrays, new / "tangents.safetensors")

        files.made(place, save, what="tangents")
        try:
            return load_file(place / "tangents.safetensors")
        except OSError as error:
            raise ArtifactError(f"{place}: cannot be read: {error}; delete it to have it made again") from error

    # --- checkpoints ---

    @contextmanager
    def _model(self) -> Iterator[torch.nn.Module]:
        """The GPT in evaluation mode; afterwards with its initial weights and in the mode it had."""
        model, training = self.gpt.model, self.gpt.model.training
        initial = {name: p.detach().clone() for name, p in self._parameters.items()}
        try:
            yield model.eval()
        finally:
            self._put(initial)
            model.train(training)

    @torch.no_grad()
    def _put(self, state: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(state[name])
            parameter.grad = None

    def _reference_run(self, reference: Curriculum, steps: int) -> Iterator[tuple[int, ScoredLogits]]:
        """Trains from the initial weights; yields before the first step and after every one. Call inside `_model`."""
        tokens = self._tokens(self.pool, trained=True)
        settings = self.recording.optimizer
        optimizer = build_optimizer(self.gpt.model, settings, fused=False)
        rates = settings.learning_rates(reference.steps)
        self.gpt.model.eval()  # no dropout: the tangents are those of the network as it is
        with self._scored() as scored:
            yield 0, scored
            for step, batch in enumerate(reference.batches[:steps], start=1):
                loss = update_loss(scored, tokens, batch, self.recording.train_tokens, self._device)
                update(self._parameters, optimizer, loss, rates[step - 1], settings.max_gradient_norm)
                yield step, scored

    def _checkpoints(self) -> list[dict[str, torch.Tensor]]:
        """The parameters at every checkpoint; the reference run is trained when first asked for. Call inside `_model`."""
        if self._states is None:
            states = [{name: p.detach().clone() for name, p in self._parameters.items()}]
            if self.reference is not None:
                for step, _ in self._reference_run(self.reference, self.checkpoints[-1]):
                    if step in self.checkpoints:
                        states.append({name: p.detach().clone() for name, p in self._parameters.items()})
                self._put(states[0])
            self._states = states
        return self._states

    def _measured(self, examples: TaskPool, reference: Curriculum) -> dict[str, np.ndarray]:
        """ "losses": what `along_reference` returns."""
        tokens = self._tokens(examples, trained=False)
        batches = bucketed(tokens, self.recording.token_budget, self.recording.loss_tokens, self._device)
        losses = np.empty((reference.steps + 1, len(examples)), np.float32)
        with self._model():
            for step, scored in self._reference_run(reference, reference.steps):
                for batch in batches:
                    with torch.no_grad():
                        values = example_losses(scored.token_losses(batch), batch)
                    losses[step, batch.rows.cpu().numpy()] = values.cpu().numpy()
        return {"losses": losses}

    @contextmanager
    def _brought_to(self, checkpoint: int) -> Iterator[ScoredLogits]:
        """Inside the block the GPT has the parameters of a checkpoint."""
        with self._model():
            state = self._checkpoints()[checkpoint] if checkpoint else None
        with self._model(), self._scored() as scored:
            if state is not None:
                self._put(state)
            yield scored

    @contextmanager
    def _scored(self) -> Iterator[ScoredLogits]:
        scored = ScoredLogits(self.gpt.model)
        try:
            yield scored
        finally:
            scored.close()

    def _batches(self, examples: TaskPool, which: str, *, trained: bool) -> list[Batch]:
        """Each example by itself."""
        tokens = self._tokens(examples, trained=trained)
        return [collate(tokens, [row], which, self._device) for row in range(len(tokens))]

    @property
    def _device(self) -> str:
        return str(next(iter(self._parameters.values())).device)

    # --- coordinates ---

    def _draw(self) -> dict[str, np.ndarray]:
        """Of `Coordinates` what no run changes."""
        parameters = list(self._parameters.values())
        sizes = np.array([p.numel() for p in parameters])
        if self.size >= sizes.sum():
            index, weight = np.arange(sizes.sum()), np.ones(sizes.sum())
        else:
            with self._model():
                importance = self._importance()
            if not importance.sum() > 0:
                raise DataError(
                    f"{self.pool.name}: no example's loss depends on a trainable parameter; check the model"
                )
            index, weight = sample(importance, self.size, self.seed)
        owner = np.searchsorted(np.cumsum(sizes), index, side="right").astype(np.int32)
        names = decayed_names(self.gpt.model)
        decayed = np.array([name in names for name in self._parameters])
        return {
            "index": index,
            "parameter": owner,
            "weight": weight.astype(np.float32),
            "initial": self._values({name: p.detach() for name, p in self._parameters.items()})[index],
            "decayed": decayed[owner],
        }

    def _moved(self, sampled: dict[str, np.ndarray], checkpoint: int) -> dict[str, np.ndarray]:
        """Of `Coordinates` where the reference run is at a checkpoint."""
        with self._model():
            state = self._checkpoints()[checkpoint]
        return {"displacement": self._values(state)[sampled["index"]] - sampled["initial"]}

    def _values(self, state: dict[str, torch.Tensor]) -> np.ndarray:
        """float32 [parameters' coordinates]"""
        return torch.cat([state[name].flatten() for name in self._parameters]).cpu().numpy()

    def _importance(self) -> np.ndarray:
        """float64 [parameters' coordinates]: mean absolute gradient of the pool's example losses at the base model."""
        total = [torch.zeros_like(p) for p in self._parameters.values()]
        parameters = list(self._parameters.values())
        with self._scored() as scored:
            for batch in self._batches(self.pool, self.recording.train_tokens, trained=True):
                loss = scored.token_losses(batch).mean()
                for sum_, gradient in zip(total, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                    if gradient is not None:
                        sum_ += gradient.abs()
        return torch.cat([sum_.flatten() for sum_ in total]).cpu().numpy().astype(np.float64)

    # --- tangents ---

    def _chosen(self, logits: torch.Tensor, labels: torch.Tensor, words: list[int]) -> torch.Tensor:
        """bool [tokens, vocabulary]: the candidates of each scored token."""
        chosen = torch.zeros_like(logits, dtype=torch.bool)
        if words and len(labels) == 1 and int(labels[0]) in words:
            chosen[:, words] = True
            return chosen
        probability = logits.softmax(1)
        order = probability.scatter(1, labels[:, None], 2.0).argsort(1, descending=True)
        # one candidate fewer than there are tokens at most: something must be left to compare with
        order = order[:, : min(self.candidates, logits.shape[1] - 1)]
        likely = probability.gather(1, order)
        needed = likely.cumsum(1) - likely < self.mass
        needed[:, 0] = True
        return chosen.scatter(1, order, needed)

    def _take(
        self, scored: ScoredLogits, batch: Batch, example: Example, known: tuple[np.ndarray, np.ndarray] | None
    ) -> dict[str, np.ndarray]:
        """Of `Tangents` what one example has at one checkpoint: at the first all but that axis, later outputs and gradients.

        known: the token of each output, and its word; chosen by the GPT as it is if not given
        """
        with self._slopes.watching():
            logits, labels = scored.logits(batch), batch.labels
            if known is None:
                chosen = self._chosen(logits.detach(), labels, label_words(example, self.gpt))
            else:
                chosen = torch.zeros_like(logits, dtype=torch.bool)
                chosen[tuple(torch.from_numpy(one).to(logits.device) for one in known)] = True
            rest = logits.masked_fill(chosen, -torch.inf).logsumexp(1)[:, None]
            values = (logits - rest)[chosen]
            slope = self._slopes.of(values)
        factor = slope.abs().amax(1).clamp_min(1e-30)
        taken = {"outputs": values.detach(), "gradients": (slope / factor[:, None]).half(), "scale": factor}
        if known is None:
            token, word = chosen.nonzero(as_tuple=True)
            taken |= {"token": token, "word": word, "target": word == labels[token]}
        return {key: value.cpu().numpy() if isinstance(value, Tensor) else value for key, value in taken.items()}


def _checked_steps(reference: Curriculum | None, checkpoints: Sequence[int]) -> list[int]:
    steps = sorted(set(checkpoints))
    if bool(steps) != (reference is not None):
        raise ConfigurationError("tangents: give `reference` and `checkpoints` together, or neither")
    if reference is not None and not (steps[0] >= 1 and steps[-1] <= reference.steps):
        raise ConfigurationError(
            f"tangents: checkpoints must be steps 1 to {reference.steps} of the reference, not {steps}"
        )
    return steps
