"""Whether a cache fits into memory, asked before it is taken: Linux grants too much and ends processes later."""

from __future__ import annotations

from pathlib import Path

from tinydispatch.ggml.header import GgufError, GgufHeader

_MEMINFO = Path("/proc/meminfo")


def available_bytes() -> int | None:
    """What can be used without swapping; None where the system does not say."""
    try:
        lines = _MEMINFO.read_text("ascii").splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    value = fields.get("MemAvailable", "").split()
    return int(value[0]) * 1024 if len(value) == 2 and value[0].isdigit() else None


def fits(n_bytes: int) -> bool:
    """Whether that much memory is free, as far as the system says."""
    available = available_bytes()
    return available is None or n_bytes <= available


def require_memory(path: Path, n_bytes: int, n_ctx: int, *, has_weights: bool = False) -> None:
    """Check that a cache of `n_ctx` positions fits.

    Raises:
        GgufError: it does not; the message says what is needed and what is there.
    """
    available = available_bytes()
    if available is None or n_bytes <= available:
        return
    what, remedy = f"a cache of {n_ctx} positions takes", "lower n_ctx or free memory"
    if has_weights:
        what = f"the weights and a cache of {n_ctx} positions take"
        remedy += ", or set TINYDISPATCH_NATIVE=off, which leaves the weights in the file"
    raise GgufError(path, f"{what} {n_bytes / 1e6:.0f} MB, and {available / 1e6:.0f} MB are free: {remedy}")


def cache_bytes(header: GgufHeader, n_ctx: int, item_bytes: int) -> int:
    """Keys and values of `n_ctx` positions, by the numbers in a file that llama.cpp runs; 0 if it lacks them.

    Args:
        item_bytes: of one number in the cache.
    """

    def number(key: str, default: int = 0) -> int:
        value = header.metadata.get(f"{header.architecture}.{key}", default)
        return value if isinstance(value, int) else 0

    n_heads = number("attention.head_count")
    if not n_heads:
        return 0
    head_width = number("embedding_length") // n_heads
    per_position = number("attention.head_count_kv", n_heads) * (
        number("attention.key_length", head_width) + number("attention.value_length", head_width)
    )
    n_ctx = min(n_ctx, number("context_length") or n_ctx)
    # Layers of linear attention keep one state, however long the context.
    n_layers = number("block_count") // (number("full_attention_interval") or 1)
    return item_bytes * n_ctx * n_layers * per_position
