# The steps of a study: record the runs of each GPT, fit methods on them, execute each notebook, write the page.
#
# What each notebook needs stands in the catalogue (gptfluence/workflow/catalogue.py). Every job calls the `gptfluence` command,
# which keeps runs and fits as artifacts and finds them again, just as a notebook executed by hand does. The files in build/
# only tell Snakemake which steps are done.
#
#   ./run_all.sh                                   on the cores of this machine
#   ./run_all.sh --profile pythia -- --executor slurm --jobs 100
import json
import re
import shlex
import tomllib
from pathlib import Path

from gptfluence.common.errors import GPTfluenceError
from gptfluence.study.study import Study
from gptfluence.tasks.base import fingerprint
from gptfluence.workflow import catalogue, row


def text(value):
    """A value of --config. run_all.sh gives a list of one text, because Snakemake reads a bare one as a number or as YAML."""
    return str(value[0] if isinstance(value, list) else value)


PROFILE = text(config.get("profile", "mini"))
ONLY = text(config.get("only") or "") or "*"
OVERRIDES = [str(override) for override in config.get("overrides", [])]
try:
    STUDY = Study.load(PROFILE, OVERRIDES)
    WANTED = catalogue.chosen(STUDY, ONLY)
except GPTfluenceError as error:
    raise WorkflowError(str(error)) from None
NOTEBOOKS = catalogue.runs_of_notebooks(WANTED)  # by name: several outputs may come from one run of a notebook
RUNS = {runs.name: runs for runs in catalogue.before(NOTEBOOKS.values())}
FITTING = {runs.name: pairs for runs, pairs in catalogue.before(NOTEBOOKS.values()).items()}  # (metric, variant)
BUILD = f"build/{STUDY.label}"
SAID = fingerprint(STUDY.profile.model_dump(mode="json"))  # by the profile, its bases and the overrides
STUDY_OPTIONS = f"--profile {shlex.quote(PROFILE)} " + " ".join(f"--set {shlex.quote(o)}" for o in OVERRIDES)
REPORT = f"gptfluence report {STUDY_OPTIONS} --only {shlex.quote(ONLY)} --build {shlex.quote(BUILD)}"
COMPLETE = f"{BUILD}/report/complete"
CORES = workflow.cores or 1
# If there are enough GPTs to occupy all cores, each is recorded on one core; otherwise they take turns on all cores.
SHARE = 1 if len(RUNS) >= CORES else CORES
TRAINED_ON_GPU = {name for name, model in STUDY.profile.models.items() if model.source in ("hub", "local")}
MAKING_GPT = {runs.model: name for name, runs in RUNS.items()}.values()
ON_GPU = {name for name, runs in RUNS.items() if runs.model in TRAINED_ON_GPU}
FITTED_ON_GPU = {name for name in ON_GPU if any(row.needs_gpt(variant) for _, variant in FITTING[name])}
TRAINING = [name for name, output in NOTEBOOKS.items() if output.row.trains]
# Notebooks that train share the cores: each needs several for a part of its time only.
TRAINING_CORES = max(1, CORES // min(4, len(TRAINING) or 1))
ALONE = [name for name, output in NOTEBOOKS.items() if not output.needs] if SHARE == 1 and not TRAINED_ON_GPU else []


def options(name):
    """What tells `gptfluence record` and `gptfluence fit` which runs are meant."""
    runs = RUNS[name]
    task = f"--task {shlex.quote(runs.task)} " if runs.task else ""
    return f"--setting {runs.setting} --model {shlex.quote(runs.model)} {task}{STUDY_OPTIONS}"


def variants(name):
    return shlex.quote(json.dumps([[metric, row.to_json(variant)] for metric, variant in FITTING[name]]))


def on_gpu(name):
    return NOTEBOOKS[name].row.trains and bool(TRAINED_ON_GPU & set(NOTEBOOKS[name].models))


def made_by(name):
    return catalogue.notebook_of(NOTEBOOKS[name].row)


def parameters(name):
    given = {"profile": PROFILE, "overrides": OVERRIDES, **NOTEBOOKS[name].row.parameters}
    return shlex.quote(json.dumps(given))


def shown(name):
    """What the catalogue has a notebook show: when its row changed, it is executed again."""
    output = NOTEBOOKS[name]
    return str((output.panels, output.models, output.variants, output.values))


def needed(name):
    """The marks of the steps that a notebook waits for."""
    steps = ["fit", "unseen"] if NOTEBOOKS[name].row.unseen else ["fit"]
    return [f"{BUILD}/{step}/{runs.name}.json" for step in steps for runs in NOTEBOOKS[name].needs]


def code_of(room):
    """A hash of the sources of a room of the package and of all rooms below it, in the order that pyproject.toml gives.

    Each step depends on the code that makes its numbers: when the code was edited, the step checks again what it needs.
    """
    project = tomllib.loads(Path(workflow.basedir, "pyproject.toml").read_text(encoding="utf-8"))
    [contract] = project["tool"]["importlinter"]["contracts"]
    layers = [re.findall(r"\w+", layer) for layer in contract["layers"]]
    start = next(index for index, rooms in enumerate(layers) if room in rooms)
    folders = [Path(workflow.basedir, "gptfluence", name) for rooms in layers[start:] for name in rooms]
    paths = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".yaml", ".csv"))
    return hash_of(paths)


def hash_of(paths):
    return fingerprint([[path.name, path.read_text(encoding="utf-8")] for path in paths])


def of_workflow(*patterns):
    """A hash of sources. They are no inputs: Snakemake takes braces in the path of the repository for wildcards."""
    return hash_of(sorted(path for one in patterns for path in Path(workflow.basedir, "gptfluence/workflow").glob(one)))


rule all:
    input:
        COMPLETE,


# If a job fails, write the page anyway, list what failed, and remove the mark of completeness so that the next run tries again.
onerror:
    shell("rm -f {COMPLETE}; {REPORT} >&2 || true")


rule collect:
    output:
        f"{BUILD}/collect/{{runs}}.json",
    log:
        f"{BUILD}/logs/collect-{{runs}}.log",
    benchmark:
        f"{BUILD}/benchmarks/collect-{{runs}}.tsv"
    params:
        code=code_of("recording"),
        profile=SAID,
        options=lambda wildcards: options(wildcards.runs),
    # first, because other jobs wait for it; before them one job for each GPT, which makes the GPT that its others wait for
    priority: lambda wildcards: 3 if wildcards.runs in MAKING_GPT else 2
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
    output:
        f"{BUILD}/fit/{{runs}}.json",
    log:
        f"{BUILD}/logs/fit-{{runs}}.log",
    benchmark:
        f"{BUILD}/benchmarks/fit-{{runs}}.tsv"
    params:
        code=code_of("simulators"),
        options=lambda wildcards: options(wildcards.runs),
        variants=lambda wildcards: variants(wildcards.runs),
    priority: 1
    threads: lambda wildcards: CORES if wildcards.runs in FITTED_ON_GPU else 1
    resources:
        mem_mb=lambda wildcards: 32000 if wildcards.runs in FITTED_ON_GPU else 4000,
        runtime=24 * 60,
        gpu=lambda wildcards: 1 if wildcards.runs in FITTED_ON_GPU else 0,
    shell:
        "gptfluence fit --variants {params.variants} {params.options} --jobs 1 "
        "--index {output} > {log} 2>&1"


rule notebook:
    input:
        lambda wildcards: needed(wildcards.run),
    output:
        f"{BUILD}/notebooks/{{run}}.ipynb",
    params:
        code=code_of("experiments"),
        sources=lambda wildcards: hash_of([Path(workflow.basedir, "notebooks", f"{made_by(wildcards.run)}.ipynb")]),
        workflow=of_workflow("notebook.py", "parameters.py", "row.py"),
        shown=lambda wildcards: shown(wildcards.run),
        notebook=lambda wildcards: made_by(wildcards.run),
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
        # one thread: with more, torch adds in another order, and the numbers differ
        "GPTFLUENCE_JOBS={threads} OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 gptfluence run-notebook {params.notebook} --output {output} --parameters {params.parameters} "
        f"--failure {shlex.quote(BUILD)}/failures/{{wildcards.run}}.json > {{log}} 2>&1"


# Notebooks that wait for no other job start first: the longest of them, started last, would end long after all others.
use rule notebook as notebook_alone with:
    priority: 3
    wildcard_constraints:
        run="|".join(map(re.escape, ALONE)) or "-",


# Notebooks that train take longer than those that only draw, and start before them for the same reason.
use rule notebook as notebook_training with:
    priority: 1
    threads: TRAINING_CORES
    wildcard_constraints:
        run="|".join(map(re.escape, TRAINING)) or "-",


ruleorder: notebook_alone > notebook_training > notebook


rule report:
    input:
        expand(f"{BUILD}/notebooks/{{run}}.ipynb", run=NOTEBOOKS),
    output:
        f"{BUILD}/report/index.html",
        touch(COMPLETE),
    log:
        f"{BUILD}/logs/report.log",
    params:
        code=of_workflow("*.py", "templates/*"),
        command=lambda wildcards: REPORT,  # whose braces are no wildcards
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    shell:
        "{params.command} 2>&1 | tee {log}"
