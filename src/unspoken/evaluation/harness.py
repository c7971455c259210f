"""The lm-evaluation-harness runs finished folders: its model ``unspoken``, and task files of our own.

The harness knows a model that nobody imported by no name, so either call it through this file, which makes every task
available under its name, or name one of our task files, whose loading imports this file::

    python -m unspoken.evaluation.harness --model unspoken --model_args pretrained=FOLDER \\
        --tasks unspoken_gsm8k_0shot --metadata data_dir=DATA
    lm_eval --model unspoken --model_args pretrained=FOLDER --tasks HERE/harness_tasks/gsm8k_0shot.yaml \\
        --metadata data_dir=DATA

``data_dir`` is the folder of the files that a task's YAML names, and
``--metadata '{"data_files": {"test": "mine.json"}}'`` names others. Nothing is read from the hub.

Text becomes tokens as in training: without special tokens, and with ``--apply_chat_template`` as a user turn of the
tokenizer's template, behind the instruction that word problems are trained with. Chains are not part of the answer's
text; what they cost is in the results, under ``config``.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch.nn.utils.rnn import pad_sequence

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import model_registry
    from lm_eval.models.utils import Collator, normalize_gen_kwargs, postprocess_generated_text
except ImportError:
    raise ImportError("lm_eval is not installed; install the extra: pip install 'unspoken[harness]'") from None

from unspoken.backbone.loading import load_config, load_tokenizer
from unspoken.chain import StopReason
from unspoken.evaluation.systems import System, coupled, load_model, system_of
from unspoken.machine import resolve_device
from unspoken.methods.jepa_reasoner.pair import JepaReasonerForCausalLM
from unspoken.methods.jepa_reasoner.reasoner import JepaReasonerModel
from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import StopRule
from unspoken.tasks.files import read_rows, row_fields
from unspoken.tasks.prompt_format import INSTRUCTION, unopened
from unspoken.tasks.tree_search import MARKERS, ROUTE, TreeSearchConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TASKS = Path(__file__).with_name("harness_tasks")
_log = logging.getLogger("lm_eval.unspoken")  # below the harness's own, so that it is shown


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one answer cost.

    Attributes:
        latents: silent steps; of an explicit chain, its tokens. A coupled model has none: its steps are its words.
        tokens: words said, their end included.
        cut: the chain met its cap.
    """

    latents: int
    tokens: int
    cut: bool


class UnspokenLM(LM):
    """A finished folder, seen by the harness. Generation is greedy.

    Args:
        pretrained: the folder of a Latent-SFT model, of an explicit chain of thought or of answers only, of a
            JEPA-Reasoner with its Talker (or without: then the nearest table rows speak), or of any plain causal
            language model.
        batch_size: requests answered at once.
        device: where the model goes, see `unspoken.machine.resolve_device`; the harness's own "cuda:0", which it gives
            where nobody named a device, counts as "auto" on a machine without CUDA.
        max_gen_toks: cap of an answer in tokens, where a task says nothing. A silent chain has the cap of its folder;
            the chain of a JEPA-Reasoner or a coupled model is as long as its answer.
        dtype: of the weights: "float32", or "bfloat16", with which prompts of a thousand tokens are read several times
            as fast on a CPU.

    Attributes:
        spent: what each generated answer cost, in the order in which the harness asked.

    Raises:
        ValueError: there is no such folder or device, the folder is of a kind that cannot answer, ``batch_size`` is no
            number, or ``dtype`` is unknown.
    """

    def __init__(
        self,
        pretrained: str | Path,
        batch_size: int | str = 1,
        device: str | None = None,
        max_gen_toks: int = 256,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        folder = Path(pretrained)
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} is no model folder: it has no config.json; give the folder of a finished stage")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size is {batch_size!r}; this model finds no size by itself, so give a number")
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; known are {', '.join(DTYPES)}")
        if load_config(folder).model_type == LatentSFTConfig.model_type:
            raise ValueError(
                f"{folder} holds stage 1 of Latent-SFT, which cannot answer by itself; give a folder of a later stage"
            )
        self.batch_size, self.max_gen_toks = int(batch_size), max_gen_toks
        # The harness's command line says "cuda:0" where nobody said anything.
        unnamed = device is None or (device in ("cuda", "cuda:0") and not torch.cuda.is_available())
        place = resolve_device("auto" if unnamed or device is None else device)
        # Prompts with worked examples are long; plain attention would copy every key at each step.
        self.model = load_model(folder, device=place, dtype=DTYPES[dtype], attention="sdpa")
        self._device = self.model.device
        self.tokenizer: Any = load_tokenizer(folder)
        if self.tokenizer.eos_token_id is None:
            raise ValueError(f"{folder}: its tokenizer has no end-of-sequence token; restore tokenizer_config.json")
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.spent: list[Spent] = []

    @cached_property
    def speaker(self) -> CausalLMReasoner | System:
        """What answers: told by what the folder records."""
        if getattr(getattr(self.model, "generation_config", None), "latent", None) is not None:
            return CausalLMReasoner(model=self.model, settings=LatentGenerationConfig.of(self.model))
        if self._is_jepa:
            return system_of(self.model)
        return coupled(self.model, end_id=self.tokenizer.eos_token_id, pad_id=self.tokenizer.pad_token_id)

    @property
    def _is_jepa(self) -> bool:
        return isinstance(self.model, JepaReasonerForCausalLM | JepaReasonerModel)

    # --- answers -------------------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answer prompts, in batches of similar length.

        Args:
            requests: each with ``args``: prompt, and generation settings. Known are ``until``, where the text is cut,
                and ``max_gen_toks``.

        Raises:
            ValueError: a task asks for sampling, or an answer of its length leaves no room for the prompt.
        """
        asked = Collator(
            [request.args for request in requests],
            sort_fn=lambda args: (-len(args[0]), args[0]),
            group_fn=lambda args: args[1],
            group_by="gen_kwargs",
        )
        found: list[tuple[str, Spent]] = []
        for batch in track(list(asked.get_batched(n=self.batch_size)), "answering", disable=disable_tqdm):
            how = normalize_gen_kwargs(batch[0][1], self.max_gen_toks)
            if how["do_sample"]:
                raise ValueError("generation is greedy; leave do_sample and temperature out of the generation settings")
            answers = self._answer([args[0] for args in batch], int(how["max_gen_toks"]))
            for args, (text, spent) in zip(batch, answers, strict=True):
                found.append((postprocess_generated_text(text, how["until"], None), spent))
                self.cache_hook.add_partial("generate_until", args, found[-1][0])
        ordered = asked.get_original(found)
        self.spent += [spent for _, spent in ordered]
        _log.info("size and cost so far: %s", self.get_model_info())
        return [text for text, _ in ordered]

    @torch.no_grad()
    def _answer(self, prompts: list[str], cap: int) -> list[tuple[str, Spent]]:
        rows = self._fitting(prompts, cap)
        lengths = torch.tensor([len(row) for row in rows])
        pad = self.tokenizer.pad_token_id
        ids = pad_sequence([torch.tensor(row) for row in rows], True, padding_value=pad, padding_side="left")
        width = ids.shape[1]
        mask = (torch.arange(width)[None] >= width - lengths[:, None]).long()
        if isinstance(self.speaker, CausalLMReasoner):
            chain, said = self.speaker.respond(ids, mask, max_tokens=cap)
            ends, most = self.model.generation_config.eos_token_id, torch.full_like(chain.lengths, said.shape[1])
        else:
            chain = self.speaker.reason(ids, mask, StopRule(max_latents=cap))
            said, most = self.speaker.speak(chain), chain.lengths
            ends = self.model.config.end_id if self._is_jepa else self.tokenizer.eos_token_id
        before = (torch.isin(said, torch.tensor(ends)).cumsum(dim=1) == 0).sum(dim=1)
        silent = isinstance(self.speaker, CausalLMReasoner) or self._is_jepa
        latents = chain.lengths if silent else torch.zeros_like(most)
        facts = zip(torch.minimum(before + 1, most).tolist(), latents.tolist(), chain.stop.tolist(), strict=True)
        return [
            (
                self.tokenizer.decode(row[:words].tolist(), skip_special_tokens=True),
                Spent(latents=thoughts, tokens=words, cut=reason == StopReason.CAP),
            )
            for row, (words, thoughts, reason) in zip(said, facts, strict=True)
        ]

    def _fitting(self, prompts: list[str], cap: int) -> list[list[int]]:
        """Prompts as tokens; of those that are too long, the end. What opens a chain stands behind each."""
        rows = [self.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        rows = [row or [self.tokenizer.eos_token_id] for row in rows]
        config = self.model.config.backbone_config if self._is_jepa else self.model.config
        # A `CausalLMReasoner` puts its marker there itself.
        opened = list(self.model.config.open_ids or ()) if self._is_jepa else []
        positions = getattr(config, "max_position_embeddings", None)
        if positions is None:
            return [row + opened for row in rows]
        room = positions - cap - len(opened)
        if isinstance(self.speaker, CausalLMReasoner):
            settings = self.speaker.settings
            room -= len(settings.open_ids) + settings.max_latents + len(settings.end_ids)
        if room < 1:
            raise ValueError(
                f"an answer of {cap} tokens and its chain leave no room for a prompt in {positions} positions; "
                "lower max_gen_toks, for instance --gen_kwargs max_gen_toks=32"
            )
        cut = sum(len(row) > room for row in rows)
        if cut:
            _log.warning("%d of %d prompts are longer than %d tokens; only their ends are read", cut, len(rows), room)
        return [row[-room:] + opened for row in rows]

    # --- likelihood of text --------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation behind its context, in nats, and whether it is the greedy one.

        Raises:
            ValueError: the method gives text no likelihood, since it thinks in latents first.
        """
        found: list[tuple[float, bool]] = self._text_model.loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in nats.

        Raises:
            ValueError: as `loglikelihood`.
        """
        found: list[float] = self._text_model.loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return found

    @cached_property
    def _text_model(self) -> Any:
        """The harness's own reading of a plain causal language model; no chain is thought."""
        settings = self.speaker.settings if isinstance(self.speaker, CausalLMReasoner) else None
        in_tokens = settings is None or (settings.top_k == 1 and settings.feed == "superposition")
        if self._is_jepa or not in_tokens:
            raise ValueError(
                "this model thinks in latents before it speaks, so text has no likelihood under it; "
                "choose tasks of output_type generate_until"
            )
        from lm_eval.models.huggingface import HFLM

        return HFLM(
            pretrained=self.model,
            backend="causal",
            tokenizer=self.tokenizer,
            batch_size=self.batch_size,
            add_bos_token=False,
        )

    # --- what else the harness asks for --------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's template, which the harness records."""
        template: str | None = self.tokenizer.chat_template
        return template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Turns as one text; user turns begin with the instruction if the folder was trained with it.

        Raises:
            ValueError: the tokenizer has no chat template.
        """
        if self.tokenizer.chat_template is None:
            raise ValueError("the folder's tokenizer has no chat template; leave --apply_chat_template out")
        spelled = isinstance(self.speaker, CausalLMReasoner) or (self._is_jepa and bool(self.model.config.open_ids))
        if spelled:
            chat_history = [
                {**turn, "content": f"{INSTRUCTION}\n{turn['content']}"} if turn["role"] == "user" else turn
                for turn in chat_history
            ]
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return unopened(text) if spelled else text

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results: size, and the mean cost of the answers so far."""
        facts: dict[str, Any] = {"model_num_parameters": self.model.num_parameters(), "answers": len(self.spent)}
        if self.spent:
            facts["latents_per_answer"] = float(np.mean([one.latents for one in self.spent]))
            facts["tokens_per_answer"] = float(np.mean([one.tokens for one in self.spent]))
            facts["chains_cut"] = sum(one.cut for one in self.spent)
        return facts


# A name instead of the class: run as a script, this file exists twice.
model_registry.register("unspoken", target="unspoken.evaluation.harness:UnspokenLM")


# --- data of the task files: the harness passes --metadata and dataset_kwargs as keywords ---------------------------


def local_files(
    *, files: dict[str, str], data_files: dict[str, str] | None = None, data_dir: str = ".", **_: Any
) -> dict[str, Any]:
    """The splits of a task out of JSON files (a list, or one object a line).

    Args:
        files: split to file name, from the task's YAML.
        data_files: replaces some of them.
        data_dir: folder of relative names.

    Raises:
        ValueError: a file is missing or malformed.
    """
    import datasets

    found = {}
    for split, name in {**files, **(data_files or {})}.items():
        path = Path(data_dir) / name
        try:
            rows, _digest = read_rows(str(path))
        except FileNotFoundError:
            raise ValueError(f"there is no file {path}; name its folder: --metadata data_dir=FOLDER") from None
        found[split] = datasets.Dataset.from_list([row_fields(row) for _where, row in rows])
    return found


def tree_search(*, problems: int = 2000, depth: int = 4, shuffle_edges: bool = False, **_: Any) -> dict[str, Any]:
    """Test problems of tree search as text: ``question`` up to the route marker, ``answer`` the route.

    They are made, not read: the first of the stream that every run of this package is tested on.
    """
    import datasets

    task = TreeSearchConfig(depth=depth, shuffle_edges=shuffle_edges).build()
    texts = task.text(task.sample("test", np.arange(problems)))
    parts = [text.partition(MARKERS[ROUTE]) for text in texts]
    rows = [{"question": question + marker, "answer": route} for question, marker, route in parts]
    return {"test": datasets.Dataset.from_list(rows)}


def main() -> None:
    """The harness's command line, with this model and our tasks within reach; an ``--include_path`` replaces ours."""
    from lm_eval.__main__ import cli_evaluate

    verb, *rest = sys.argv[1:] if sys.argv[1:2] and sys.argv[1] in ("run", "ls", "validate") else ("run", *sys.argv[1:])
    sys.argv = ["lm_eval", verb, "--include_path", str(TASKS), *(rest or ["--help"])]
    cli_evaluate()


if __name__ == "__main__":
    main()
