"""Tiny causal language models of every family that transformers has: two layers, a width of 32, random weights."""

from __future__ import annotations

from typing import Any

VOCABULARY = 400

COMMON: dict[str, Any] = {  # what a configuration does not know of these it ignores
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,  # so that outputs depend on what stands before
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
HEADS = {**COMMON, "head_dim": 8}
EXPERTS = {
    **HEADS,
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "moe_k"], 2),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 16),
    **dict.fromkeys(["n_group", "topk_group", "n_shared_experts", "num_shared_experts"], 1),
    **dict.fromkeys(["first_k_dense_replace", "num_dense_layers", "decoder_sparse_step"], 1),
}
LATENT = {  # multi-head latent attention
    **EXPERTS,
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank"], 16),
    **dict.fromkeys(["qk_nope_head_dim", "v_head_dim"], 8),
    **dict.fromkeys(["qk_rope_head_dim", "head_dim", "num_key_value_heads"], 4),
}
INDEXED = {**LATENT, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 128}
STATES = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_d_conv": 4}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
GPT_J = {**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_ctx": 128, "rotary_dim": 4}
DECODER = {
    **COMMON,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "is_decoder": True,
    "is_encoder_decoder": False,
    "decoder_start_token_id": 0,
}
ENCODER_AS_DECODER = {**COMMON, "is_decoder": True}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
SIGHT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}

PLAIN = """apertus arcee beam biogpt bitnet bloom cohere cohere2 cwm diffllama doge ernie4_5 exaone4 falcon_mamba flint
    gemma gemma2 glm glm4 gpt2 gpt_bigcode gpt_neox gpt_neox_japanese granite granite_swa helium hrm_text
    hunyuan_v1_dense hyperclovax internlm3 iquestcoder jais2 llama mamba ministral ministral3 mistral modernbert-decoder
    mpt nanochat nemotron olmo olmo2 olmo3 olmo_hybrid openai-gpt persimmon phi phi3 qwen2 qwen3 rwkv seed_oss smollm3
    stablelm starcoder2 vaultgemma"""
MIXTURES = """afmoe cohere2_moe dots1 ernie4_5_moe exaone_moe flex_olmo glm4_moe granitemoe granitemoe_swa
    granitemoeshared hunyuan_v1_moe jetmoe laguna llama4_text minimax minimax_m2 mixtral olmoe phimoe qwen2_moe
    qwen3_moe solar_open"""
LATENTS = "axk1 deepseek_v2 deepseek_v3 glm4_moe_lite longcat_flash minicpm3 youtu"
DECODERS = "bart blenderbot marian mbart pegasus plbart trocr"
ENCODERS = "bert bert-generation camembert electra roberta roformer xlm-roberta"

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {  # name -> model type, and what its configuration is made from
    **{name: (name, HEADS) for name in PLAIN.split()},
    **{name: (name, EXPERTS) for name in MIXTURES.split()},
    **{name: (name, LATENT) for name in LATENTS.split()},
    **{name: (name, DECODER) for name in DECODERS.split()},
    **{f"{name} (decoder)": (name, ENCODER_AS_DECODER) for name in ENCODERS.split()},
    **{name: (name, GPT_J) for name in ("codegen", "gptj")},
    **{name: (name, INDEXED) for name in ("deepseek_v32", "glm_moe_dsa")},
    "bamba": ("bamba", {**COMMON, **STATES, "attn_layer_indices": [1]}),
    "ctrl": ("ctrl", {**COMMON, "dff": 64}),
    "dots1": ("dots1", {**EXPERTS, "layer_types": ["full_attention", "full_attention"]}),
    "falcon": ("falcon", COMMON),
    "falcon (alibi)": ("falcon", {**COMMON, "alibi": True}),
    "falcon (new decoder)": ("falcon", {**COMMON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_h1": ("falcon_h1", {**HEADS, **STATES, "mamba_d_ssm": 64}),
    "gemma3": (
        "gemma3",
        {
            "text_config": {**HEADS, **SLIDING},
            "vision_config": {**SIGHT, "image_size": 16, "patch_size": 8},
            "mm_tokens_per_image": 4,
            "image_token_index": 397,
            "boi_token_index": 398,
            "eoi_token_index": 399,
        },
    ),
    "gemma3_text": ("gemma3_text", {**HEADS, **SLIDING}),
    "gemma3n_text": (
        "gemma3n_text",
        {
            **HEADS,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0] * 4,
        },
    ),
    "gemma4_text": (
        "gemma4_text",
        {**HEADS, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8},
    ),
    "gpt_neo": (
        "gpt_neo",
        {**COMMON, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "gpt_oss": ("gpt_oss", {**EXPERTS, **SLIDING}),
    "granitemoehybrid": (
        "granitemoehybrid",
        {**EXPERTS, **STATES, "mamba_expand": 2, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 64},
    ),
    "jamba": (
        "jamba",
        {
            **EXPERTS,
            "mamba_d_state": 8,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "use_mamba_kernels": False,
        },
    ),
    "lfm2": (
        "lfm2",
        {**COMMON, "layer_types": ["conv", "full_attention"], "block_ff_dim": 64, "block_auto_adjust_ff_dim": False},
    ),
    "lfm2_moe": ("lfm2_moe", {**EXPERTS, "layer_types": ["conv", "full_attention"]}),
    "llama (tied)": ("llama", {**HEADS, "tie_word_embeddings": True}),
    "llama4_text": ("llama4_text", {**EXPERTS, "intermediate_size_mlp": 64}),
    "longcat_flash": (
        "longcat_flash",
        {
            **LATENT,
            "num_layers": 2,
            "ffn_hidden_size": 64,
            "expert_ffn_hidden_size": 16,
            "zero_expert_num": 2,
            "moe_topk": 2,
        },
    ),
    "mamba2": ("mamba2", {**COMMON, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "chunk_size": 8}),
    "mimo_v2_flash": ("mimo_v2_flash", {**EXPERTS, "v_head_dim": 8}),
    "minicpm3": ("minicpm3", LATENT),
    "nemotron_h": (
        "nemotron_h",
        {
            **HEADS,
            **STATES,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "hybrid_override_pattern": "M*",
        },
    ),
    "opt": ("opt", {**COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "phi (norms of queries)": ("phi", {**COMMON, "qk_layernorm": True}),
    "stablelm (norms of queries)": ("stablelm", {**COMMON, "qk_layernorm": True}),
    "qwen3_5": (
        "qwen3_5",
        {
            "text_config": {**HEADS, **DELTA},
            "vision_config": {
                **SIGHT,
                "depth": 1,
                "num_heads": 2,
                "out_hidden_size": 32,
                "num_position_embeddings": 16,
            },
        },
    ),
    "qwen3_5_text": ("qwen3_5_text", {**HEADS, **DELTA}),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", {**EXPERTS, **DELTA}),
    "qwen3_next": ("qwen3_next", {**EXPERTS, **DELTA}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {**HEADS, "block_types": ["recurrent", "attention"], "attention_window_size": 64, "lru_width": 32},
    ),
    "rembert (decoder)": (
        "rembert",
        {**ENCODER_AS_DECODER, "input_embedding_size": 32, "output_embedding_size": 32},
    ),
    "xglm": ("xglm", {**COMMON, "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}),
    "xlstm": (
        "xlstm",
        {
            **COMMON,
            "num_heads": 4,
            "num_blocks": 2,
            "qk_dim_factor": 1.0,
            "v_dim_factor": 1.0,
            "use_cache": False,
            "mlstm_round_up_to_multiple_of": 4,
            "ffn_round_up_to_multiple_of": 4,
            "return_last_states": True,
        },
    ),
    "zamba": (
        "zamba",
        {
            **COMMON,
            "num_hidden_layers": 4,
            "layers_block_type": ["linear_attention", "hybrid"] * 2,
            "mamba_d_state": 8,
            "n_mamba_heads": 2,
            "mamba_dt_rank": 4,
            "attention_head_dim": 16,
            "attention_hidden_size": 64,
            "use_mamba_kernels": False,
        },
    ),
    "zamba2": (
        "zamba2",
        {
            **COMMON,
            "layers_block_type": ["mamba", "hybrid"],
            "num_mem_blocks": 1,
            "mamba_d_state": 8,
            "mamba_headdim": 16,
            "mamba_ngroups": 1,
            "use_mem_rope": True,
            "n_mamba_heads": 4,
            "chunk_size": 8,
            "adapter_rank": 4,
        },
    ),
    "zaya": ("zaya", {**EXPERTS, "num_experts_per_tok": 1}),
}

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {  # tokens see those after them, unless it is said
    **{name: (name, COMMON) for name in ENCODERS.split()},
    "xlnet": (
        "xlnet",
        {
            **{key: value for key, value in COMMON.items() if key != "max_position_embeddings"},
            "d_model": 32,
            "n_layer": 2,
            "n_head": 4,
            "d_inner": 64,
        },
    ),
    "xlm": ("xlm", {**COMMON, "emb_dim": 32, "n_layers": 2, "n_heads": 4}),
    "cpmant": ("cpmant", {**COMMON, "dim_head": 8, "dim_ff": 64}),
    # trained on texts of a certain length alone
    "reformer": (
        "reformer",
        {
            **ENCODER_AS_DECODER,
            "attn_layers": ["local", "local"],
            "local_attn_chunk_length": 8,
            "axial_pos_shape": [8, 16],
            "axial_pos_embds_dim": [16, 16],
            "attention_head_size": 8,
            "feed_forward_size": 64,
        },
    ),
}
