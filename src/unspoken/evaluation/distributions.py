"""What a chain was made from: the stack's outputs before each latent, and the distributions that they give.

Axes: B problems, T steps of one chain, V vocabulary, D latent width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unspoken.chain import LatentChain
from unspoken.placement import CPU, moved
from unspoken.reasoning.causal_lm import CausalLMReasoner
from unspoken.reasoning.system import System, opened
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.tasks.task import Problems, Task


@torch.no_grad()
def before_latents(
    system: System, task: Task, problems: Problems, prompt_format: PromptFormat, chain: LatentChain, batch_size: int
) -> list[Tensor]:
    """The stack's outputs ``[T, D]`` that the latents of each chain were made from, without a cache."""
    reasoner, outputs = system.reasoner, []
    device = reasoner.stack.device
    for rows in torch.arange(len(problems)).split(batch_size):
        some = chain.select(rows)
        lengths = some.lengths.tolist()
        ids, real = opened(*task.prompts(problems.select(rows.numpy()), prompt_format), system.opening)
        assert real is not None
        mask = torch.cat([real, some.mask[:, : max(lengths)].to(real)], dim=1)
        prompts = reasoner.embed_prompt(moved(ids, device))
        hidden = reasoner.stack(
            inputs_embeds=torch.cat([prompts, some.latents[:, : max(lengths)].to(prompts)], dim=1),
            attention_mask=moved(mask, device),
            position_ids=moved((mask.cumsum(dim=1) - 1).clamp(min=0), device),
            use_cache=False,
        ).last_hidden_state
        # Prompts end in the same column, since they are padded on the left.
        outputs += [row[ids.shape[1] - 1 :][:length] for row, length in zip(moved(hidden, CPU), lengths, strict=True)]
    return outputs


@torch.no_grad()
def distributions(
    system: System, task: Task, problems: Problems, prompt_format: PromptFormat, chain: LatentChain, batch_size: int
) -> list[Tensor]:
    """The full distribution ``[T, V]`` that the model gives at every latent of each chain."""
    reasoner, device = system.reasoner, system.model.device
    assert isinstance(reasoner, CausalLMReasoner)
    return [
        moved((reasoner.logits(moved(hidden, device)) / reasoner.settings.temperature).softmax(dim=-1), CPU)
        for hidden in before_latents(system, task, problems, prompt_format, chain, batch_size)
    ]
