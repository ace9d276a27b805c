"""Reading a causal language model and its tokenizer, and saying what is wrong with one that cannot be used.

A model is refused when it is loaded, before anything is recorded: files that are no weights, weights that are missing,
damaged or not finite, a tokenizer with more tokens than the model, a model whose tokens see those that come later.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptfluence.common import machine
from gptfluence.common.contents import POINTER, first_bytes, is_pointer
from gptfluence.common.errors import HubUnreachableError, ModelError
from gptfluence.common.hub import hub_reachable
from gptfluence.models import gguf
from gptfluence.models.settings import HubModel, LoRA

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

READ = (".safetensors", ".json", ".txt", ".model", ".gguf")  # the files of a model, by how their names end
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "context_length")
OFFSET_POSITIONS = ("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text")
PROBE = "One, two, three, four, five, six, seven."
PROBED = 40  # tokens, the second half of which is changed
AGREEMENT = 1e-3  # of the largest logit; what only rounding changes differs by 1e-6


def from_folder(name: str, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Raises ModelError."""
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model {name!r}: {folder} holds no .safetensors file; pickled weights are not loaded, convert them with "
            "model.save_pretrained(folder)"
        )
    return _from_pretrained(name, str(folder), sorted(folder.iterdir()), local_files_only=True)


def from_gguf(name: str, path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Raises ModelError."""
    return _from_pretrained(name, str(path.parent), [path], gguf_file=path.name, local_files_only=True)


def from_hub(name: str, config: HubModel) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Raises ModelError, or HubUnreachableError."""
    check_hub_name(config.path)
    offline = not hub_reachable()
    try:
        return _from_pretrained(name, config.path, [], revision=config.revision, local_files_only=offline)
    except ModelError as error:
        if offline and isinstance(error.__cause__, OSError):
            raise HubUnreachableError(_no_hub(config)) from error
        raise


def longest(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The tokens that the model was built for; where it has no limit, its tokenizer's."""
    config = model.config.get_text_config(decoder=True)
    positions = next((found for key in POSITIONS if (found := getattr(config, key, None) or 0) > 0), None)  # XLNet: -1
    if positions and config.model_type in OFFSET_POSITIONS:
        positions -= config.pad_token_id + 1  # they count from there
    positions = positions or tokenizer.model_max_length
    # an indexer chooses so many of all tokens, padding too: beyond it, what a token sees depends on what it is beside
    return int(min(positions, getattr(config, "index_topk", None) or positions))


def with_lora(name: str, model: PreTrainedModel, lora: LoRA) -> torch.nn.Module:
    """The model with new adapters, which alone are trained. Raises ModelError that says which modules there are."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    adapters = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    head = model.get_output_embeddings()
    linear = {
        name.rsplit(".", 1)[-1]
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear | Conv1D) and part is not head
    }
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # every run of a study starts from the same adapters
            return get_peft_model(model, adapters)
    except (ValueError, TypeError, KeyError) as error:
        if "lora_dropout" in str(error):
            raise ModelError(
                f"model {name!r}, lora.dropout: {_first_line(error)} Experts have no dropout: set it to 0, or name "
                f"target_modules among {', '.join(sorted(linear))}"
            ) from error
        for_all = ", or use all-linear for all" * (lora.target_modules != "all-linear")
        raise ModelError(
            f"model {name!r}, lora.target_modules: {_first_line(error)} The linear modules of {type(model).__name__} are "
            f"{', '.join(sorted(linear))}: name some of them{for_all}, or null for peft's own choice, which it has for some "
            "architectures (the default, query_key_value, is Pythia's)"
        ) from error


# --- before loading --------------------------------------------------------------------------------------------------


def check_folder(name: str, folder: Path) -> None:
    """Raises ModelError if a folder is seen to hold no whole model."""
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        try:
            base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
        except (OSError, ValueError, AttributeError):
            base = None
        raise ModelError(
            f"model {name!r}: {folder} holds an adapter (peft) for {base or 'another model'}, not a whole model; merge them "
            "and save the result: peft.AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()"
            ".save_pretrained(new_folder), and the tokenizer beside it. New adapters are trained with `lora`"
        )
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {name!r}: {folder} is not a model folder: it has no config.json")
    _check_pointers(f"model {name!r}", folder)


def check_files(what: str, folder: Path) -> None:
    """Raises ModelError for a file of a model that is a pointer, cut short or damaged. what: the model in words"""
    _check_pointers(what, folder)
    for path in sorted(folder.iterdir()):
        decides = path.name in ("config.json", "tokenizer.json") or path.name.endswith((".index.json", ".safetensors"))
        if decides and (problem := _damage(path)):
            raise ModelError(f"{what}: {folder}: {problem}")


def _check_pointers(what: str, folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.suffix in READ and path.is_file() and is_pointer(first_bytes(path)):
            raise ModelError(f"{what}: {path} {POINTER}")


def check_memory(name: str, folder: Path, *, adapters: bool) -> None:
    """Raises ModelError, with the need in GB, if this machine's memory is too small to train a model in float32.

    adapters: they alone are trained, and what is kept for each weight that is trained does not count
    """
    import torch
    from safetensors import SafetensorError, safe_open

    numbers = 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                numbers += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        except SafetensorError:
            return  # which is said when it is loaded
    # trained on the CPU: its first weights, its weights, their gradients and the two moments of AdamW
    needed = 4 * numbers * (1 if adapters or torch.cuda.is_available() else 5)
    there = machine.memory()
    if needed > there:
        raise ModelError(
            f"model {name!r}: {'training' if needed > 4 * numbers else 'loading'} its {numbers / 1e9:.1f} billion weights in "
            f"float32 needs {needed / 1e9:.1f} GB of memory, and this machine has {there / 1e9:.1f}; take a smaller model, "
            f"{'' if adapters else 'train adapters only (lora), '}or another machine"
        )


_NO_TOKENIZER = "it has no tokenizer with a vocabulary; put it there with tokenizer.save_pretrained(folder)"


def _of_tokenizer(path: Path) -> bool:
    return path.name.startswith(("tokenizer.", "vocab", "merges")) or path.suffix in (".model", ".gguf")


def _damage(path: Path) -> str | None:
    """What is wrong with a file of a model, in words."""
    if path.suffix == ".json":
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"{path.name} is cut short or damaged: it is not JSON ({error})"
    if path.suffix == ".safetensors":
        size, start = path.stat().st_size, 8
        with path.open("rb") as file:
            start += int.from_bytes(file.read(8), "little")
            try:
                header = json.loads(file.read(start - 8)) if 8 < start <= size else None
                ends = [one["data_offsets"][1] for key, one in header.items() if key != "__metadata__"]
            except (ValueError, AttributeError, KeyError, TypeError):
                return f"{path.name} is cut short or damaged: it has no readable header"
        if size < start + max(ends, default=0):
            return f"{path.name} is cut short: it has {size} of {start + max(ends)} bytes; get it again"
    if path.suffix.lower() == ".gguf":
        from gguf import GGUFReader

        try:
            GGUFReader(path)
        except Exception as error:  # it reads on until something fails
            return f"{path.name} is cut short or damaged ({_first_line(error)}); get it again"
    return None


# --- loading ---------------------------------------------------------------------------------------------------------


def _from_pretrained(
    name: str, path: str, parts: list[Path], **options: Any
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """parts: the files, where they are known, to say which one is damaged."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = None
    try:
        weights = gguf.dequantized() if "gguf_file" in options else {"use_safetensors": True}
        with no_progress_bar():
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **options)
            model, report = AutoModelForCausalLM.from_pretrained(
                path,
                trust_remote_code=False,
                dtype=torch.float32,
                attn_implementation=None,  # sdpa where the model has it, else eager; not what its configuration says
                output_loading_info=True,
                **weights,
                **options,
            )
    except Exception as error:  # transformers, tokenizers, gguf and safetensors each raise their own
        damage = next((found for part in parts if part.is_file() and (found := _damage(part))), None)
        if tokenizer is None and not damage and parts and not any(_of_tokenizer(part) for part in parts):
            damage = _NO_TOKENIZER
        if not damage and (method := _quantization(path, options)):
            damage = f"{_QUANTIZED.format(method)}; {_first_line(error)}"
        raise ModelError(
            f"model {name!r}: {path} cannot be loaded as a causal language model: {damage or _first_line(error)}"
        ) from error
    where = f"model {name!r}: {path}"
    if getattr(model, "hf_quantizer", None) is not None and "gguf_file" not in options:
        raise ModelError(f"{where}: {_QUANTIZED.format(_quantization(path, options))}")
    # transformers fills both gaps without an error: weights with random numbers, the vocabulary with nothing
    if report["missing_keys"]:
        missing, kind = sorted(report["missing_keys"]), type(model).__name__
        saved = [other for other in model.config.architectures or [] if other != kind]
        raise ModelError(
            f"{where} lacks {len(missing)} of the weights of a {kind}, among them {missing[0]}; "
            + (f"it was saved as {saved[0]}, which is another model: " if saved else "")
            + "save the whole model again"
        )
    if not tokenizer("a b", add_special_tokens=False)["input_ids"]:
        raise ModelError(f"{where}: {_NO_TOKENIZER}")
    _check_vocabulary(where, model, tokenizer)
    _check_outputs(where, model.eval(), tokenizer)
    _warn_of_router_losses(where, model.config.get_text_config(decoder=True))
    return model, tokenizer


_QUANTIZED = (
    "its weights are quantized ({}), and packed weights cannot be trained; take the model with plain weights, or save it so "
    "(model.dequantize())"
)


def _quantization(path: str, options: dict[str, Any]) -> str | None:
    """The method by which the weights of a folder or a model of the Hub are packed, if they are."""
    from transformers import PreTrainedConfig

    if "gguf_file" in options:
        return None
    try:
        config, _ = PreTrainedConfig.get_config_dict(path, **options)
    except Exception:  # said by whoever reads the model
        return None
    return (config.get("quantization_config") or {}).get("quant_method")


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Inside the block transformers draws none: it floods executed notebooks."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_vocabulary(where: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Special tokens beyond the embeddings are let pass: no text has them unless it spells them out (`tokens.tokenize`)."""
    embeddings = len(model.get_input_embeddings().weight)
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    beyond = {
        number: token
        for token, number in tokenizer.get_vocab().items()
        if number >= embeddings and number not in special
    }
    if beyond:
        raise ModelError(
            f"{where} has embeddings for {embeddings} tokens, but its tokenizer numbers them up to {max(beyond)} "
            f"({beyond[max(beyond)]!r}); resize them (model.resize_token_embeddings(len(tokenizer))) and save the model, or "
            "take the tokenizer it was trained with"
        )


def _check_outputs(where: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """That outputs are numbers, that none depends on what follows, and that they have gradients."""
    import torch

    length = min(PROBED, longest(model, tokenizer))
    ids = (PROBED * tokenizer(PROBE, add_special_tokens=False)["input_ids"])[:length]  # of some tokenizers few tokens
    kept = length // 2
    probe = torch.tensor([ids, [*ids[:kept], *[int(not any(ids[kept:]))] * (length - kept)]])
    try:
        with torch.no_grad():
            logits = model(input_ids=probe, use_cache=False).logits
        _check_gradients(model, probe[:, :4])
    except Exception as error:
        raise ModelError(
            f"{where} cannot be used as a causal language model: {type(error).__name__}: {_first_line(error)}"
        ) from error
    finally:
        model.eval()
    if not bool(torch.isfinite(logits).all()):
        bad = next((key for key, p in model.named_parameters() if not bool(torch.isfinite(p).all())), None)
        raise ModelError(
            f"{where}: the model's own weights give nan before the first update"
            + (f": {bad} is not finite" if bad else "")
            + "; get the weights again"
        )
    first, second = logits[:, :kept]
    if float((first - second).abs().max()) > AGREEMENT * float(first.abs().max()):
        raise ModelError(
            f"{where} is no causal language model: its tokens see those that come later, so it knows what it is to predict "
            f"({type(model).__name__}; encoders such as BERT are causal only if they were trained with `is_decoder: true`); "
            "take a model that was trained to write text"
        )


def _check_gradients(model: PreTrainedModel, ids: torch.Tensor) -> None:
    """Runs a backward pass from logits to embeddings, as in training and as where nothing is random. Raises what fails."""
    import torch

    seen: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        for training in (True, False):
            with torch.random.fork_rng(devices=[]):
                logits = model.train(training)(input_ids=ids, use_cache=False).logits
            torch.autograd.grad(logits.sum(), seen.pop())
    finally:
        hook.remove()


def _warn_of_router_losses(where: str, config: PreTrainedConfig) -> None:
    if getattr(config, "output_router_logits", False):
        warnings.warn(
            f"{where}: its configuration asks for a loss that balances experts (output_router_logits: true); runs are "
            "trained on the texts' loss alone",
            stacklevel=2,
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


# --- the hub ---------------------------------------------------------------------------------------------------------


def check_hub_name(path: str) -> None:
    """Raises ModelError if this is no name of a model of the Hub, or a folder that would be read in its place."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(path)
    except HFValidationError:
        raise ModelError(
            f"there is no folder {path!r}, and it is no name of a model on the Hub, such as EleutherAI/pythia-14m; correct it"
            " (for a model on this machine: a folder in the layout of save_pretrained, in a profile with `source: local`)"
        ) from None
    if Path(path).is_dir():
        raise ModelError(
            f"model {path!r} is looked for on the Hub, but a folder of this name is here and would be read in its place; use "
            "`source: local` if that is meant, else run in another folder"
        )


def hub_commit(name: str, config: HubModel) -> str:
    """The commit that a revision stands for: asked from the Hub, or read from the local cache."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    check_hub_name(config.path)
    if hub_reachable():
        try:
            return str(HfApi().model_info(config.path, revision=config.revision).sha)
        except Exception as error:
            raise ModelError(
                f"model {name!r}: {config.path}, revision {config.revision!r}: {_first_line(error)}"
            ) from error
    cached = try_to_load_from_cache(config.path, "config.json", revision=config.revision)
    if not isinstance(cached, str):
        raise HubUnreachableError(_no_hub(config))
    return Path(cached).parent.name


def _no_hub(config: HubModel) -> str:
    return (
        f"model {config.path!r} (revision {config.revision!r}) lives on the Hugging Face Hub; no hub is reachable and it is "
        "not in the local cache. Connect, or download it elsewhere and use a model with `source: local`, or a profile that "
        "works offline (mini, smoke)"
    )
