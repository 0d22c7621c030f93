"""The C declarations of one llama.cpp version: struct layouts, constants and function signatures.

Transcribed from `llama.h` and `ggml.h` of llama.cpp 0.6.0 (build 11549). C gives no means to check a layout at load
time, so `library.py` compares the version and the default parameters before anything is called with these.
"""

from __future__ import annotations

import ctypes as c

# What `llama_version()` must return for these declarations to hold.
LLAMA_VERSION = "0.6.0-dev"

GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0 = 0, 1, 8

LogCallback = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)


class ModelParams(c.Structure):
    """`struct llama_model_params`."""

    _fields_ = (
        ("devices", c.c_void_p),
        ("tensor_buft_overrides", c.c_void_p),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int),
        ("load_mode", c.c_int),
        ("lazy_mode", c.c_int),
        ("main_gpu", c.c_int32),
        ("tensor_split", c.c_void_p),
        ("progress_callback", c.c_void_p),
        ("progress_callback_user_data", c.c_void_p),
        ("kv_overrides", c.c_void_p),
        ("vocab_only", c.c_bool),
        ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool),
        ("no_host", c.c_bool),
        ("no_alloc", c.c_bool),
        ("load_mtp", c.c_bool),
    )


class ContextParams(c.Structure):
    """`struct llama_context_params`."""

    _fields_ = (
        ("n_ctx", c.c_uint32),
        ("n_batch", c.c_uint32),
        ("n_ubatch", c.c_uint32),
        ("n_seq_max", c.c_uint32),
        ("n_rs_seq", c.c_uint32),
        ("n_outputs_max", c.c_uint32),
        ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32),
        ("n_threads_batch", c.c_int32),
        ("ctx_type", c.c_int),
        ("rope_scaling_type", c.c_int),
        ("pooling_type", c.c_int),
        ("attention_type", c.c_int),
        ("flash_attn_type", c.c_int),
        ("rope_freq_base", c.c_float),
        ("rope_freq_scale", c.c_float),
        ("yarn_ext_factor", c.c_float),
        ("yarn_attn_factor", c.c_float),
        ("yarn_beta_fast", c.c_float),
        ("yarn_beta_slow", c.c_float),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p),
        ("cb_eval_user_data", c.c_void_p),
        ("type_k", c.c_int),
        ("type_v", c.c_int),
        ("moe_cache_size", c.c_size_t),
        ("abort_callback", c.c_void_p),
        ("abort_callback_data", c.c_void_p),
        ("embeddings", c.c_bool),
        ("offload_kqv", c.c_bool),
        ("no_perf", c.c_bool),
        ("op_offload", c.c_bool),
        ("swa_full", c.c_bool),
        ("kv_unified", c.c_bool),
        ("samplers", c.c_void_p),
        ("n_samplers", c.c_size_t),
        ("ctx_other", c.c_void_p),
    )


class Batch(c.Structure):
    """`struct llama_batch`."""

    _fields_ = (
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.POINTER(c.c_float)),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    )


# What the defaults are in this version. A field that moved would show other values here.
MODEL_DEFAULTS = {"n_gpu_layers": -1, "main_gpu": 0, "vocab_only": False, "use_extra_bufts": True, "load_mtp": False}
CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "flash_attn_type": -1,
    "yarn_ext_factor": -1.0,
    "defrag_thold": -1.0,
    "type_k": GGML_TYPE_F16,
    "type_v": GGML_TYPE_F16,
    "moe_cache_size": 0,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
    "kv_unified": False,
    "n_samplers": 0,
    "ctx_other": None,
}

_INTS = c.POINTER(c.c_int32)
_FLOATS = c.POINTER(c.c_float)
_HANDLE = c.c_void_p

# name -> (result type, argument types)
SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "llama_backend_init": (None, ()),
    "llama_log_set": (None, (LogCallback, c.c_void_p)),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (_HANDLE, (c.c_char_p, ModelParams)),
    "llama_model_free": (None, (_HANDLE,)),
    "llama_model_get_vocab": (_HANDLE, (_HANDLE,)),
    "llama_model_n_ctx_train": (c.c_int32, (_HANDLE,)),
    "llama_init_from_model": (_HANDLE, (_HANDLE, ContextParams)),
    "llama_free": (None, (_HANDLE,)),
    "llama_n_ctx": (c.c_uint32, (_HANDLE,)),
    "llama_vocab_n_tokens": (c.c_int32, (_HANDLE,)),
    "llama_vocab_is_eog": (c.c_bool, (_HANDLE, c.c_int32)),
    "llama_tokenize": (c.c_int32, (_HANDLE, c.c_char_p, c.c_int32, _INTS, c.c_int32, c.c_bool, c.c_bool)),
    "llama_token_to_piece": (c.c_int32, (_HANDLE, c.c_int32, c.c_char_p, c.c_int32, c.c_int32, c.c_bool)),
    "llama_batch_init": (Batch, (c.c_int32, c.c_int32, c.c_int32)),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (c.c_int32, (_HANDLE, Batch)),
    "llama_get_logits_ith": (_FLOATS, (_HANDLE, c.c_int32)),
    "llama_get_memory": (_HANDLE, (_HANDLE,)),
    "llama_memory_seq_rm": (c.c_bool, (_HANDLE, c.c_int32, c.c_int32, c.c_int32)),
    "ggml_quantize_chunk": (
        c.c_size_t,
        (c.c_int, _FLOATS, c.c_void_p, c.c_int64, c.c_int64, c.c_int64, _FLOATS),
    ),
}
