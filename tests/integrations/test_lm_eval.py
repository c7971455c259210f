"""The lm-evaluation-harness sees what our engine says, and our task files grade it."""

from __future__ import annotations

import json
import string
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import END, PAD, tiny_config, tiny_language_model, tiny_pair
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from unspoken.integrations import lm_eval as harness
from unspoken.integrations.lm_eval import TASKS, Spent, UnspokenLM, local_files, tree_search
from unspoken.methods.latent_sft.configuration import LatentSFTConfig
from unspoken.methods.latent_sft.model import LatentSFTModel
from unspoken.reasoning.causal_lm import CausalLMReasoner, LatentGenerationConfig
from unspoken.reasoning.engine import StopRule
from unspoken.tasks import GradeSchoolConfig, TreeSearchConfig
from unspoken.tasks.chat_template import DATE
from unspoken.tasks.prompt_format import INSTRUCTION, PromptFormat

LETTERS = string.ascii_lowercase[:18]  # with padding and end the twenty tokens of the tiny models
PROMPTS = ["cdefg", "h", "klmnopqr", "abc", "rq", "fedcba", "ggg"]
CAP = 6
KINDS = ("latent", "explicit", "answer only", "pair", "coupled")


def tokenizer(letters: str = LETTERS) -> PreTrainedTokenizerFast:
    """One token a letter; a was 2."""
    words = Tokenizer(models.WordLevel({t: i for i, t in enumerate(("~p", "~e", *letters))}, unk_token="~p"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="~p", eos_token="~e")


def ids_of(text: str) -> torch.Tensor:
    return torch.tensor([[2 + LETTERS.index(letter) for letter in text]])


def settings_of(kind: str) -> LatentGenerationConfig:
    return LatentGenerationConfig(
        open_ids=(5,),
        end_ids=(6, 7),
        top_k=4 if kind == "latent" else 1,
        max_latents=0 if kind == "answer only" else 5,
    )


def save(kind: str, folder: Path) -> Path:
    """A tiny folder of a kind."""
    model = tiny_pair() if kind == "pair" else tiny_language_model("gpt2" if kind == "coupled" else "unspoken")
    if kind not in ("pair", "coupled"):
        settings_of(kind).attach(model)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def by_hand(kind: str, prompt: str) -> tuple[str, Spent]:
    """One prompt alone, without padding and, where there are no latents, without the engine."""
    ids, latents, cut = ids_of(prompt), 0, False
    if kind == "coupled":
        model, tokens = tiny_language_model("gpt2"), []
        while len(tokens) < CAP and END not in tokens:
            so_far = torch.cat([ids, torch.tensor([tokens], dtype=torch.long)], dim=1)
            tokens.append(int(model(input_ids=so_far).logits[0, -1].argmax()))
        cut = END not in tokens
    elif kind == "pair":
        pair = tiny_pair()
        chain = pair.reason(ids, None, StopRule(max_latents=CAP))
        tokens, latents, cut = pair.speak(chain)[0].tolist(), int(chain.lengths), int(chain.stop) == 2
    else:
        reasoner = CausalLMReasoner(model=tiny_language_model("unspoken"), settings=settings_of(kind))
        chain, spoken = reasoner.respond(ids, None, max_tokens=CAP)
        tokens, latents, cut = spoken[0].tolist(), int(chain.lengths), int(chain.stop) == 2
    words = tokens[: tokens.index(END) + 1] if END in tokens else tokens
    text = "".join(LETTERS[token - 2] for token in words if token not in (END, PAD))
    return text, Spent(latents=latents, tokens=len(words), cut=cut)


def ask(lm: UnspokenLM, prompts: list[str], **settings: Any) -> list[str]:
    how = {"max_gen_toks": CAP, "until": [], **settings}
    return lm.generate_until([SimpleNamespace(args=(prompt, dict(how))) for prompt in prompts], disable_tqdm=True)


# --- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, "3"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_and_their_cost_are_those_of_each_prompt_alone(
    kind: str, batch_size: int | str, tmp_path: Path
) -> None:
    lm = UnspokenLM(str(save(kind, tmp_path)), batch_size=batch_size)
    wanted = [by_hand(kind, prompt) for prompt in PROMPTS]
    assert len({text for text, _ in wanted}) > 3
    assert ask(lm, PROMPTS) == [text for text, _ in wanted]
    assert lm.spent == [spent for _, spent in wanted]
    facts = lm.get_model_info()
    assert facts["answers"] == len(PROMPTS)
    assert facts["tokens_per_answer"] == np.mean([spent.tokens for _, spent in wanted])
    assert facts["latents_per_answer"] == np.mean([spent.latents for _, spent in wanted])
    assert facts["chains_cut"] == sum(spent.cut for _, spent in wanted)
    assert (facts["latents_per_answer"] > 0) == (kind in ("latent", "explicit", "pair"))


@pytest.mark.parametrize("kind", KINDS)
def test_half_the_precision_says_nearly_the_same(kind: str, tmp_path: Path) -> None:
    folder = save(kind, tmp_path)
    half, whole = (UnspokenLM(str(folder), batch_size=3, dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert half.model.dtype == torch.bfloat16
    assert sum(map(str.__eq__, ask(half, PROMPTS), ask(whole, PROMPTS))) > len(PROMPTS) // 2


def test_what_opened_chains_in_training_stands_behind_every_prompt(tmp_path: Path) -> None:
    plain, opened = UnspokenLM(str(save("pair", tmp_path))), tiny_pair()
    opened.config.open_ids = [LETTERS.index("q") + 2]
    opened.save_pretrained(tmp_path / "opened")
    tokenizer().save_pretrained(tmp_path / "opened")
    lm = UnspokenLM(str(tmp_path / "opened"), batch_size=3)
    assert ask(lm, PROMPTS) == ask(plain, [f"{prompt}q" for prompt in PROMPTS]) != ask(plain, PROMPTS)


def test_what_the_tokenizer_puts_before_every_text_stands_before_every_prompt(tmp_path: Path) -> None:
    plain = UnspokenLM(str(save("explicit", tmp_path / "plain")), batch_size=3)
    begun = tokenizer()
    begun.backend_tokenizer.post_processor = processors.TemplateProcessing(single="c $A", special_tokens=[("c", 4)])
    begun.save_pretrained(save("explicit", tmp_path / "begun"))
    lm = UnspokenLM(str(tmp_path / "begun"), batch_size=3)
    assert ask(lm, PROMPTS) == ask(plain, [f"c{prompt}" for prompt in PROMPTS]) != ask(plain, PROMPTS)
    texts = lm.system.texts
    assert texts.prompt("de") == texts.continued("de") == (4, 5, 6)
    room = 64 - CAP - 1 - 5 - 2
    assert [row[:2] for row in lm._fitting(["d" + "e" * 80], CAP)] == [[4, 6]]
    assert [len(row) for row in lm._fitting(["e" * 80], CAP)] == [room]


def test_text_is_cut_at_the_first_of_its_stops(tmp_path: Path) -> None:
    lm = UnspokenLM(str(save("coupled", tmp_path)), batch_size=4)
    whole = ask(lm, PROMPTS)
    text = max(whole, key=lambda one: len(set(one)))
    stop, later = text[2], text[3]
    assert ask(lm, PROMPTS, until=[later, stop]) == [one.split(later)[0].split(stop)[0] for one in whole]
    assert [spent.tokens for spent in lm.spent[:7]] == [spent.tokens for spent in lm.spent[7:]]


def test_of_a_prompt_that_is_too_long_the_end_is_read(tmp_path: Path) -> None:
    lm = UnspokenLM(str(save("latent", tmp_path)))
    room = 64 - CAP - 1 - 5 - 2  # positions, answer, open marker, chain, end marker
    long = "".join(LETTERS[(3 * place + place // 5) % 18] for place in range(80))
    assert ask(lm, [long]) == ask(lm, [long[-room:]])
    assert [len(row) for row in lm._fitting([long, "abc"], CAP)] == [room, 3]
    with pytest.raises(ValueError, match="no room for a prompt in 64 positions; lower max_gen_toks"):
        ask(lm, ["abc"], max_gen_toks=60)


def test_chat_prompts_are_those_of_training(tmp_path: Path) -> None:
    template = (
        "{% for message in messages %}[{{ message.role }}|{{ message.content }}]{% endfor %}"
        "{% if add_generation_prompt %}[assistant|{% endif %}"
    )
    latent, plain, pair = (UnspokenLM(str(save(kind, tmp_path / kind))) for kind in ("latent", "coupled", "pair"))
    turn = {"role": "user", "content": "How many?"}
    with pytest.raises(ValueError, match="no chat template"):
        latent.apply_chat_template([turn])
    for lm in (latent, plain, pair):
        lm.tokenizer = tokenizer(string.printable)
        lm.tokenizer.chat_template = template
    text = latent.apply_chat_template([turn])
    assert text == f"[user|{INSTRUCTION}\nHow many?][assistant|"
    prompt = PromptFormat(tokenizer=latent.tokenizer).prompt("How many?")
    assert tuple(latent.tokenizer(text, add_special_tokens=False)["input_ids"]) == prompt
    latent.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + template
    assert latent.apply_chat_template([turn]) == DATE + text
    assert plain.apply_chat_template([turn]) == pair.apply_chat_template([turn]) == "[user|How many?][assistant|"
    # A pair that opens its chains was trained on word problems, and asked as they are.
    opened = tiny_pair()
    opened.config.open_ids = [5]
    opened.save_pretrained(tmp_path / "opened")
    tokenizer().save_pretrained(tmp_path / "opened")
    pair = UnspokenLM(str(tmp_path / "opened"))
    pair.tokenizer = tokenizer(string.printable)
    for lm in (latent, pair):
        lm.tokenizer.chat_template = template.replace("[assistant|", "[assistant|<think>\n")
        assert lm.apply_chat_template([turn]) == text
    shots = [turn, {"role": "assistant", "content": "3"}, turn]
    assert latent.apply_chat_template(shots).count(INSTRUCTION) == 2


# --- likelihood of text ------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("kind", "family"), [("explicit", "unspoken"), ("coupled", "gpt2")])
def test_likelihoods_are_those_of_the_plain_model(kind: str, family: str, tmp_path: Path) -> None:
    lm, model = UnspokenLM(str(save(kind, tmp_path)), batch_size=2), tiny_language_model(family)

    def log_probabilities(ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids).logits[0].log_softmax(dim=-1)

    pairs = [("cdefg", "hi"), ("k", "lmno"), ("abc", "d")]
    best = LETTERS[int(log_probabilities(ids_of("abc"))[-1, 2:].argmax())]
    found = lm.loglikelihood([SimpleNamespace(args=pair) for pair in [*pairs, ("abc", best)]], disable_tqdm=True)
    for (context, continuation), (value, _) in zip([*pairs, ("abc", best)], found, strict=True):
        ids = ids_of(context + continuation)
        steps = log_probabilities(ids)[len(context) - 1 : -1].gather(1, ids[0, len(context) :, None])
        assert value == pytest.approx(float(steps.sum()), abs=1e-3)
    greedy = bool(log_probabilities(ids_of("abc"))[-1].argmax() == ids_of(best)[0, 0])
    assert found[3][1] == greedy
    (rolled,) = lm.loglikelihood_rolling([SimpleNamespace(args=("cdefg",))], disable_tqdm=True)
    ids = torch.cat([torch.tensor([[END]]), ids_of("cdefg")], dim=1)
    assert rolled == pytest.approx(float(log_probabilities(ids)[:-1].gather(1, ids[0, 1:, None]).sum()), abs=1e-3)


@pytest.mark.parametrize("kind", ["latent", "pair"])
def test_a_model_that_thinks_in_latents_gives_text_no_likelihood(kind: str, tmp_path: Path) -> None:
    lm = UnspokenLM(str(save(kind, tmp_path)))
    for asked in (lm.loglikelihood, lm.loglikelihood_rolling):
        with pytest.raises(ValueError, match="use tasks with output_type generate_until"):
            asked([SimpleNamespace(args=("ab", "c"))])


def test_a_bar_is_shown_unless_the_harness_asks_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, hidden = UnspokenLM(str(save("coupled", tmp_path))), list[bool]()

    def bar(items: Any, _title: str, *, disable: bool) -> Any:
        hidden.append(disable)
        return items

    def read(_requests: Any, disable_tqdm: bool) -> list[Any]:
        hidden.append(disable_tqdm)
        return []

    monkeypatch.setattr(harness, "track", bar)
    lm.__dict__["_text_model"] = SimpleNamespace(loglikelihood=read, loglikelihood_rolling=read)
    request = SimpleNamespace(args=("abc", {"max_gen_toks": 1, "until": []}))
    for act in (lm.generate_until, lm.loglikelihood, lm.loglikelihood_rolling):
        act([request])
        act([request], disable_tqdm=True)
    assert hidden == [False, True] * 3


def test_prompts_of_similar_length_are_answered_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, together = UnspokenLM(str(save("coupled", tmp_path)), batch_size=2), list[list[str]]()
    answer = lm._answer

    def counted(prompts: list[str], cap: int) -> Any:
        together.append(prompts)
        return answer(prompts, cap)

    monkeypatch.setattr(lm, "_answer", counted)
    ask(lm, PROMPTS[::-1])
    assert together == [["klmnopqr", "fedcba"], ["cdefg", "abc"], ["ggg", "rq"], ["h"]]


# --- what is refused ---------------------------------------------------------------------------------------------


def test_what_cannot_be_run_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = save("coupled", tmp_path / "model")
    LatentSFTModel(LatentSFTConfig(base_config=tiny_config("unspoken"))).save_pretrained(tmp_path / "stage one")
    (save("latent", tmp_path / "endless") / "tokenizer_config.json").write_text("{}")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"pretrained": tmp_path / "nothing"}, "it has no config.json"),
        ({"pretrained": folder, "batch_size": "auto"}, "batch_size is 'auto'"),
        ({"pretrained": folder, "dtype": "float8"}, "dtype is 'float8'; known are float32, bfloat16"),
        ({"pretrained": tmp_path / "stage one"}, "stage 1 of Latent-SFT"),
        ({"pretrained": tmp_path / "endless"}, "no end-of-sequence token; restore tokenizer_config.json"),
    ]
    for arguments, message in refused:
        with pytest.raises(ValueError, match=message):
            UnspokenLM(**arguments)
    with pytest.raises(ValueError, match="generation is greedy"):
        ask(UnspokenLM(str(folder)), ["abc"], do_sample=True, temperature=0.7)
    with pytest.raises(ValueError, match=r"there is no file .*none\.json; name its folder"):
        local_files(files={"test": "none.json"}, data_dir=str(tmp_path))


# --- task files --------------------------------------------------------------------------------------------------


class Scripted(LM):
    """Answers as its script has it, and an unknown prompt with nothing."""

    def __init__(self, script: dict[str, str]) -> None:
        super().__init__()
        self.script, self.prompts = script, list[str]()

    def generate_until(self, requests: list[Any]) -> list[str]:
        self.prompts += [request.args[0] for request in requests]
        return [self.script.get(request.args[0], "") for request in requests]

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError


def evaluate(model: Any, *tasks: str, data: Path | None = None, **others: Any) -> dict[str, Any]:
    manager = TaskManager(
        include_path=str(TASKS), include_defaults=False, metadata={"data_dir": str(data), "pretrained": "x", **others}
    )
    names = [f"unspoken_{task}" for task in tasks]
    found = simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=False)
    assert found is not None
    return found


def write(path: Path, rows: list[dict[str, Any]], *, lines: bool = True) -> None:
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))


def score(found: dict[str, Any], task: str) -> tuple[float, float]:
    """Strict and flexible."""
    results = found["results"][f"unspoken_{task}"]
    return results["exact_match,strict-match"], results["exact_match,flexible-extract"]


def test_gsm8k_with_examples_and_without(tmp_path: Path) -> None:
    solution = "Ann has <<2*9=18>>18.\n#### {}"
    write(tmp_path / "gsm8k_train.jsonl", [{"question": f"Shot {n}?", "answer": solution.format(n)} for n in range(12)])
    asked = [{"question": f"Asked {n}? ", "answer": solution.format("1,018")} for n in range(5)]
    write(tmp_path / "gsm8k_test.jsonl", asked)
    says = ["\\boxed{1018}", "So it is\n#### 1,018", "It is 1018.", "\\boxed{1017}", "1018 or \\boxed{18}"]
    lm = Scripted({f"Asked {n}?": text for n, text in enumerate(says)})
    found = evaluate(lm, "gsm8k_0shot", "gsm8k_5shot", "gsm8k_8shot", data=tmp_path)
    assert score(found, "gsm8k_0shot") == (2 / 5, 3 / 5)
    assert score(found, "gsm8k_5shot") == (0, 0)
    for shots, prompts in ((0, lm.prompts[:5]), (5, lm.prompts[5:10]), (8, lm.prompts[10:])):
        assert len(prompts) == 5
        for number, prompt in enumerate(prompts):
            assert prompt.count("Shot") == prompt.count("<<2*9=18>>") == shots
            assert prompt.endswith(f"Question: Asked {number}? \nAnswer:" if shots else f"Asked {number}?")


# A right answer, what a model says, and whether that is right.
ANSWERS = [
    *[
        ("18", rf"\boxed{{{text}}}", True)
        for text in (r"\$18", "$18", "18.00", r"\text{18}", "18 dollars", "18 people")
    ],
    ("18", r"first \boxed{17}, no: \boxed{18}", True),
    ("1000", r"\boxed{1e3}", True),
    ("1,000", r"\boxed{1000}", True),
    ("73", r"\boxed{73.}", True),
    ("1.5", r"\boxed{1 1/2}", True),
    ("2880000", r"\boxed{2.88 million}", True),
    ("0.5", r"\boxed{50\%}", True),
    ("18", r"\boxed{-18}", False),
    ("18", r"\boxed{9^{9^9}}", False),
    ("18", r"\boxed{18", False),
]


def test_the_harness_grades_as_evaluation_does(tmp_path: Path) -> None:
    rows = [{"question": f"Asked {n}?", "answer": f"So.\n#### {answer}"} for n, (answer, _, _) in enumerate(ANSWERS)]
    write(tmp_path / "gsm8k_test.jsonl", rows)
    write(tmp_path / "train.jsonl", [{"question": "q", "steps": ["<<1+1=2>>"], "answer": "2"}])
    files = (str(tmp_path / "gsm8k_test.jsonl"),)
    ours = GradeSchoolConfig(train=str(tmp_path / "train.jsonl"), validation_rows=0, tests=files).build()
    texts = [text for _, text, _ in ANSWERS]
    assert ours.grade(texts, ours.sample("gsm8k_test", range(len(ANSWERS)))).correct.tolist() == [
        one[2] for one in ANSWERS
    ]
    found = evaluate(Scripted({f"Asked {n}?": text for n, text in enumerate(texts)}), "gsm8k_0shot", data=tmp_path)
    assert score(found, "gsm8k_0shot")[0] == pytest.approx(sum(right for *_, right in ANSWERS) / len(ANSWERS))
    for answer, text, right in ANSWERS:
        assert harness.exact_match([answer], harness.stated_answers([[text]], None)[0]) == right, text


def test_other_sets_ask_what_our_own_reader_reads(tmp_path: Path) -> None:
    hard = [{"input": "Much? ", "target": -9867630.0}, {"input": "Half?", "target": 2.5}, {"input": "x?", "target": 7}]
    write(tmp_path / "gsm_hard.jsonl", hard)
    write(tmp_path / "multiarith.jsonl", [{"input": "Many?", "target": 39}, {"input": "More?", "target": 8}])
    svamp = [{"Body": "Ann has 76. ", "Question": "Left?", "Answer": 51.0}, {"Body": "B", "Question": "C", "Answer": 8}]
    write(tmp_path / "svamp.json", svamp, lines=False)
    write(tmp_path / "train.json", [{"question": "q", "steps": ["<<1+1=2>>"], "answer": "2"}])
    names = ("gsm_hard", "multiarith", "svamp")
    files = tuple(str(next(tmp_path.glob(f"{name}.json*"))) for name in names)
    ours = GradeSchoolConfig(train=str(tmp_path / "train.json"), validation_rows=0, tests=files).build()
    problems = [one for name in names for one in ours.sample(name, range(ours.size(name)))]
    lm = Scripted({one.question: f"\\boxed{{{one.answer}}}" for one in problems if one.question not in ("x?", "More?")})
    found = evaluate(lm, *names, data=tmp_path)
    assert lm.prompts == [one.question for one in problems]
    assert [score(found, name) for name in names] == [(2 / 3, 2 / 3), (1 / 2, 1 / 2), (1, 1)]


def test_prosqa_wants_the_concept(tmp_path: Path) -> None:
    rows = [{"question": f"Is {who} a wug or lempus?", "answer": f"{who} is a lempus."} for who in ("Tom", "Ann", "Bo")]
    write(tmp_path / "mine.json", rows, lines=False)
    says = ["\\boxed{lempus}", "Ann is a lempus.", "\\boxed{wug}"]
    lm = Scripted({row["question"]: text for row, text in zip(rows, says, strict=True)})
    found = evaluate(lm, "prosqa", data=tmp_path, data_files={"test": "mine.json"})
    assert score(found, "prosqa") == (1 / 3, 2 / 3)


def test_tree_search_is_the_task_that_models_are_tested_on() -> None:
    task = TreeSearchConfig(depth=3).build()
    problems = task.sample("test", np.arange(4))
    routes = ["".join(task.words(row)) for row in task.answers(problems)]
    prompts = [text.removesuffix(route) for text, route in zip(task.text(problems), routes, strict=True)]
    lm = Scripted({**dict(zip(prompts[:3], routes, strict=False)), prompts[3]: routes[3] + "A"})
    found = evaluate(lm, "tree_search", problems=4, depth=3)
    assert lm.prompts == prompts
    assert found["results"]["unspoken_tree_search"]["exact_match,none"] == 3 / 4
    shuffled = tree_search(problems=4, depth=3, shuffle_edges=True)["test"]["question"]
    assert all(one.endswith("[ROUTE]") for one in shuffled)
    assert list(shuffled) != prompts


def test_the_harness_finds_the_model_by_name_and_records_its_cost(tmp_path: Path) -> None:
    task = TreeSearchConfig().build()
    tiny_language_model("unspoken", vocab_size=len(task.tokenizer), max_position_embeddings=80).save_pretrained(
        tmp_path
    )
    task.tokenizer.save_pretrained(tmp_path)
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata={"problems": 3})
    found = simple_evaluate(
        model="unspoken",
        model_args={"pretrained": str(tmp_path)},
        tasks=["unspoken_tree_search"],
        task_manager=manager,
        batch_size=2,
        device="cuda:0",  # as the command line has it by default
        bootstrap_iters=0,
    )
    assert found is not None
    assert found["results"]["unspoken_tree_search"]["exact_match,none"] == 0
    assert found["config"]["answers"] == 3
    assert 1 <= found["config"]["tokens_per_answer"] <= 10


def test_bad_input_of_the_command_line_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["run", "--model", "unspoken", "--tasks", "unspoken_tree_search", "--model_args"]
    for arguments, message in (
        ([f"pretrained={tmp_path}/gone"], "it has no config.json"),
        ([f"pretrained={save('coupled', tmp_path / 'model')}", "--batch_size", "auto"], "batch_size is 'auto'"),
    ):
        monkeypatch.setattr(sys, "argv", ["harness", *asked, *arguments])
        with pytest.raises(SystemExit) as ended:
            harness.main()
        assert ended.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("unspoken: ") and message in last


def test_the_command_line_adds_our_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: seen.append(sys.argv[1:]))
    for arguments in (["--model", "unspoken"], ["ls", "tasks"], ["validate"], []):
        monkeypatch.setattr(sys, "argv", ["harness", *arguments])
        harness.main()
    ours = ["--include_path", str(TASKS)]
    assert seen == [
        ["run", *ours, "--model", "unspoken"],
        ["ls", *ours, "tasks"],
        ["validate", *ours, "--help"],
        ["run", *ours, "--help"],
    ]


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "cuda", "place"),
    [
        (None, True, "auto"),
        (None, False, "auto"),
        ("cpu", True, "cpu"),
        ("cuda:0", False, "auto"),
        ("cuda", False, "auto"),
        ("cuda:0", True, "cuda:0"),
        ("cuda:1", False, "cuda:1"),
    ],
)
def test_a_device_that_nobody_named_is_chosen(
    device: str | None, cuda: bool, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(name: str) -> torch.device:
        raise LookupError(name)

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(harness, "resolve_device", chosen)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    with pytest.raises(LookupError, match=f"^{place}$"):
        UnspokenLM(tmp_path, device=device)


def test_what_the_harness_may_leave_out(tmp_path: Path) -> None:
    folder = save("explicit", tmp_path)
    lm = UnspokenLM(folder)
    assert (lm.batch_size, lm.max_gen_toks, lm.model.dtype) == (1, 256, torch.float32)
    for batch_size in (0, "0", "-1", 1.5):
        with pytest.raises(ValueError, match=f"batch_size is {batch_size!r}; it must be a number of at least 1"):
            UnspokenLM(folder, batch_size=batch_size)  # type: ignore[arg-type]
    lm.tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }};{% endfor %}"
    assert lm.chat_template() is lm.chat_template(False) is None
    assert lm.chat_template(True) == lm.tokenizer.chat_template
    assert lm._fitting(["", "ab"], CAP) == [[END], [2, 3]]
    assert ask(lm, ["abc"], max_gen_toks=55)  # of 64 positions, an opening, five steps and two markers leave one
    with pytest.raises(ValueError, match="no room for a prompt in 64 positions"):
        ask(lm, ["abc"], max_gen_toks=56)


def test_answers_are_kept_and_prompts_that_are_cut_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lm, kept = UnspokenLM(save("coupled", tmp_path), batch_size=2), list[Any]()
    lm.cache_hook = SimpleNamespace(add_partial=lambda *arguments: kept.append(arguments))
    answers = dict(zip(PROMPTS, ask(lm, PROMPTS), strict=True))
    assert {args[0]: text for _, args, text in kept} == answers
    assert {name for name, _, _ in kept} == {"generate_until"}
    room = 64 - CAP
    caplog.clear()
    with caplog.at_level("WARNING"):
        assert [len(row) for row in lm._fitting(["a" * room, "b" * (room + 1), "c" * 99], CAP)] == [room] * 3
    assert caplog.messages == [f"2 of 3 prompts are longer than {room} tokens; only their ends are read"]


def test_stated_answers_and_files_by_hand(tmp_path: Path) -> None:
    texts = ["#### 18\nmore", "#### 1 #### 2", r"#### 17 \boxed{18}", "18", "####18"]
    assert harness.stated_answers([texts, []], None) == [["18", "2", "18", "[invalid]", "[invalid]"], []]
    assert harness.exact_match(["So.\n#### 18", "7"], ["18.0", "7"]) == 1.0
    assert harness.exact_match(["18"], ["17"]) == 0.0
    for name, answer in (("a.jsonl", "1"), ("b.json", "2")):
        write(tmp_path / name, [{"answer": answer}], lines=name == "a.jsonl")
    splits = local_files(files={"test": "a.jsonl", "train": "a.jsonl"}, data_dir=str(tmp_path))
    assert {name: rows["answer"] for name, rows in splits.items()} == {"test": ["1"], "train": ["1"]}
    splits = local_files(files={"test": "a.jsonl"}, data_files={"test": "b.json"}, data_dir=str(tmp_path))
    assert {name: rows["answer"] for name, rows in splits.items()} == {"test": ["2"]}
    rows = tree_search()["test"]
    assert len(rows) == 2000
    task = TreeSearchConfig(depth=4, shuffle_edges=False).build()
    assert [one["question"] + one["answer"] for one in rows.select(range(3))] == task.text(
        task.sample("test", [0, 1, 2])
    )
