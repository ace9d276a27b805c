"""Generated texts and what is scored of them: the same one at a time, whatever is beside them, and as libraries say."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from gptfluence.common.errors import ConfigurationError, DataError, ModelError
from gptfluence.recording.curriculum import Curriculum
from gptfluence.recording.generation import Generator, choose
from gptfluence.recording.logits import ScoredLogits
from gptfluence.recording.measures import GeneratedTexts
from gptfluence.recording.recorder import Recorder
from gptfluence.recording.settings import AdamW, Generation, Recording
from gptfluence.recording.text_metrics import TextScorer, score
from gptfluence.recording.tokens import label_words, tokenize
from gptfluence.tasks import Task, TaskPool
from gptfluence.tasks.base import fingerprint

CURRICULUM = Curriculum(np.array([[0, 1, 2, 3], [4, 5, 6, 7], [3, 8, 9, 0]]))
SETTINGS = Generation(max_new_tokens=9, temperature=0.9, top_p=0.9)


def record(gpt, task, *metrics, generation=SETTINGS, workers=0, **options):
    recording = Recording(optimizer=AdamW(learning_rate=1e-2), **options)
    with Recorder(
        gpt, task.pool, task.tests, recording, metrics=metrics, generation=generation, scoring_processes=workers
    ) as recorder:
        return recorder.record("train-000", CURRICULUM, seed=3)


def prompts_of(gpt, pool):
    return [tokens.ids[: tokens.target_start] for tokens in tokenize(pool, gpt)]


def written(gpt, prompts, settings=SETTINGS, budget=4096, *, seed=3, step=2, end=None):
    scored = ScoredLogits(gpt.model)
    try:
        options = {"token_budget": budget, "end": gpt.tokenizer.eos_token_id if end is None else end}
        ids = [f"webnlg-tests-{row:04d}" for row in range(len(prompts))]
        generator = Generator(scored, prompts, settings, ids=ids, device="cpu", **options)
        return generator.generate(seed, step)
    finally:
        scored.close()


def alone(gpt, prompt, row, settings, *, seed=3, step=2):
    """One text, token by token, without a cache: the obvious loop."""
    key = int(fingerprint(f"webnlg-tests-{row:04d}"), 16)
    draws = np.random.default_rng([seed, key, step]).random(settings.max_new_tokens, np.float32)
    ids = list(prompt)
    for draw in draws:
        with torch.no_grad():
            logits = gpt.model(torch.tensor([ids])).logits[0, -1]
        if settings.temperature == 0:
            token = int(logits.argmax())
        else:
            probabilities = (logits / settings.temperature).softmax(dim=0)
            order = probabilities.argsort(descending=True, stable=True).tolist()
            nucleus, mass = [], 0.0
            while mass < settings.top_p and len(nucleus) < len(order):
                nucleus.append(order[len(nucleus)])
                mass += float(probabilities[nucleus[-1]])
            token, passed = nucleus[-1], 0.0
            for candidate in nucleus:
                passed += float(probabilities[candidate])
                if passed > draw * mass:
                    token = candidate
                    break
        if token == gpt.tokenizer.eos_token_id:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_a_batch_writes_what_each_example_writes_alone(gpt, webnlg, temperature):
    prompts = prompts_of(gpt, webnlg.tests)
    assert len({len(prompt) for prompt in prompts}) > 1  # or left padding would not be tested
    settings = SETTINGS.model_copy(update={"temperature": temperature})
    expected = [alone(gpt, prompt, row, settings) for row, prompt in enumerate(prompts)]
    assert written(gpt, prompts, settings) == expected
    assert written(gpt, prompts, settings, budget=16) == expected  # one example a batch


def test_a_text_ends_at_the_end_token_and_its_batch_goes_on(gpt, webnlg):
    """Any token may serve as the end: texts are then those without one, cut before it."""
    prompts = prompts_of(gpt, webnlg.tests)
    free = written(gpt, prompts, end=-1)
    end = free[0][3]
    assert written(gpt, prompts, end=end) == [text[: text.index(end)] if end in text else text for text in free]


def test_greedy_texts_are_those_of_transformers(gpt, webnlg):
    prompts = prompts_of(gpt, webnlg.tests)
    for prompt, text in zip(prompts, written(gpt, prompts, Generation(max_new_tokens=9, temperature=0)), strict=True):
        ids = torch.from_numpy(prompt)[None]
        theirs = gpt.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=9)
        theirs = theirs[0, len(prompt) :].tolist()
        assert text == theirs[: theirs.index(0) if 0 in theirs else None]


def test_other_steps_and_seeds_draw_other_texts(gpt, webnlg):
    prompts = prompts_of(gpt, webnlg.tests)
    texts = [written(gpt, prompts, seed=seed, step=step) for seed, step in ((3, 2), (3, 3), (4, 2))]
    assert texts[0] not in texts[1:]
    assert texts[0] == written(gpt, prompts)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), top_p=st.floats(0.05, 1.0), temperature=st.floats(0.1, 3.0))
def test_sampled_tokens_lie_in_the_nucleus_in_proportion(seed, top_p, temperature):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 12, generator=generator).repeat(400, 1)
    uniforms = (torch.arange(400) + 0.5) / 400  # every part of the unit interval alike
    chosen = choose(logits, uniforms, temperature, top_p)
    probabilities = (logits[0] / temperature).softmax(dim=0)
    order = probabilities.argsort(descending=True)
    before = probabilities[order].cumsum(0) - probabilities[order]
    nucleus = order[before < top_p]
    share = torch.bincount(chosen, minlength=12) / 400
    expected = torch.zeros(12)
    expected[nucleus] = probabilities[nucleus] / probabilities[nucleus].sum()
    assert torch.allclose(share, expected, atol=1 / 200)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_sacrebleu_and_rouge_score():
    references = ["the cat sat on the mat.", "a cat was on the mat."]
    text = "the cat was on a mat."
    assert score("bleu", text, references) == BLEU(effective_order=True).sentence_score(text, references).score
    assert score("bleu", references[0], references) == pytest.approx(100)
    assert score("rouge_l", references[1], references) == 1
    assert score("rouge_l", text, references) == pytest.approx(4 / 6)  # "cat was on mat" of six words
    assert score("bleu", "", references) == score("rouge_l", "", references) == 0


def test_recorded_scores_are_those_of_the_texts_that_the_gpt_writes(gpt, webnlg):
    run = record(gpt, webnlg, "bleu", "rouge_l")
    texts = [gpt.tokenizer.decode(tokens) for tokens in written(gpt, prompts_of(gpt, webnlg.tests), step=0)]
    for metric in ("bleu", "rouge_l"):
        expected = [
            score(metric, text.strip(), example.references) for text, example in zip(texts, webnlg.tests, strict=True)
        ]
        np.testing.assert_array_equal(run.trajectories[metric][0], np.float32(expected))
    assert np.isfinite(run.trajectories["rouge_l"]).all()
    plain = record(gpt, webnlg)
    np.testing.assert_array_equal(plain.trajectories["loss"], run.trajectories["loss"])  # measuring disturbs nothing


def test_scoring_in_other_processes_changes_no_number(gpt, webnlg):
    here, there = (record(gpt, webnlg, "bleu", workers=workers) for workers in (0, 1))
    np.testing.assert_array_equal(here.trajectories["bleu"], there.trajectories["bleu"])


def test_texts_are_scored_with_the_blanks_that_were_written(gpt, webnlg):
    tokenizer = copy.deepcopy(gpt.tokenizer)
    tokenizer.clean_up_tokenization_spaces = True  # as BERT's
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    written = tokenizer("one , two .")["input_ids"]
    assert tokenizer.decode(written) == "one, two."
    tests, cleaning = webnlg.tests, replace(gpt, tokenizer=tokenizer)
    prompts, scored = prompts_of(gpt, tests), ScoredLogits(gpt.model)
    texts = GeneratedTexts(cleaning, tests, prompts, Recording(), SETTINGS, scored, ["bleu"], "cpu", 0)
    texts._generator = SimpleNamespace(generate=lambda *_: [written] * len(tests))
    assert {text for _, text in texts.submit(0, 0, last=True)} == {"one , two ."}
    scored.close()


def test_a_model_that_makes_its_logits_in_another_way_is_refused(nano, monkeypatch):
    model = nano.load().model
    monkeypatch.setattr(model, "get_output_embeddings", lambda: torch.nn.Linear(1, 1))
    with pytest.raises(ModelError, match="GPTNeoXForCausalLM does not make its logits token by token with its output"):
        ScoredLogits(model)


def test_a_text_is_scored_once_for_an_example(webnlg, monkeypatch):
    scored = []
    monkeypatch.setattr("gptfluence.recording.text_metrics._score_all", lambda *given: scored.append(given) or [1.0])
    scorer = TextScorer(webnlg.tests, ["bleu"])
    texts = [f"text {number}" for number in range(len(webnlg.tests))]
    for _ in range(3):
        keys = scorer.submit(texts)
    scorer.submit(["another", *texts[1:]])
    assert len(scored) == len(texts) + 1
    assert scorer.values(keys).shape == (1, len(texts))


def test_between_generations_a_value_stands_and_the_last_step_is_measured(gpt, webnlg):
    every = record(gpt, webnlg, "bleu").trajectories["bleu"]
    sparse = record(gpt, webnlg, "bleu", generation=SETTINGS.model_copy(update={"every": 2})).trajectories["bleu"]
    np.testing.assert_array_equal(sparse, every[[0, 0, 2, 3]])


@pytest.mark.parametrize("longer", [0, 3, 7])
def test_accuracy_is_whether_the_likeliest_choice_is_right(gpt, sst2, longer):
    """Label words that are one token are read from the measured logits, longer ones asked for."""
    tests = tuple(
        replace(example, choices=(ends := tuple(c + " indeed" for c in example.choices)), target=ends[example.label])
        for example in sst2.tests[:longer]
    )
    task = Task("sst2", sst2.pool, TaskPool("tests", tests + sst2.tests[longer:]))
    run = record(gpt, task, "accuracy", token_budget=64)
    expected = []
    for example in task.tests:
        assert bool(label_words(example, gpt)) == (not example.target.endswith("indeed"))
        likelihoods = []
        for choice in example.choices:
            pool = TaskPool("one", (replace(example, target=choice),))
            tokens = tokenize(pool, gpt)[0]
            with torch.no_grad():
                logits = gpt.model(torch.from_numpy(tokens.ids)[None]).logits[0].log_softmax(dim=1)
            target = range(tokens.target_start, len(tokens.ids))
            likelihoods.append(sum(float(logits[place - 1, tokens.ids[place]]) for place in target))
        expected.append(float(int(np.argmax(likelihoods)) == example.label))
    np.testing.assert_array_equal(run.trajectories["accuracy"][0], expected)


def test_accuracy_of_every_step_does_not_depend_on_which_tokens_the_loss_is_of(gpt, sst2):
    """Of the target alone it comes from the measured logits, of all tokens it is asked for."""
    found = []
    one_sided = Curriculum(np.array([[row for row, example in enumerate(sst2.pool) if example.label == 1][:4]] * 3))
    for loss_tokens in ("target", "last", "all"):
        recording = Recording(optimizer=AdamW(learning_rate=0.1), loss_tokens=loss_tokens)
        with Recorder(gpt, sst2.pool, sst2.tests, recording, metrics=["accuracy"]) as recorder:
            found.append(recorder.record("train-000", one_sided).trajectories["accuracy"])
    assert (found[0][0] != found[0][-1]).any(), "nothing changes, nothing is tested"
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_tests_without_the_metric_are_nan_and_left_out_on_request(gpt, sst2, webnlg):
    from gptfluence.recording.dynamics import GPTDynamics

    tests = TaskPool("both/tests", (*sst2.tests, *webnlg.tests))
    task = Task("both", sst2.pool, tests)
    run = record(gpt, task, "accuracy", "bleu")
    dynamics = GPTDynamics("both", "nano", task.pool, tests, (run,))
    assert np.isnan(run.trajectories["bleu"][:, :7]).all()
    assert np.isnan(run.trajectories["accuracy"][:, 7:]).all()
    assert dynamics.for_metric("bleu").tests.examples == webnlg.tests.examples
    assert dynamics.for_metric("accuracy").trajectories("loss").shape == (1, 4, 7)
    assert dynamics.for_metric("loss") is dynamics
    before = record(gpt, webnlg, "bleu").trajectories["bleu"][0]  # other tests beside an example change no number of it
    np.testing.assert_array_equal(dynamics.for_metric("bleu").trajectories("bleu")[0, 0], before)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_an_empty_reference_is_named(gpt, webnlg):
    tests = TaskPool("webnlg/tests", (*webnlg.tests[:3], replace(webnlg.tests[3], references=("a text", " "))))
    with pytest.raises(DataError, match=r"webnlg/tests: example 'webnlg-tests-0003' has an empty reference"):
        record(gpt, Task("webnlg", webnlg.pool, tests), "bleu")


def test_a_generation_of_length_0_is_refused():
    with pytest.raises(ValueError, match="max_new_tokens"):
        Generation(max_new_tokens=0)


@pytest.mark.parametrize(("task", "metric"), [("sst2", "bleu"), ("webnlg", "accuracy")])
def test_a_metric_that_no_test_has_is_refused(gpt, request, task, metric):
    with pytest.raises(ConfigurationError, match=f"metrics: {metric} is not defined for any test of {task}/tests"):
        record(gpt, request.getfixturevalue(task), metric)


def test_a_prompt_with_no_room_for_a_text_is_refused_or_cut(gpt, webnlg):
    long = Generation(max_new_tokens=120)
    with pytest.raises(DataError, match=r"lower generation.max_new_tokens, or set `truncation: prompt`"):
        record(gpt, webnlg, "bleu", generation=long)
    record(gpt, webnlg, "bleu", generation=long, truncation="prompt")
