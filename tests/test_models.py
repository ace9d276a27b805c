"""Models: where they come from, what identifies them, and what is said when one cannot be used."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gptfluence.common import files
from gptfluence.common.errors import ConfigurationError, HubUnreachableError, ModelError
from gptfluence.common.hub import hub_reachable
from gptfluence.models import loading
from gptfluence.models.gpt import ModelSource, source_of
from gptfluence.models.settings import GGUFModel, HubModel, LocalModel, LoRA, NanoModel
from gptfluence.study.study import Study


@pytest.fixture
def folder(gpt, tmp_path) -> Path:
    """The nano model as anyone would save theirs."""
    gpt.model.save_pretrained(tmp_path / "saved")
    gpt.tokenizer.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def local(path, **options) -> ModelSource:
    return ModelSource("mine", LocalModel(source="local", path=path, **options), path.parent)


def gguf(path, **options) -> ModelSource:
    return ModelSource("mine", GGUFModel(source="gguf", path=path, **options), Path(path).parent)


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- local folders ---------------------------------------------------------------------------------------------------


def test_a_saved_model_is_loaded_as_it_was(gpt, folder):
    loaded = local(folder).load()
    assert same_weights(loaded.model, gpt.model)
    assert loaded.max_length == gpt.max_length == 128
    assert loaded.tokenizer("so good")["input_ids"] == gpt.tokenizer("so good")["input_ids"]
    assert not loaded.model.training
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


def test_the_identity_is_of_the_weights_and_not_of_the_place(folder, tmp_path):
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    assert local(moved).identity() == local(folder).identity()
    weights = moved / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert local(moved).identity() != local(folder).identity()


@pytest.mark.parametrize(("asked", "given"), [(32, 32), (1000, 128)])
def test_the_length_is_what_was_asked_for_and_the_model_can_do(folder, asked, given):
    assert local(folder, max_length=asked).load().max_length == given


def test_weights_in_half_precision_are_trained_in_full(gpt, folder):
    gpt_half = local(folder).load().model.half()
    gpt_half.save_pretrained(folder)
    assert {p.dtype for p in local(folder).load().model.parameters()} == {torch.float32}


def test_a_folder_that_does_not_exist_is_named_with_its_field(tmp_path):
    with pytest.raises(ModelError, match=r"model 'mine': .*absent does not exist; correct models\.mine\.path"):
        local(tmp_path / "absent").load()


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"is not a model folder: it has no config\.json"):
        local(tmp_path).load()


def test_pickled_weights_are_not_loaded(gpt, folder):
    (folder / "model.safetensors").unlink()
    torch.save(gpt.model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds no \.safetensors file; pickled weights are not loaded"):
        local(folder).load()


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 100], ids=["empty", "short", "header"])
def test_a_corrupt_weight_file_is_an_error_with_the_folder(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model 'mine': .*saved cannot be loaded as a causal language model: ."):
        local(folder).load()


def test_weights_that_are_not_all_there_are_an_error(gpt, folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("gpt_neox.layers.0.mlp.dense_h_to_4h.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="dense_h_to_4h"):  # never trained from random numbers without a word
        local(folder).load()


def test_a_missing_tokenizer_is_an_error(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="has no tokenizer with a vocabulary"):
        local(folder).load()


def test_a_missing_tokenizer_is_an_error_whatever_the_architecture(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=400, **sizes)).save_pretrained(tmp_path / "bare")
    with pytest.raises(ModelError, match="has no tokenizer with a vocabulary"):
        local(tmp_path / "bare").load()


def test_an_encoder_without_an_output_layer_says_what_it_is(gpt, tmp_path):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=400, **sizes)).save_pretrained(tmp_path / "bert")
    gpt.tokenizer.save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelError, match=r"lacks \d of the weights of a BertLMHeadModel.*was saved as BertModel"):
        local(tmp_path / "bert").load()


def test_code_beside_the_weights_is_never_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "unheard-of"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    with pytest.raises(ModelError):
        local(folder).load()
    assert not (folder / "ran").exists()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_to_a_file_elsewhere_is_named_before_anything_is_read(folder, name):
    (folder / name).write_text(POINTER)
    for ask in (local(folder).identity, local(folder).load):
        with pytest.raises(
            ModelError, match=rf"{name} is a Git LFS \(or git-annex\) pointer, not the file itself; run git lfs pull"
        ):
            ask()


def test_a_cut_weight_file_says_how_much_is_there(folder):
    weights = folder / "model.safetensors"
    size = weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=rf"model\.safetensors is cut short: it has {size - 1000} of {size} bytes"):
        local(folder).load()


def test_a_damaged_tokenizer_is_named(folder):
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text[: len(text) // 2])
    with pytest.raises(ModelError, match=r"tokenizer\.json is cut short or damaged: it is not JSON"):
        local(folder).load()


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_is_told_from_a_model(folder, whole):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "EleutherAI/pythia-14m"}))
    if not whole:
        (folder / "config.json").unlink()
    for ask in (local(folder).identity, local(folder).load):
        with pytest.raises(ModelError, match=r"holds an adapter \(peft\) for EleutherAI/pythia-14m.*merge_and_unload"):
            ask()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(nano, folder, value):
    model = nano.load().model
    with torch.no_grad():
        model.gpt_neox.final_layer_norm.weight[3] = value
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"own weights give nan before the first update: gpt_neox\.final_layer_norm"):
        local(folder).load()


def test_packed_weights_are_refused_also_where_they_can_be_read(folder, monkeypatch):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"its weights are quantized \(gptq\), and packed weights cannot be trained"):
        local(folder).load()
    config["quantization_config"] = {"quant_method": "fp8"}  # which is unpacked where there is no GPU
    (folder / "config.json").write_text(json.dumps(config))
    local(folder).load()
    monkeypatch.setattr("transformers.PreTrainedModel.hf_quantizer", object(), raising=False)
    with pytest.raises(ModelError, match=r"its weights are quantized \(fp8\)"):
        local(folder).load()


def test_a_model_that_memory_does_not_hold_is_refused_with_the_need(folder, monkeypatch):
    size = (folder / "model.safetensors").stat().st_size
    monkeypatch.setattr(loading.machine, "memory", lambda: 3 * size)
    with pytest.raises(ModelError, match=r"model 'mine': training its .* needs 0\.0 GB .* this machine has .*\(lora\)"):
        local(folder).load()
    local(folder, lora=LoRA()).load()
    monkeypatch.setattr(loading.machine, "memory", lambda: 5 * size)
    local(folder).load()


def test_a_tokenizer_that_makes_one_token_of_the_probe_tells_causal_models_from_encoders_all_the_same(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import BertConfig, BertLMHeadModel, PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(tmp_path / "bert")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    for causal in (True, False):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=5, is_decoder=causal, initializer_range=0.3, **sizes)
        BertLMHeadModel(config).save_pretrained(tmp_path / "bert")
        if causal:
            local(tmp_path / "bert").load()
        else:
            with pytest.raises(ModelError, match="its tokens see those that come later"):
                local(tmp_path / "bert").load()


def test_a_tokenizer_larger_than_the_model_is_refused(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})  # Gemma's has one; no text does
    tokenizer.save_pretrained(folder)
    local(folder).load()
    tokenizer.add_tokens(["<user>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"embeddings for 400 tokens, but its tokenizer .* up to 401 \('<user>'\)"):
        local(folder).load()


def test_the_attention_that_a_configuration_names_need_not_be_installed(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "attn_implementation": "flash_attention_2"}))
    assert local(folder).load().model.config._attn_implementation == "sdpa"


def test_the_length_of_a_model_that_sees_pictures_is_that_of_its_text():
    from transformers import BloomConfig, DeepseekV32Config, Gemma3Config, RobertaConfig, XLNetConfig

    tokenizer = SimpleNamespace(model_max_length=77)
    sighted, offset = (
        Gemma3Config(text_config={"max_position_embeddings": 50}),
        RobertaConfig(max_position_embeddings=514),
    )
    indexed = DeepseekV32Config(index_topk=8)  # sees all of a text that is no longer
    for config, length in ((sighted, 50), (offset, 512), (BloomConfig(), 77), (XLNetConfig(), 77), (indexed, 8)):
        assert loading.longest(SimpleNamespace(config=config), tokenizer) == length


def test_a_loss_of_experts_that_is_not_trained_on_is_said(gpt, tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "num_local_experts": 2, "output_router_logits": True}
    MixtralForCausalLM(MixtralConfig(vocab_size=400, **sizes, **heads)).save_pretrained(tmp_path / "experts")
    gpt.tokenizer.save_pretrained(tmp_path / "experts")
    with pytest.warns(UserWarning, match="balances experts"):
        local(tmp_path / "experts").load()


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        "./nofolder",
        "../x",
        "/data/models/pythia",
        "~/models/x",
        "~nobody-here/x",
        "pythia-14m ",
        "EleutherAI/pythia-14m/",
        "a/b/c",
        "C:\\models\\x",
        "",
        "a\0b",
        Path("/data/x"),
    ],
)
def test_what_is_neither_a_folder_nor_a_name_is_refused(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="there is no folder"):
        source_of(given, tmp_path).identity()


@pytest.mark.parametrize("path", ["/data/x", "pythia-14m ", "./x"])
def test_a_profile_that_takes_a_path_for_a_name_is_refused(tmp_path, path):
    with pytest.raises(ModelError, match=r"there is no folder .* `source: local`"):
        ModelSource("far", HubModel(source="hub", path=path), tmp_path).identity()


def test_a_folder_that_is_called_like_a_model_of_the_hub_is_not_read_in_its_place(tmp_path, monkeypatch):
    (tmp_path / "someone" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for ask in ("identity", "load"):
        with pytest.raises(ModelError, match="a folder of this name is here"):
            getattr(ModelSource("far", HubModel(source="hub", path="someone/model"), tmp_path), ask)()


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("SmolLM2-1.7B", "SmolLM2-1.7B"),
        ("SmolLM2-1.7B/", "SmolLM2-1.7B"),
        ("v1.gguf", "v1.gguf"),  # a folder
        ("a-1.5.gguf", "a-1.5"),
        ("p.GGUF", "p"),
    ],
)
def test_a_model_is_called_what_its_folder_or_file_is(tmp_path, place, name):
    path = tmp_path / place
    if place.startswith(("a", "p")):
        path.write_bytes(b"GGUF")
    else:
        path.mkdir()
    source = source_of(f"{tmp_path}/{place}", tmp_path)
    assert source.name == name
    assert source.config.source == ("local" if path.is_dir() else "gguf")
    assert source_of("EleutherAI/pythia-1.4b", tmp_path).name == "pythia-1.4b"


def test_the_folder_one_is_in_has_a_name(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert source_of(".", folder).name == "saved"


def test_a_file_is_no_model_folder(folder):
    with pytest.raises(ModelError, match=r"model\.safetensors' is a file; give the folder"):
        source_of(folder / "model.safetensors", folder)
    with pytest.raises(ModelError, match=r"there is no file 'none\.GGUF'"):
        source_of("none.GGUF", folder)


# --- adapters --------------------------------------------------------------------------------------------------------


def test_lora_says_which_layers_there_are(folder):
    with pytest.raises(
        ModelError, match=r"dense, dense_4h_to_h, dense_h_to_4h, query_key_value: name some.*all-linear"
    ):
        local(folder, lora=LoRA(target_modules=["q_proj"])).load()


def test_adapters_of_experts_have_no_dropout(gpt, tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(vocab_size=400, num_key_value_heads=1, num_local_experts=2, **sizes)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "experts")
    gpt.tokenizer.save_pretrained(tmp_path / "experts")
    with pytest.raises(ModelError, match=r"lora\.dropout: .*set it to 0, or name target_modules among k_proj, o_proj"):
        local(tmp_path / "experts", lora=LoRA(target_modules="all-linear")).load()
    local(tmp_path / "experts", lora=LoRA(target_modules="all-linear", dropout=0)).load()


def test_all_linear_layers_can_have_adapters(folder):
    either = [LoRA(target_modules=asked) for asked in ("all-linear", ["all-linear"])]
    assert either[0] == either[1]
    model = local(folder, lora=either[0]).load().model
    adapted = {name.split(".lora_")[0].rsplit(".")[-1] for name, p in model.named_parameters() if p.requires_grad}
    assert adapted == {"dense", "dense_4h_to_h", "dense_h_to_4h", "query_key_value"}


# --- GGUF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 something else"])
def test_a_file_that_is_no_gguf_is_refused(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.gguf is not a GGUF file; correct models\.mine\.path"):
        gguf(path).load()


def test_a_folder_is_no_gguf_file(tmp_path):
    with pytest.raises(ModelError, match="is not a GGUF file"):
        gguf(tmp_path).load()


@pytest.mark.parametrize("content", [b"\x01" * 64, b""], ids=["damaged", "cut"])
def test_a_damaged_gguf_file_is_an_error(tmp_path, content):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + content)
    with pytest.raises(ModelError, match=r"model 'mine': .*cannot be loaded.*: model\.gguf is cut short or damaged"):
        gguf(path).load()


def test_a_pointer_to_a_gguf_file_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_text(POINTER)
    with pytest.raises(ModelError, match=r"model\.gguf is a Git LFS"):
        gguf(path).load()


def test_another_file_than_the_profile_asks_for_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF and more")
    with pytest.raises(ModelError, match="does not have the SHA-256 that the profile asks for"):
        gguf(path, sha256="0" * 64).load()
    assert gguf(path, sha256=files.sha256(path)).identity()["weights"] == [files.sha256(path)]


# --- the hub ---------------------------------------------------------------------------------------------------------


def test_without_a_hub_its_models_are_refused_at_once_with_the_way_out(offline, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = ModelSource("far", HubModel(source="hub", path="someone/no-such-model"), tmp_path)
    started = time.monotonic()
    assert not hub_reachable()
    for ask in (source.identity, source.load):
        with pytest.raises(HubUnreachableError, match=r"someone/no-such-model.*source: local.*\(mini, smoke\)"):
            ask()
    assert time.monotonic() - started < 10


def test_a_study_with_a_hub_model_says_so_before_it_records(offline, tmp_path):
    overrides = ["models.far={source: hub, path: someone/no-such-model}", "settings.fine_tuning.models=[far]"]
    with pytest.raises(HubUnreachableError, match="someone/no-such-model"):
        Study.load("smoke", overrides, artifacts=tmp_path, jobs=1).campaign(task="sst2").dynamics()


# --- nano ------------------------------------------------------------------------------------------------------------


def test_a_nano_model_made_twice_is_the_same_to_the_byte(nano, gpt, tmp_path):
    again = ModelSource(nano.name, nano.config, tmp_path, nano.corpus)
    torch.manual_seed(99)  # neither the caller's random numbers nor its threads matter
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert same_weights(again.load().model, gpt.model)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    first = Path(gpt.model.name_or_path) / "checksums.json"
    second = next(tmp_path.glob(f"{nano.name}-*/checksums.json"))
    assert first.read_text() == second.read_text()
    assert first.parent.name == second.parent.name


def test_a_nano_model_is_made_once(nano, gpt, monkeypatch):
    monkeypatch.setattr("gptfluence.models.gpt._pretrain", lambda *_: pytest.fail("made again"))
    assert same_weights(nano.load().model, gpt.model)


def test_another_corpus_or_size_is_another_model(nano):
    other_corpus = ModelSource(nano.name, nano.config, nano.cache, {**nano.corpus, "seed": 1})
    wider = ModelSource(nano.name, nano.config.model_copy(update={"width": 32}), nano.cache, nano.corpus)
    identities = [source.identity() for source in (nano, other_corpus, wider)]
    assert identities[0] != identities[1] != identities[2] != identities[0]


def test_training_teaches_a_nano_model(nano, gpt, tmp_path, sst2):
    trained = ModelSource(
        nano.name, nano.config.model_copy(update={"pretraining_steps": 60}), tmp_path, nano.corpus
    ).load()
    ids = torch.tensor([gpt.tokenizer(" ".join(sst2.tests.texts))["input_ids"][:128]])
    with torch.no_grad():
        losses = [float(model(ids, labels=ids).loss) for model in (gpt.model, trained.model)]
    assert losses[1] < losses[0] - 0.5


def test_a_nano_model_without_a_corpus_is_an_error(nano, tmp_path):
    with pytest.raises(ModelError, match="needs a corpus"):
        ModelSource("lost", nano.config, tmp_path).load()


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ConfigurationError, match="width 20 must be a multiple of 2 x heads"):
        Study.load("smoke", ["models.nano-smoke.width=20", "models.nano-smoke.heads=3"])
    assert NanoModel(source="nano", width=24, layers=1, heads=3).width == 24
