"""`gptfluence plan`: which runs are to be recorded, and what that takes, from the first steps of one."""

from __future__ import annotations

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest

from gptfluence.common.errors import ModelError
from gptfluence.recording.settings import Generation
from gptfluence.study.study import Study
from gptfluence.workflow import plan
from gptfluence.workflow.plan import Probe
from gptfluence.workflow.row import Runs

LOSS, UPDATE, TEXTS = 3.0, 1.0, 10.0  # seconds that a measurement, an update and writing texts take


def spent(steps: int, every: int | None) -> list[float]:
    """Seconds of a run's start and of each of its steps, if each part took the same time always."""

    def writes(step: int) -> bool:
        return every is not None and (step % every == 0 or step == steps)

    return [LOSS + UPDATE * (step > 0) + TEXTS * writes(step) for step in range(steps + 1)]


@pytest.mark.parametrize("every", [None, 1, 2, 3, 6, 50])
@pytest.mark.parametrize("steps", [4, 7, 24])
@pytest.mark.parametrize("probed", [2, 3, 4])
def test_the_time_of_a_run_follows_from_its_first_steps(every, steps, probed):
    texts = None if every is None else Generation(every=every)
    assert plan._of_run(spent(probed, every), steps, texts) == pytest.approx(sum(spent(steps, every)))


def test_a_slow_start_is_not_taken_for_every_step():
    assert plan._of_run([LOSS, 60.0, 4.0, 4.1, 3.9], 24, None) == pytest.approx(LOSS + 24 * 4.0, rel=0.02)


@pytest.fixture
def study(tmp_path) -> Study:
    return Study.load("smoke", artifacts=tmp_path, jobs=2)


def test_all_runs_that_outputs_wait_for_are_planned_and_those_on_unseen_examples_where_asked_for(study):
    found = {(one.runs.name, one.unseen): one for one in plan.recordings(study, "tab*")}
    known = found["fine_tuning--nano-smoke--rte", None]
    assert (known.missing, len(known.wanted.names)) == (7, 7)
    assert ("fine_tuning--nano-smoke--rte", "training") in found
    assert ("fine_tuning--nano-smoke--sst2", "training") not in found  # the profile keeps none apart
    only = plan.recordings(study, "tab02*")
    assert {one.unseen for one in only} == {None}
    assert {one.runs.setting for one in only} == {"fine_tuning"}


def test_sums_are_of_what_is_missing_and_more_memory_than_there_is_is_an_error(study, monkeypatch):
    probed = []

    def probe(_: Study, recording: plan.Recording) -> Probe:
        probed.append(recording.runs.name)
        return Probe(load=100.0, run=1000.0, memory=3 * 10**9)

    monkeypatch.setattr(plan, "probe", probe)
    monkeypatch.setattr(plan.machine, "memory", lambda: 5 * 10**9)
    with pytest.raises(ModelError, match=r"6\.0 GB of memory are needed, and this machine has 5\.0: record fewer runs"):
        list(plan.lines(study, "tab02*"))
    monkeypatch.setattr(plan.machine, "memory", lambda: 7 * 10**9)
    said = list(plan.lines(study, "tab02*"))
    tasks = len(set(probed))
    hours = tasks * (100 + 4 * 1000) / 3600  # seven runs, two at a time
    assert f"recording: {hours:.2f} hours, 6.0 GB of memory" in said[-1]


def test_the_disk_is_what_runs_take(tmp_path):
    changes = ["settings.fine_tuning.runs={train: 2, validation: 1, test: 0}", "tasks.webnlg.test_size=64"]
    study = Study.load("smoke", changes, artifacts=tmp_path, jobs=1)
    one = next(one for one in plan.recordings(study, "tab04*") if one.runs.task == "webnlg")
    assert one.generation is not None
    planned = one.disk
    one.runs.campaign(study).dynamics()
    places = [one.wanted.folder / name for name in one.wanted.names]
    taken = sum(path.stat().st_blocks * 512 for place in places for path in [place, *place.rglob("*")])
    assert planned == pytest.approx(taken, rel=0.3)


def test_what_is_recorded_of_the_pool_takes_disk_too(study):
    one = next(iter(plan.recordings(study, "tab02*")))
    with_pool, without = (
        replace(
            one, wanted=replace(one.wanted, recording=one.wanted.recording.model_copy(update={"record_pool": also}))
        )
        for also in (True, False)
    )
    assert with_pool.disk - without.disk == 7 * 4 * (one.curriculum.steps + 1) * len(one.wanted.texts.pool)


def killed(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_probe_that_is_killed_says_that_there_is_too_little_memory(study, monkeypatch):
    monkeypatch.setattr(plan, "_probe", killed)
    with pytest.raises(ModelError, match=r"was killed; 2 at once are too many .* GB of memory: record fewer runs"):
        plan.probe(study, next(iter(plan.recordings(study, "tab02*"))))


def peak(_: object) -> int:
    return plan._most_memory()


def test_a_process_counts_its_own_memory_only(monkeypatch):
    held = bytearray(600 * 2**20)  # more than the imports of this module take
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        [found] = pool.map(peak, [None])
    assert 10**7 < found < len(held)


def test_a_probe_measures_real_steps(smoke_store):
    study = Study.load("smoke", artifacts=smoke_store, jobs=1)
    given = (study.origin, study.overrides, str(study.artifacts), Runs("fine_tuning", "nano-smoke", "webnlg"), None)
    found = plan._probe(given)
    assert 0 < found.run < 300
    assert 10**8 < found.memory < 10**11
