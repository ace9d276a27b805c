"""The package keeps to the sizes that CONTRIBUTING.md gives, and what a campaign holds does not travel by hand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from typer.testing import CliRunner

from gptfluence.common.settings import ROOT
from gptfluence.workflow.cli import app

OF_A_CAMPAIGN = {"setting", "task", "model", "metric", "unseen", "observed"}
FILES = sorted((ROOT / "gptfluence").rglob("*.py"))


def functions(node: ast.AST, where: str) -> Iterator[tuple[str, ast.FunctionDef | ast.Lambda]]:
    """Every function below a node with its name, those of the class Campaign left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and child.name == "Campaign":
            continue
        name = f"{where}.{getattr(child, 'name', '')}".rstrip(".")
        if isinstance(child, ast.FunctionDef | ast.Lambda):
            yield name, child
        yield from functions(child, name)


def crowded(source: str, where: str) -> dict[str, set[str]]:
    """The functions that take more than three of `OF_A_CAMPAIGN`, with those that they take."""
    found = {}
    for name, function in functions(ast.parse(source), where):
        arguments = function.args
        taken = {one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)} & OF_A_CAMPAIGN
        if len(taken) > 3:
            found[name] = taken
    return found


def test_no_function_takes_by_hand_what_a_campaign_holds():
    assert len(FILES) > 80
    assert not {name: taken for path in FILES for name, taken in crowded(path.read_text(), path.stem).items()}


def test_functions_are_counted_wherever_they_stand():
    many = "(setting, /, task, *, model, metric)"
    source = (
        f"def f{many}:\n    def g{many}: ...\nclass C:\n    def h{many}: ...\nclass Campaign:\n    def i{many}: ...\n"
    )
    assert set(crowded(source, "m")) == {"m.f", "m.f.g", "m.C.h"}
    assert not crowded("def f(task, model, metric, other): ...", "m")


def test_files_and_functions_are_as_short_as_contributing_says():
    text = " ".join((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split())
    said = re.search(r"No file has more than (\d+) lines and no function more than (\d+)", text)
    assert said
    longest_file, longest_function = map(int, said.groups())
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        assert len(source.splitlines()) <= longest_file, path
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < longest_function, f"{path}: {node.name}"


def without_encoding(source: str) -> list[int]:
    """The lines that open, read or write text, or read a program's output, in whatever encoding the locale has."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        of = getattr(getattr(call.func, "value", None), "id", "")
        given = {keyword.arg for keyword in call.keywords}
        modes = [one.value for one in ast.walk(call) if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        text = name in ("read_text", "write_text") or (
            name in ("open", "fdopen") and not any("b" in one for one in modes)
        )
        ours = of in ("files", "contents", "os", "tarfile", "datasets", "webbrowser") and not (
            of == "os" and name == "fdopen"
        )
        if (text and not ours and "encoding" not in given) or {"text", "universal_newlines"} & given:
            found.append(call.lineno)
    return found


def test_text_is_read_and_written_as_utf8_whatever_the_locale():
    places = [*FILES, *(path for room in ("tools", "benchmarks") for path in sorted((ROOT / room).rglob("*.py")))]
    lines = {str(path): without_encoding(path.read_text(encoding="utf-8")) for path in places}
    assert not {path: found for path, found in lines.items() if found}
    assert without_encoding("path.read_text()\nopen(p, 'w')\nrun(c, text=True)\nopen(p, 'rb')\np.open()") == [
        1,
        2,
        3,
        5,
    ]


def test_a_home_folder_is_looked_up_in_one_place():
    """`settings.expanded`, whose error says what is wrong with a `~`; `source_of` says it in words of its own."""
    found = {path.name for path in FILES if ".expanduser(" in path.read_text(encoding="utf-8")}
    assert found == {"settings.py", "gpt.py"}


def test_commands_about_a_campaign_have_its_options_and_their_own():
    shared = ("--task", "--profile", "--setting", "--model", "--set", "--jobs")
    for command, own in {"record": ("--unseen", "--index"), "fit": ("--index",)}.items():
        said = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
        for option in (*shared, *own):
            assert option in said, (command, option)


def test_a_mistake_in_the_options_of_a_campaign_is_named():
    wrong = CliRunner().invoke(app, ["record", "--profile", "smoke", "--task", "sst3"])
    assert wrong.exit_code == 1
    assert "sst3" in str(wrong.exception)
