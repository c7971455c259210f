"""Small recipes that hold every kind of stage between them, with every choice that its objective has."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from tiny_prose import corpus
from tiny_recipe import TEXT, quiet_train

from unspoken.training.recipe import Recipe, parse

SMALL = "hidden_size: 16, attention_size: 16, intermediate_size: 32, heads: 2"

STRINGS = f"""
name: strings
size: tiny
precision: fp32
attention: eager
task: {{kind: grammar, levels: 3, rules: 3, steps: 4}}
backbone: {{{SMALL}, layers: 2, initializer_range: 0.3}}
talker: {{variant: dual, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}}
stages:
  - &stage {{name: pretrain, objective: {{kind: next_token}}, steps: 4, evaluate_every: 2, batch_size: 8}}
  - <<: *stage
    name: sst
    start: pretrain
    blocks: 1
    objective: {{kind: sst, positions: all, k: 2, momentum: 0.9, unit_tokens: true,
      rollout_latents: 2, rollout_passes: 2}}
  - {{<<: *stage, name: talker, start: sst, objective: {{kind: talker}}}}
  - {{<<: *stage, name: coconut, start: pretrain, objective: {{kind: coconut, replaced: 2, latents_per_step: 1}}}}
evaluation: {{problems: 8, validation_problems: 7, batch_size: 7}}
threads: 1
"""

PROSE = f"""
name: prose
size: tiny
task: {{kind: prose, train: FILE, vocabulary: 300, length: 24, sentence_tokens: [14, 30], prime: 4}}
backbone: {{{SMALL}, layers: 1}}
talker: {{causal: false, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}}
stages:
  - &stage {{name: pretrain, objective: {{kind: next_token}}, steps: 4, evaluate_every: 2, batch_size: 8}}
  - {{<<: *stage, name: sst, start: pretrain, objective: {{kind: sst, positions: all}}}}
  - {{<<: *stage, name: talker, start: sst, objective: {{kind: talker}}}}
evaluation: {{problems: 6, validation_problems: 4, batch_size: 6, max_latents: 31}}
threads: 1
"""

# More rows than a block of the label store has, so that writing them can stop with some of them on disk.
WORDS = f"""
name: words
size: tiny
precision: fp32
attention: eager
task: {{kind: arithmetic, steps: [2, 3], largest: 20, operations: [add, subtract]}}
backbone: {{{SMALL}, layers: 2, unit_embeddings: false}}
talker: {{attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}}
stages:
  - &stage
    name: cot
    objective: {{kind: next_token, positions: answer}}
    steps: 4
    evaluate_every: 2
    batch_size: 4
  - &adapted
    <<: *stage
    name: answer_only
    objective: {{kind: next_token, chain: none}}
    lora: {{rank: 4}}
    optimizer: {{name: adamw, lr: 0.01, lr_rest: null}}
  - <<: *stage
    name: encoder
    start: cot
    objective: {{kind: stage1, train: encoder, shape: {{rate: 2, top_k: 5}}, noise: {{scale: 0.5}}, hint: 0.5}}
  - {{<<: *adapted, name: decoder, start: encoder, objective: {{kind: stage1, train: decoder}}}}
  - {{<<: *stage, name: union, start: decoder, objective: {{kind: stage1, train: union, mean: chunks}}}}
  - {{name: labels, start: union, objective: {{kind: labels, rows: 300}}}}
  - <<: *stage
    name: autonomy
    start: labels
    objective: {{kind: stage2, ce_weight: 0.5, kl_weight: 2, noise: {{scale: 0.5}}}}
  - <<: *adapted
    name: hidden_encoder
    start: cot
    objective: {{kind: stage1, train: encoder, shape: {{rate: 3, latent: hidden}}}}
    lora: {{rank: 4, table: true}}
    optimizer: {{name: adamw, lr: 0.01, lr_rest: null, warmup: logarithmic}}
  - {{name: hidden_labels, start: hidden_encoder, objective: {{kind: labels, rows: 300, precision: bfloat16}}}}
  - <<: *adapted
    name: hidden_autonomy
    start: hidden_labels
    objective: {{kind: stage2, rollout_latents: 2, rollout_passes: 2}}
  - {{<<: *adapted, name: sst, start: cot, objective: {{kind: sst}}}}
  - {{<<: *stage, name: talker, start: sst, objective: {{kind: talker}}}}
  - {{<<: *stage, name: first, start: cot, objective: {{kind: coconut, replaced: 1, mixed: 0.5}}}}
  - {{<<: *adapted, name: second, start: first, objective: {{kind: coconut, replaced: 2, rest: none}}}}
  - <<: *stage
    name: codi
    start: cot
    objective: {{kind: codi, latents: 2, distance_weight: 0.5, teacher_weight: 0.5, divide_by_std: false,
      last_step: true, separate_teacher: true, projection: {{width: 8, dropout: 0.1}}}}
  - <<: *stage
    name: colar
    start: cot
    objective: &compressed {{kind: colar, max_compression: 3, compression: 1, speed: '{{}}', token_weight: 0.5,
      latent_weight: 2.0, floor: 0.2, head_width: 8, root_mean: false}}
  - {{<<: *adapted, name: colar_sample, start: cot, objective: {{<<: *compressed, latent_loss: sample}}}}
  - {{<<: *stage, name: colar_mean, start: cot, objective: {{<<: *compressed, latent_loss: mean}}}}
  - <<: *stage
    name: icot
    start: cot
    objective: {{kind: icot, pretrain_steps: 0, steps_per_token: 1, remove_all_beyond: 1, smoothing: 0.5,
      from_right: true, reset_optimizer: false, keep_position: true, eos_separators: false}}
  - <<: *stage
    name: pccot
    start: cot
    objective: {{kind: pccot, latents: 3, iterations: 2, distance_weight: 0.5, teacher_weight: 0.5,
      divide_by_std: false, last_step: true, cut_gradient: true, projection: {{width: 8, dropout: 0.1}}}}
  - <<: *stage
    name: sim_cot
    start: first
    objective: {{kind: sim_cot, weight: 0.5, pseudo_steps: true, carrier: {{kind: coconut, replaced: 2, rest: none}}}}
  - {{<<: *stage, name: loop, start: cot, objective: {{kind: lotus, replaced: 1, latents_per_step: 2, add_row: false}}}}
  - <<: *stage
    name: lotus
    start: loop
    objective: {{kind: lotus, replaced: 2, latents_per_step: 2, iterations: 1, latent_weight: 0.5, add_row: false}}
  - <<: *stage
    name: mux
    start: cot
    objective: {{kind: mux, weight: 0.5, decay: 0.8, temperature: 2, random_cuts: false,
      carrier: {{kind: codi, latents: 2, last_step: true}}}}
  - {{<<: *stage, name: pause, start: cot, objective: {{kind: pause, pauses: 2}}}}
  - {{<<: *stage, name: filler, start: cot, objective: {{kind: pause, pauses: 2, filler: '.', replaced: 1}}}}
evaluation: {{problems: 12, validation_problems: 6, batch_size: 7, max_latents: 6, max_answer: 5}}
threads: 1
"""

# Rows of a tree that ask for two of its leaves.
TREES = TEXT.replace("{kind: next_token}", "{kind: next_token, questions: 2}", 1)

TEXTS = {"trees": TREES, "strings": STRINGS, "prose": PROSE, "words": WORDS}


def drilled(name: str, folder: Path | None = None, *overrides: str) -> Recipe:
    """One of these recipes, changed by dotted overrides.

    Args:
        folder: where its texts are put, if it reads any; without one it can be looked at, but not trained.
    """
    own = [f"task.train={corpus(folder)}"] if folder is not None and name == "prose" else []
    return parse(TEXTS[name], name, [*own, *overrides])


def runs_made_once(
    new_folder: Callable[[str], Path], recipe_of: Callable[[str, Path], Recipe]
) -> Callable[[str], tuple[Recipe, Path]]:
    """A recipe's name to the recipe and the folder of its run, which is trained when it is first asked for."""

    @cache
    def run_of(name: str) -> tuple[Recipe, Path]:
        folder = new_folder(name)
        recipe = recipe_of(name, folder)
        quiet_train(recipe, folder / "run")
        return recipe, folder / "run"

    return run_of


def train_and_tell(text: str, output: Path, ready: Connection) -> None:
    """Train a recipe in a process of its own, and say so when everything is imported."""
    torch.set_num_threads(1)
    gc.freeze()  # as in conftest.py
    recipe = parse(text, "text")
    ready.send("ready")
    quiet_train(recipe, output)
