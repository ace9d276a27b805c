"""Texts as tokens: they decode to the text, and special tokens stand where a model's own tokenizer puts them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from gptfluence.common.errors import DataError, ModelError
from gptfluence.recording.measures import GeneratedTexts
from gptfluence.recording.recorder import Recorder
from gptfluence.recording.settings import AdamW, Generation, Recording
from gptfluence.recording.tokens import label_words, tokenize
from gptfluence.tasks import Example, Task, TaskPool

TEXTS = ["Review: so good positive", "Review: so bad negative", "a joy, a bore\nthe end. ", "le garçon a été là"]
POOL = TaskPool(
    "own/pool",
    (
        Example(id="0", prompt="Review: so good", target=" positive", choices=(" negative", " positive"), label=1),
        Example(id="1", prompt="Review: so bad", target=" negative", choices=(" negative", " positive"), label=0),
        Example(id="2", prompt="a joy,\n", target="the end."),
        Example(id="3", prompt="a joy ", target="a bore"),
        Example(id="4", prompt="", target="the garçon"),
    ),
)


def tokenizer(kind: str, template: str = "<s> $A", **options) -> PreTrainedTokenizerFast:
    """Like those of Llama 2 (a blank before every text), Gemma (none) and Llama 3 (bytes); `template` as post-processor."""
    own = Tokenizer(models.BPE(unk_token=None))
    special, alphabet = ["<s>", "</s>"], []
    if kind == "bytes":
        own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        scheme = {"blank": "first", "blanks": "always", "none": "never"}[kind]
        own.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        own.decoder = decoders.Metaspace(prepend_scheme=scheme)
    if options.pop("lower", False):
        own.normalizer = normalizers.Lowercase()
    own.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(vocab_size=380, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    own.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>", **options)


@pytest.mark.parametrize("kind", ["bytes", "none", "blank", "blanks"])
def test_texts_begin_as_the_tokenizer_begins_them_and_decode_to_themselves(gpt, kind):
    other = replace(gpt, tokenizer=tokenizer(kind))
    for example, tokens in zip(POOL, tokenize(POOL, other), strict=True):
        assert tokens.ids[0] == other.tokenizer.bos_token_id == other.tokenizer(example.text)["input_ids"][0]
        assert 0 not in tokens.ids[1:]
        ends = not example.choices
        assert (tokens.ids[-1] == 1) == ends
        text = other.tokenizer.decode(tokens.ids[1 : -1 if ends else None])
        assert text == example.text
        target = other.tokenizer.decode(tokens.ids[tokens.target_start : -1 if ends else None])
        assert target.strip() == example.target.strip()


def test_a_choice_is_the_token_that_stands_after_the_prompt(gpt):
    """By itself Llama 2's tokenizer makes another of it."""
    other = replace(gpt, tokenizer=tokenizer("blank"))
    for example, tokens in zip(POOL[:2], tokenize(POOL, other), strict=False):
        assert tokens.ids[tokens.target_start :].tolist() == [label_words(example, other)[example.label]]


@pytest.mark.parametrize(
    ("template", "before", "end"), [("$A", [], [1]), ("<s> $A </s>", [0], [1]), ("$A </s>", [], [1])]
)
def test_special_tokens_stand_where_the_tokenizer_puts_them(gpt, template, before, end):
    other = replace(gpt, tokenizer=tokenizer("bytes", template))
    words, text = tokenize(TaskPool("two", POOL[1:3]), other)
    assert words.ids[: len(before)].tolist() == before
    assert 1 not in words.ids
    assert text.ids[: len(before)].tolist() == before
    assert text.ids[-1:].tolist() == end
    assert list(text.ids).count(1) == 1


def test_losses_and_generated_texts_have_the_first_token_before_them(nano, monkeypatch):
    gpt = replace(nano.load(), tokenizer=tokenizer("bytes"))
    prompts = []
    original = GeneratedTexts.__init__
    monkeypatch.setattr(GeneratedTexts, "__init__", lambda self, *a: (prompts.extend(a[2]), original(self, *a))[1])
    task = Task("own", POOL, TaskPool("own/tests", (replace(POOL[2], id="t", prompt="the end ", target="a joy"),)))
    recording = Recording(optimizer=AdamW(learning_rate=0))
    generation = Generation(max_new_tokens=2)
    with Recorder(gpt, *task, recording, metrics=["rouge_l"], generation=generation) as recorder:
        from gptfluence.recording.curriculum import Curriculum

        run = recorder.record("train-000", Curriculum(np.array([[0]])))
    assert [prompt[0] for prompt in prompts] == [0]
    ids = torch.tensor([[*gpt.tokenizer("the end ")["input_ids"], *gpt.tokenizer("a joy")["input_ids"][1:], 1]])
    labels = ids.clone()
    labels[0, : len(prompts[0])] = -100
    with torch.no_grad():
        expected = float(gpt.model(ids, labels=labels).loss)
    assert run.trajectories["loss"][0, 0] == pytest.approx(expected, abs=1e-5)


def test_cutting_a_long_prompt_keeps_the_first_token(gpt):
    short = replace(gpt, tokenizer=tokenizer("bytes"), max_length=5)
    (tokens,) = tokenize(TaskPool("one", POOL[:1]), short, truncation="prompt")
    assert len(tokens.ids) == 5
    assert tokens.ids[0] == 0
    assert short.tokenizer.decode(tokens.ids[1:]).endswith("good positive")


def test_a_text_that_the_tokenizer_changes_is_an_error_that_shows_where(gpt):
    other = replace(gpt, tokenizer=tokenizer("bytes", lower=True))
    with pytest.raises(DataError, match=r"own/pool: example '0': 'Review: so good posi.*' is read as 'review: so good"):
        tokenize(POOL, other)


def test_characters_that_the_tokenizer_does_not_know_are_an_error(gpt):
    other = replace(gpt, tokenizer=tokenizer("none"))
    with pytest.raises(DataError, match=r"example 'q': 'so good ЖЖ positive. is read as .so good  positive"):
        tokenize(TaskPool("own/pool", (replace(POOL[0], id="q", prompt="so good ЖЖ"),)), other)


def test_another_form_of_the_same_characters_is_no_difference(gpt):
    own = tokenizer("bytes")
    own.backend_tokenizer.normalizer = normalizers.NFC()
    tokenize(TaskPool("own/pool", (replace(POOL[4], target="the garc\u0327on"),)), replace(gpt, tokenizer=own))


def test_a_token_without_an_embedding_is_an_error(gpt):
    own = tokenizer("bytes")
    own.add_tokens([f"<more {k}>" for k in range(400 - len(own))] + ["<user>"])
    example = replace(POOL[0], prompt="<user> so good")
    with pytest.raises(ModelError, match=r"example '0': token '<user>' has the number 400.*embeddings for 400 tokens"):
        tokenize(TaskPool("own/pool", (example,)), replace(gpt, tokenizer=own))


def test_without_a_token_to_begin_with_an_empty_prompt_is_an_error(gpt):
    own = tokenizer("bytes", "$A")
    own.bos_token = own.eos_token = None
    with pytest.raises(DataError, match=r"example '4': its prompt is empty.*give it a prompt"):
        tokenize(POOL, replace(gpt, tokenizer=own))
