"""The lm-evaluation-harness runs finished folders: its model ``unspoken``, and task files of our own.

The harness knows a model that nobody imported by no name, so either call it through this file, which makes every task
available under its name, or name one of our task files, whose loading imports this file::

    python -m unspoken.integrations.lm_eval --model unspoken --model_args pretrained=FOLDER \\
        --tasks unspoken_gsm8k_0shot --metadata data_dir=DATA
    lm_eval --model unspoken --model_args pretrained=FOLDER --tasks HERE/lm_eval_tasks/gsm8k_0shot.yaml \\
        --metadata data_dir=DATA

``data_dir`` is the folder of the files that a task's YAML names, and
``--metadata '{"data_files": {"test": "mine.json"}}'`` names others. Nothing is read from the hub.

Text becomes tokens as in training: after the tokens that the tokenizer puts before every text, and with
``--apply_chat_template`` as a user turn of the tokenizer's template, after the instruction that word problems are
trained with. Chains are not part of the answer's text; what they cost is in the results, under ``config``.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import model_registry
    from lm_eval.models.utils import Collator, normalize_gen_kwargs, postprocess_generated_text
except ImportError:
    raise ImportError("lm_eval is not installed; install the extra: pip install 'unspoken[harness]'") from None

from unspoken.chain import StopReason
from unspoken.draw.formats import escaped
from unspoken.machine import resolve_device
from unspoken.methods.loading import load_system
from unspoken.runs import reasoning_of
from unspoken.tasks.chat_template import render
from unspoken.tasks.files import read_rows, row_fields
from unspoken.tasks.grading import boxed, graded
from unspoken.tasks.problems import ReasoningProblem
from unspoken.tasks.prompt_format import INSTRUCTION, left_padded, unopened
from unspoken.tasks.tree_search import MARKERS, ROUTE, TreeSearchConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TASKS = Path(__file__).with_name("lm_eval_tasks")
_log = logging.getLogger("lm_eval.unspoken")  # below the harness's own, so that it is shown


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one answer cost.

    Attributes:
        latents: latent steps; of an explicit chain, its tokens. 0 for a coupled model, whose steps are the tokens of
            its answer.
        tokens: of the answer, their end included.
        cut: the chain met its cap.
    """

    latents: int
    tokens: int
    cut: bool


class UnspokenLM(LM):
    """A finished folder, seen by the harness. Generation is greedy.

    Args:
        pretrained: the folder of a Latent-SFT model, of an explicit chain of thought or of answers only, of a
            JEPA-Reasoner with its Talker (or without: then the tokens of the nearest table rows are the answer), or of
            any plain causal language model.
        batch_size: requests answered at once.
        device: where the model goes, see `unspoken.machine.resolve_device`; the harness's own "cuda:0", which it gives
            where nobody named a device, counts as "auto" on a machine without CUDA.
        max_gen_toks: cap of an answer in tokens, where a task gives none. A silent chain has the cap of its folder;
            the chain of a JEPA-Reasoner or a coupled model is as long as its answer.
        dtype: of the weights: "float32", or "bfloat16", with which prompts of a thousand tokens are read several times
            as fast on a CPU.
        reasoning: another way to reason, see `unspoken.runs.reasoning_of`.

    Attributes:
        spent: what each generated answer cost, in the order in which the harness asked.

    Raises:
        ValueError: there is no such folder or device, the folder is of a kind that cannot answer or reason so,
            ``batch_size`` is no number, or ``dtype`` is unknown.
    """

    def __init__(
        self,
        pretrained: str | Path,
        batch_size: int | str = 1,
        device: str | None = None,
        max_gen_toks: int = 256,
        dtype: str = "float32",
        reasoning: dict[str, Any] | str | None = None,
    ) -> None:
        super().__init__()
        folder = Path(pretrained)
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} is no model folder: it has no config.json; give the folder of a finished stage")
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(
                f"batch_size is {batch_size!r}; it must be a number of at least 1 (automatic sizes are not supported)"
            )
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; known are {', '.join(DTYPES)}")
        self.batch_size, self.max_gen_toks = int(batch_size), max_gen_toks
        # The harness's command line names "cuda:0" where no device is named.
        unnamed = device is None or (device in ("cuda", "cuda:0") and not torch.cuda.is_available())
        place = resolve_device("auto" if unnamed or device is None else device)
        # Prompts with worked examples are long; plain attention would copy every key at each step.
        self.system = load_system(
            folder,
            name="unspoken",
            max_answer=max_gen_toks,
            device=place,
            dtype=DTYPES[dtype],
            attention="sdpa",
        )
        if reasoning is not None:
            self.system = reasoning_of(reasoning).applied(self.system)
        self.model = self.system.model
        self._device = self.model.device
        self.tokenizer: Any = self.system.texts.tokenizer
        self.spent: list[Spent] = []

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
        processed: list[tuple[str, Spent]] = []
        for batch in track(list(asked.get_batched(n=self.batch_size)), "answering", disable=disable_tqdm):
            how = normalize_gen_kwargs(batch[0][1], self.max_gen_toks)
            if how["do_sample"]:
                raise ValueError("generation is greedy; leave do_sample and temperature out of the generation settings")
            answers = self._answer([args[0] for args in batch], int(how["max_gen_toks"]))
            for args, (text, spent) in zip(batch, answers, strict=True):
                processed.append((postprocess_generated_text(text, how["until"], None), spent))
                self.cache_hook.add_partial("generate_until", args, processed[-1][0])
        ordered = asked.get_original(processed)
        self.spent += [spent for _, spent in ordered]
        _log.info("size and cost so far: %s", self.get_model_info())
        return [text for text, _ in ordered]

    @torch.no_grad()
    def _answer(self, prompts: list[str], cap: int) -> list[tuple[str, Spent]]:
        ids, mask = left_padded(self._fitting(prompts, cap), self.tokenizer.pad_token_id)
        answer = self.system.respond(ids, mask, max_tokens=cap)
        chain, tokens = answer.chain, answer.lengths
        latents = chain.lengths if self.system.silent else torch.zeros_like(tokens)
        facts = zip(tokens.tolist(), latents.tolist(), chain.stop.tolist(), strict=True)
        return [
            (
                self.tokenizer.decode(row[:length].tolist(), skip_special_tokens=True),
                Spent(latents=steps, tokens=length, cut=reason == StopReason.CAP),
            )
            for row, (length, steps, reason) in zip(answer.tokens, facts, strict=True)
        ]

    def _fitting(self, prompts: list[str], cap: int) -> list[list[int]]:
        """Prompts as tokens; of those that are too long, the end."""
        start = list(self.system.texts.prompt_format.start)
        rows = [self.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        rows = [row if row or start else [self.tokenizer.eos_token_id] for row in rows]
        positions = self.system.positions
        if positions is None:
            return [start + row for row in rows]
        room = positions - len(start) - self.system.steps_after_prompt(cap)
        if room < 1:
            raise ValueError(
                f"an answer of {cap} tokens and its chain leave no room for a prompt in {positions} positions; "
                "lower max_gen_toks, for instance --gen_kwargs max_gen_toks=32"
            )
        cut = sum(len(row) > room for row in rows)
        if cut:
            _log.warning("%d of %d prompts are longer than %d tokens; only their ends are read", cut, len(rows), room)
        return [start + row[-room:] for row in rows]

    # --- likelihood of text --------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, in nats, and whether it is the greedy one.

        Raises:
            ValueError: the model reasons in latents, so log-likelihood is not defined.
        """
        scores: list[tuple[float, bool]] = self._text_model.loglikelihood(requests, disable_tqdm=disable_tqdm)
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in nats.

        Raises:
            ValueError: as `loglikelihood`.
        """
        scores: list[float] = self._text_model.loglikelihood_rolling(requests, disable_tqdm=disable_tqdm)
        return scores

    @cached_property
    def _text_model(self) -> Any:
        """The harness's own wrapper of a plain causal language model, which writes no chain."""
        if self.system.chain_kind != "tokens":
            raise ValueError(
                "this model reasons in latents, so log-likelihood is not defined; use tasks with output_type "
                "generate_until"
            )
        from lm_eval.models.huggingface import HFLM

        return HFLM(
            pretrained=self.model,
            backend="causal",
            tokenizer=self.tokenizer,
            batch_size=self.batch_size,
            add_bos_token=bool(self.system.texts.prompt_format.start),
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
        spelled = bool(self.system.opening)  # only word problems have one
        if spelled:
            chat_history = [
                {**turn, "content": f"{INSTRUCTION}\n{turn['content']}"} if turn["role"] == "user" else turn
                for turn in chat_history
            ]
        text = render(
            self.tokenizer,
            chat_history,
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
model_registry.register("unspoken", target="unspoken.integrations.lm_eval:UnspokenLM")


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

    splits = {}
    for split, name in {**files, **(data_files or {})}.items():
        path = Path(data_dir) / name
        try:
            rows, _digest = read_rows(str(path))
        except FileNotFoundError:
            raise ValueError(f"there is no file {path}; name its folder: --metadata data_dir=FOLDER") from None
        splits[split] = datasets.Dataset.from_list([row_fields(row) for _where, row in rows])
    return splits


def stated_answers(answers: Sequence[Sequence[str]], _docs: Any) -> list[list[str]]:
    """What each text states as its answer: the content of its last box, or else what stands after ``####``."""
    return [[_stated(text) for text in texts] for texts in answers]


def _stated(text: str) -> str:
    _, mark, line = text.rpartition("#### ")
    return boxed(text) or (line.partition("\n")[0] if mark else "[invalid]")


def exact_match(references: Sequence[str], predictions: Sequence[str], **_: Any) -> float:
    """Whether an answer is the right one, as evaluation grades it; a solution ends in ``#### 18``."""
    answer, given = references[0].rpartition("#### ")[2].strip(), predictions[0]
    problem = ReasoningProblem(question="", chains=(), answer=answer, key="")
    return float(graded([f"\\boxed{{{given}}}"], [problem])[0])


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
    """The harness's command line, with this model and our tasks within reach; an ``--include_path`` replaces ours.

    Bad input ends in one line and status 2, as for the command ``unspoken``.
    """
    from lm_eval.__main__ import cli_evaluate

    arguments = sys.argv[1:]
    named = arguments[:1] in (["run"], ["ls"], ["validate"])
    verb, *rest = arguments if named else ("run", *arguments)
    sys.argv = ["lm_eval", verb, "--include_path", str(TASKS), *(rest or ["--help"])]
    try:
        cli_evaluate()
    except (ValueError, OSError) as error:
        if os.environ.get("UNSPOKEN_DEBUG"):
            raise
        print(f"unspoken: {escaped(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
