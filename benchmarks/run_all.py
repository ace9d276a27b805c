"""Writes down how long `./run_all.sh` takes, as somebody timed it: hours on a quiet machine are not for a script to repeat.

    benchmarks/run run_all --seconds everything=2222 --seconds nothing_changed=6
    benchmarks/run run_all --seconds everything=2222 --build build/mini    # and the processor time of its parts

The names are those of `STEPS`. `--build` is the folder of the finished study, which holds Snakemake's times of every part.
Run it on the machine and at the commit that were timed: the file names them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from common import write

STEPS = {  # name -> what it is, and the command that was timed
    "everything": ("everything", "./run_all.sh"),
    "only_paper": ("the paper's tables and figures", "./run_all.sh --only paper"),
    "rest_afterwards": ("the rest afterwards", "./run_all.sh"),
    "nothing_changed": ("nothing has changed", "./run_all.sh"),
    "tests": ("the checks and the tests", "./run_all.sh --test"),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="write run_all.json into this folder")
    parser.add_argument("--seconds", type=step, action="append", required=True, metavar="NAME=SECONDS")
    parser.add_argument("--build", type=Path, help="folder of the finished study, for example build/mini")
    options = parser.parse_args(arguments)
    seconds = dict(options.seconds)
    content = {
        "mode": "full",
        "times": [
            {"name": name, "what": what, "command": command, "seconds": seconds[name]}
            for name, (what, command) in STEPS.items()
            if name in seconds
        ],
        "processor_seconds": None if options.build is None else processor_seconds(options.build),
        "options": {"seconds": seconds, "build": None if options.build is None else options.build.name},
    }
    for row in content["times"]:
        print(f"{row['what']:<34}{row['seconds']:>10,.0f} s   {row['command']}")
    write(options.results, "run_all", content, load=None)


def step(text: str) -> tuple[str, float]:
    """A name of `STEPS` and its seconds."""
    name, _, seconds = text.partition("=")
    if name not in STEPS:
        raise argparse.ArgumentTypeError(f"{name!r} is no step; known: {', '.join(STEPS)}")
    try:
        return name, float(seconds)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: NAME=SECONDS is wanted, for example {name}=2222") from None


def processor_seconds(build: Path) -> dict[str, float]:
    """Processor seconds by kind of part: collect, unseen, fit, notebook. Ends the program where there are none."""
    found: dict[str, float] = {}
    for path in sorted((build / "benchmarks").glob("*.tsv")):
        kind = path.stem.partition("-")[0]
        found[kind] = found.get(kind, 0.0) + float(pd.read_csv(path, sep="\t")["cpu_time"].sum())
    if not found:
        raise SystemExit(f"{build}: holds no benchmarks/*.tsv; is this the folder of a finished study?")
    return {kind: round(seconds, 1) for kind, seconds in found.items()}


if __name__ == "__main__":
    main()
