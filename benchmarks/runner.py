"""Runs the benchmarks, writes what they find into results/NAME.json, and the tables of README.md from there.

    benchmarks/run                      # everything, about an hour: for a machine that does nothing else
    benchmarks/run --quick              # about two minutes on two cores: shows that all of them work
    benchmarks/run recorder tracin      # these only
    benchmarks/run tracin -- --steps 2  # with other options of that benchmark
    benchmarks/run --write-readme       # nothing is measured: the README's tables from the results that are there
    benchmarks/run gpu                  # on a machine with a GPU, see gpu.py
    benchmarks/run run_all --seconds everything=2222    # see run_all.py

Full measurements change the README by themselves; quick ones change it only with --write-readme.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from common import RESULTS
from readme import write_readme

HERE = Path(__file__).resolve().parent
MEASURED = ("recorder", "trainer", "simulators", "tangents", "tracin", "published")
ON_A_GPU = "gpu"  # where there is one
NOTED = "run_all"  # somebody else has timed it
KNOWN = (*MEASURED, ON_A_GPU, NOTED)


def main(arguments: list[str] | None = None) -> int:
    """1 if a benchmark failed, else 0."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    names = options.names or ([] if options.write_readme else list(MEASURED))
    failed = [name for name in names if run(name, options) != 0]
    if options.write_readme or (
        options.results.resolve() == RESULTS and not options.quick and not failed and names != [NOTED]
    ):
        write_readme(options.results)
    if failed:
        print(f"failed: {', '.join(failed)}; see above", file=sys.stderr)
    return 1 if failed else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(MEASURED)} (these if none is named), {ON_A_GPU}, {NOTED}"
    )
    parser.add_argument("--quick", action="store_true", help="short measurements")
    parser.add_argument("--write-readme", action="store_true", help="write the tables of benchmarks/README.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--seconds", action="append", default=[], metavar="NAME=SECONDS", help="for run_all")
    parser.add_argument("--build", help="for run_all")
    own, behind = arguments, []
    if "--" in arguments:
        at = arguments.index("--")
        own, behind = arguments[:at], arguments[at + 1 :]
    options = parser.parse_intermixed_args(own)
    for name in options.names:
        if name not in KNOWN:
            parser.error(f"{name!r} is no benchmark; known: {', '.join(KNOWN)}")
    if behind and len(options.names) != 1:
        parser.error("options behind -- go to one benchmark; name it")
    if (options.seconds or options.build) and options.names != [NOTED]:
        parser.error(f"--seconds and --build are for {NOTED} alone")
    options.behind = behind
    return options


def run(name: str, options: argparse.Namespace) -> int:
    """The exit status of one benchmark, which has a process of its own."""
    print(f"\n== {name}", flush=True)
    command = [sys.executable, str(HERE / f"{name}.py"), "--results", str(options.results), *options.behind]
    if name == NOTED:
        command += [part for each in options.seconds for part in ("--seconds", each)]
        command += ["--build", options.build] if options.build else []
    elif options.quick:
        command.append("--quick")
    return subprocess.run(command, check=False).returncode
