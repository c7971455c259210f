"""What do superposition latents cost?

* Generation: our batched engine, which goes from chain to answer in one cache, against the loop of published code
  (section 8.1): one problem at a time, and then the library's `generate` reads prompt and latents again and samples
  the answer. Both think and say equally many steps.
* Stage 2: a step with labels (KL over the vocabulary at the slots) against a step of plain supervised fine-tuning on as
  many tokens.
* Masks: the supervision mask made on the device out of four integer vectors, against a dense matrix that is filled on
  the host, a row at a time.

The last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
from functools import cache

import numpy as np
import torch
from timing import DTYPE, interleaved, ratio, rounded
from transformers import DynamicCache

from unspoken.backbone import UnspokenConfig, UnspokenForCausalLM
from unspoken.backbone.attention import dense
from unspoken.methods.coupled.stages import NextToken
from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.masks import supervision
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.methods.latent_sft.stages import Stage2
from unspoken.methods.rows import Kind, Rows, compact_rows, decoder_rows, explicit_rows
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.tasks import ArithmeticConfig
from unspoken.tasks.problems import ReasoningProblem
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.spans import Spans

LATENTS, ANSWER, BATCH = 12, 6, 32


@torch.no_grad()
def published_loop(model: UnspokenForCausalLM, settings: LatentGenerationConfig, prompts: list[torch.Tensor]) -> None:
    """One problem at a time: think with a cache, throw it away, read prompt and latents again, answer."""
    table = model.get_input_embeddings().weight
    for prompt in prompts:
        known = step = table[torch.cat([prompt, torch.tensor(settings.open_ids)])][None]
        cache, latents = DynamicCache(config=model.config), []
        for _ in range(LATENTS):
            logits = model(inputs_embeds=step, past_key_values=cache, use_cache=True).logits[:, -1].float()
            # Looked at as published code does, but not obeyed: both contenders think to their cap.
            logits.argmax().item()
            best, ids = logits.topk(settings.top_k or logits.shape[-1])
            mixed = (torch.softmax(best, dim=-1)[..., None] * table[ids]).sum(dim=1, keepdim=True)
            step = mixed.to(table.dtype)
            latents.append(step)
        embedded = torch.cat([known, *latents, table[torch.tensor(settings.end_ids)][None]], dim=1)
        model.generate(
            inputs_embeds=embedded,
            attention_mask=torch.ones(embedded.shape[:2], dtype=torch.long),
            do_sample=True,
            temperature=0.6,
            top_p=0.95,
            min_new_tokens=ANSWER,
            max_new_tokens=ANSWER,
        )


def dense_on_host(rows: Rows) -> torch.Tensor:
    """The supervision mask as the published collator makes it: a row and a chunk at a time, on the CPU."""
    length = rows.ids.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool).tril()
    masks = []
    for kind, chunk, real in zip(rows.kind, rows.chunk, rows.length.tolist(), strict=True):
        mask = earlier.clone()
        mask[:, kind == Kind.TEXT] = False
        for number in range(1, int(chunk.max()) + 1):
            latent, *text = (chunk == number).nonzero()[:, 0].tolist()
            if text:
                mask[latent + 1 : text[-1] + 1] = False
                mask[latent + 1 : text[-1] + 1, latent : text[-1] + 1] = earlier[1 : len(text) + 1, : len(text) + 1]
        mask[real:] = False
        masks.append(mask)
    return torch.stack(masks)[:, None]


@cache
def setting() -> tuple[PromptFormat, list[ReasoningProblem], list[Spans], UnspokenConfig]:
    """Word problems, as text and as tokens, and the shape of the models that are timed on them."""
    torch.manual_seed(0)
    task = ArithmeticConfig().build()
    prompt_format = PromptFormat(tokenizer=task.tokenizer)
    problems = task.sample("train", np.arange(64))
    shape = UnspokenConfig(
        vocab_size=len(task.tokenizer),
        hidden_size=256,
        attention_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        eos_token_id=1,
        pad_token_id=0,
        attn_implementation="eager",
    )
    return prompt_format, problems, [prompt_format.spans(problem) for problem in problems], shape


def answering(rounds: int) -> dict[str, list[float]]:
    """Seconds of a batch of answers, from one cache and by the published loop."""
    prompt_format, problems, spans, shape = setting()
    base = UnspokenForCausalLM(shape).eval().to(DTYPE)
    base.generation_config.eos_token_id, base.generation_config.pad_token_id = 1, 0
    markers = prompt_format.markers
    # A fixed length, since a model of random weights would stop anywhere.
    settings = LatentGenerationConfig(open_ids=markers.open, end_ids=markers.end, max_latents=LATENTS, fixed=True)
    reasoner = CausalLMReasoner(model=base, settings=settings)
    ids, mask = prompt_format.prompts(problems[:BATCH])
    single = [torch.tensor(row.prompt) for row in spans[:BATCH]]
    return interleaved(
        {
            "batched": lambda: reasoner.respond(ids, mask, max_tokens=ANSWER),
            "published": lambda: published_loop(base, reasoner.settings, single),
        },
        rounds,
    )


def stage_two_against_tuning(rounds: int) -> tuple[dict[str, list[float]], int]:
    """Seconds of a step of stage 2 and of supervised fine-tuning on as many tokens, and how many those are."""
    prompt_format, _, spans, shape = setting()
    markers, size = prompt_format.markers, len(prompt_format.tokenizer)
    student = LatentSFTModel._from_config(
        LatentSFTConfig(base_config=shape, open_ids=list(markers.open), end_ids=list(markers.end), has_encoder=False),
        attn_implementation="eager",
    )
    student.train_only(encoder=False, decoder=True)
    rows = compact_rows(spans, markers, rate=2, pad_id=prompt_format.tokenizer.pad_token_id)
    slots = int(rows.slots.sum())
    labels = {
        "decoder": rows,
        "weights": torch.softmax(torch.randn(slots, 10), dim=-1),
        "ids": torch.randint(4, size, (slots, 10)),
    }
    # As many tokens a row as the student reads: the slots are filled with text.
    text = torch.where(rows.slots, torch.randint(4, size, rows.ids.shape), rows.ids)
    plain = {"input_ids": text, "attention_mask": rows.real.long(), "answer_mask": rows.target | rows.slots}
    tuned, autonomy, tuning = UnspokenForCausalLM(shape), Stage2(), NextToken(positions="answer")

    def stage_two() -> None:
        autonomy.loss(rounded(student), labels)[0].backward()
        student.zero_grad(set_to_none=True)

    def fine_tuning() -> None:
        tuning.loss(rounded(tuned), plain)[0].backward()
        tuned.zero_grad(set_to_none=True)

    return interleaved({"stage_two": stage_two, "fine_tuning": fine_tuning}, rounds), int(rows.length.sum())


def masking(rounds: int) -> dict[str, list[float]]:
    """Seconds of the supervision mask of eight problems, made on the device and filled on the host."""
    prompt_format, _, spans, _ = setting()
    few = decoder_rows(spans[:8], prompt_format.markers, rate=2, pad_id=prompt_format.tokenizer.pad_token_id)
    assert torch.equal(dense(supervision(few), few.position) & few.real[:, None, :, None], dense_on_host(few))
    return interleaved(
        {"device": lambda: dense(supervision(few), few.position), "host": lambda: dense_on_host(few)}, rounds
    )


def main(rounds: int) -> None:
    """Run everything and print the JSON line."""
    prompt_format, _, spans, _ = setting()
    answers = answering(max(3, rounds // 3))
    training, tokens = stage_two_against_tuning(rounds)
    masks = masking(max(3, rounds // 3))
    text = explicit_rows(spans, prompt_format.markers, pad_id=prompt_format.tokenizer.pad_token_id)
    print(
        json.dumps(
            {
                "benchmark": "latent_sft",
                "threads": torch.get_num_threads(),
                "batch": BATCH,
                "answers_per_second": round(BATCH / statistics.median(answers["batched"]), 1),
                "batched_over_published_loop": ratio(answers["published"], answers["batched"]),
                "stage_two_over_fine_tuning": ratio(training["stage_two"], training["fine_tuning"]),
                "tokens_a_step": tokens,
                "text_tokens_a_step": int(text.length.sum()),
                "mask_on_device_over_host": ratio(masks["host"], masks["device"]),
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
