# The graph: record the runs of each task, fit each simulator, run each notebook.
#
# It holds no logic of its own: jobs call the `gptfluence` command, which keeps what it makes in content-addressed
# artifacts, so that a notebook run by hand finds the same. Files below build/ only tell Snakemake what is done.
#
#   ./run_all.sh                                   on the cores of this machine
#   ./run_all.sh --profile pythia -- --executor slurm --jobs 100
import json
import shlex
from fnmatch import fnmatch
from pathlib import Path

from gptfluence import config as profiles
from gptfluence.names import TRIVIAL
from gptfluence.study import Study

PROFILE = str(config.get("profile", "mini"))
OVERRIDES = [str(override) for override in config.get("overrides", [])]
ONLY = str(config.get("only") or "*")
STUDY = Study.load(PROFILE, OVERRIDES)
BUILD = f"build/{STUDY.label}"
FINE_TUNING = STUDY.setting("fine_tuning")
PROFILE_FILE = PROFILE if PROFILE.endswith((".yaml", ".yml")) else str(profiles.PROFILES / f"{PROFILE}.yaml")
STUDY_OPTIONS = f"--profile {shlex.quote(PROFILE)} " + " ".join(f"--set {shlex.quote(o)}" for o in OVERRIDES)

LEARNED = [name for name in STUDY.profile.simulators if name not in TRIVIAL]  # the others take no time to fit

# Notebook runs: output name -> (notebook, its parameters besides the profile's).
RUNS = {
    "explore_quickstart": ("explore_quickstart", {}),
    "tab02_fine_tuning_loss": ("tab02_fine_tuning_loss", {}),
    "fig16_fine_tuning_loss": ("fig10_18_qualitative", {"figure": 16}),
}
WANTED = [name for name, (notebook, _) in RUNS.items() if fnmatch(name, ONLY) or fnmatch(notebook, ONLY)]
if not WANTED:
    raise WorkflowError(f"only={ONLY!r} matches no notebook and no output; known: {', '.join(RUNS)}")


def parameters(run):
    return shlex.quote(json.dumps({"profile": PROFILE, "overrides": OVERRIDES, **RUNS[run][1]}))


def package(*modules):
    """The sources that a step's numbers come from: editing one makes the step up for renewal."""
    return sorted(str(path) for module in modules for path in Path(workflow.basedir, "gptfluence").glob(module))


rule all:
    input:
        expand(f"{BUILD}/notebooks/{{run}}.ipynb", run=WANTED),


rule collect:
    input:
        PROFILE_FILE,
        package("tasks/**/*.py", "dynamics/recorder.py", "dynamics/tokens.py", "models.py"),
    output:
        f"{BUILD}/collect/{{task}}.json",
    log:
        f"{BUILD}/logs/collect-{{task}}.log",
    benchmark:
        f"{BUILD}/benchmarks/collect-{{task}}.tsv"
    threads: workflow.cores or 1  # the runs of a task use every core; tasks follow one another
    resources:
        mem_mb=4000 if FINE_TUNING.model.startswith("nano") else 32000,
        runtime=24 * 60,  # minutes
        gpu=0 if FINE_TUNING.model.startswith("nano") else 1,
    shell:
        f"gptfluence record --task {{wildcards.task}} {STUDY_OPTIONS} --jobs {{threads}} --index {{output}} 2> {{log}}"


rule fit:
    input:
        f"{BUILD}/collect/{{task}}.json",
        package("simulators/*.py", "encoders.py", "dynamics/tangents.py"),
    output:
        f"{BUILD}/fit/{{task}}-{{simulator}}.json",
    log:
        f"{BUILD}/logs/fit-{{task}}-{{simulator}}.log",
    benchmark:
        f"{BUILD}/benchmarks/fit-{{task}}-{{simulator}}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=120,
    shell:
        f"gptfluence fit --task {{wildcards.task}} --simulator {{wildcards.simulator}} {STUDY_OPTIONS} --jobs 1 "
        "--index {output} > {log} 2>&1"


rule notebook:
    input:
        lambda wildcards: f"{workflow.basedir}/notebooks/{RUNS[wildcards.run][0]}.ipynb",
        expand(f"{BUILD}/fit/{{task}}-{{simulator}}.json", task=FINE_TUNING.tasks, simulator=LEARNED),
        package("figures.py", "tables.py", "typeset.py", "names.py", "notebook.py", "evaluation.py"),
    output:
        f"{BUILD}/notebooks/{{run}}.ipynb",
    params:
        notebook=lambda wildcards: RUNS[wildcards.run][0],
        parameters=lambda wildcards: parameters(wildcards.run),
    log:
        f"{BUILD}/logs/notebook-{{run}}.log",
    benchmark:
        f"{BUILD}/benchmarks/notebook-{{run}}.tsv"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    shell:
        "gptfluence run-notebook {params.notebook} --output {output} --parameters {params.parameters} > {log} 2>&1"
