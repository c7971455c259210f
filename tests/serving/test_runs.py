"""A run folder is served as ``unspoken generate`` answers from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from tiny_models import enliven, tiny_config
from tiny_recipe import quiet_train, tiny_recipe
from tiny_words import PROMPT_FORMAT, TASK, TEXT_FORMAT

from unspoken.methods import catalogue
from unspoken.methods.jepa_reasoner.configuration import JepaReasonerConfig
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.reasoning.picking import Sampler
from unspoken.report.answers import answer_problems
from unspoken.serving import Served, open_served
from unspoken.serving.batch import Batch, Progress

SHORT = ("stages.pretrain.steps=2", "stages.sst.steps=2", "stages.talker.steps=2")


def test_the_models_of_a_run_are_served_by_name(start: Any, tmp_path: Path) -> None:
    run = quiet_train(tiny_recipe(*SHORT), tmp_path)[0].folder.parent
    for stage, silent in (("talker", True), ("sst", True), ("pretrain", False)):
        served, name = open_served(run, stage=stage), f"smallest-tiny-{stage}"
        expected = next(answer_problems(run, [None], stage=stage))
        with start(served) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            assert [model.id for model in client.models.list()] == [name]
            assert client.models.retrieve(name).id == name
            answer = client.completions.create(model=name, prompt=expected["problem"])
            assert answer.choices[0].text == expected["answer"]
            assert answer.choices[0].finish_reason == ("stop" if expected["stopped"] == "end" else "length")
            assert answer.usage is not None
            assert answer.usage.completion_tokens_details is not None
            steps = answer.usage.completion_tokens_details.reasoning_tokens
            assert steps == (expected["latent_steps"] if silent else 0)
            with pytest.raises(openai.BadRequestError, match="not a tree-search problem"):
                client.completions.create(model=name, prompt="What is 2 + 2?")
            if stage == "talker":
                drawn = {
                    client.completions.create(model=name, prompt=expected["problem"], temperature=2, seed=seed)
                    .choices[0]
                    .text
                    for seed in range(5)
                }
                assert len(drawn) > 1
            else:
                with pytest.raises(openai.BadRequestError, match="leave temperature out"):
                    client.completions.create(model=name, prompt=expected["problem"], temperature=1)


def test_a_talker_answers_reasoning_problems_from_the_chain_after_the_open_marker() -> None:
    size = {"vocab_size": len(TASK.tokenizer), "max_position_embeddings": 160}
    config = JepaReasonerConfig(
        backbone_config=tiny_config("unspoken", l2_output=True, **size),
        talker_config=tiny_config("unspoken", **size),
        pad_token_id=TASK.tokenizer.pad_token_id,
        eos_token_id=TASK.tokenizer.eos_token_id,
        max_latents=7,
        open_ids=list(PROMPT_FORMAT.markers.open),
    )
    model = JepaReasonerForCausalLM._from_config(config, attn_implementation="eager")
    enliven(model, "talker")
    model.reasoner.start_target()
    system = catalogue.systems(model.eval(), stage="pair", max_answer=3)[0]
    assert system.max_tokens == 7
    served, found = Served(system=replace(system, text_format=TEXT_FORMAT)), set()
    for problem in TASK.sample("test", range(5)):
        reports: list[Progress] = []
        batch = Batch(served.system.reasoner)
        job = served.job(served.prompt(problem.question, chat=True), served.answer_tokens, Sampler())
        job.report = reports.append
        batch.join([job])
        while batch.rows:
            batch.step()
        answer = system.respond(torch.tensor([[*PROMPT_FORMAT.prompt(problem.question)]]))
        assert served.text(reports[0].tokens) == PROMPT_FORMAT.decode(answer.filled(config.pad_token_id))[0]
        assert reports[0].latents == int(answer.chain.lengths[0])
        found.add(served.text(reports[0].tokens))
    assert len(found) >= 3
