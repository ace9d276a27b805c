"""Generated names and parameters: each is refused when it is read, or comes through shells, commands and files as it is."""

from __future__ import annotations

import json
import os
import shlex
from functools import cache

import papermill.cli
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from gptfluence.common.errors import ConfigurationError
from gptfluence.common.files import slug, slug_of_its_own
from gptfluence.common.settings import checked_name
from gptfluence.profile.load import PROFILES, load_profile
from gptfluence.workflow.parameters import check_parameters, command

FUZZ = settings(max_examples=int(os.environ.get("GPTFLUENCE_FUZZ", "300")), deadline=None)
ODD = st.sampled_from(list("\"'`$&;|<>(){}[]*?!#~%\\ /-:,=\n\t\u200b\u202e\ud83d\x00\x85\u2028é评😀09eE.+_"))
TEXT = st.text(st.one_of(ODD, st.characters()), max_size=100)


@cache
def smoke() -> dict:
    return YAML(typ="safe", pure=True).load((PROFILES / "smoke.yaml").read_text(encoding="utf-8"))


def usable(name: str) -> bool:
    try:
        return checked_name(name) == name
    except ValueError:
        return False


@FUZZ
@given(TEXT)
def test_a_name_is_refused_when_the_profile_is_read_or_stays_as_it_is_in_shells_and_files(name):
    if not usable(name):
        return
    assert shlex.split(f"gptfluence record --task {shlex.quote(name)} --jobs 1")[3] == name
    assert json.loads(json.dumps({"task": name}, ensure_ascii=False).encode())["task"] == name
    file = slug_of_its_own("fine_tuning", "nano", name)
    assert shlex.quote(file) == file == slug(file)
    assert len(os.fsencode(f"notebook-{file}.json")) < 255


@FUZZ
@given(TEXT, TEXT)
def test_names_that_differ_have_files_that_differ(one, other):
    assert (slug_of_its_own("a", one).lower() == slug_of_its_own("a", other).lower()) == (one == other)
    assert slug_of_its_own(one, other) != slug_of_its_own(f"{one}--{other}")


@settings(FUZZ, max_examples=FUZZ.max_examples // 10)  # a profile takes a while to be read
@given(st.sampled_from(["tasks", "models", "simulators"]), TEXT)
@example("tasks", "\U0001f1e6")  # which JSON writes as two surrogates
def test_a_profile_takes_a_usable_name_and_names_any_other(tmp_path_factory, field, name):
    value = {"tasks": {"source": "mini"}, "models": {"source": "hub", "path": "a/b"}, "simulators": {"kind": "counts"}}
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    text = json.dumps({**smoke(), "name": "own", field: {**smoke()[field], name: value[field]}})
    path.write_text(text, encoding="utf-8")
    refused = ""
    try:
        assert name in getattr(load_profile(path), field)
    except ConfigurationError as error:
        refused = str(error)
    assert "\n" not in refused
    assert bool(refused) == (not usable(name) or (field == "simulators" and ("oracle" in name or "update" in name)))


VALUES = st.one_of(
    TEXT,
    st.integers(),
    st.floats(allow_nan=False),
    st.booleans(),
    st.lists(TEXT, max_size=4),
    st.lists(st.integers(), max_size=4),
    st.lists(st.floats(allow_nan=False), max_size=4),
)


@FUZZ
@given(st.dictionaries(st.sampled_from(["profile", "task", "runs", "level", "rates"]), VALUES, max_size=4))
def test_a_recorded_command_gives_the_same_parameters_again(values):
    found: dict = {}
    execute, papermill.cli.execute_notebook = (
        papermill.cli.execute_notebook,
        lambda **one: found.update(one["parameters"]),
    )
    try:
        text = command("fig", values)
        done = CliRunner().invoke(papermill.cli.papermill, shlex.split(text)[1:])
    finally:
        papermill.cli.execute_notebook = execute
    assert done.exit_code == 0, done.output
    assert text.isprintable()
    assert found == values
    assert all(type(found[name]) is type(value) for name, value in values.items())


ANY = st.recursive(st.one_of(st.none(), VALUES), lambda inner: st.lists(inner, max_size=3), max_leaves=5)
DECLARED = {"profile": ("str", "mini"), "rates": ("list[float]", []), "runs": ("int", 3), "exact": ("bool", False)}


@FUZZ
@given(st.dictionaries(st.one_of(st.sampled_from(sorted(DECLARED)), TEXT), ANY, max_size=5), st.booleans())
def test_parameters_are_taken_as_declared_or_an_error_names_them(namespace, in_kernel):
    if in_kernel:
        cells = [f"{name} = 0" for name in namespace]
        namespace = {**namespace, "In": ["", *cells, "\n".join(cells), "nb = gf.Notebook('fig', globals())"]}
    refused, found = "", {}
    try:
        found = check_parameters("fig", DECLARED, namespace)
    except ConfigurationError as error:
        refused = str(error)
    assert refused.startswith("fig: parameter") or list(found) == list(DECLARED)
    assert all(namespace[name] == value for name, value in found.items())
