"""A stage is refused before it trains where its method would be wrong around its model."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import torch
from tiny_hub import tiny_hub_model
from tiny_recipe import built
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from unspoken.methods.coconut.model import CoconutModel
from unspoken.methods.rows import explicit_rows
from unspoken.tasks.cups import CupsConfig
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.spans import Markers, Spans
from unspoken.training import recipe as recipes
from unspoken.training.backbones import _longest, fitting, require_rows
from unspoken.training.context import context_of
from unspoken.training.recipe import Recipe
from unspoken.training.stages import data_of

RECIPE = """
name: hub
size: tiny
task: {{kind: grade_school, train: {train}, tests: [{test}], validation_rows: 2}}
backbone: {backbone}
attention: eager
stages:
  - {{name: cot, objective: {{kind: next_token, positions: answer}}, steps: 1, batch_size: 2}}
  - {{name: sst, objective: {{kind: sst}}, steps: 1, batch_size: 2}}
  - {{name: coconut, objective: {{kind: coconut, replaced: 1}}, steps: 1, batch_size: 2}}
  - {{name: encoder, objective: {{kind: stage1, train: encoder, shape: {{rate: 2}}}}, steps: 1, batch_size: 2}}
evaluation: {{problems: 2, validation_problems: 2, batch_size: 2}}
threads: 1
"""


def tokenizer_of_letters() -> PreTrainedTokenizerFast:
    tokens = ["~pad", "~end", *string.ascii_letters, *string.digits, *string.punctuation, " ", "\n"]
    words = Tokenizer(models.WordLevel({token: position for position, token in enumerate(tokens)}, unk_token="~pad"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="~pad", eos_token="~end")


def recipe_of(folder: Path, model: PreTrainedModel) -> Recipe:
    """Every method around a model of a folder."""
    model.save_pretrained(folder / "hub")
    tokenizer_of_letters().save_pretrained(folder / "hub")
    rows = [{"question": f"Twice {n} and 3?", "steps": [f"<<{n}+3={n + 3}>>"], "answer": str(n + 3)} for n in range(9)]
    (folder / "train.json").write_text(json.dumps(rows))
    (folder / "test.json").write_text(json.dumps([{"input": "2 and 2?", "target": 4}]))
    text = RECIPE.format(backbone=folder / "hub", train=folder / "train.json", test=folder / "test.json")
    return recipes.parse(text, "hub")


# --- before a stage --------------------------------------------------------------------------------------------------


def test_a_stage_whose_method_would_be_wrong_is_refused_and_the_others_are_built(tmp_path: Path) -> None:
    conv = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}
    recipe = recipe_of(tmp_path, tiny_hub_model("lfm2", **conv, vocab_size=100))
    for name in ("cot", "sst", "coconut"):
        built(recipe, name)
    with pytest.raises(
        ValueError, match=r"^Latent-SFT cannot be used with Lfm2ForCausalLM: some layers ignore or reject a custom"
    ):
        built(recipe, "encoder")


def test_a_model_without_a_cache_is_refused_by_every_stage(tmp_path: Path) -> None:
    gpt = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    recipe = recipe_of(tmp_path, tiny_hub_model("openai-gpt", **gpt, vocab_size=100))
    for name in ("cot", "sst", "coconut", "encoder"):
        with pytest.raises(ValueError, match=r"cannot be used with OpenAIGPTLMHeadModel: .*; take another model$"):
            built(recipe, name)


def test_experts_learn_in_every_method(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, tiny_hub_model("mixtral", vocab_size=100))
    for name in ("cot", "sst", "coconut", "encoder"):
        built(recipe, name)
    assert isinstance(built(recipe, "coconut"), CoconutModel)


def test_a_token_beyond_the_table_is_named(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, tiny_hub_model("llama", vocab_size=80))
    with pytest.raises(
        ValueError, match=r"tokens beyond the 80 rows of the table of LlamaForCausalLM: '<' .81., '>' .83."
    ):
        built(recipe, "cot")
    letters = PromptFormat(tokenizer=tokenizer_of_letters())
    with pytest.raises(ValueError, match=r"beyond the 83 rows of the table of LlamaForCausalLM: '>' .83.;"):
        require_rows(tiny_hub_model("llama", vocab_size=83), letters)
    require_rows(tiny_hub_model("llama", vocab_size=84), letters)


def test_a_tokenizer_of_few_words_is_checked_by_the_tokens_of_its_own_prompts() -> None:
    tokenizer = CupsConfig().build().tokenizer
    require_rows(tiny_hub_model("llama", vocab_size=len(tokenizer)), PromptFormat(tokenizer=tokenizer))
    with pytest.raises(ValueError, match="tokens beyond the 3 rows"):
        require_rows(tiny_hub_model("llama", vocab_size=3), PromptFormat(tokenizer=tokenizer))


@pytest.mark.parametrize("name", ["cot", "sst", "coconut", "encoder"])
def test_a_row_longer_than_the_table_of_positions_is_refused_by_name(name: str, tmp_path: Path) -> None:
    gpt = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100}
    for positions, fits in ((512, True), (40, False)):
        folder = tmp_path / str(positions)
        folder.mkdir()
        recipe = recipe_of(folder, tiny_hub_model("gpt2", n_positions=positions, **gpt))
        data = fitting(data_of(recipe, context_of(recipe, recipe.stage(name))), built(recipe, name))
        if fits:
            data[0]
            continue
        with pytest.raises(
            ValueError, match=r"^a row of \d+ positions does not fit \w+, whose table has 40; leave out"
        ):
            data[0]


def test_positions_that_are_computed_have_no_end(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, tiny_hub_model("llama", vocab_size=100, max_position_embeddings=40))
    data = data_of(recipe, context_of(recipe, recipe.stage("cot")))
    assert fitting(data, built(recipe, "cot")) is data


@pytest.mark.parametrize(("chain", "latents", "longest"), [(1, 6, 12), (9, 2, 14), (2, 0, 7)])
def test_of_two_sequences_for_the_same_problems_the_longer_one_counts(chain: int, latents: int, longest: int) -> None:
    spans, markers = Spans(prompt=(3, 3), steps=((4,) * chain,), answer=(5,)), Markers(open=(1,), end=(2,))
    explicit = explicit_rows([spans], markers, pad_id=0)
    masks = {"attention_mask": 3, "latent_mask": latents, "text_mask": 3}
    batch = {name: torch.ones(1, width, dtype=torch.long) for name, width in masks.items()}
    assert _longest(batch | {"teacher": explicit}) == longest
