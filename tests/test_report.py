"""The page of a study: whole without a network, right about what was made and what failed, and readable by everybody."""

from __future__ import annotations

import base64
import json
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import papermill
import pytest
from typer.testing import CliRunner

from gptfluence.common import files, provenance
from gptfluence.drawing import saving
from gptfluence.drawing.trajectories import plot_trajectories
from gptfluence.drawing.typeset import Table
from gptfluence.study.study import Study
from gptfluence.workflow import catalogue
from gptfluence.workflow.catalogue import label_of, title_of
from gptfluence.workflow.cli import app
from gptfluence.workflow.outcomes import Outcome, outcomes, summary, write_failure
from gptfluence.workflow.page import table_html, write
from gptfluence.workflow.row import Output, Row, Runs


class Page(HTMLParser):
    """The elements of a page: (tag, attributes), and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, {name: value or "" for name, value in attributes}))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def study() -> Study:
    return Study.load("smoke")


@pytest.fixture
def drawn(tmp_path: Path, study: Study) -> tuple[Path, Path]:
    """Folders of figures and of the build: a table and a figure were made, another figure failed."""
    folder, build = tmp_path / "figures", tmp_path / "build" / "smoke"
    command = "papermill notebooks/{}.ipynb out.ipynb -p profile smoke"
    facts = provenance.collect(
        command="", profile=study.profile, parameters={"examples": 2}, sources={"runs-1": {"a": 1}}
    )
    frame = pd.DataFrame(
        [("panel", name, step, 1.0 - step / 9, step == 0) for name in ("recorded", "gptfluence") for step in range(4)],
        columns=["panel", "series", "step", "value", "observed"],
    )
    saving.save_figure(
        plot_trajectories(frame),
        frame,
        folder,
        "fig16_fine_tuning_loss",
        caption='Loss of <examples> & "more". And what else.',
        provenance={**facts, "command": command.format("fig10_18_qualitative"), "reading": "Closest is GPTfluence."},
    )
    table = Table([("Method", ""), ("MSE ↓", "")], [["<b>mine</b> | yours", "1.0"], ["GPTfluence", "0.5"]], frame)
    saving.save_table(
        table,
        folder,
        "tab02_fine_tuning_loss",
        caption="A table.",
        provenance={**facts, "command": command.format("tab02_fine_tuning_loss")},
    )
    (build / "notebooks").mkdir(parents=True)
    for run in ("fig16_fine_tuning_loss", "tab02_fine_tuning_loss"):
        (build / "notebooks" / f"{run}.ipynb").write_text("{}")
    write_failure(build / "failures" / "fig17_fine_tuning_bleu.json", "fig10_18_qualitative", 3, "ValueError: no <way>")
    return folder, build


def page_of(study: Study, drawn: tuple[Path, Path]) -> tuple[Page, Path, str]:
    path, said = write(study, drawn[1], figures=drawn[0])
    return Page(path.read_text(encoding="utf-8")), path, said


def test_every_item_has_its_picture_or_table_caption_reading_provenance_and_files(study, drawn):
    page, path, _ = page_of(study, drawn)
    (picture,) = page.all("img")
    shown = base64.b64decode(picture["src"].removeprefix("data:image/png;base64,"))
    assert shown == (drawn[0] / "fig16_fine_tuning_loss.png").read_bytes()
    assert picture["alt"] == 'Loss of <examples> & "more". And what else.'
    assert len(page.all("table")) == 2  # the list of what was made here, and table 2
    for text in (
        "Closest is GPTfluence.",
        "A table.",
        "runs-1 (1 runs)",
        "papermill notebooks/tab02",
        "@misc{gptfluence",
    ):
        assert text in page.text
    local = [link["href"] for link in page.all("a") if link["href"].startswith("files/")]
    suffixes = {Path(link).suffix for link in local}
    assert suffixes == {".pdf", ".png", ".csv", ".tex", ".html", ".md", ".json", ".ipynb"}
    for link in local:
        assert (path.parent / link).is_file()
    assert {Path(link).name for link in local} == {file.name for file in (path.parent / "files").iterdir()}


def test_the_page_needs_no_network(study, drawn):
    page, path, _ = page_of(study, drawn)
    for tag, attributes in page.elements:
        for name in ("src", "href"):
            value = attributes.get(name, "")
            followed_by_hand = tag == "a" and value == "https://aclanthology.org/2024.emnlp-main.183"
            assert followed_by_hand or value.startswith("data:") or "//" not in value, (tag, attributes)
    text = path.read_text()
    assert "@import" not in text
    assert "url(" not in text


def test_the_page_serves_keyboards_and_screen_readers(study, drawn):
    page, _, _ = page_of(study, drawn)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert attributes.get(name, ids[0]) in ids
    for link in page.all("a"):
        assert not link["href"].startswith("#") or link["href"][1:] in ids
    assert page.elements[[tag for tag, _ in page.elements].index("body") + 1] == (
        "a",
        {"class": "skip", "href": "#main"},
    )
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("main")) == len(page.all("nav")) == len(page.all("h1")) == 1
    assert all(cell["scope"] == "col" for cell in page.all("th"))
    scrolling = [a for _, a in page.elements if a.get("class") == "scroll"]
    assert scrolling
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in scrolling)  # can be scrolled by keyboard
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert all(after <= before + 1 for before, after in pairwise(levels[levels.index(1) :]))  # no level is skipped


def test_colours_have_the_contrast_that_wcag_asks_for(study, drawn):
    _, path, _ = page_of(study, drawn)
    text = path.read_text()

    def luminance(color: str) -> float:
        color = color.lstrip("#")
        color = "".join(c * 2 for c in color) if len(color) == 3 else color
        parts = [int(color[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def of(name: str) -> str:
        return text.split(f"--{name}: ")[1].split(";")[0]

    for name in ("ink", "soft", "link"):
        for background in ("#ffffff", of("back"), "#fdf3ec"):
            assert (luminance(background) + 0.05) / (luminance(of(name)) + 0.05) >= 4.5


def test_what_failed_is_said_with_notebook_cell_and_cause(study, drawn):
    page, _, said = page_of(study, drawn)
    line = "fig17_fine_tuning_bleu failed: notebook fig10_18_qualitative, cell 3: ValueError: no <way>"
    assert line in said
    assert line in page.text
    assert f"study smoke: 2 of {len(catalogue.outputs(study))} outputs made" in said


def test_what_is_not_there_is_listed_with_the_reason(study, drawn):
    page, _, _ = page_of(study, drawn)
    listed = page.text.split("Not here\n")[1]
    assert (
        "Figure 10, Trajectories: loss, instruction tuning, 410M: not part of this study." in listed
    )  # smoke has no such model
    assert "Figure 8, Unseen examples: fig08_unseen_examples: notebook fig08_unseen_examples: not run." in listed
    assert "Figure 16," not in listed
    assert "Table 2," not in listed
    items = 13 + 30 - 2
    assert listed.count("Figure ") + listed.count("Table ") >= items


def test_an_output_older_than_a_failure_or_changed_by_hand_is_marked(study, drawn):
    folder, build = drawn
    write_failure(build / "failures" / "fig16_fine_tuning_loss.json", "fig10_18_qualitative", 2, "OSError: disk")
    (folder / "tab02_fine_tuning_loss.csv").write_text("other numbers")
    (folder / "tab02_fine_tuning_loss.tex").unlink()
    page, _, _ = page_of(study, drawn)
    assert "What is shown is from an earlier run. The last run: fig16_fine_tuning_loss failed" in page.text
    assert "tab02_fine_tuning_loss.csv is not what the notebook wrote" in page.text
    assert "tab02_fine_tuning_loss.tex is missing" in page.text


def test_a_damaged_output_leaves_the_others_on_the_page(study, drawn):
    (drawn[0] / "tab02_fine_tuning_loss.json").write_text('{"caption": ')
    page, _, said = page_of(study, drawn)
    assert len(page.all("img")) == 1
    assert "tab02_fine_tuning_loss cannot be shown" in said
    assert "tab02_fine_tuning_loss cannot be shown" in page.text


def test_the_same_results_give_the_same_page_and_what_is_gone_is_gone(study, drawn):
    _, path, _ = page_of(study, drawn)
    before = path.read_bytes()
    page_of(study, drawn)
    assert path.read_bytes() == before
    for file in drawn[0].glob("fig16*"):
        file.unlink()
    page, path, _ = page_of(study, drawn)
    assert not page.all("img")
    assert not list((path.parent / "files").glob("fig16*"))


def test_a_table_saved_as_html_is_shown_as_it_is(study, drawn):
    html = '<table class="x"><thead><tr><th>Method</th><th colspan="2" scope="col">MSE</th></tr></thead><tbody></tbody></table>'
    path = drawn[0] / "tab02_fine_tuning_loss.html"
    path.write_text(html)
    page, _, _ = page_of(study, drawn)
    assert [cell["scope"] for cell in page.all("th")] == ["col"] * 4  # two of the list of what was made here
    assert len(page.all("table")) == 2
    assert len(page.all("img")) == 1  # that of the figure


def test_several_outputs_of_one_notebook_have_one_fate(tmp_path):
    first = "tab05_hyperparameters_instruction_tuning"
    wanted = {
        row.name: Output(row) for row in catalogue.ROWS if catalogue.notebook_of(row) == "tab05_09_hyperparameters"
    }
    write_failure(tmp_path / "failures" / f"{first}.json", "tab05_09_hyperparameters", 2, "ValueError: no")
    assert [outcome.state for outcome in outcomes(wanted, tmp_path)] == ["failed"] * 5


def test_text_of_a_table_is_shown_and_not_obeyed():
    html = table_html(Table([("a", "")], [["<script>x</script>"], ["**b** | c"]], pd.DataFrame()).to_html(), 'name "x"')
    assert "<script>" not in html
    assert "| c" in html
    assert '<th scope="col"' in html
    assert "<thead>" in html


@pytest.mark.parametrize(
    ("name", "label", "title"),
    [
        ("tab02_fine_tuning_loss", "Table 2", "Loss simulation in fine-tuning"),
        ("tab05_hyperparameters_instruction_tuning", "Table 5", "Hyperparameters of instruction tuning"),
        ("tab09_hyperparameters_simfluence", "Table 9", "Hyperparameters of Simfluence"),
        ("fig13_instruction_tuning_bleu_1b", "Figure 13", "Trajectories: BLEU, instruction tuning, 1B"),
        (
            "fig30_webnlg_rouge_l_unseen_both",
            "Figure 30",
            "Trajectories: WebNLG, ROUGE-L, unseen training and test examples",
        ),
        ("ext04_leave_out", "", "Training examples left out, checked by retraining"),
        ("my_own_figure", "", "my own figure"),
    ],
)
def test_outputs_are_called_what_they_are_in_the_paper(name, label, title):
    assert (label_of(name), title_of(name)) == (label, title)


def test_the_default_study_is_reachable_without_its_name(tmp_path):
    build = tmp_path / "build" / "mini"
    path, _ = write(Study.load("mini"), build, figures=tmp_path)
    redirect = Page((tmp_path / "build" / "report" / "index.html").read_text())
    (link,) = redirect.all("a")
    assert (tmp_path / "build" / "report" / link["href"]).resolve() == path.resolve()


# --- outcomes --------------------------------------------------------------------------------------------------------

RUNS = Runs("fine_tuning", "nano", "sst2")


def outcome_of(build: Path, *, unseen: bool = False) -> Outcome:
    row = Row("tab02", "Table", "notebook_2", unseen=("test",) if unseen else ())
    return outcomes({"tab02": Output(row, needs={RUNS: []})}, build)[0]


@pytest.mark.parametrize("step", ["collect", "unseen", "fit"])
def test_an_output_whose_runs_failed_says_which_step_and_why(tmp_path, step):
    (tmp_path / "logs").mkdir()
    steps = ["collect", "unseen", "fit"]
    for earlier in steps[: steps.index(step)]:
        (tmp_path / earlier).mkdir()
        (tmp_path / earlier / f"{RUNS.name}.json").touch()
        (tmp_path / "logs" / f"{earlier}-{RUNS.name}.log").write_text("fine\n")
    log = tmp_path / "logs" / f"{step}-{RUNS.name}.log"
    log.write_text("recording\nerror: the disk is full\nsome line after it\n")
    found = outcome_of(tmp_path, unseen=True)
    assert (found.state, found.log) == ("blocked", str(log))
    assert f"{step} {RUNS.name}: error: the disk is full" in str(found)
    assert str(found) in summary([found], "mini")


def test_a_notebook_that_was_killed_is_failed_and_one_never_started_is_not(tmp_path):
    assert outcome_of(tmp_path).state == "not run"
    assert "not run: tab02" in summary([outcome_of(tmp_path)], "mini")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "notebook-tab02.log").write_text("Executing\nKilled\n")
    found = outcome_of(tmp_path)
    assert (found.state, found.cause) == ("failed", "it left no result; its log ends with: Killed")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "tab02.ipynb").touch()
    assert outcome_of(tmp_path).state == "made"
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures" / "tab02.json").write_text("{")
    assert "cannot be read" in outcome_of(tmp_path).cause


def dead(*_, **__):
    raise RuntimeError("Kernel died")


@pytest.mark.slow
def test_a_failing_notebook_leaves_cell_and_cause_and_a_good_run_takes_them_away(tmp_path, monkeypatch):
    failure, output = tmp_path / "failures" / "fig10.json", tmp_path / "fig10.ipynb"
    parameters = {"profile": "smoke", "figure": 10, "output_dir": str(tmp_path)}  # smoke has no model of 410m
    options = ["--output", str(output), "--parameters", json.dumps(parameters), "--failure", str(failure)]
    # neither another kernel of that name, nor a home, nor the user's backend, nor modules beside it are in the way
    other = {"argv": ["/bin/false", "{connection_file}"], "display_name": "Other", "language": "python"}
    files.write_json(tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json", other)
    (tmp_path / "random.py").write_text("raise SystemExit('this is not the module that was meant')")
    monkeypatch.chdir(tmp_path)
    for variable, value in {"JUPYTER_PATH": tmp_path / "jupyter", "HOME": "/proc/nohome", "MPLBACKEND": "none"}.items():
        monkeypatch.setenv(variable, str(value))
    done = CliRunner().invoke(app, ["run-notebook", "fig10_18_qualitative", *options])
    assert done.exit_code != 0
    assert not output.exists()
    found = json.loads(failure.read_text())
    assert (found["notebook"], found["cell"]) == (
        "fig10_18_qualitative",
        3,
    )  # papermill's own parameters are a cell, too
    assert "figure 10 is of a model of size 410m, and profile 'smoke' has none" in found["cause"]
    monkeypatch.setattr(papermill, "execute_notebook", dead)
    done = CliRunner().invoke(app, ["run-notebook", "fig10_18_qualitative", *options])
    assert "ended or does not answer (out of memory?): Kernel died" in str(done.exception)
    assert sys.executable in json.loads(failure.read_text())["cause"]
    monkeypatch.setattr(papermill, "execute_notebook", lambda source, target, *_, **__: Path(target).touch())
    assert CliRunner().invoke(app, ["run-notebook", "fig10_18_qualitative", *options]).exit_code == 0
    assert output.exists()
    assert not failure.exists()
