"""Generated inputs: whatever is given, the outcome is a result that keeps its promises or one of the package's errors.

300 inputs for each property; `tools/fuzz` tries 10,000. A new kind of input is a strategy in `fuzz_strategies.py` and a property
here.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from contextlib import contextmanager
from copy import deepcopy
from functools import cache

import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

import fuzz_strategies as some
from gptfluence.common.errors import ConfigurationError, GPTfluenceError
from gptfluence.profile import load
from gptfluence.profile.load import load_profile, override_texts, parse_overrides
from gptfluence.recording.text_metrics import LARGEST, score
from gptfluence.tasks import Task, hub, read_jsonl
from gptfluence.tasks.records import HubSource
from gptfluence.tasks.rows import RowMapping

fuzzed = settings(
    max_examples=int(os.environ.get("GPTFLUENCE_FUZZ", "300")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@contextmanager
def mended():
    """What is raised here is an error of the package, with a message that can be printed; warnings are fine."""
    said = "no error"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        event("a result")
    except GPTfluenceError as error:
        event(type(error).__name__)
        said = str(error)
    assert said.encode().strip()


def promises(task: Task) -> None:
    """What whoever uses a task relies on."""
    assert len(task.fingerprint) == 12
    assert not {example.text for example in task.pool} & {example.text for example in task.tests}
    for example in (*task.pool, *task.tests):
        json.dumps(example.to_dict(), ensure_ascii=False).encode()
        assert example.target.strip()
        if example.label is not None:
            assert example.target == example.choices[example.label]
            assert len(set(example.choices)) == len(example.choices) >= 2


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@fuzzed
@given(pool=some.json_lines(), tests=st.one_of(st.none(), some.json_lines()), layout=some.layouts())
def test_files_of_json_lines(folder, pool, tests, layout):
    (folder / "pool.jsonl").write_bytes(pool)
    if tests is not None:
        (folder / "tests.jsonl").write_bytes(tests)
    files = [folder / "pool.jsonl"] if tests is None else [folder / "pool.jsonl", folder / "tests.jsonl"]
    with mended():
        promises(read_jsonl(*files, **layout, test_size=1))


@fuzzed
@given(pool=some.tables(), tests=some.tables(most=3), layout=some.layouts())
def test_data_sets_and_json_lines_of_the_same_rows_agree(folder, pool, tests, layout):
    tables = {}
    try:
        for split, rows in (("train", pool), ("test", tests)):
            tables[split] = Dataset(pa.Table.from_pylist(rows))  # faster than `from_list`
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        assume(False)  # no data set can hold such rows
    for split, table in tables.items():
        lines = [json.dumps(row) for row in table]
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    outcomes = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(hub, "_read", lambda name, source, split, cache_dir: tables[split])
        with mended():
            data = hub.HubData("any", HubSource(path="any", test_split="test"), RowMapping(**layout))
            outcomes.append(data.task())
    with mended():
        outcomes.append(read_jsonl(folder / "train.jsonl", folder / "test.jsonl", **layout))
    for task in outcomes:
        promises(task)
    if len(outcomes) == 2:
        of_data_set, of_files = outcomes
        everything = {(one.prompt, one.target, one.choices) for part in of_files for one in part}
        assert {(one.prompt, one.target, one.choices) for part in of_data_set for one in part} <= everything


# --- profiles --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _profile_read_once():
    """Reading the file takes longer than all else."""
    read = cache(load._read_yaml)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(load, "_read_yaml", lambda path: deepcopy(read(path)))
        yield


SMOKE = load._read_yaml(load.PROFILES / "smoke.yaml")
FIELDS = some.fields_of(SMOKE)


@fuzzed
@given(changes=st.lists(some.changes_of(FIELDS, some.profile_values), min_size=1, max_size=2))
def test_overrides_as_a_mapping(changes):
    overrides = dict(changes)
    with mended():
        texts = override_texts(overrides)
        read = parse_overrides(texts)
        for (field, value), found in zip(overrides.items(), read.values(), strict=len(read) == len(overrides)):
            if isinstance(value, str) and len(read) == len(overrides):
                assert found == value, field  # as it was given
        load_profile("smoke", texts)


@fuzzed
@given(change=some.changes_of(FIELDS, some.yaml_texts))
def test_overrides_as_text(change):
    with mended():
        load_profile("smoke", ["=".join(map(str, change))])


@fuzzed
@given(labels=some.values)
def test_labels_of_profiles_and_of_read_jsonl_are_one_rule(labels):
    given_labels = {"prompt": "{a}", "target": " {label}", "label": "a", "labels": labels}
    assume(labels is not None)
    outcomes = []
    for make in (
        lambda: RowMapping(**given_labels).words,
        lambda: (
            RowMapping(
                **{
                    **given_labels,
                    "labels": load_profile("smoke", {"tasks.sst2": {"source": "local", "pool": "p", **given_labels}})
                    .tasks["sst2"]
                    .labels,
                }
            ).words
        ),
    ):
        try:
            outcomes.append(make())
        except ConfigurationError:
            outcomes.append(None)
    if outcomes[1] is not None:
        assert outcomes[0] == outcomes[1]


# --- scores ----------------------------------------------------------------------------------------------------------


@fuzzed
@given(text=st.text(max_size=12), other=st.text(max_size=12), metric=st.sampled_from(sorted(LARGEST)))
def test_scores_of_any_texts(text, other, metric):
    assume(text.strip() and other.strip())
    assert score(metric, text, [other, text]) == pytest.approx(LARGEST[metric])
    found = score(metric, text, [other])
    assert math.isfinite(found)
    assert 0 <= found <= LARGEST[metric] + 1e-9
