"""What a Trainer's arguments, and the optimizer that it made of them, say of how it trains."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerState, TrainingArguments

from gptfluence.common.errors import ConfigurationError
from gptfluence.recording.recorder import decayed_names
from gptfluence.recording.settings import AdamW, Recording

# by the Trainer's names; another one, or one with arguments of its own, is told by the rates that it gave
SCHEDULES = {
    "linear": "linear_decay",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
NO_DROPOUT = ("summary", "classifier")  # such a word is in the name of a rate that no causal language model trains with


def check_supported(args: TrainingArguments) -> None:
    """Raises ConfigurationError that names what cannot be recorded."""
    # `accelerate launch` may have been told, and not the arguments
    launched = str(getattr(PartialState._shared_state.get("distributed_type"), "value", ""))
    for name, used in {
        "DataParallel (several GPUs in one process)": args.n_gpu > 1,
        "FSDP": bool(getattr(args, "fsdp", None)) or launched == "FSDP",
        "DeepSpeed": bool(getattr(args, "deepspeed", None)) or launched == "DEEPSPEED",
        "Megatron-LM": launched == "MEGATRON_LM",
        "parallelism_config (a model or a text over several GPUs)": bool(getattr(args, "parallelism_config", None)),
        "torch.compile": bool(getattr(args, "torch_compile", False)),
    }.items():
        if used:
            raise ConfigurationError(
                f"a training with {name} cannot be recorded; train without it, with one process for each GPU (torchrun)"
            )


def run_facts(args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
    """What tells one training on the same data from another."""
    names = ("seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
    strategy = str(getattr(args, "train_sampling_strategy", "random"))
    return {**{name: getattr(args, name) for name in names}, "max_steps": state.max_steps, "sampling": strategy}


def recording_of(
    args: TrainingArguments, state: TrainerState, model: torch.nn.Module, optimizer: Any
) -> tuple[Recording | None, str]:
    """How this package would train so, or None, and in words why it cannot.

    optimizer: the Trainer's, for what its arguments do not say; None: they say all
    """
    found = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    named = str(getattr(args.optim, "value", args.optim))
    groups = [] if found is None else found.param_groups
    decays = {id(p) for group in groups for p in group["params"] if group["weight_decay"]}
    expected = decayed_names(model)
    parts = args.gradient_accumulation_steps > 1 or args.world_size > 1
    by_tokens = takes_number_of_tokens(model) and (args.world_size == 1 or args.average_tokens_across_devices)
    highest = {group.get("initial_lr", group["lr"]) for group in groups}  # now they may all be 0, before the warm-up
    problems = {
        f"the optimizer is {named if found is None else type(found).__name__} ({named}), not AdamW of torch": (
            named not in ("adamw_torch", "adamw_torch_fused") if found is None else type(found) is not torch.optim.AdamW
        ),
        "AdamW is used with amsgrad or maximize": any(
            group.get("amsgrad") or group.get("maximize") for group in groups
        ),
        "the schedule moves AdamW's betas, too (cycle_momentum)": any("max_momentum" in group for group in groups),
        "float16 scales losses and skips steps": args.fp16,
        "labels are smoothed (label_smoothing_factor)": bool(args.label_smoothing_factor),
        "noise is added to embeddings (neftune_noise_alpha)": bool(getattr(args, "neftune_noise_alpha", None)),
        "the loss is not the mean over tokens (loss_type)": getattr(args, "loss_type", "nll") != "nll",
        "each part of a batch weighs the same, however many tokens it has (the model takes no num_items_in_batch, or "
        "average_tokens_across_devices is False)": parts and not by_tokens,
        "trained weights are not float32": any(p.dtype != torch.float32 for _, p in trained),
        "groups of parameters have learning rates of their own": len(highest) > 1,
        "weight decay acts on other parameters than those that the Trainer chooses": bool(decays)
        and decays != {id(p) for name, p in trained if name in expected},
    }
    if wrong := [problem for problem, there in problems.items() if there]:
        return None, "; ".join(wrong)
    name = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    schedule = "recorded" if args.lr_scheduler_kwargs else SCHEDULES.get(name, "recorded")
    one = groups[0] if groups else {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    settings = AdamW(
        learning_rate=args.learning_rate,
        betas=one["betas"],
        eps=one["eps"],
        weight_decay=max(group["weight_decay"] for group in groups) if groups else args.weight_decay,
        schedule=schedule,
        warmup_steps=0 if name == "constant" else args.get_warmup_steps(state.max_steps),
        max_gradient_norm=args.max_grad_norm or None,
    )
    return Recording(optimizer=settings, precision="bf16" if args.bf16 else "fp32"), ""


def takes_number_of_tokens(model: torch.nn.Module) -> bool:
    """Whether the Trainer tells the model how many tokens the whole batch has, so that each token weighs the same."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if hasattr(base, "accepts_loss_kwargs"):
        return bool(base.accepts_loss_kwargs)
    return any(each.kind == each.VAR_KEYWORD for each in inspect.signature(base.forward).parameters.values())


def dropout_of(model: torch.nn.Module) -> float:
    """The highest rate of dropout that a model is trained with, of its modules and of its configuration."""
    rates = [part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)]
    settings = model.config.get_text_config(decoder=True).to_dict()
    rates += [
        value
        for name, value in settings.items()
        if "drop" in name and isinstance(value, float) and not any(word in name for word in NO_DROPOUT)
    ]
    return float(max(rates, default=0.0))
