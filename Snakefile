# The graph: record the runs of each GPT, fit the simulators on them, run each notebook, put everything on one page.
#
# It holds no logic of its own: `gptfluence.workflow.catalogue` says what the notebooks need, and jobs call the `gptfluence` command,
# which keeps what it makes in content-addressed artifacts, so that a notebook run by hand finds the same. Files below
# build/ only tell Snakemake what is done.
#
#   ./run_all.sh                                   on the cores of this machine
#   ./run_all.sh --profile pythia -- --executor slurm --jobs 100
import json
import re
import shlex
from pathlib import Path

from gptfluence.profile.load import PROFILES
from gptfluence.workflow import catalogue
from gptfluence.common.errors import GPTfluenceError
from gptfluence.study.study import Study

PROFILE = str(config.get("profile", "mini"))
ONLY = str(config.get("only") or "*")
OVERRIDES = [str(override) for override in config.get("overrides", [])]
try:
    STUDY = Study.load(PROFILE, OVERRIDES)
    WANTED = catalogue.chosen(STUDY, ONLY)
except GPTfluenceError as error:
    raise WorkflowError(str(error)) from None
FITTING = catalogue.merged(WANTED)
BUILD = f"build/{STUDY.label}"
PROFILE_FILE = PROFILE if PROFILE.endswith((".yaml", ".yml")) else str(PROFILES / f"{PROFILE}.yaml")
STUDY_OPTIONS = f"--profile {shlex.quote(PROFILE)} " + " ".join(f"--set {shlex.quote(o)}" for o in OVERRIDES)
REPORT = f"gptfluence report {STUDY_OPTIONS} --only {shlex.quote(ONLY)} --build {shlex.quote(BUILD)}"
COMPLETE = f"{BUILD}/report/complete"
CORES = workflow.cores or 1
# GPTs side by side on one core each, or one after the other on all of them: what leaves no core idle. One GPU takes them in turn.
SHARE = 1 if len(FITTING) >= CORES else CORES
TRAINED_ON_GPU = {name for name, model in STUDY.profile.models.items() if model.source in ("hub", "local")}
ON_GPU = {runs for runs in FITTING if FITTING[runs][0].model in TRAINED_ON_GPU}
FITTED_ON_GPU = {runs for runs in ON_GPU if catalogue.needs_gpt(STUDY, FITTING[runs][1])}
TRAINING = [run for run in WANTED if WANTED[run].trains]
# Of a notebook that trains, which records runs side by side for part of its time.
TRAINING_CORES = max(1, CORES // min(4, len(TRAINING) or 1))
ALONE = [run for run in WANTED if not WANTED[run].fits] if SHARE == 1 and not TRAINED_ON_GPU else []


def options(runs):
    found = FITTING[runs][0]
    task = f"--task {found.task} " if found.task else ""
    return f"--setting {found.setting} --model {shlex.quote(found.model)} {task}{STUDY_OPTIONS}"


def on_gpu(run):
    return WANTED[run].trains and STUDY.setting(next(iter(STUDY.profile.settings))).model in TRAINED_ON_GPU


def parameters(run):
    return shlex.quote(json.dumps({"profile": PROFILE, "overrides": OVERRIDES, **WANTED[run].parameters}))


def needed(run):
    return [f"{BUILD}/fit/{runs.name}.json" for runs in WANTED[run].fits] + (
        [f"{BUILD}/unseen/{runs.name}.json" for runs in WANTED[run].fits] if WANTED[run].unseen else []
    )


def package(*modules):
    """The sources that a step's numbers come from: editing one has the step look again for what it needs."""
    return sorted(str(path) for module in modules for path in Path(workflow.basedir, "gptfluence").glob(module))


RECORDED_BY = package("tasks/**/*.py", "models/gpt.py", "recording/*.py")
DRAWN_BY = package("drawing/*.py", "experiments/*.py", "paper/*", "scoring/*.py", "study/*.py", "workflow/notebook.py")


rule all:
    input:
        COMPLETE,


# The rule below makes the page when everything went well; when something failed, this does, and says what. Its page does not
# stand for the rule's: the next run is to try again.
onerror:
    shell("rm -f {COMPLETE}; {REPORT} >&2 || true")


rule collect:
    input:
        PROFILE_FILE,
        RECORDED_BY,
    output:
        f"{BUILD}/collect/{{runs}}.json",
    log:
        f"{BUILD}/logs/collect-{{runs}}.log",
    benchmark:
        f"{BUILD}/benchmarks/collect-{{runs}}.tsv"
    params:
        options=lambda wildcards: options(wildcards.runs),
    priority: 2  # what others wait for comes first
    threads: lambda wildcards: CORES if wildcards.runs in ON_GPU else SHARE
    resources:
        mem_mb=lambda wildcards: 32000 if wildcards.runs in ON_GPU else 4000,
        runtime=24 * 60,  # minutes
        gpu=lambda wildcards: 1 if wildcards.runs in ON_GPU else 0,
    shell:
        "gptfluence record {params.options} --jobs {threads} --index {output} 2> {log}"


rule unseen:
    input:
        f"{BUILD}/collect/{{runs}}.json",
    output:
        f"{BUILD}/unseen/{{runs}}.json",
    log:
        f"{BUILD}/logs/unseen-{{runs}}.log",
    benchmark:
        f"{BUILD}/benchmarks/unseen-{{runs}}.tsv"
    params:
        options=lambda wildcards: options(wildcards.runs),
    priority: 1
    threads: lambda wildcards: CORES if wildcards.runs in ON_GPU else SHARE
    resources:
        mem_mb=lambda wildcards: 32000 if wildcards.runs in ON_GPU else 4000,
        runtime=24 * 60,
        gpu=lambda wildcards: 1 if wildcards.runs in ON_GPU else 0,
    shell:
        "gptfluence record --unseen {params.options} --jobs {threads} --index {output} 2> {log}"


rule fit:
    input:
        f"{BUILD}/collect/{{runs}}.json",
        package("simulators/*.py", "gradients/*.py", "models/encoders.py"),
    output:
        f"{BUILD}/fit/{{runs}}.json",
    log:
        f"{BUILD}/logs/fit-{{runs}}.log",
    benchmark:
        f"{BUILD}/benchmarks/fit-{{runs}}.tsv"
    params:
        options=lambda wildcards: options(wildcards.runs),
        simulators=lambda wildcards: " ".join(map(shlex.quote, FITTING[wildcards.runs][1])),
    priority: 1
    threads: lambda wildcards: CORES if wildcards.runs in FITTED_ON_GPU else 1
    resources:
        mem_mb=lambda wildcards: 32000 if wildcards.runs in FITTED_ON_GPU else 4000,
        runtime=24 * 60,
        gpu=lambda wildcards: 1 if wildcards.runs in FITTED_ON_GPU else 0,
    shell:
        "gptfluence fit {params.simulators} {params.options} --jobs 1 "
        "--index {output} > {log} 2>&1"


rule notebook:
    input:
        lambda wildcards: f"{workflow.basedir}/notebooks/{WANTED[wildcards.run].notebook}.ipynb",
        lambda wildcards: needed(wildcards.run),
        DRAWN_BY,
    output:
        f"{BUILD}/notebooks/{{run}}.ipynb",
    params:
        notebook=lambda wildcards: WANTED[wildcards.run].notebook,
        parameters=lambda wildcards: parameters(wildcards.run),
    log:
        f"{BUILD}/logs/notebook-{{run}}.log",
    benchmark:
        f"{BUILD}/benchmarks/notebook-{{run}}.tsv"
    threads: 1
    resources:
        mem_mb=lambda wildcards: 32000 if on_gpu(wildcards.run) else 4000,
        runtime=24 * 60,
        gpu=lambda wildcards: 1 if on_gpu(wildcards.run) else 0,
    shell:
        # Snakemake would give torch as many threads, and sums in another order other numbers
        "GPTFLUENCE_JOBS={threads} OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 gptfluence run-notebook {params.notebook} --output {output} --parameters {params.parameters} "
        f"--failure {shlex.quote(BUILD)}/failures/{{wildcards.run}}.json > {{log}} 2>&1"


# The same for notebooks that wait for no other job: the longest of them would keep one core busy at the end.
use rule notebook as notebook_alone with:
    priority: 3
    wildcard_constraints:
        run="|".join(map(re.escape, ALONE)) or "-",


# Others that train take longer than those that draw, and come before them for the same reason.
use rule notebook as notebook_training with:
    priority: 1
    threads: TRAINING_CORES
    wildcard_constraints:
        run="|".join(map(re.escape, TRAINING)) or "-",


ruleorder: notebook_alone > notebook_training > notebook


rule report:
    input:
        expand(f"{BUILD}/notebooks/{{run}}.ipynb", run=WANTED),
        package("workflow/page.py", "workflow/outcomes.py", "workflow/templates/*"),
    output:
        f"{BUILD}/report/index.html",
        touch(COMPLETE),
    log:
        f"{BUILD}/logs/report.log",
    params:
        command=REPORT,
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    shell:
        "{params.command} 2>&1 | tee {log}"
