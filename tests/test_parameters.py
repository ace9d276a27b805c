"""Parameters of notebooks: run again in one kernel, misspelt, and given again by the command that is recorded."""

from __future__ import annotations

import shlex
from pathlib import Path

import papermill.cli
import pytest
from click.testing import CliRunner

from gptfluence.common.errors import ConfigurationError
from gptfluence.workflow.notebook import NOTEBOOKS
from gptfluence.workflow.parameters import assigned, check_parameters, command, declared_parameters

SCRIPTS = sorted(NOTEBOOKS.glob("*.py"))
DECLARED = {"profile": ("str", "mini"), "rates": ("list[float]", []), "runs": ("int", 3)}
CELL = 'profile: str = "mini"\nrates: list[float] = []\nruns: int = 3'
OPENS = 'nb = gf.Notebook("fig", globals())\ntest = 1\nresults = [test]'


def in_kernel(*cells: str, before: dict | None = None) -> dict:
    """The names of a kernel that ran these cells, at the moment at which the last one opens the notebook."""
    namespace: dict = {"In": [""], "Out": {}, **(before or {})}
    for place, cell in enumerate(cells):
        namespace["In"].append(cell)
        if place < len(cells) - 1:
            exec(cell.replace('gf.Notebook("fig", globals())', "0"), namespace)
    return namespace


def test_a_notebook_runs_again_in_one_kernel_with_other_parameters():
    again = in_kernel(CELL, OPENS, "scratch = results", CELL.replace("3", "7"), OPENS)
    assert check_parameters("fig", DECLARED, again)["runs"] == 7
    assert check_parameters("fig", DECLARED, in_kernel(CELL, OPENS, OPENS))["runs"] == 3  # the first cell left out


def test_what_ipython_starts_with_is_no_parameter():
    assert check_parameters("fig", DECLARED, in_kernel(CELL, OPENS, before={"run": 3, "np": 1}))["runs"] == 3


@pytest.mark.parametrize(
    "cells",
    [
        (CELL + "\nrun = 4", OPENS),
        (CELL, "# Parameters\nrun = 4", OPENS),  # as papermill gives it
        (CELL, OPENS, CELL + "\nrun = 4", OPENS),
        (CELL, "# Parameters\ntest = 4", OPENS),  # a name that the notebook itself uses later
        ("%matplotlib inline\n", CELL, "# Parameters\nrun = 4", OPENS),
    ],
)
def test_a_misspelt_parameter_is_found_in_a_kernel(cells):
    with pytest.raises(ConfigurationError, match=r"parameter '(run|test)' is not known; known: profile, rates, runs"):
        check_parameters("fig", DECLARED, in_kernel(*[cell for cell in cells if not cell.startswith("%")]))


def test_a_parameter_that_was_misspelt_once_does_not_stay_wrong():
    mended = in_kernel(CELL + "\nrun = 4", "nb = 0", CELL.replace("3", "4"), OPENS)
    assert check_parameters("fig", DECLARED, mended)["runs"] == 4


def test_a_parameter_without_a_value_is_named():
    with pytest.raises(ConfigurationError, match="parameter 'runs' has no value; run the parameters cell"):
        check_parameters("fig", DECLARED, {"profile": "mini", "rates": []})


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_no_notebook_changes_its_parameters_by_itself(script: Path):
    _, _, code = script.read_text(encoding="utf-8").partition('tags=["parameters"]')
    assert not assigned(code[code.index("\n# %%") :]) & declared_parameters(script).keys()


def read_again(text: str, monkeypatch) -> dict:
    """The parameters that papermill takes from a command, as a shell and papermill's own command line read it."""
    found: dict = {}
    monkeypatch.setattr(papermill.cli, "execute_notebook", lambda **given: found.update(given["parameters"]))
    done = CliRunner().invoke(papermill.cli.papermill, shlex.split(text)[1:])
    assert done.exit_code == 0, done.output
    return found


@pytest.mark.parametrize(
    "values",
    [
        {"profile": "mini", "task": "sst2", "runs": 3, "level": 0.9, "tasks": ["sst2"]},
        {"profile": "my studies/2024.yaml", "task": "it's $HOME; `ls` & {x}"},
        {"profile": "2024", "task": "1e5", "method": "None", "other": "nan", "more": "True", "last": "１２"},
        {"level": 1e-05, "rates": [1e-05, 2.0, float("inf")], "exact": True, "seeds": [1, -2]},
        {"tasks": ["评论", "a: b", "- x", "#", "😀", "a\nb\x85\u2028\x7f", '"', "\\", "yes", "010", ""]},
        {"task": "a\nb\x00", "other": "-p", "empty": ""},
    ],
)
def test_a_recorded_command_gives_the_same_parameters_again(values, monkeypatch):
    text = command("fig", values)
    assert "\n" not in text
    again = read_again(text, monkeypatch)
    assert again == values
    assert {name: type(value) for name, value in again.items()} == {name: type(value) for name, value in values.items()}


def test_the_command_of_plain_parameters_stays_as_it_is_read_best():
    values = {"profile": "mini", "tasks": ["sst2"], "runs": 3, "rates": [0.4, 0.2]}
    expected = "papermill notebooks/fig.ipynb out.ipynb -p profile mini -p runs 3 -y 'tasks: [\"sst2\"]' -y 'rates: [0.4, 0.2]'"
    assert command("fig", values) == expected
