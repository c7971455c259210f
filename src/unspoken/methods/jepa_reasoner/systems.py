"""JEPA-Reasoner as it answers: a Talker decodes the finished chain, or each latent becomes its nearest table row."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from unspoken.backbone.checks import require
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.jepa_reasoner.talker import DualTalker, MonoTalker
from unspoken.reasoning.engine import StopRule
from unspoken.reasoning.flops import attention_width, stack_flops
from unspoken.reasoning.speakers import Separate
from unspoken.reasoning.system import System


def systems(model: PreTrainedModel, *, stage: str) -> list[System]:
    """A Reasoner with its Talker, and without it; a Reasoner alone; nothing if the model is another method's.

    Answers have the cap that the folder records for a chain, since each token has its latent.
    """
    if isinstance(model, JepaReasonerForCausalLM):
        return [_pair(model, stage), _nearest_row(model.reasoner, f"{stage}, nearest row")]
    if isinstance(model, JepaReasonerModel):
        return [_nearest_row(model, stage)]
    return []


def _pair(model: JepaReasonerForCausalLM, name: str) -> System:
    dual = model.config.talker_kind == "dual"
    speaker = Separate(
        decode=lambda chain, sample: model.speak(chain, sample=sample),
        end_ids=(model.config.end_id,),
        samples=True,
        reads_tokens=dual,
        # An encoder and a decoder step for each token, or one pass.
        chain_passes=lambda steps: 1 + round(steps) if dual else 1,
        chain_flops=lambda latents: talker_flops(model.talker, latents),
    )
    return _system(model, model.reasoner, speaker, name)


def _nearest_row(model: JepaReasonerModel, name: str) -> System:
    speaker = Separate(decode=lambda chain, _sample: model.read_out(chain), end_ids=(model.config.end_id,))
    return _system(model, model, speaker, name)


def _system(model: PreTrainedModel, reasoner: JepaReasonerModel, speaker: Separate, name: str) -> System:
    cap = reasoner.config.max_latents
    return System(
        name=name,
        model=model,
        reasoner=reasoner,
        speaker=speaker,
        opening=tuple(reasoner.config.open_ids or ()),
        stop=StopRule(max_latents=cap),
        max_tokens=cap,
        chain_kind="latent",
        targets=reasoner,
        table_size=reasoner.target_table.numel(),
    )


def talker_flops(talker: MonoTalker | DualTalker, latents: Any) -> Any:
    """Floating-point operations of decoding chains, one token per latent; a Dual-Talker counts as if it had a cache.

    Args:
        latents: numbers of latents, one or ``[B]``.
    """
    config = talker.decoder.config
    if isinstance(talker, MonoTalker):
        head = latents * 2 * config.hidden_size * config.vocab_size
        return stack_flops(talker.decoder, latents, causal=config.is_causal) + head
    head = latents * 2 * config.hidden_size * talker.start_id  # the start token is never an output
    across = latents * latents * 4 * attention_width(config)
    return stack_flops(talker.encoder, latents, causal=False) + stack_flops(talker.decoder, latents) + across + head


def require_answering(model: PreTrainedModel) -> None:
    """Refuse a model of this method around whose backbone it would be wrong, by a ValueError."""
    reasoner = model.reasoner if isinstance(model, JepaReasonerForCausalLM) else model
    if isinstance(reasoner, JepaReasonerModel):
        require(reasoner.backbone, "JEPA-Reasoner")
