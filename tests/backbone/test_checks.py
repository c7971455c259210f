"""What is found out about a model, one family that has each property and one that has not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_hub import FALCON_H1, GPT, PER_LAYER, SLIDING, WIDTH, enlivened, tiny_hub_model
from tiny_models import tiny_language_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from unspoken.backbone import checks
from unspoken.backbone.checks import NEEDS, Needs, missing, require
from unspoken.methods import catalogue
from unspoken.reasoning.causal_lm import LatentGenerationConfig


class GluedLlama(LlamaForCausalLM):
    """A model that is one piece for those who ask for its stack."""

    base_model_prefix = ""


class PeekingLlama(LlamaForCausalLM):
    """A model whose scores depend on more than the outputs of its stack."""

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        outputs = super().forward(input_ids=input_ids, **kwargs)
        if input_ids is not None:
            outputs.logits = outputs.logits + input_ids[..., None]
        return outputs


def llama_like(cls: type[LlamaForCausalLM]) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=60, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    return enlivened(cls._from_config(config, attn_implementation="eager"))


# The property, a model without it, and the end of the sentence that names it.
LACKING: list[tuple[str, str, dict[str, Any], str]] = [
    ("rows", "falcon_h1", FALCON_H1, "off by"),
    ("vectors", "gemma4_text", PER_LAYER, "RuntimeError: It seems like you tried to call `forward` from"),
    ("causal", "bert", {}, "off by"),
    ("cached", "openai-gpt", GPT, "off by"),
    ("batched", "rwkv", {"attention_hidden_size": WIDTH, "context_length": 64}, "off by"),
    (
        "padded",
        "recurrent_gemma",
        {"block_types": ["recurrent", "attention"], "lru_width": WIDTH, "attention_window_size": 64},
        "off by",
    ),
    (
        "width",
        "reformer",
        {
            "attn_layers": ["local", "local"],
            "attention_head_size": 8,
            "feed_forward_size": 48,
            "axial_pos_shape": [8, 8],
            "axial_pos_embds_dim": [16, 16],
            "is_decoder": True,
            "local_attn_chunk_length": 4,
        },
        "64 and 32",
    ),
    ("named", "opt", {"ffn_dim": 48, "word_embed_proj_dim": 16}, "32 and 16"),
    ("rebuilt", "bert", {"is_decoder": True}, "BertModel with other weights"),
    (
        "masked",
        "lfm2",
        {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        "RuntimeError",
    ),
    ("positions", "mpt", {"d_model": WIDTH, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, "off by"),
    (
        "positions",
        "gpt_neo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 256},
        "config.window_size counts tokens, not position_ids",
    ),
    (
        "gradient",
        "qwen3_5_text",
        {
            "layer_types": ["linear_attention", "full_attention"],
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
        "RuntimeError: one of the variables needed for gradient computation has been modified",
    ),
]
RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tie_word_embeddings": True}),
    ("llama", {"tie_word_embeddings": False}),
    ("qwen2", {}),
    ("gpt2", GPT),
    ("mistral", {"sliding_window": 6}),
    ("gemma2", SLIDING),
    ("gemma3_text", SLIDING),
    ("mixtral", {}),
    ("phi", {}),
    ("cohere", {}),
    ("modernbert-decoder", {"local_attention": 6, **SLIDING}),
    ("ctrl", {**GPT, "dff": 48}),
]


@pytest.fixture(autouse=True)
def _nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checks, "_known", {})


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("kind", "settings"), RIGHT)
def test_families_that_are_right_around_every_method(kind: str, settings: dict[str, Any], attention: str) -> None:
    if attention == "sdpa" and kind in ("ctrl", "gemma2"):
        pytest.skip("the library has no such attention for it")
    model = tiny_hub_model(kind, attention, **settings)
    assert missing(model) == {}
    for method in NEEDS:
        require(model, method)
        require(model.base_model, method if method == "JEPA-Reasoner" else "JEPA-Reasoner")


@pytest.mark.parametrize(("name", "kind", "settings", "ending"), LACKING, ids=lambda value: str(value)[:20])
def test_a_missing_property_is_named(name: str, kind: str, settings: dict[str, Any], ending: str) -> None:
    model = tiny_hub_model(kind, **settings)
    sentence, _ = checks._PROPERTIES[name]
    assert missing(model)[name].startswith(f"{sentence} (")
    assert ending in missing(model)[name]
    for method, needs in NEEDS.items():
        if name not in needs:
            continue
        with pytest.raises(ValueError, match=f"^{method} cannot be used with {type(model).__name__}: .*another model$"):
            require(model, method)


@pytest.mark.parametrize(("cls", "name"), [(GluedLlama, "stack"), (PeekingLlama, "scores")])
def test_a_model_whose_head_cannot_be_asked_alone_is_refused(cls: type[LlamaForCausalLM], name: str) -> None:
    model = llama_like(cls)
    assert checks._PROPERTIES[name][0] in missing(model)[name]
    with pytest.raises(ValueError, match=f"explicit chains cannot be used with {cls.__name__}"):
        require(model, "explicit chains")


def test_a_refusal_is_one_line_that_names_what_can_be_used_instead() -> None:
    conv = tiny_hub_model("lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)
    with pytest.raises(ValueError, match=r"^Latent-SFT cannot be used") as refusal:
        require(conv, "Latent-SFT")
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).endswith(
        "; use an explicit chain of thought or Soft Thinking or Coconut or JEPA-Reasoner with this model, or take "
        "another model"
    )
    for method in ("explicit chains", "superpositions", "hidden states", "Coconut", "JEPA-Reasoner"):
        require(conv, method)  # type: ignore[arg-type]
    bidirectional = tiny_hub_model("bert")
    with pytest.raises(ValueError, match=r"its outputs depend on later tokens .*; take another model$"):
        require(bidirectional, "explicit chains")


def test_vectors_that_are_no_rows_are_needed_by_latents_alone() -> None:
    model = tiny_hub_model("gemma4_text", **PER_LAYER)
    require(model, "explicit chains")
    with pytest.raises(
        ValueError, match=r"superpositions cannot .* refuses inputs_embeds .* use an explicit chain of thought with"
    ):
        require(model, "superpositions")


def test_soft_thinking_is_left_out_where_it_would_be_wrong() -> None:
    rows_alone = tiny_hub_model("gemma4_text", **PER_LAYER)
    for model, names in ((rows_alone, ["cot"]), (tiny_hub_model("llama"), ["cot", "soft thinking"])):
        LatentGenerationConfig(open_ids=(5,), end_ids=(6,), top_k=1).attach(model)
        assert [system.name for system in catalogue.systems(model, stage="cot", max_answer=4)] == names


@pytest.mark.parametrize(("kind", "settings"), [("mistral", {"sliding_window": 4096}), ("gpt_oss", SLIDING)])
def test_a_window_shows_however_long_it_is(
    kind: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_hub_model(kind, max_position_embeddings=8192, **settings)
    assert missing(model) == {}
    # The same model with masks that forget its window.
    monkeypatch.setattr("unspoken.backbone.attention._within", lambda mod, *_: mod)
    monkeypatch.setattr(checks, "_known", {})
    monkeypatch.setattr(checks, "_read", lambda _: None)
    assert list(missing(model)) == ["positions"]


def test_a_window_beyond_the_last_position_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    # Moshi's cache has a window that its masks do not have, so it must never be reached.
    monkeypatch.setattr(checks, "_PROPERTIES", {"cached": checks._PROPERTIES["cached"]})
    assert missing(tiny_hub_model("moshi", sliding_window=64, max_position_embeddings=64)) == {}
    assert list(missing(tiny_hub_model("moshi", sliding_window=32, max_position_embeddings=64))) == ["cached"]


def test_our_own_decoder_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(checks, "_ask", fail)
    model = tiny_language_model("unspoken")
    for method in NEEDS:
        require(model, method)
    require(model.base_model, "JEPA-Reasoner")


def test_asking_leaves_the_model_and_the_random_numbers_alone() -> None:
    model = tiny_hub_model("gemma3_text", **{**SLIDING, "attention_dropout": 0.5})
    model.train()
    model.base_model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    weights, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert missing(model) == {}
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert model.config.to_dict() == config
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_no_kernel_is_compiled_to_ask() -> None:
    model = tiny_hub_model("gemma3_text", "flex_attention", **SLIDING)
    assert missing(model) == {}
    assert model.config._attn_implementation == "flex_attention"


def test_weights_of_less_precision_are_asked_in_float32() -> None:
    model = tiny_hub_model("llama").bfloat16()
    assert missing(model) == {}
    assert model.dtype == torch.bfloat16
    leaking = tiny_hub_model("lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False)
    assert list(missing(leaking.bfloat16())) == ["masked", "positions"]


# --- what is kept ----------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[PreTrainedModel]:
    """The models that are asked."""
    models: list[PreTrainedModel] = []

    def ask(model: PreTrainedModel) -> dict[str, str]:
        models.append(model)
        return {"causal": "a sentence"}

    monkeypatch.setattr(checks, "_ask", ask)
    return models


def again(model: PreTrainedModel) -> dict[str, str]:
    """As another process finds it."""
    checks._known.clear()
    return missing(model)


def test_a_model_is_asked_once(asked: list[PreTrainedModel], tmp_path: Path) -> None:
    model = tiny_hub_model("llama")
    assert missing(model) == missing(model) == again(model) == {"causal": "a sentence"}
    assert len(asked) == 1
    (file,) = (tmp_path / "cache" / "unspoken" / "backbones").iterdir()
    assert json.loads(file.read_text()) == {"causal": "a sentence"}


def test_names_tokens_and_trained_weights_are_no_reason_to_ask_again(asked: list[PreTrainedModel]) -> None:
    missing(tiny_hub_model("llama"))
    other = tiny_hub_model("llama")
    other.config._name_or_path, other.config.pad_token_id, other.config.use_cache = "elsewhere", 7, False
    with torch.no_grad():
        other.get_input_embeddings().weight.add_(1)
    again(other)
    assert len(asked) == 1


@pytest.mark.parametrize("change", ["shape", "attention", "family", "version"])
def test_everything_that_matters_is_a_reason_to_ask_again(
    change: str, asked: list[PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing(tiny_hub_model("llama"))
    if change == "version":
        monkeypatch.setattr(checks, "version", lambda name: f"{name} of tomorrow")
    again(
        tiny_hub_model(
            "qwen2" if change == "family" else "llama",
            "sdpa" if change == "attention" else "eager",
            **({"rope_theta": 7.0} if change == "shape" else {}),
        )
    )
    assert len(asked) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"causal": 3}'])
def test_a_damaged_file_is_asked_for_again(content: str, asked: list[PreTrainedModel], tmp_path: Path) -> None:
    model = tiny_hub_model("llama")
    missing(model)
    (file,) = (tmp_path / "cache" / "unspoken" / "backbones").iterdir()
    file.write_text(content)
    assert again(model) == again(model) == {"causal": "a sentence"}
    assert len(asked) == 2


def test_a_cache_that_cannot_be_written_is_done_without(
    asked: list[PreTrainedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    model = tiny_hub_model("llama")
    assert missing(model) == again(model) == {"causal": "a sentence"}
    assert len(asked) == 2


def test_running_out_of_memory_is_no_property(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(checks, "_PROPERTIES", {"causal": ("a sentence", exhausted)})
    with pytest.raises(torch.OutOfMemoryError):
        missing(tiny_hub_model("llama"))


def test_nothing_is_asked_of_weights_that_are_not_there(asked: list[PreTrainedModel]) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=60, hidden_size=WIDTH, num_hidden_layers=1))
    require(model, "Latent-SFT")
    assert not asked


class Forgetful(LlamaForCausalLM):
    """Its stack keeps the outputs of its blocks to itself."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        plain = self.model.forward

        def forward(*inputs: Any, **how: Any) -> Any:
            return plain(*inputs, **{**how, "output_hidden_states": False})

        self.model.forward = forward


def test_a_method_names_its_own_needs() -> None:
    states = Needs(method="distillation", properties=("causal", "states"))
    for kind in ("llama", "gpt2", "gemma2"):
        require(tiny_hub_model(kind, **(GPT if kind == "gpt2" else {})), states)
    model = llama_like(Forgetful)
    require(model, "Coconut")
    with pytest.raises(ValueError, match=r"^distillation cannot be used with Forgetful: .* \(0 instead of 3\); use"):
        require(model, states)
