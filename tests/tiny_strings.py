"""The smallest recipe on the grammar that trains every kind of stage."""

from __future__ import annotations

from unspoken.training.recipe import Recipe, parse

TEXT = """
name: strings
size: tiny
precision: fp32
attention: eager
task: {kind: grammar, levels: 3, rules: 3, steps: 4}
backbone: {hidden_size: 16, attention_size: 16, intermediate_size: 32, layers: 2, heads: 2, initializer_range: 0.3}
talker: {variant: dual, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}
stages:
  - {name: pretrain, objective: {kind: next_token}, steps: 3, evaluate_every: 3, batch_size: 8}
  - name: sst
    start: pretrain
    blocks: 1
    objective: {kind: sst, positions: all}
    steps: 2
    evaluate_every: 1
    batch_size: 8
  - {name: talker, start: sst, objective: {kind: talker}, steps: 2, evaluate_every: 2, batch_size: 8}
  - name: talker_mono
    start: sst
    objective: {kind: talker}
    talker: {variant: mono, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}
    steps: 2
    evaluate_every: 2
    batch_size: 8
  - name: coupled
    start: pretrain
    objective: {kind: next_token}
    steps_of: [sst, talker]
    evaluate_every: 4
    batch_size: 8
  - name: coconut
    start: pretrain
    objective: {kind: coconut, replaced: 2, latents_per_step: 1}
    steps_of: [sst, talker]
    evaluate_every: 4
    batch_size: 8
evaluation: {problems: 8, validation_problems: 7, batch_size: 5}
threads: 1
"""


def tiny_strings(*overrides: str) -> Recipe:
    """That recipe, changed by dotted overrides."""
    return parse(TEXT, "tiny_strings", overrides)
