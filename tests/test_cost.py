"""Cost: FLOPs are those of the formulas where there are any, and grow with what they should grow with."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from gptfluence.common.errors import ConfigurationError
from gptfluence.experiments.cost import cost, count_flops, measure_seconds
from gptfluence.gradients.products import Replayer
from gptfluence.models import encoders
from gptfluence.recording.settings import AdamW, Recording


@pytest.fixture(scope="module")
def recorder(nano, sst2):
    with Replayer(nano.load(), sst2.pool, sst2.tests, Recording(optimizer=AdamW(learning_rate=1e-3))) as recorder:
        yield recorder


def flops(table, method, reuse="nothing", encoder="", variant=""):
    row = table.query("method == @method and variant == @variant and reuse == @reuse and encoder == @encoder")
    assert len(row) == 1
    return float(row["flops"].iloc[0])


def test_flops_are_the_papers_formulas(recorder):
    table = cost(recorder, batch_size=8, repeats=1)
    assert flops(table, "simfluence") == 2 * 16  # the paper counts 16 multiply-adds
    heads = (8 + 1) * 2 * 2 * 384**2  # 5.3e6 multiply-adds: examples x heads x layers x d^2
    assert heads == pytest.approx(5.3e6, rel=0.01)
    assert flops(table, "gptfluence", encoder="excluded") == 2 * (heads + 2 * 8 * 384)
    assert (table["seconds"] > 0).all()


def test_tracin_costs_more_where_more_is_multiplied_and_tests_share_a_gradient(recorder):
    table = cost(recorder, batch_size=4, repeats=1)
    whole, last = "parameters=all", "parameters=last_layer"
    tables = flops(table, "gptfluence", "tables", "excluded")
    assert flops(table, "tracin_cp", variant=whole) > flops(table, "tracin_cp", variant=last) > tables
    for variant in (last, whole):
        assert flops(table, "tracin_cp", "tests", variant=variant) < flops(table, "tracin_cp", variant=variant)
    small = cost(recorder, batch_size=2, repeats=1)
    assert flops(small, "tracin_cp", variant=whole) < flops(table, "tracin_cp", variant=whole)
    assert flops(small, "simfluence") * 2 == flops(table, "simfluence")


def test_what_steps_share_is_shared(recorder):
    few, many = (cost(recorder, batch_size=4, repeats=1, steps=steps) for steps in (2, 200))
    assert flops(many, "gptfluence", "tables", "excluded") * 100 == pytest.approx(
        flops(few, "gptfluence", "tables", "excluded")
    )


class Folded(encoders.Encoder):
    """An encoder of one known product."""

    name = "folded"

    def encode(self, pool):
        return (torch.ones(len(pool), 10) @ torch.ones(10, 12)).numpy().astype(np.float32)


def test_an_encoder_is_added(recorder):
    table = cost(recorder, batch_size=4, repeats=1, encoder=Folded())
    added = flops(table, "gptfluence", encoder="included") - flops(table, "gptfluence", encoder="excluded")
    assert added == 2 * 5 * 10 * 12


def test_attention_is_counted():
    query = torch.ones(1, 2, 5, 4)
    counted = count_flops(lambda: torch.nn.functional.scaled_dot_product_attention(query, query, query))
    assert counted == 2 * (2 * 2 * 5 * 5 * 4)


def test_latency_is_the_median_and_leaves_the_first_call_out(monkeypatch):
    now, lasts = 0.0, iter([100.0, 1.0, 9.0, 2.0])

    def work():
        nonlocal now
        now += next(lasts)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert measure_seconds(work, 3) == 2.0  # neither their mean, 4, nor the median with the first call, 5.5
    assert next(lasts, None) is None  # four calls


def test_latency_of_a_call_is_its_wall_time():
    calls = []
    seconds = measure_seconds(lambda: calls.append(1), 3)
    assert len(calls) == 4
    assert 0 <= seconds < 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"batch_size": 13}, "a batch of 13 cannot be taken from a pool of 12"),
        ({"repeats": 0}, "repeats must be 1 or more"),
    ],
)
def test_wrong_numbers_are_named(recorder, options, said):
    with pytest.raises(ConfigurationError, match=said):
        cost(recorder, **options)


def test_a_cache_is_no_measurement(recorder):
    cached = Folded()
    cached.cache = "somewhere"
    with pytest.raises(ConfigurationError, match="would find its features in a cache; load it with cache=None"):
        cost(recorder, encoder=cached)
