"""Which shapes of our own decoder can be built; a recipe is checked by this before anything is."""

from __future__ import annotations

LARGEST_WIDTH, MOST_LAYERS = 2**24, 4096


def check_architecture(
    *,
    vocab_size: int,
    hidden_size: int,
    attention_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    initializer_range: float,
) -> None:
    """Refuse shapes that cannot be built, naming the keys of `unspoken.backbone.UnspokenConfig`.

    Raises:
        ValueError: a width is no whole number of at least 1 or beyond any machine, or heads would have no even width.
    """
    widths = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "attention_size": attention_size,
        "intermediate_size": intermediate_size,
        "num_attention_heads": num_attention_heads,
    }
    for key, width in widths.items():
        if not isinstance(width, int) or not 1 <= width <= LARGEST_WIDTH:
            raise ValueError(f"{key} is {width!r}; it must be a whole number of at least 1 and at most {LARGEST_WIDTH}")
    if not 0 <= num_hidden_layers <= MOST_LAYERS:
        raise ValueError(f"num_hidden_layers is {num_hidden_layers}; it cannot be negative or above {MOST_LAYERS}")
    if initializer_range <= 0:
        raise ValueError(f"initializer_range is {initializer_range}; it must be positive")
    if attention_size % num_attention_heads:
        raise ValueError(
            f"attention_size {attention_size} is not a multiple of num_attention_heads {num_attention_heads}; "
            "the width of a head must be whole"
        )
    head_dim = attention_size // num_attention_heads
    if head_dim % 2:
        raise ValueError(
            f"attention_size {attention_size} over num_attention_heads {num_attention_heads} gives heads "
            f"of width {head_dim}; rotary positions need an even one"
        )
