"""The equations, against arrays produced by the authors' published simulator classes, to 1e-5 (relative above 1)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.dynamics import GPTDynamics, TrainingRun
from gptfluence.scoring.evaluation import evaluate, summarize
from gptfluence.simulators import fitting
from gptfluence.simulators.gptfluence import FeatureModel
from gptfluence.simulators.simfluence import FreeTables
from gptfluence.tasks.base import Example, TaskPool

SHARED = Path(os.environ.get("GPTFLUENCE_SHARED", Path(__file__).parents[2] / "shared"))
FILE = SHARED / "parity" / "simulators.npz"
ORDERS = {"enc": 1, "norder2": 2, "norder3": 3, "enc_concat": 1, "norder2_concat": 2, "simfluence": 1}
SIZES = (12, 5)

pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} is missing; set GPTFLUENCE_SHARED to its folder")


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(FILE, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def close(actual: object, expected: object) -> None:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert (np.abs(actual - expected) / np.maximum(1, np.abs(expected))).max() <= 1e-5


def mlp_state(arrays: dict[str, np.ndarray], tag: str, suffixes: list[object]) -> dict[str, torch.Tensor]:
    """Published weights in our order of heads: the newest lag first, the additive one last."""
    names = {"weight1": "W1_{}", "bias1": "W1_{}_bias", "weight2": "W2_{}", "bias2": "W2_{}_bias"}
    return {
        f"heads.{ours}": torch.tensor(np.stack([arrays[f"{tag}/{theirs.format(suffix)}"] for suffix in suffixes]))
        for ours, theirs in names.items()
    }


def load(arrays: dict[str, np.ndarray], tag: str) -> fitting.TableModel:
    if tag == "simfluence":
        model = FreeTables(*SIZES, batch_size=4)
        model.table.data = torch.tensor(arrays["simfluence/emb"].reshape(5, 12, 2).transpose(2, 1, 0).copy())
        return model
    order = ORDERS[tag]
    kind = "concat" if "concat" in tag else "mlp"
    model = FeatureModel(kind, order, torch.tensor(arrays["h_train"]), torch.tensor(arrays["h_test"]))
    newest_first = [*range(order - 1, -1, -1), order]
    if tag == "enc":
        state = mlp_state(arrays, tag, ["a", "b"])
    elif kind == "mlp":
        state = mlp_state(arrays, tag, newest_first)
    else:
        layers = ["fca", "fcb"] if order == 1 else [f"fc_{j}" for j in newest_first]
        narrow = "fc" if order == 1 else "W2"
        state = {
            "heads.out.weight": torch.tensor(np.concatenate([arrays[f"{tag}/{layer}"] for layer in layers])),
            "heads.out.bias": torch.tensor(np.concatenate([arrays[f"{tag}/{layer}_bias"] for layer in layers])),
            "heads.narrow.weight": torch.tensor(arrays[f"{tag}/{narrow}"]),
            "heads.narrow.bias": torch.tensor(arrays[f"{tag}/{narrow}_bias"]),
        }
        if order > 1:
            state |= {
                "heads.wide.weight": torch.tensor(arrays[f"{tag}/W1"]),
                "heads.wide.bias": torch.tensor(arrays[f"{tag}/W1_bias"]),
            }
    model.load_state_dict(state, strict=False)
    assert set(state) == {name for name in model.state_dict() if name.startswith("heads.")}
    return model


def one_step_inputs(arrays: dict[str, np.ndarray], order: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    history = arrays["prev_n_losses"][:, ::-1][:, :order] if order > 1 else arrays["prev_loss"][:, None]
    return torch.tensor(arrays["orders"]), torch.tensor(arrays["test_ids"]), torch.tensor(history.copy())


def published_rollout(arrays: dict[str, np.ndarray], tag: str) -> np.ndarray:
    """[runs, 10 steps, tests]: row 0 is observed after the first update, so the first batch is not used."""
    with torch.no_grad():
        tables = load(arrays, tag).tables().transpose(0, 1).flatten(1).contiguous()
        observed = torch.tensor(arrays["roll_gt"][:, :1], dtype=torch.float32)
        return fitting.rollout(tables, torch.tensor(arrays["roll_train_ids"][:, 1:]), observed).numpy()


@pytest.mark.parametrize("tag", ORDERS)
def test_one_step(arrays: dict[str, np.ndarray], tag: str) -> None:
    with torch.no_grad():
        predicted = fitting.predict_step(load(arrays, tag), SIZES, *one_step_inputs(arrays, ORDERS[tag])).numpy()
    close(predicted, arrays[f"{tag}/one_step"])
    close(np.square(predicted - arrays["after_loss"]).mean(), arrays[f"{tag}/mse"])


@pytest.mark.parametrize("tag", ORDERS)
def test_rollout(arrays: dict[str, np.ndarray], tag: str) -> None:
    close(published_rollout(arrays, tag).transpose(0, 2, 1), arrays[f"{tag}/rollout"])


@pytest.mark.parametrize("tag", ORDERS)
def test_metrics(arrays: dict[str, np.ndarray], tag: str) -> None:
    def texts(kind: str) -> TaskPool:
        return TaskPool(kind, tuple(Example(str(i), text, "") for i, text in enumerate(arrays[f"{kind}_texts"])))

    recorded = GPTDynamics(
        task="parity",
        model="published",
        pool=texts("train"),
        tests=texts("test"),
        runs=tuple(
            TrainingRun(f"test-{k}", Curriculum(ids[1:]), {"loss": values})
            for k, (ids, values) in enumerate(zip(arrays["roll_train_ids"], arrays["roll_gt"], strict=True))
        ),
    )
    predicted = arrays[f"{tag}/rollout"].transpose(0, 2, 1)
    results = evaluate(predicted, recorded, reference=recorded)
    summary = summarize(results).set_index("statistic")
    mse, mae = summary.loc["all_steps_mse"], summary.loc["all_steps_mae"]
    close([mse.value, mse["std"], mae.value, mae["std"]], arrays[f"{tag}/metrics"])
    close(results.query("statistic == 'final_step_spearman'").value, arrays[f"{tag}/spearman"])


def test_simfluence_l2_is_the_sum_of_the_two_norms(arrays: dict[str, np.ndarray]) -> None:
    norms = load(arrays, "simfluence").tables().detach().flatten(1).norm(dim=1)
    close(0.01 * norms.sum(), arrays["simfluence/L2_at_0.01"])


@pytest.mark.parametrize("tag", ["enc", "simfluence"])
def test_six_training_steps(arrays: dict[str, np.ndarray], tag: str) -> None:
    """Losses before each update and the weights after the last, under Adam with coupled weight decay."""
    torch.set_num_threads(1)
    learning_rate, weight_decay, warmup, total = arrays[f"train_{tag}/hp"]
    rates = [learning_rate * fitting.schedule(update, int(total), int(warmup)) for update in range(int(total))]
    close(rates, arrays[f"train_{tag}/lrs"])
    model = load(arrays, tag)
    optimizer = fitting.make_optimizer("adam", model, learning_rate=learning_rate, weight_decay=weight_decay)
    inputs = (*one_step_inputs(arrays, 1), torch.tensor(arrays["after_loss"]))
    losses = []
    for rate, rows in zip(rates, arrays[f"train_{tag}/batches"], strict=True):
        optimizer.param_groups[0]["lr"] = rate
        losses.append(fitting.training_step(model, optimizer, SIZES, *(part[torch.tensor(rows)] for part in inputs)))
    close(losses, arrays[f"train_{tag}/losses"])
    if tag == "simfluence":
        close(model.tables().detach().permute(2, 1, 0).reshape(60, 2), arrays["train_simfluence/final_emb"])
    else:
        for name, value in mlp_state(arrays, "train_enc/final", ["a", "b"]).items():
            close(model.state_dict()[name], value)
