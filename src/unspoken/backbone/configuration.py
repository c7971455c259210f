"""Shape of the decoder that is trained from scratch (JEPA-Reasoner, section 3 and the size tables)."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from unspoken.architecture import check_architecture


@strict
class UnspokenConfig(PreTrainedConfig):
    """Configuration of `UnspokenModel`.

    Three widths are separate: the latent (residual and embedding) width ``hidden_size``, the total width of
    queries, keys and values ``attention_size`` (it may exceed the latent width), and the FFN width
    ``intermediate_size``.

    Args:
        unit_embeddings: normalise table rows at the input and scale them by ``sqrt(hidden_size)``, so that tokens
            and looped unit-norm latents enter the first block on one scale.
        l2_output: switch on the second half of HybridNorm, which puts the output on the unit sphere.
        qk_norm: parameter-free norm of queries and keys per head, ``"layer"`` or ``"rms"``.
        is_causal: causal attention; False for an encoder.
        cross_attention: every block also attends to an encoder's output.
    """

    model_type = "unspoken"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 32
    hidden_size: int = 128
    attention_size: int = 128
    intermediate_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    max_position_embeddings: int = 1024
    hidden_act: str = "gelu"
    qk_norm: str = "layer"
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    unit_embeddings: bool = True
    l2_output: bool = False
    is_causal: bool = True
    cross_attention: bool = False
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def validate_architecture(self) -> None:
        """Refuse shapes that cannot be built, naming the keys."""
        check_architecture(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            attention_size=self.attention_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            initializer_range=self.initializer_range,
        )
        if self.qk_norm not in ("rms", "layer"):
            raise ValueError(f"qk_norm is {self.qk_norm!r}; it must be 'rms' or 'layer'")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.attention_size // self.num_attention_heads
