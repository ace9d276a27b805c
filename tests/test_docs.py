"""What README.md and docs/ say is what the committed outputs hold and what the package offers."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
import re
import shlex
import textwrap
from functools import cache
from itertools import pairwise

import pandas as pd
import pytest
import typer

import gptfluence as gf
from gptfluence.common import frames
from gptfluence.common.settings import ROOT
from gptfluence.profile.load import load_profile
from gptfluence.workflow.cli import app
from gptfluence.workflow.notebook import declared_parameters

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
    "tab13_",
)  # tables whose columns are the headings that one reads
EXAMPLES = ("gptfluence/simulators/damped.py", "notebooks/ext08_spread.py")  # files that CONTRIBUTING.md has one add


@cache
def tool():
    spec = importlib.util.spec_from_file_location("measured", ROOT / "tools" / "measured.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


# ------------------------------------------------------------------------------------------------------------- numbers


def test_the_pages_are_as_the_tool_writes_them(tmp_path):
    tool().main(["--into", str(tmp_path)])
    for page in tool().PAGES:
        assert (tmp_path / page).read_text(encoding="utf-8") == text(page), f"{page}: run python tools/measured.py"


def test_the_tool_writes_every_table_anew_and_leaves_the_prose():
    page = "Prose.\n<!-- tangent -->\nold\n<!-- end -->\nMore.\n"
    written = tool().filled(page)
    assert written.startswith("Prose.\n<!-- tangent -->\n| GPT and tasks |")
    assert written.endswith("\n<!-- end -->\nMore.\n")
    assert "old" not in written
    with pytest.raises(ValueError, match=r"nonsense.*known: table"):
        tool().filled("<!-- nonsense -->\n<!-- end -->\n")


def test_the_page_of_measured_numbers_has_every_table_that_outputs_have_and_no_other():
    page = text("docs/measured.md")
    known = re.findall(r"<!-- table (\S+) -->", page)
    assert len(known) == len(set(known))
    found = {
        str(path.relative_to(ROOT / "figures").with_suffix(""))
        for notebook in tool().COLUMNS
        for path in (ROOT / "figures").glob(f"*/{notebook}.csv")
    }
    assert set(known) == found - {"mini/ext05_bands"}  # which is in docs/what_if.md
    outside = re.findall(r"(?:^\|.*\n)+", tool().BLOCK.sub("", page), re.MULTILINE)
    assert all(table.startswith("| where |") for table in outside)  # the settings, not the results


def test_a_table_holds_the_numbers_of_its_csv():
    """Read again from the page, value by value, without the code that wrote it."""
    page = text("docs/measured.md")
    frame = tool().read("mini/ext01_explained_deviation")
    frame = frame[(frame["metric"] == "loss") & (frame["statistic"] == "r2_dev") & (frame["method"] == "tangent")]
    for task, title in {"sst2": "SST-2", "webnlg": "WebNLG"}.items():
        table = next(
            part for part in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE) if part.startswith(f"| {title} |")
        )
        rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()]
        shown = dict(zip(rows[0], next(row for row in rows if row[0] == "Tangent simulator"), strict=True))
        for _, row in frame[frame["task"] == task].iterrows():
            if not pd.isna(row["value"]):
                assert float(shown[row["kind"].replace("_", " ")]) == pytest.approx(row["value"], abs=0.00501)


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


def of(name: str, **chosen: str) -> pd.Series:
    """R2_dev in figures/NAME.csv where the columns have these values."""
    frame = tool().read(name)
    chosen = {"statistic": "r2_dev", **({"metric": "loss"} if "metric" in frame else {}), **chosen}
    for column, value in chosen.items():
        frame = frame[frame[column] == value]
    assert len(frame), (name, chosen)
    return frame["value"]


def less(name: str, without: str, kind: str) -> float:
    """What the tangent simulator loses without a part."""
    shown = [round(float(of(name, method="tangent", variant=one, kind=kind).iloc[0]), 2) for one in ("", without)]
    return shown[0] - shown[1]


@pytest.mark.parametrize(
    ("page", "sentence", "values"),
    [
        (
            "README.md",
            "R²dev averaged over five tasks is −{} for GPTfluence and −{} for Simfluence",
            lambda: [-of("mini/tab02_fine_tuning_loss", method=m).mean() for m in ("gptfluence", "simfluence")],
        ),
        (
            "docs/measured.md",
            "on WebNLG {} to {}, and {} on unseen tests",
            lambda: [
                f(less("mini-webnlg/ext07_ablation", "checkpoints=[]", kind) for kind in kinds)
                for f, kinds in (
                    (min, ("alike", "few", "sorted", "biased")),
                    (max, ("alike", "few", "sorted", "biased")),
                    (max, ("unseen_tests",)),
                )
            ],
        ),
        (
            "docs/measured.md",
            "from {} to {} on curricula drawn alike at the high rate, and from {} to {} on few examples at the slow pace",
            lambda: [
                of(f"{folder}/ext07_ablation", method="tangent", variant=variant, kind=kind).iloc[0]
                for folder, kind in (("laptop", "alike"), ("laptop-slow", "few"))
                for variant in ("checkpoints=[]", "")
            ],
        ),
        (
            "docs/method.md",
            "R²dev is {} with about seven candidates for each token. With one candidate it is {}",
            lambda: [
                of("mini-webnlg/ext07_ablation", method="tangent", variant=variant, kind="alike").iloc[0]
                for variant in ("", "candidates=1")
            ],
        ),
    ],
)
def test_numbers_in_sentences_are_those_of_the_outputs(page: str, sentence: str, values):
    pattern = r"(-?\d+\.\d+)".join(map(re.escape, sentence.split("{}")))
    found = re.search(pattern, " ".join(text(page).split()))
    assert found, f"{page} does not say: {sentence}"
    assert [float(number) for number in found.groups()] == pytest.approx(values(), abs=0.00501)


def test_three_values_are_just_below_nine_tenths():
    """As docs/measured.md says of the tangent simulator in profile mini, besides the one that lies clearly below."""
    frame = tool().read("mini/ext01_explained_deviation")
    chosen = (frame["method"] == "tangent") & (frame["statistic"] == "r2_dev") & (frame["metric"] == "loss")
    low = frame[chosen & (frame["value"] < 0.9)].set_index(["task", "kind"])["value"]
    assert low.pop(("sst2", "longer")) == pytest.approx(0.81, abs=0.00501)
    assert set(low.index) == {("webnlg", "longer"), ("wmt16_de_en", "longer"), ("webnlg", "unseen_tests")}
    assert low.between(0.8975, 0.8995).all()


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


def test_glossary_has_its_sixteen_words():
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
