"""Benchmarks write what they find: a JSON file each, and from it the tables of their README."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = ("recorder", "trainer", "simulators", "tangents", "tracin", "published")


@pytest.fixture
def common(load):
    return load("common")


def two_sides(common, **options):
    sides = [
        common.Side("obvious", [4.0, 6.0, 20.0]),
        common.Side("ours", [3.0, 1.0, 2.0], {"peak GiB": 0.25}),
    ]
    return common.Comparison("a comparison", "seconds a step", sides, reference="obvious", notes=["a note"], **options)


@pytest.fixture
def fake(common):
    def add_options(parser):
        parser.add_argument("--steps", type=int, default=48)

    def measure(options):
        assert options.steps in (48, 2)
        yield two_sides(common)

    return common.Benchmark("fake", "A benchmark that measures nothing.", add_options, {"steps": 2}, measure)


@pytest.mark.parametrize(("arguments", "mode", "steps"), [(["--quick"], "quick", 2), ([], "full", 48)])
def test_a_result_holds_both_sides_and_all_that_it_was_measured_with(fake, tmp_path, capsys, arguments, mode, steps):
    fake.main([*arguments, "--results", str(tmp_path)])
    found = json.loads((tmp_path / "fake.json").read_text())
    assert (found["benchmark"], found["mode"], found["options"]) == ("fake", mode, {"steps": steps})
    (comparison,) = found["comparisons"]
    assert comparison["unit"] == "seconds a step"
    assert comparison["ratio_is"] == "obvious / it"
    assert [side["label"] for side in comparison["sides"]] == ["obvious", "ours"]
    assert [side["repetitions"] for side in comparison["sides"]] == [[4, 6, 20], [3, 1, 2]]
    assert [side["median"] for side in comparison["sides"]] == [6, 2]  # the means are 10 and 2
    assert [side["ratio"] for side in comparison["sides"]] == [1, 3]
    machine = found["machine"]
    assert machine["processor"]
    assert machine["os"]
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert len(machine["load_average"]) == 3
    assert isinstance(machine["quiet"], bool)
    assert {"python", "torch", "transformers", "numpy"} <= set(found["versions"])
    assert {"commit", "clean", "date", "seconds"} <= set(found)
    assert "ours" in capsys.readouterr().out


def test_options_of_the_command_line_win_over_the_quick_ones(fake, tmp_path):
    fake.main(["--quick", "--steps", "48", "--results", str(tmp_path)])
    assert json.loads((tmp_path / "fake.json").read_text())["options"] == {"steps": 48}


def test_nothing_is_written_where_sides_disagree(common, tmp_path):
    def measure(_):
        yield two_sides(common)
        raise SystemExit("ours differs")

    benchmark = common.Benchmark("fake", "", lambda parser: None, {}, measure)
    with pytest.raises(SystemExit, match="ours differs"):
        benchmark.main(["--results", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_ratio_says_which_way_it_goes(common):
    slowdown = two_sides(common, slowdown=True).facts()
    assert slowdown["ratio_is"] == "it / obvious"
    assert [side["ratio"] for side in slowdown["sides"]] == [1, pytest.approx(1 / 3)]


def test_sides_take_turns(common):
    calls = []
    seconds = common.alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert "".join(calls) == "ababab"  # the first two are not counted
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_the_readme_is_written_from_the_results(fake, load, tmp_path):
    fake.main(["--quick", "--results", str(tmp_path)])
    page = "prose\n<!-- results fake -->\nold\n<!-- end -->\nprose\n<!-- results other -->\nkept\n<!-- end -->\n"
    written = load("readme").filled(page, tmp_path)
    assert "old" not in written
    assert "<!-- results other -->\nkept\n<!-- end -->" in written
    assert "|  | seconds a step | obvious / it | peak GiB |" in written
    assert "| ours | 2 | 3 | 0.25 |" in written
    assert "*Measured quickly, so roughly, on " in written
    assert load("readme").filled(written, tmp_path) == written


def test_the_readme_has_a_place_for_every_benchmark(load):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert sorted(block["name"] for block in load("readme").BLOCK.finditer(text)) == sorted(
        [*SCRIPTS, "gpu", "gpu_runs"]
    )
    assert sorted(load("runner").MEASURED) == sorted(SCRIPTS)
    assert load("readme").filled(text, FOLDER / "results") == text, "run benchmarks/run --write-readme"


@pytest.mark.parametrize("name", SCRIPTS)
def test_quick_values_are_those_of_options(load, name):
    benchmark = load(name).BENCHMARK
    parser = argparse.ArgumentParser()
    benchmark.add_options(parser)
    assert benchmark.name == name
    assert benchmark.quick
    assert set(benchmark.quick) <= set(vars(parser.parse_args([])))
    json.dumps(vars(parser.parse_args([])))  # options are written down


def test_the_times_of_run_all_are_noted_with_their_commands(load, tmp_path, capsys):
    build = tmp_path / "build"
    (build / "benchmarks").mkdir(parents=True)
    for name, seconds in (("fit-a", 3.5), ("fit-b", 1.0), ("notebook-c", 2.0)):
        (build / "benchmarks" / f"{name}.tsv").write_text(f"s\tcpu_time\n9.0\t{seconds}\n")
    arguments = ["run_all", "--seconds", "everything=2222", "--seconds", "tests=700", "--build", str(build)]
    assert load("runner").main([*arguments, "--results", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "run_all.json").read_text())
    assert found["times"] == [
        {"name": "everything", "what": "everything", "command": "./run_all.sh", "seconds": 2222.0},
        {"name": "tests", "what": "the checks and the tests", "command": "./run_all.sh --test", "seconds": 700.0},
    ]
    assert found["processor_seconds"] == {"fit": 4.5, "notebook": 2.0}
    assert found["machine"]["quiet"] is None  # it was timed before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["nonsense"],
            "'nonsense' is no benchmark; known: recorder, trainer, simulators, tangents, tracin, published, gpu, run_all",
        ),
        (["--seconds", "everything=3"], "--seconds and --build are for run_all alone"),
        (["--", "--steps", "3"], "options behind -- go to one benchmark; name it"),
    ],
)
def test_wrong_arguments_are_named(load, capsys, arguments, said):
    with pytest.raises(SystemExit):
        load("runner").main(arguments)
    assert said in capsys.readouterr().err
