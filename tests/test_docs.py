"""What README.md and docs/ say is what the package offers; their numbers are the business of test_numbers.py."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import shlex
import textwrap
from itertools import pairwise

import pandas as pd
import pytest
import typer

import gptfluence as gf
from gptfluence.common import frames
from gptfluence.common.settings import ROOT
from gptfluence.profile.load import load_profile
from gptfluence.workflow.cli import app
from gptfluence.workflow.parameters import declared_parameters

PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
PAGES += sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
TERMS = [
    "curriculum",
    "kind of curriculum",
    "held-out run",
    "unseen example",
    "reference run",
    "tangent",
    "output",
    "candidate",
    "coordinate",
    "R²dev",
    "R² within the kind",
    "ceiling",
    "counts",
    "learning",
    "slow drift",
    "reading",
    "campaign",
    "method",
    "variant",
]

PRINTED = (
    "tab05_",
    "tab06_",
    "tab07_",
    "tab08_",
    "tab09_",
)  # tables whose columns are the headings that one reads
EXAMPLES = ("gptfluence/simulators/damped.py", "notebooks/ext09_spread.py")  # files that CONTRIBUTING.md has one add


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def code(page: str) -> list[str]:
    """The indented blocks of a page, without their indentation."""
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", text(page), re.MULTILINE)
    return [textwrap.dedent(block).strip("\n") + "\n" for block in blocks if block.strip()]


def commands(page: str, name: str) -> list[list[str]]:
    """The words of every command of a page that begins with `name`, wherever on the page it stands."""
    lines = "\n".join([*code(page), *re.findall(r"`([^`\n]+)`", text(page))]).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith(f"{name} ")]


def test_every_column_of_a_frame_has_its_meaning():
    found = {
        str(path.relative_to(ROOT)): pd.read_csv(path, nrows=0).columns
        for path in (ROOT / "figures").glob("*/*.csv")
        if not path.name.startswith(PRINTED)
    }
    rooms = [path for room in ("experiments", "scoring") for path in (ROOT / "gptfluence" / room).glob("[a-z]*.py")]
    modules = {path: importlib.import_module(f"gptfluence.{path.parent.name}.{path.stem}") for path in rooms}
    found |= {str(path): module.COLUMNS for path, module in modules.items() if hasattr(module, "COLUMNS")}
    assert len(found) > 40
    for name, columns in found.items():
        assert not set(columns) - set(frames.COLUMNS), f"{name}: say in gptfluence/common/frames.py what they mean"


# --------------------------------------------------------------------------------------------------------------- pages


def slug(heading: str) -> str:
    """The anchor that a heading has."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        other = (ROOT / page).parent / path if path else ROOT / page
        assert other.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str):
    for name in re.findall(
        r"`((?:gptfluence|tools|profiles|notebooks|figures|docs|tests|benchmarks)/[\w./-]+)`", text(page)
    ):
        if "NAME" not in name and name not in EXAMPLES:
            assert (ROOT / name).exists(), f"{page}: {name}"


def test_files_and_names_in_the_code_exist():
    """In docstrings, comments and messages: paths from the root of the repository, and dotted names that begin with a room."""
    folders = "gptfluence|tools|profiles|notebooks|docs|tests|benchmarks"
    rooms = [path.parent.name for path in (ROOT / "gptfluence").glob("*/__init__.py")]
    for path in [*(ROOT / "gptfluence").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]:
        code = path.read_text(encoding="utf-8")
        for name in re.findall(rf"(?<![\w./])((?:{folders})/[\w./-]+\.(?:py|md|yaml|ipynb))\b", code):
            assert "NAME" in name or (ROOT / name).exists(), f"{path}: {name}"
        for name in re.findall(rf"`((?:{'|'.join(rooms)})\.[\w.]*\w)`", code):
            assert name == "simulators.NAME.FIELD" or is_known(f"gptfluence.{name}"), f"{path}: {name}"


def is_known(name: str) -> bool:
    """Whether a dotted name is that of a module, or of something in one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_readme_is_short_and_links_to_every_page():
    assert len(text("README.md").splitlines()) <= 150
    for page in PAGES[1:]:
        assert f"]({page})" in text("README.md"), page


def test_glossary_has_its_nineteen_words():
    assert re.findall(r"^\| \*\*(.+?)\*\* \|", text("docs/glossary.md"), re.MULTILINE) == TERMS


def test_contributing_has_every_room_in_the_order_of_the_contract():
    rooms = re.findall(r"^\| `(\w+)` \|", text("CONTRIBUTING.md"), re.MULTILINE)
    folders = {path.name for path in (ROOT / "gptfluence").iterdir() if (path / "__init__.py").is_file()}
    assert set(rooms) == folders
    contract = re.search(r"^layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    assert contract
    layers = [set(re.findall(r"\w+", layer)) for layer in re.findall(r'"(.*?)"', contract[1])][::-1]
    place = {room: position for position, layer in enumerate(layers) for room in layer}
    assert [place[room] for room in rooms] == sorted(place[room] for room in rooms)


# ---------------------------------------------------------------------------------------------------------- what to type


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_package_exist(page: str):
    for name in set(re.findall(r"\bgf\.(\w+(?:\.\w+)?)", text(page))):
        found = gf
        for part in name.split("."):
            found = getattr(found, part)


def test_the_main_job_takes_eight_names_or_fewer_and_ten_lines_or_so():
    [block] = [block for block in code("README.md") if block.startswith("import gptfluence")]
    assert 5 <= len(set(re.findall(r"\bgf\.[\w.]+", block))) <= 8
    assert len(block.splitlines()) <= 13
    tree = ast.parse(block)
    assert sum(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree)) == 1


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist_and_know_their_options(page: str):
    group = typer.main.get_command(app)
    for _, name, *rest in commands(page, "gptfluence"):
        if name == "COMMAND":
            continue
        known = {option for parameter in group.commands[name].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= known, (page, name)
    for _, notebook, _, *rest in commands(page, "papermill"):
        declared = declared_parameters((ROOT / notebook).with_suffix(".py"))
        given = [rest[at + 1] for at, word in enumerate(rest) if word == "-p"]
        given += [rest[at + 1].partition(":")[0] for at, word in enumerate(rest) if word == "-y"]
        assert set(given) <= set(declared), (page, notebook)


@pytest.mark.parametrize("page", PAGES)
def test_changes_of_profiles_are_possible(page: str):
    for name in ("./run_all.sh", "gptfluence"):
        for words in commands(page, name):
            pairs = list(pairwise(words))
            profile = next((value for option, value in pairs if option == "--profile"), "mini")
            if not profile.endswith(".yaml"):
                load_profile(profile, [value for option, value in pairs if option == "--set" and value != "name=NAME"])
    for _, _, _, *rest in commands(page, "papermill"):
        for at, word in enumerate(rest):
            if word == "-y" and rest[at + 1].startswith("overrides:"):
                load_profile("mini", ast.literal_eval(rest[at + 1].partition(":")[2].strip()))


def test_the_code_of_the_pages_is_python():
    for page in PAGES:
        for block in code(page):
            if "gf." in block and not block.startswith(("gptfluence ", "./")):
                ast.parse(block)


@pytest.mark.slow
def test_the_lines_of_python_run(gpt, tmp_path, monkeypatch):
    """Those of README.md, then those of docs/own_text.md on the same runs; a nano GPT stands for the one from the Hub."""
    words = [("joy", "positive"), ("bore", "negative")]
    rows = [f'{{"text": "A {words[k % 2][0]} of {k} scenes.", "label": "{words[k % 2][1]}"}}' for k in range(40)]
    (tmp_path / "reviews.jsonl").write_text("\n".join(rows))
    gpt.model.save_pretrained(tmp_path / "model")
    gpt.tokenizer.save_pretrained(tmp_path / "model")
    smaller = {
        "EleutherAI/pythia-14m": str(tmp_path / "model"),
        "runs=12, subset=48, batch=4, epochs=2": "runs=5, subset=16, batch=4, epochs=4",
        "test_size=64": "test_size=8",
    }
    [block] = [block for block in code("README.md") if block.startswith("import gptfluence")]
    for old, new in smaller.items():
        assert block.count(old) == 1
        block = block.replace(old, new)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPTFLUENCE_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setenv("GPTFLUENCE_JOBS", "1")
    namespace: dict = {}
    exec(compile(block, "the code of README.md", "exec"), namespace)
    assert namespace["predicted"].shape == (2, 17, 8)
    assert {"all_steps_mse", "mse_mean_trajectory"} <= set(
        gf.evaluate(namespace["predicted"], namespace["test"], reference=namespace["train"])["statistic"]
    )
    ran = 0
    for block in code("docs/own_text.md"):
        if "test.curricula[0]" in block or "predicted = " in block or "TangentSimulator" in block:
            exec(compile(block, "the code of docs/own_text.md", "exec"), namespace)
            ran += 1
    assert ran == 3
    assert namespace["simulator"].report.selected_by
