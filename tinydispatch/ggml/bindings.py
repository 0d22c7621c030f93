"""The C declarations of one llama.cpp version: struct layouts, constants and function signatures.

Transcribed from `llama.h` and `ggml.h` of llama.cpp 0.6.0 (build 11549). C gives no means to check a layout at load
time, so `library.py` compares the version and the default parameters before anything is called with these.
"""

from __future__ import annotations

import ctypes as c

# What `llama_version()` must return for these declarations to hold.
LLAMA_VERSION = "0.6.0-dev"

GGML_TYPE_F32, GGML_TYPE_F16 = 0, 1
GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0 = 2, 3, 6, 7, 8
GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K = 12, 13, 14
GGML_TYPE_I32, GGML_TYPE_I64, GGML_TYPE_BF16 = 26, 27, 30

GGML_BACKEND_DEVICE_TYPE_CPU = 0

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


class _OverrideValue(c.Union):
    _fields_ = (("integer", c.c_int64), ("text", c.c_char * 128))


class KeyOverride(c.Structure):
    """`struct llama_model_kv_override`; an array of them ends with an empty key."""

    _fields_ = (("tag", c.c_int), ("key", c.c_char * 128), ("value", _OverrideValue))


KEY_OVERRIDE_TEXT = 3


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


class InitParams(c.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (("mem_size", c.c_size_t), ("mem_buffer", c.c_void_p), ("no_alloc", c.c_bool))


class ThreadpoolParams(c.Structure):
    """`struct ggml_threadpool_params`."""

    _fields_ = (
        ("cpumask", c.c_bool * 512),
        ("n_threads", c.c_int),
        ("priority", c.c_int),
        ("poll", c.c_uint32),
        ("strict_cpu", c.c_bool),
        ("paused", c.c_bool),
    )


THREADPOOL_POLL = 50  # by default

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
    "llama_state_seq_get_size": (c.c_size_t, (_HANDLE, c.c_int32)),
    "llama_state_seq_get_data": (c.c_size_t, (_HANDLE, c.c_void_p, c.c_size_t, c.c_int32)),
    "llama_state_seq_set_data": (c.c_size_t, (_HANDLE, c.c_void_p, c.c_size_t, c.c_int32)),
    "ggml_quantize_chunk": (
        c.c_size_t,
        (c.c_int, _FLOATS, c.c_void_p, c.c_int64, c.c_int64, c.c_int64, _FLOATS),
    ),
}


# What reads a row of each type.
ROW_READERS = {
    GGML_TYPE_Q4_0: "dequantize_row_q4_0",
    GGML_TYPE_Q4_1: "dequantize_row_q4_1",
    GGML_TYPE_Q5_0: "dequantize_row_q5_0",
    GGML_TYPE_Q5_1: "dequantize_row_q5_1",
    GGML_TYPE_Q8_0: "dequantize_row_q8_0",
    GGML_TYPE_Q4_K: "dequantize_row_q4_K",
    GGML_TYPE_Q5_K: "dequantize_row_q5_K",
    GGML_TYPE_Q6_K: "dequantize_row_q6_K",
}
SIGNATURES |= dict.fromkeys(ROW_READERS.values(), (None, (c.c_void_p, c.c_void_p, c.c_int64)))

# ggml's graphs. Tensors, contexts and buffers are opaque handles here: nothing reads their structs.
_TENSOR, _CONTEXT, _SIZE = c.c_void_p, c.c_void_p, c.c_size_t
SIGNATURES |= {
    "ggml_init": (_CONTEXT, (InitParams,)),
    "ggml_free": (None, (_CONTEXT,)),
    "ggml_tensor_overhead": (_SIZE, ()),
    "ggml_graph_overhead_custom": (_SIZE, (_SIZE, c.c_bool)),
    "ggml_new_tensor_1d": (_TENSOR, (_CONTEXT, c.c_int, c.c_int64)),
    "ggml_new_tensor_2d": (_TENSOR, (_CONTEXT, c.c_int, c.c_int64, c.c_int64)),
    "ggml_nbytes": (_SIZE, (_TENSOR,)),
    "ggml_set_input": (None, (_TENSOR,)),
    "ggml_set_output": (None, (_TENSOR,)),
    "ggml_get_rows": (_TENSOR, (_CONTEXT, _TENSOR, _TENSOR)),
    "ggml_mul_mat": (_TENSOR, (_CONTEXT, _TENSOR, _TENSOR)),
    "ggml_add": (_TENSOR, (_CONTEXT, _TENSOR, _TENSOR)),
    "ggml_mul": (_TENSOR, (_CONTEXT, _TENSOR, _TENSOR)),
    "ggml_norm": (_TENSOR, (_CONTEXT, _TENSOR, c.c_float)),
    "ggml_relu": (_TENSOR, (_CONTEXT, _TENSOR)),
    "ggml_gelu_erf": (_TENSOR, (_CONTEXT, _TENSOR)),
    "ggml_reshape_2d": (_TENSOR, (_CONTEXT, _TENSOR, c.c_int64, c.c_int64)),
    "ggml_reshape_3d": (_TENSOR, (_CONTEXT, _TENSOR, c.c_int64, c.c_int64, c.c_int64)),
    "ggml_permute": (_TENSOR, (_CONTEXT, _TENSOR, c.c_int, c.c_int, c.c_int, c.c_int)),
    "ggml_view_2d": (_TENSOR, (_CONTEXT, _TENSOR, c.c_int64, c.c_int64, _SIZE, _SIZE)),
    "ggml_view_3d": (_TENSOR, (_CONTEXT, _TENSOR, c.c_int64, c.c_int64, c.c_int64, _SIZE, _SIZE, _SIZE)),
    "ggml_new_graph_custom": (_HANDLE, (_CONTEXT, _SIZE, c.c_bool)),
    "ggml_build_forward_expand": (None, (_HANDLE, _TENSOR)),
    "ggml_gallocr_new": (_HANDLE, (_HANDLE,)),
    "ggml_gallocr_alloc_graph": (c.c_bool, (_HANDLE, _HANDLE)),
    "ggml_gallocr_get_buffer_size": (_SIZE, (_HANDLE, c.c_int)),
    "ggml_gallocr_free": (None, (_HANDLE,)),
    "ggml_backend_init_by_type": (_HANDLE, (c.c_int, c.c_char_p)),
    "ggml_backend_free": (None, (_HANDLE,)),
    "ggml_backend_get_default_buffer_type": (_HANDLE, (_HANDLE,)),
    "ggml_backend_get_device": (_HANDLE, (_HANDLE,)),
    "ggml_backend_dev_backend_reg": (_HANDLE, (_HANDLE,)),
    "ggml_backend_reg_get_proc_address": (_HANDLE, (_HANDLE, c.c_char_p)),
    "ggml_backend_dev_supports_op": (c.c_bool, (_HANDLE, _TENSOR)),
    "ggml_threadpool_params_default": (ThreadpoolParams, (c.c_int,)),
    "ggml_backend_graph_compute": (c.c_int, (_HANDLE, _HANDLE)),
    "ggml_backend_cpu_buffer_from_ptr": (_HANDLE, (c.c_void_p, _SIZE)),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_HANDLE, (_CONTEXT, _HANDLE)),
    "ggml_backend_buffer_free": (None, (_HANDLE,)),
    "ggml_backend_tensor_alloc": (c.c_int, (_HANDLE, _TENSOR, c.c_void_p)),
    "ggml_backend_tensor_set": (None, (_TENSOR, c.c_void_p, _SIZE, _SIZE)),
    "ggml_backend_tensor_get": (None, (_TENSOR, c.c_void_p, _SIZE, _SIZE)),
    "ggml_new_tensor_3d": (_TENSOR, (_CONTEXT, c.c_int, c.c_int64, c.c_int64, c.c_int64)),
    "ggml_soft_max_ext": (_TENSOR, (_CONTEXT, _TENSOR, _TENSOR, c.c_float, c.c_float)),
    "ggml_cpy": (_TENSOR, (_CONTEXT, _TENSOR, _TENSOR)),
    "ggml_transpose": (_TENSOR, (_CONTEXT, _TENSOR)),
    "ggml_cont_2d": (_TENSOR, (_CONTEXT, _TENSOR, c.c_int64, c.c_int64)),
}
