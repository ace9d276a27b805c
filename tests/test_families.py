"""One small model for each thing in which causal language models differ; all of them: `python tools/zoo/compare.py`."""

from __future__ import annotations

import sys

import pytest

from gptfluence.common.errors import ModelError
from gptfluence.common.settings import ROOT
from gptfluence.models.gpt import ModelSource
from gptfluence.models.settings import LocalModel, LoRA
from gptfluence.tasks import mini

sys.path.append(str(ROOT / "tools" / "zoo"))
import compare
from families import FAMILIES, REFUSED


@pytest.fixture(scope="module")
def task():
    return mini.generate("webnlg", pool_size=8, test_size=5)


@pytest.fixture(scope="module")
def tokenizer(task):
    return compare.byte_pairs(task)


@pytest.mark.parametrize(
    "name",
    [
        "gemma2",  # no scaled dot product attention
        "jamba",  # layers with a state instead of keys and values, routers, a convolution's weights used by other code
        "mamba",  # its cache has another name
        "openai-gpt",  # no cache
        "mixtral",  # routers return tuples
        "phi (norms of queries)",  # outputs of heads
        "gemma3",  # the text part of a model that sees pictures: settings are nested, a part is never used
    ],
)
def test_what_is_recorded_and_computed_is_what_plain_loops_give(name, task, tokenizer, tmp_path):
    compare.make(*FAMILIES[name], tokenizer, tmp_path / "tiny")
    found = compare.check(tmp_path / "tiny", task)
    assert dict(zip(compare.CHECKS, found, strict=True)) == dict.fromkeys(compare.CHECKS, "ok")


@pytest.mark.parametrize("name", ["bert", "xlnet"])
def test_a_model_whose_tokens_see_later_ones_is_refused(name, tokenizer, tmp_path):
    compare.make(*REFUSED[name], tokenizer, tmp_path / "tiny")
    assert compare.refusal(tmp_path / "tiny") == ["ok"]


def test_adapters_that_an_architecture_cannot_have_are_refused_with_another_remedy_than_what_was_tried(
    tokenizer, tmp_path
):
    compare.make(*FAMILIES["mamba"], tokenizer, tmp_path / "tiny")
    config = LocalModel(source="local", path=tmp_path / "tiny", lora=LoRA(target_modules="all-linear", dropout=0))
    with pytest.raises(
        ModelError, match=r"'out_proj' is incompatible .* dt_proj, in_proj, .* name some of them, or null"
    ):
        ModelSource("tiny", config, tmp_path).load()
