"""Names and places that a profile gives: which names are refused, and where relative paths start."""

from __future__ import annotations

import json

import pytest

from gptfluence.common import settings
from gptfluence.common.errors import ConfigurationError
from gptfluence.common.files import slug, slug_of_its_own
from gptfluence.models import encoders
from gptfluence.profile.load import load_profile
from gptfluence.study.study import Study
from gptfluence.tasks import hub, read_jsonl
from gptfluence.tasks.records import HubSource
from gptfluence.tasks.rows import RowMapping
from gptfluence.tasks.settings import HubTask
from gptfluence.workflow.cli import _metric_and_method
from gptfluence.workflow.row import Runs

PROFILE = """
base: smoke
name: own
data_dir: my_data
tasks: {mine: {source: local, prompt: "{text}", target: " {label}", label: label, pool: rows.jsonl, pool_size: 4, test_size: 2}}
models: {folder: {source: local, path: models/small}}
encoders: ["encoders/small:cls"]
"""
ROWS = "".join(json.dumps({"text": f"text {k}", "label": "ab"[k % 2]}) + "\n" for k in range(8))


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one's own, with a folder of notebooks to be in, and a profile outside."""
    root = tmp_path / "repository"
    for folder in ("notebooks", "models/small", "studies"):
        (root / folder).mkdir(parents=True)
    monkeypatch.setattr(settings, "ROOT", root)
    monkeypatch.chdir(root / "notebooks")
    (root / "studies" / "own.yaml").write_text(PROFILE, encoding="utf-8")
    return root


def put(folder, rows=ROWS):
    (folder / "my_data").mkdir(parents=True)
    (folder / "my_data" / "rows.jsonl").write_text(rows, encoding="utf-8")


@pytest.mark.parametrize("place", ["", "studies", "notebooks"])
def test_files_are_found_from_a_notebook_wherever_they_may_lie(repository, place):
    put(repository / place)
    study = Study.load("studies/own.yaml")  # a relative path of the repository, too
    assert len(study.texts.known("mine").tests) == 2
    (repository / place / "my_data").mkdir(exist_ok=True)
    hub = HubTask(source="hub", path="./my_data")
    assert study.texts._with_files_found(hub).path == str(repository / place / "my_data")
    assert study.texts._with_files_found(HubTask(source="hub", path="a/b")).path == "a/b"
    assert study.model("folder").config.path.resolve() == repository / "models" / "small"


def test_two_places_with_a_file_of_that_name_are_an_error_that_names_both(repository):
    put(repository)
    put(repository / "studies", ROWS.replace("text", "other"))
    with pytest.raises(
        ConfigurationError, match=r"means .*my_data/rows.jsonl and .*my_data/rows.jsonl; give the whole"
    ):
        Study.load("studies/own.yaml").texts.known("mine")
    (repository / "studies" / "my_data" / "rows.jsonl").unlink()
    (repository / "studies" / "my_data" / "rows.jsonl").symlink_to(repository / "my_data" / "rows.jsonl")
    assert len(Study.load("studies/own.yaml").texts.known("mine").tests) == 2  # one file, seen twice


def test_a_base_may_lie_beside_the_profile_that_names_it(repository):
    (repository / "studies" / "more.yaml").write_text("base: own.yaml\nname: more\n", encoding="utf-8")
    assert load_profile("studies/more.yaml").data_dir.name == "my_data"


def test_artifacts_of_a_relative_path_are_those_of_the_repository(repository, monkeypatch):
    monkeypatch.setenv("GPTFLUENCE_ARTIFACTS", "store")
    assert settings.artifacts_dir() == repository / "store"
    monkeypatch.setenv("GPTFLUENCE_ARTIFACTS", "~nobody-of-that-name/store")
    with pytest.raises(ConfigurationError, match="no home folder is known for its '~'"):
        settings.artifacts_dir()


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "~nobody-of-that-name"])
def test_a_home_that_nobody_knows_is_an_error_wherever_a_path_may_begin_with_it(path):
    for read in (
        lambda: Study.load("smoke", artifacts=path),
        lambda: read_jsonl(path, prompt="{a}", target="{b}", test_size=1),
        lambda: encoders.load(f"{path}:cls"),
        lambda: hub.HubData("any", HubSource(path=path), RowMapping("{a}", "{b}")),
    ):
        with pytest.raises(ConfigurationError, match="no home folder is known for its '~'"):
            read()


@pytest.mark.parametrize("name", ["", "a b", "r&d", "мой", ".hidden", "a/b", "a\n", "x" * 81])
def test_a_profile_whose_name_is_no_folder_says_which_names_are(name):
    with pytest.raises(
        ConfigurationError, match=r"profile .*: name: .* is to name folders: give it 1 to 80 of the letters"
    ):
        load_profile("smoke", {"name": name})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "is empty"),
        (" sst2", "begins or ends with a blank"),
        ("a\nb", r"holds '\\n', which cannot be printed"),
        ("a\tb", "cannot be printed"),
        ("a\x00b", "cannot be printed"),
        ("a\u202eb", "cannot be printed"),  # turns the direction of writing
        ("x" * 81, "has 81 characters, 80 are allowed"),
    ],
)
@pytest.mark.parametrize("field", ["tasks", "models", "simulators"])
def test_a_name_that_cannot_be_told_on_a_screen_is_refused_when_the_profile_is_read(tmp_path, name, said, field):
    given = {"tasks": {"source": "mini"}, "models": {"source": "hub", "path": "a/b"}, "simulators": {"kind": "counts"}}
    path = tmp_path / "own.yaml"
    path.write_text(json.dumps({"base": "smoke", "name": "own", field: {name: given[field]}}), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=f"profile 'own': {field}.*{said}"):
        load_profile(path)


def test_files_of_different_names_differ_also_where_case_does_not_count():
    names = ["sst2", "SST2", "sst 2", "sst_2", "sst-2", "评论", "评分", "a--b", "{x}", "..", "x" * 300, "x" * 301]
    assert len({slug_of_its_own("m", name).lower() for name in names}) == len(names)
    assert slug_of_its_own("m", "a--b") != slug_of_its_own("m--a", "b")
    assert slug_of_its_own("nano", "r&d") == "nano--r_d-b30af8"
    assert Runs("fine_tuning", "nano-410m", "sst2").name == "fine_tuning--nano-410m--sst2"
    assert slug("a/../b c") == "a_.._b_c"


def test_a_method_whose_name_has_a_colon_is_told_from_a_metric():
    known = ["gptfluence", "bleu:own"]
    assert _metric_and_method("bleu:own", known) == ("loss", "bleu:own")
    assert _metric_and_method("bleu:bleu:own", known) == ("bleu", "bleu:own")
    assert _metric_and_method("bleu:gptfluence", known) == ("bleu", "gptfluence")
    assert _metric_and_method("gptfluence", known) == ("loss", "gptfluence")
