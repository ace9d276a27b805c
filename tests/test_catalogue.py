"""The catalogue: what it says of each output, what that needs before, and that one row is all that a notebook takes."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptfluence.common.errors import ConfigurationError
from gptfluence.common.settings import ROOT
from gptfluence.study.study import Study
from gptfluence.workflow import catalogue
from gptfluence.workflow.citation import cite
from gptfluence.workflow.notebook import NOTEBOOKS
from gptfluence.workflow.parameters import declared_parameters
from gptfluence.workflow.row import Row, Runs, resolve

PROFILES = ["smoke", "mini", "laptop", "pythia", "paper", "released"]


@pytest.mark.parametrize("profile", PROFILES)
def test_every_notebook_that_is_planned_is_there(profile):
    for output in catalogue.outputs(Study.load(profile)).values():
        notebook = catalogue.notebook_of(output.row)
        assert (NOTEBOOKS / f"{notebook}.ipynb").is_file()
        assert set(output.row.parameters) <= set(declared_parameters(NOTEBOOKS / f"{notebook}.py"))


def test_every_notebook_has_a_row_and_every_name_is_given_once():
    names = [row.name for row in catalogue.ROWS]
    assert len(set(names)) == len(names)
    assert {catalogue.notebook_of(row) for row in catalogue.ROWS} == {path.stem for path in NOTEBOOKS.glob("*.py")}
    for row in catalogue.ROWS:
        assert not row.saved_with or not catalogue.leader(row).saved_with
        assert row.title
        if not row.saved_with:
            assert catalogue.row_of(catalogue.notebook_of(row), row.parameters) == row


def test_the_default_profile_has_every_item_of_the_paper():
    labels = {output.row.label for output in catalogue.outputs(Study.load("mini")).values()} - {""}
    assert labels == {f"Table {n}" for n in range(1, 14)} | {f"Figure {n}" for n in range(1, 31)}


def test_a_profile_without_a_setting_has_the_outputs_that_need_none(tmp_path):
    short = tmp_path / "short.yaml"
    text = (ROOT / "profiles" / "mini.yaml").read_text()
    before, _, rest = text.partition("\n  instruction_tuning:\n")
    short.write_text(before + "\nsimulators:" + rest.partition("\nsimulators:")[2])
    loss_only = {"settings.fine_tuning.metrics": ["loss"], "tasks.rte.unseen_pool_size": 0}
    loss_only |= {"tasks.rte.unseen_test_size": 0, "tasks.webnlg.unseen_pool_size": 0}
    loss_only |= {"tasks.webnlg.unseen_test_size": 0}
    names = set(catalogue.outputs(Study.load(short, loss_only)))
    assert {"tab02_fine_tuning_loss", "tab05_hyperparameters_instruction_tuning"} <= names
    of_runs = {name for name in names if "hyperparameters" not in name}
    assert not any("instruction" in name or "unseen" in name or "bleu" in name for name in of_runs)


def test_what_outputs_need_together_holds_what_each_needs_once():
    outputs = catalogue.outputs(Study.load("mini"))
    together = catalogue.before(outputs.values())
    for output in outputs.values():
        for runs, pairs in output.needs.items():
            assert set(pairs) <= set(together[runs])
        assert output.needs or not output.row.unseen  # runs on unseen examples go by the same names
    for pairs in together.values():
        assert len(pairs) == len(set(pairs))


def test_outputs_of_one_run_of_a_notebook_need_the_same():
    outputs = catalogue.outputs(Study.load("smoke"))
    first, further = outputs["ext01_explained_deviation"], outputs["ext01_other_metrics"]
    assert first.needs == further.needs
    of_task = first.needs[Runs("fine_tuning", "nano-smoke", "webnlg")]
    assert {"loss", "bleu", "rouge_l"} == {metric for metric, _ in of_task}
    assert list(catalogue.runs_of_notebooks({"ext01_other_metrics": further})) == ["ext01_explained_deviation"]


def test_what_the_user_chose_takes_the_place_of_what_a_row_selects():
    every_step = ("settings.fine_tuning.generation.every=1",)
    study, row = Study.load("smoke", every_step), catalogue.by_name()["tab10_markov_order"]
    output = resolve(row, study, tasks=["webnlg"], metrics=["bleu"], values=[7], methods=["gptfluence"])
    assert output.panels == (("bleu", "webnlg"),)
    assert [variant.variant for variant in output.variants] == ["markov_order=7"]
    assert resolve(row, study).tested == {"loss": ["rte", "webnlg"], "bleu": ["webnlg"], "rouge_l": ["webnlg"]}


def test_orders_are_compared_only_on_metrics_that_are_measured_at_every_step():
    study, row = Study.load("smoke"), catalogue.by_name()["tab10_markov_order"]  # texts once in two steps
    assert resolve(row, study).tested == {"loss": ["rte", "webnlg"]}
    assert {metric for pairs in resolve(row, study).needs.values() for metric, _ in pairs} == {"loss"}
    with pytest.raises(ConfigurationError, match=r"bleu once in 2 steps; set generation\.every to 1, or choose other"):
        resolve(row, study, metrics=["loss", "bleu"])
    published = resolve(row, Study.load("released"))  # every checkpoint
    assert set(published.tested) == {"loss", "bleu", "rouge_l"}


def test_what_a_profile_lacks_is_said():
    study = Study.load("smoke")
    with pytest.raises(
        ConfigurationError, match=r"settings.fine_tuning: nothing to draw; record one of these: loss on boolq"
    ):
        resolve(Row("fig99_x", "X", panels=(("loss", "boolq"),)), study)
    with pytest.raises(ConfigurationError, match="figure 12 is of a model of size 410m, and profile 'smoke' has none"):
        resolve(catalogue.row_of("fig10_18_qualitative", {"figure": 12}), study)
    with pytest.raises(ConfigurationError, match=r"published-410m, which has published runs only"):
        resolve(catalogue.by_name()["tab13_computational_cost"], Study.load("released"))


def test_a_pattern_chooses_by_output_or_notebook_and_one_that_fits_nothing_is_an_error():
    study = Study.load("mini")
    for only in ("tab02*", "tab02", "Table 2", "tab02_fine_tuning_loss"):
        assert set(catalogue.chosen(study, only)) == {"tab02_fine_tuning_loss"}
    assert len(catalogue.chosen(study, "fig10_18*")) > 1
    assert list(catalogue.runs_of_notebooks(catalogue.chosen(study, "fig04*"))) == ["tab10_markov_order"]
    with pytest.raises(ConfigurationError, match=r"only: notebook or output 'tab99' is not known; known: explore"):
        catalogue.chosen(study, "tab99")


@pytest.mark.parametrize("text", ["Table 6", "table 6", "tab06", "tab6", "Tab. 6"])
def test_an_output_is_found_by_its_number(text, tmp_path):
    name = "tab06_hyperparameters_gptfluence_instruction_tuning"
    assert catalogue.named(text, catalogue.by_name()) == [name]
    facts = {"caption": "Hyperparameters.", "command": "c", "profile": "mini", "versions": {}}
    (tmp_path / f"{name}.json").write_text(json.dumps(facts))
    (tmp_path / "fig16_fine_tuning_loss.json").write_text(json.dumps(facts))
    assert name.replace("_", "-") in cite(text, tmp_path)
    assert "fig16" in cite("fig16", tmp_path)
    with pytest.raises(ConfigurationError, match="'Table 7' is not known; known: fig16"):
        cite("Table 7", tmp_path)


ROW = '''    Row("fig40_final_losses", "Final losses", tasks=first),
    Row("tab02_fine_tuning_loss"'''
SCRIPT = """\
# %% [markdown]
# # Final losses

# %% tags=["parameters"]
profile: str = "mini"
tasks: list[str] = []  # the first
overrides: list[str] = []
output_dir: str = ""

# %%
import gptfluence as gf

nb = gf.Notebook("fig40_final_losses", globals())
print("tasks:", nb.tasks, "methods:", nb.methods)
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the repository, in a folder of an odd name, with one notebook more: its two files and its row."""
    root = tmp_path_factory.mktemp("extended") / """re{po} it's $HOME & "here"; 评论"""
    for name in ("gptfluence", "profiles", "notebooks", "docs", "tests", "tools"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "pyproject.toml", "run_all.sh", "requirements.lock"):
        shutil.copy(ROOT / name, root)
    rows = root / "gptfluence" / "workflow" / "catalogue.py"
    text = rows.read_text()
    assert text.count('    Row("tab02_fine_tuning_loss"') == 1
    rows.write_text(text.replace('    Row("tab02_fine_tuning_loss"', ROW))
    (root / "notebooks" / "fig40_final_losses.py").write_text(SCRIPT)
    run(root, "-m", "jupytext", "--quiet", "--to", "ipynb", "notebooks/fig40_final_losses.py")
    return root


def run(root: Path, *arguments: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": str(root), "PATH": path}
    done = subprocess.run([sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_notebook_takes_its_files_and_one_row(extended):
    shell = "from gptfluence.workflow.cli import main; main()"
    assert re.search(
        r"Figure 40 +fig40_final_losses +Final losses", run(extended, "-c", shell, "outputs", "--profile", "smoke")
    )
    page = run(extended, "-c", "from gptfluence.workflow import catalogue; print(catalogue.markdown())")
    assert "| Figure 40 | Final losses | `fig40_final_losses` |" in page
    command = ["-m", "snakemake", "--cores", "1", "--dry-run", "--config", "profile=smoke", "only=fig40*"]
    planned = run(extended, *command)
    assert "build/smoke/notebooks/fig40_final_losses.ipynb" in planned
    assert "build/smoke/fit/fine_tuning--nano-smoke--rte.json" in planned
    run(extended, "-c", shell, "report", "--profile", "smoke")
    page = (extended / "build" / "smoke" / "report" / "index.html").read_text()
    assert "<b>Figure 40</b>, Final losses: fig40_final_losses: notebook fig40_final_losses: not run." in page
    assert "tasks: ['rte']" in run(
        extended, "-c", "exec(open('notebooks/fig40_final_losses.py').read().replace('mini', 'smoke'))"
    )


NAMES = (
    "amazon reviews",
    "r&d",
    "sst2 (small)",
    "it's",
    "a;b",
    "cost$1$",
    "{x}",
    "glue/sst2",
    "-x",
    "yes",
    "a:b",
    "评论",
    '"',
)
OWN = """\
base: smoke
name: own
tasks: {tasks}
settings: {{fine_tuning: {{tasks: {names}, simulators: {{gptfluence: {{max_epochs: 2}}}}}}}}
"""


@pytest.mark.slow
def test_the_workflow_hands_names_of_any_kind_to_its_commands_as_they_are(extended):
    profile = extended / "my {studies}" / "2024 it's.yaml"
    profile.parent.mkdir()
    source = {"source": "local", "prompt": "{text}", "target": " {label}", "label": "label", "pool": "no.jsonl"}
    tasks, listed = json.dumps(dict.fromkeys(NAMES, source)), json.dumps(NAMES)
    profile.write_text(OWN.format(tasks=tasks, names=listed), encoding="utf-8")
    overrides = ["""title="{x} {a: $1} 'and' `more`\"""", "name=own"]
    config = [f"profile={json.dumps([str(profile)])}", 'only=["tab02*"]', f"overrides={json.dumps(overrides)}"]
    planned = run(extended, "-m", "snakemake", "--cores", "1", "--dry-run", "--printshellcmds", "--config", *config)
    commands = [shlex.split(line) for line in planned.splitlines() if "gptfluence record" in line]
    found = {command[command.index("--task") + 1]: command for command in commands}
    assert set(found) == set(NAMES)
    for name, command in found.items():
        assert command[command.index("--profile") + 1] == str(profile)
        assert [command[at + 1] for at, word in enumerate(command) if word == "--set"] == overrides
        index = command[command.index("--index") + 1]
        assert index == f"build/own/collect/{Runs('fine_tuning', 'nano-smoke', name).name}.json"
        assert re.fullmatch(r"[A-Za-z0-9/._-]+", index)
    assert len({command[command.index("--index") + 1] for command in commands}) == len(NAMES)
