"""What do superposition latents cost?

* Generation: our batched engine, which goes from chain to answer in one cache, against the loop that published code
  uses: one problem at a time, and the whole prompt read again before the answer.
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

import numpy as np
import torch
from timing import interleaved, ratio

from unspoken.backbone import UnspokenConfig, UnspokenForCausalLM
from unspoken.methods.coupled import NextToken
from unspoken.methods.latent_sft import (
    Autonomy,
    LatentReasoner,
    LatentSettings,
    LatentSFTConfig,
    LatentSFTModel,
    Spelling,
)
from unspoken.methods.latent_sft.layout import Kind, Rows, compact_rows, decoder_rows, explicit_rows
from unspoken.methods.latent_sft.masks import dense, supervision
from unspoken.tasks import ArithmeticConfig

LATENTS, ANSWER, BATCH = 12, 6, 32


@torch.no_grad()
def published_loop(reasoner: LatentReasoner, prompts: list[torch.Tensor]) -> None:
    """One problem at a time: think with a cache, throw it away, read prompt and latents again, answer."""
    for prompt in prompts:
        chain, _ = reasoner.respond(prompt[None], max_latents=LATENTS, max_tokens=1)
        reasoner.respond(prompt[None], max_tokens=ANSWER, given=chain)


def dense_on_host(rows: Rows) -> torch.Tensor:
    """The supervision mask the way a collator would fill it: a row at a time, on the CPU."""
    batch, length = rows.ids.shape
    mask = torch.zeros(batch, 1, length, length, dtype=torch.bool)
    for row in range(batch):
        start, count = int(rows.start[row]), int(rows.length[row])
        kinds, chunks = rows.kind[row].tolist(), rows.chunk[row].tolist()
        for query in range(start, start + count):
            for key in range(start, query + 1):
                if kinds[query] == Kind.TEXT:
                    own = chunks[key] == chunks[query] and kinds[key] in (Kind.LATENT, Kind.TEXT)
                    mask[row, 0, query, key] = own
                else:
                    mask[row, 0, query, key] = kinds[key] != Kind.TEXT
    return mask


def main(rounds: int) -> None:
    """Run everything and print the JSON line."""
    torch.manual_seed(0)
    task = ArithmeticConfig().build()
    spelling = Spelling(tokenizer=task.tokenizer)
    problems = task.sample("train", np.arange(64))
    spans = [spelling.spans(problem) for problem in problems]
    markers, pad = spelling.markers, task.tokenizer.pad_token_id
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
    base = UnspokenForCausalLM(shape).eval()
    base.generation_config.eos_token_id, base.generation_config.pad_token_id = 1, 0
    reasoner = LatentReasoner(model=base, settings=LatentSettings(open_ids=markers.open, end_ids=markers.end))
    ids, mask = spelling.prompts(problems[:BATCH])
    single = [torch.tensor(row.prompt) for row in spans[:BATCH]]
    generation = interleaved(
        {
            "batched": lambda: reasoner.respond(ids, mask, max_latents=LATENTS, max_tokens=ANSWER),
            "published": lambda: published_loop(reasoner, single),
        },
        max(3, rounds // 3),
    )

    student = LatentSFTModel._from_config(
        LatentSFTConfig(base_config=shape, open_ids=list(markers.open), end_ids=list(markers.end), has_encoder=False),
        attn_implementation="eager",
    )
    student.train_only(encoder=False, decoder=True)
    rows = compact_rows(spans, markers, rate=2, pad_id=pad)
    slots = int(rows.slots.sum())
    labels = {
        "decoder": rows,
        "weights": torch.softmax(torch.randn(slots, 10), dim=-1),
        "ids": torch.randint(4, len(task.tokenizer), (slots, 10)),
    }
    # As many tokens a row as the student reads: the slots are filled with text.
    text = torch.where(rows.slots, torch.randint(4, len(task.tokenizer), rows.ids.shape), rows.ids)
    plain = {"input_ids": text, "attention_mask": rows.real.long(), "answer_mask": rows.target | rows.slots}
    tuned, autonomy, tuning = UnspokenForCausalLM(shape), Autonomy(), NextToken(positions="answer")

    def stage_two() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = student(**autonomy.inputs(labels))
        autonomy(outputs, labels)[0].backward()
        student.zero_grad(set_to_none=True)

    def fine_tuning() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = tuned(**tuning.inputs(plain))
        tuning(outputs, plain)[0].backward()
        tuned.zero_grad(set_to_none=True)

    training = interleaved({"stage_two": stage_two, "fine_tuning": fine_tuning}, rounds)
    few = decoder_rows(spans[:8], markers, rate=2, pad_id=pad)
    assert torch.equal(dense(supervision(few), few) & few.real[:, None, :, None], dense_on_host(few))
    masks = interleaved(
        {"device": lambda: dense(supervision(few), few), "host": lambda: dense_on_host(few)}, max(3, rounds // 3)
    )
    print(
        json.dumps(
            {
                "benchmark": "latent_sft",
                "threads": torch.get_num_threads(),
                "batch": BATCH,
                "answers_per_second": round(BATCH / statistics.median(generation["batched"]), 1),
                "batched_over_published_loop": ratio(generation["published"], generation["batched"]),
                "stage_two_over_fine_tuning": ratio(training["stage_two"], training["fine_tuning"]),
                "tokens_a_step": int(rows.length.sum()),
                "text_tokens_a_step": int(explicit_rows(spans, markers, pad_id=pad).length.sum()),
                "mask_on_device_over_host": ratio(masks["host"], masks["device"]),
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
