"""Profiles: those that ship are valid, and what is wrong with one is said with its name, the field and the remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from gptfluence.common.errors import ConfigurationError
from gptfluence.profile.load import PROFILES, load_profile, parse_overrides, profile_names
from gptfluence.profile.schema import LEARNING, SLOW_DRIFT
from gptfluence.recording.settings import AdamW
from gptfluence.study.study import Study

MINIMAL = {
    "name": "mine",
    "title": "a try",
    "tasks": {"sst2": {"source": "mini", "pool_size": 8, "test_size": 4}},
    "models": {"tiny": {"source": "nano", "width": 16, "layers": 1, "heads": 2}},
    "settings": {"fine_tuning": {"models": ["tiny"], "tasks": ["sst2"]}},
    "simulators": {"persistence": {}},
}


@pytest.fixture
def written(tmp_path):
    """A function that writes a profile's text and returns its path."""

    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
        return path

    return write


def complaint(profile, *overrides):
    with pytest.raises(ConfigurationError) as caught:
        load_profile(profile, overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", profile_names())
def test_profiles_that_ship_are_valid_and_named_after_their_files(name):
    profile = load_profile(name)
    assert profile.name == name
    assert profile.title
    assert profile.settings["fine_tuning"].model in profile.models


def test_a_profile_of_ones_own_is_read_from_its_path(written):
    profile = load_profile(written(MINIMAL))
    assert profile.tasks["sst2"].pool_size == 8
    assert "nano-410m" in profile.models  # known everywhere


# --- what is wrong ---------------------------------------------------------------------------------------------------


def test_an_unknown_profile_names_the_nearest():
    message = complaint("smokey")
    assert "profile 'smokey' is not known" in message
    assert "did you mean 'smoke'?" in message


def test_a_missing_file_is_named(tmp_path):
    assert "absent.yaml does not exist" in complaint(tmp_path / "absent.yaml")


def test_an_unknown_field_is_named_with_its_path():
    message = complaint("smoke", "settings.fine_tuning.curriculum.bach_size=2")
    assert message.startswith("profile 'smoke': settings.fine_tuning.curriculum.bach_size: is not a field here")


@pytest.mark.parametrize(
    ("override", "field", "given"),
    [
        ("settings.fine_tuning.runs.train=many", "settings.fine_tuning.runs.train", "'many'"),
        ("settings.fine_tuning.runs.train=0", "settings.fine_tuning.runs.train", "0"),
        ("settings.fine_tuning.runs.train=2.5", "settings.fine_tuning.runs.train", "2.5"),
        ("settings.fine_tuning.recording.loss_tokens=none", "settings.fine_tuning.recording.loss_tokens", "'none'"),
        ("seed=-1", "seed", "-1"),
        ("tasks.sst2.pool_size=0", "tasks.sst2.pool_size", "0"),
        ("models.nano-smoke.layers=two", "models.nano-smoke.layers", "'two'"),
    ],
)
def test_a_value_that_is_not_allowed_is_shown_with_its_field(override, field, given):
    message = complaint("smoke", override)
    assert message.startswith(f"profile 'smoke': {field}: ")
    assert f"(got {given})" in message


@pytest.mark.parametrize(
    "field", ["seed", "settings.fine_tuning.recording.optimizer.learning_rate", "tasks.sst2.pool_size"]
)
def test_a_truth_value_is_no_number(field):
    message = complaint("smoke", f"{field}=true")
    assert message.replace(": ", ".").startswith(f"profile 'smoke'.{field}.a number is needed, not true")


def test_a_profile_may_be_json_with_escaped_characters(tmp_path):
    title, task = "\U0001f600 for \u8bc4", "\U0001f1e6"
    text = json.dumps({"base": "smoke", "name": "own", "title": title, "tasks": {task: {"source": "mini"}}})
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    profile = load_profile(tmp_path / "own.yaml", [f"title={json.dumps(title)}"])
    assert (profile.title, task in profile.tasks) == (title, True)
    assert "not a YAML value" in complaint("smoke", 'title="\\ud83d"')


def test_a_missing_field_is_named(written):
    assert complaint(written({**MINIMAL, "title": None})).startswith("profile 'mine': title: ")
    absent = {name: value for name, value in MINIMAL.items() if name != "simulators"}
    assert "profile 'mine': simulators: is missing" in complaint(written(absent))


def test_malformed_yaml_is_shown_with_file_and_line(written):
    assert re.search(
        r"mine\.yaml, line 2, column \d+: not valid YAML", complaint(written("name: mine\ntasks: {sst2: ]}\n"))
    )


def test_a_key_that_occurs_twice_is_shown_with_its_line(written):
    assert re.search(
        r"mine\.yaml, line 3, .*key 'seed' occurs twice", complaint(written("name: a\nseed: 1\nseed: 2\n"))
    )


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words\n"])
def test_a_file_that_is_no_mapping_is_refused(written, text):
    assert "a profile is a mapping of fields" in complaint(written(text))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00name")
    assert "mine.yaml" in complaint(path)


@pytest.mark.parametrize(
    "text", ["name: a\x00b\n", "name: {[a, b]: 1}\n", "{name: a}: b\n", "name: !!python/name:os\n"]
)
def test_yaml_that_is_no_plain_data_is_an_error_with_the_file(written, text):
    assert re.search(r"mine\.yaml.*not valid YAML", complaint(written(text)))


def test_unknown_models_and_tasks_are_named_with_the_nearest():
    assert "settings.fine_tuning.models: model 'nano-smok' is not known" in (
        message := complaint("smoke", "settings.fine_tuning.models=[nano-smok]")
    )
    assert "did you mean 'nano-smoke'?" in message
    assert (
        "settings.fine_tuning.tasks: task 'sst3' is not known; known: rte, sst2, webnlg, cnn_dm (did you mean 'sst2'?)"
        in (complaint("smoke", "settings.fine_tuning.tasks=[sst3]"))
    )


@pytest.mark.parametrize("override", ["seed", "=3", "", "  = 3"])
def test_an_override_is_field_equals_value(override):
    assert complaint("smoke", override).startswith(f"override {override!r}: expected field=value")


def test_an_override_below_a_value_is_refused():
    assert "override 'title.x': title has no fields" in complaint("smoke", "title.x=1")


def test_an_override_that_is_no_yaml_is_refused():
    assert "is not a YAML value" in complaint("smoke", "seed=[1")


def test_learning_rates_are_needed_for_every_task():
    message = complaint("smoke", "settings.fine_tuning.recording.optimizer.learning_rate={sst2: 1e-3}")
    assert "no value for task 'rte'" in message


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"), [("1e-5", 1e-5), ("5E-7", 5e-7), ("3.0e-3", 3e-3), ("1e3", 1e3), ("1", 1.0)]
)
def test_numbers_are_numbers_in_every_spelling(text, value):
    field = "settings.fine_tuning.recording.optimizer.learning_rate"
    profile = load_profile("smoke", [f"{field}={text}"])
    assert profile.settings["fine_tuning"].recording.optimizer.learning_rate == value


def test_words_for_yes_and_no_stay_words(written):
    labels = "{0: no, 1: yes, 2: on, 3: off}"
    task = f"{{source: local, prompt: '{{a}}', target: ' {{label}}', label: a, pool: p.jsonl, labels: {labels}}}"
    profile = load_profile("smoke", [f"tasks.sst2={task}"])
    assert list(profile.tasks["sst2"].labels.values()) == ["no", "yes", "on", "off"]


def test_true_and_false_are_truth_values():
    profile = load_profile("smoke", ["settings.fine_tuning.recording.record_pool=false"])
    assert profile.settings["fine_tuning"].recording.record_pool is False


def test_overrides_are_the_same_as_texts_and_as_a_mapping():
    field = "settings.fine_tuning.runs.train"
    assert load_profile("smoke", [f"{field}=3"]) == load_profile("smoke", {field: 3})


def test_a_builtin_model_can_be_changed_in_part():
    model = load_profile("smoke", ["models.nano-14m.layers=1"]).models["nano-14m"]
    assert (model.layers, model.width) == (1, 32)


def test_reading_a_profile_leaves_the_builtin_models_alone():
    load_profile("smoke", ["models.nano-14m.layers=1"])
    assert load_profile("smoke").models["nano-14m"].layers == 2


# --- studies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("curriculum.subset_size=25", "a subset of 25 cannot be drawn from a pool of 24"),
        ("curriculum.subset_size=18", "a batch of 4 does not divide a subset of 18"),
    ],
)
def test_a_curriculum_that_cannot_be_drawn_is_an_error_before_anything_is_recorded(tmp_path, override, message):
    study = Study.load("smoke", [f"settings.fine_tuning.{override}"], artifacts=tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        study.campaign("fine_tuning", "sst2").dynamics()
    assert not list(tmp_path.rglob("train-*"))


def test_unknown_names_are_errors_of_the_study(tmp_path):
    study = Study.load("smoke", artifacts=tmp_path)
    with pytest.raises(ConfigurationError, match=r"profile 'smoke': task 'sst3' .*did you mean 'sst2'"):
        study.campaign("fine_tuning", "sst3").dynamics()
    with pytest.raises(ConfigurationError, match="profile 'smoke': model 'gpt-9' is not known"):
        study.model("gpt-9")
    with pytest.raises(ConfigurationError, match=r"profile 'smoke': .*method 'simfluenc' .*did you mean 'simfluence'"):
        study.methods(["simfluenc"])
    with pytest.raises(ConfigurationError, match="jobs must be 1 or more, not 0"):
        Study.load("smoke", jobs=0)


def label(*overrides):
    return Study.load("smoke", overrides).label


def test_the_label_tells_studies_with_other_numbers_apart():
    changed = "settings.fine_tuning.runs.train=3", "seed=1"
    labels = {label(), label(changed[0]), label(changed[1]), label(*changed)}
    assert len(labels) == 4
    assert all(re.fullmatch(r"smoke(-[0-9a-f]{6})?", text) for text in labels)
    assert label(*changed) == label(*reversed(changed))


@pytest.mark.parametrize("override", ["data_dir=elsewhere", "jobs_per_device=2"])
def test_the_label_stays_where_no_number_changes(override):
    assert label(override) == "smoke"


def test_a_name_of_ones_own_is_the_label():
    assert label("name=mine", "seed=1") == "mine"


# --- schedules -------------------------------------------------------------------------------------------------------


def test_the_learning_rate_falls_to_zero_after_the_last_update():
    assert AdamW(learning_rate=1.0).learning_rates(4) == [1.0, 0.75, 0.5, 0.25]
    assert AdamW(learning_rate=1.0, schedule="constant").learning_rates(3) == [1.0] * 3


def test_schedules_are_those_of_transformers():
    import torch
    from transformers import get_scheduler

    for schedule, name in (("linear_decay", "linear"), ("constant", "constant_with_warmup")):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=10)
        expected = []
        for _ in range(10):
            expected.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        ours = AdamW(learning_rate=0.3, schedule=schedule, warmup_steps=3).learning_rates(10)
        assert ours == pytest.approx(expected)


# --- YAML 1.2 ----------------------------------------------------------------------------------------------------------


def test_values_are_those_of_yaml_1_2():
    texts = ["a=1e-5", "b=no", "c=on", "d=True", "e=1:30", "f=010", "g=", "h=[1, 2.5]", "i='1'"]
    texts += ["j=2024-01-01", "k=1_000", "l=0b11", "m=0o10", "n=0x1F", "o=12:30:15", "p=<<", "q==", "r=.5", "s=+1"]
    assert parse_overrides(texts) == {
        "a": 1e-5,
        "b": "no",
        "c": "on",
        "d": True,
        "e": "1:30",
        "f": 10,
        "g": None,
        "h": [1, 2.5],
        "i": "1",
        "j": "2024-01-01",
        "k": "1_000",
        "l": "0b11",
        "m": 8,
        "n": 31,
        "o": "12:30:15",
        "p": "<<",
        "q": "=",
        "r": 0.5,
        "s": 1,
    }


@pytest.mark.parametrize("text", ["name: {[a, b]: 1}\n", "title: x\nname: {? {a: 1} : 1}\n"])
def test_a_key_that_is_no_plain_value_is_shown_with_its_line(written, text):
    line = text.count("\n")
    assert re.search(rf"mine\.yaml, line {line}, column \d+: .* a key must be a plain value", complaint(written(text)))


@pytest.mark.parametrize(
    "value",
    ["A: b", "2024", "010", "12:30", "null", "~", "true", "", " x ", "[a]", "{x}", "a # b", "- a", "'", "\"", "a\nb", "2024-01-01",
     "1_000", "\u2028", "\x85", "\U0001f600", "=", "<<", "%x", "@x", "!x", "&x", "*x", "Ünï", "\\", "1e3", ".5"],
)  # fmt: skip
def test_a_mapping_has_values_as_they_are(value):
    study = Study.load("smoke", {"title": value})
    assert parse_overrides(study.overrides) == {"title": value}  # as the command line is given it
    assert study.profile.title == value
    assert study.profile.subject == f"{value}, learning"


def test_a_mapping_may_hold_none_tuples_paths_and_numbers_of_numpy():
    given = {
        "settings.fine_tuning.pool_size": None,
        "settings.fine_tuning.tasks": ("sst2",),
        "settings.fine_tuning.runs": {"train": np.int64(3)},
        "settings.fine_tuning.recording.optimizer.learning_rate": 1e-05,
        "data_dir": Path("my data"),
    }
    profile = Study.load("smoke", given).profile
    setting = profile.settings["fine_tuning"]
    assert (setting.pool_size, setting.tasks, setting.runs.train, profile.data_dir) == (
        None,
        ["sst2"],
        3,
        Path("my data"),
    )
    assert setting.recording.optimizer.learning_rate == 1e-05
    assert given["settings.fine_tuning.runs"] == {"train": 3}  # the caller's stays as it is


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"seed": float("nan")}, "override 'seed': nan is not a value of a profile"),
        ({"seed": object()}, "override 'seed': .* a object is neither text"),
        ({"title": {1, 2}}, "override 'title': .* a set is neither text"),
        ({"a=b": 1}, "the name of a field has no '='"),
        ({"title": "cut \ud83d"}, "override 'title': .* holds characters that no YAML file may hold"),
        ({"seed": "12:30"}, "seed: Input should be a valid integer"),
    ],
)
def test_a_value_that_no_profile_can_hold_is_an_error(given, problem):
    with pytest.raises(ConfigurationError, match=problem):
        Study.load("smoke", given)


def test_names_with_dots_can_be_meant(written):
    path = written({**MINIMAL, "tasks": {"a.b": MINIMAL["tasks"]["sst2"], "sst2": MINIMAL["tasks"]["sst2"]}})
    changed = load_profile(path, ["tasks.a.b.test_size=3", "models.nano-2.8b.layers=1", "models.tiny.layers=2"])
    assert (changed.tasks["a.b"].test_size, changed.tasks["sst2"].test_size) == (3, 4)
    usual = load_profile(path).models["nano-2.8b"]
    assert changed.models["nano-2.8b"] == usual.model_copy(update={"layers": 1}) != usual
    assert "tasks.c: " in complaint(path, "tasks.c.d.test_size=3")


def test_a_number_that_is_a_key_can_be_replaced(written):
    task = {
        "source": "local",
        "pool": "p.jsonl",
        "prompt": "{a}",
        "target": " {label}",
        "label": "a",
        "labels": {0: "n", 1: "p"},
    }
    path = written({**MINIMAL, "tasks": {"sst2": task}})
    assert load_profile(path, ["tasks.sst2.labels.1=good"]).tasks["sst2"].labels == {"0": "n", "1": "good"}


@pytest.mark.parametrize(
    "text",
    [
        "!!int x",
        "!!timestamp x",
        "!!binary aGk=",
        "!!set {a}",
        "[" * 99,
        "9" * 5000,
        "cut \ud83d",
        '"\\ud83d"',
        "&a [*a]",
        "*a",
        "a: b: c",
    ],
)
def test_a_text_that_is_no_plain_value_is_an_error(text):
    assert "is not a YAML value" in complaint("smoke", f"title={text}") or "title: " in complaint(
        "smoke", f"title={text}"
    )


# --- what has moved ------------------------------------------------------------------------------------------------------


def test_an_option_of_a_former_version_is_an_error_that_says_its_new_place():
    message = complaint("smoke", "simulators.tangent.tangents.checkpoints=[12]")
    assert "simulators.tangent.tangents: its options stand one level higher now" in message
    assert "checkpoints" in message


def test_a_profile_may_replace_fields_of_another(tmp_path):
    base, derived = tmp_path / "base.yaml", tmp_path / "derived.yaml"
    base.write_text((PROFILES / "smoke.yaml").read_text())
    derived.write_text(f"base: {base}\nname: other\nsettings: {{fine_tuning: {{runs: {{train: 9}}}}}}\n")
    one, other = load_profile(base), load_profile(derived)
    assert (other.name, other.title) == ("other", one.title)
    assert other.settings["fine_tuning"].runs.train == 9
    assert other.settings["fine_tuning"].runs.test == one.settings["fine_tuning"].runs.test
    assert other.settings["instruction_tuning"] == one.settings["instruction_tuning"]


def test_every_title_names_its_regime_once():
    for name in profile_names():
        profile = load_profile(name)
        assert profile.subject.endswith(f", {profile.regime}")
        assert sum(profile.subject.count(regime) for regime in (LEARNING, SLOW_DRIFT)) == 1
        assert type(profile).model_validate(profile.model_dump()) == profile
    assert [load_profile(name).regime for name in ("mini", "mini-slow", "laptop")] == [LEARNING, SLOW_DRIFT, LEARNING]
    assert load_profile("laptop", ["regime=slow drift"]).subject.endswith(", slow drift")
    assert "regime" in complaint("smoke", "regime=fast")


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nothing", r"base: profile 'nothing' is not known"),
        ("[smoke]", r"base: the name of a profile, .* not \['smoke'\]"),
        ("missing.yaml", r"base: profile file .*missing.yaml does not exist"),
    ],
)
def test_a_base_that_is_not_there_is_named(tmp_path, base, message):
    derived = tmp_path / "derived.yaml"
    derived.write_text(f"base: {base}\nname: other\n")
    with pytest.raises(ConfigurationError, match=message):
        load_profile(derived)


def test_a_profile_is_no_base_of_itself(tmp_path):
    derived = tmp_path / "derived.yaml"
    derived.write_text(f"base: {derived}\nname: other\n")
    with pytest.raises(ConfigurationError, match="base of"):
        load_profile(derived)


def test_a_method_may_have_options_of_its_own_in_a_setting():
    change = "settings.instruction_tuning.simulators.gptfluence={learning_rate: 0.01, target: deviation}"
    study = Study.load("smoke", ["simulators.gptfluence.max_epochs=7", change])
    own, other = (study.variant("gptfluence", name).options for name in ("instruction_tuning", "fine_tuning"))
    assert (own.learning_rate, own.target, own.max_epochs) == (0.01, "deviation", 7)
    assert (other.learning_rate, other.target, other.max_epochs) == (0.001, "value", 7)
    assert study.campaign("instruction_tuning").variant("gptfluence").options == own
    assert study.campaign("fine_tuning").variant("gptfluence").options == other == study.variant("gptfluence").options
    wrong = {
        "gptfluence={learning_rte: 0.01}": "gptfluence.learning_rte: option 'learning_rte' is not known",
        "gptfluence={target: values}": "gptfluence.target: target 'values' is not known; known: value, deviation",
        "gptfluense={}": "gptfluense: method 'gptfluense' is not known",
    }
    for given, problem in wrong.items():
        message = complaint("smoke", f"settings.fine_tuning.simulators.{given}")
        assert f"settings.fine_tuning.simulators.{problem}" in message
