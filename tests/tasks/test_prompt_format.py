"""Questions, chains and answers as tokens, with the arithmetic task's own tokenizer and with one of single letters."""

from __future__ import annotations

import string
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_language_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from unspoken.backbone import loading
from unspoken.methods import reasoning
from unspoken.methods.rows import compact_rows
from unspoken.tasks import ArithmeticConfig
from unspoken.tasks.grade_school import GradeSchoolConfig
from unspoken.tasks.grading import graded
from unspoken.tasks.problems import ReasoningProblem
from unspoken.tasks.prompt_format import INSTRUCTION, PromptFormat, TextFormat, left_padded, unopened
from unspoken.training.recipe import load

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "[{{ message.role }}|{{ message.content }}]{% endfor %}"
    "{% if add_generation_prompt %}[assistant|{% endif %}"
)
PROBLEM = ReasoningProblem(question="Ann has 3.", chains=("<<1+2=3>>", "<<2+1=3>>"), answer="3", key="k")


def letters(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a letter, and a token that the tokenizer puts before every text unless it is asked not to."""
    written = string.ascii_letters + string.digits + string.punctuation + " \n"
    tokens = ["~pad", "~bos", "~eos", *written]
    tokenizer = Tokenizer(
        models.WordLevel({token: position for position, token in enumerate(tokens)}, unk_token="~pad")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="~bos $A", special_tokens=[("~bos", 1)])
    actual = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="~pad", bos_token="~bos", eos_token="~eos", padding_side="left"
    )
    actual.chat_template = template
    return actual


def spelled(text: str) -> tuple[int, ...]:
    """Letters as ids, by hand."""
    return tuple(3 + (string.ascii_letters + string.digits + string.punctuation + " \n").index(one) for one in text)


def arithmetic() -> tuple[Any, PromptFormat]:
    task = ArithmeticConfig().build()
    return task, PromptFormat(tokenizer=task.tokenizer)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_markers_of_several_tokens_are_spelled_out() -> None:
    markers = PromptFormat(tokenizer=letters()).markers
    assert markers.open == spelled("<think>")
    assert markers.end == spelled("</think>")
    assert (len(markers.open), len(markers.end)) == (7, 8)


def test_markers_of_the_arithmetic_task_are_one_token_each() -> None:
    task, prompt_format = arithmetic()
    assert (len(prompt_format.markers.open), len(prompt_format.markers.end), len(prompt_format.box)) == (1, 1, 1)
    words = task.tokenizer.convert_ids_to_tokens(
        [*prompt_format.markers.open, *prompt_format.markers.end, *prompt_format.box]
    )
    assert words == ["<think>", "</think>", "\\boxed{"]


def test_a_template_puts_instruction_and_question_in_the_user_s_turn() -> None:
    prompt = PromptFormat(tokenizer=letters()).prompt("Ann has 3.")
    # The template writes the first token itself; the tokenizer must not put another before it.
    assert prompt == (1, *spelled(f"[user|{INSTRUCTION}\nAnn has 3.][assistant|"))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("small", "<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"),
        (
            "paper",
            "<|start_header_id|>user<|end_header_id|>\n\n{asked}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
)
def test_the_replay_asks_in_a_user_turn_alone(size: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the published code spells it for Llama; the small model's turns have markers of their own."""
    monkeypatch.setattr(loading, "load_answer_tokenizer", lambda _: letters())
    monkeypatch.setattr(GradeSchoolConfig, "build", lambda _: SimpleNamespace(tokenizer=None))
    asked = "Please reason step by step, and put your final answer within \\boxed{}.\nHow many?"
    prompt_format = PromptFormat(tokenizer=load("grade-school-v2-code", size).tokenizer())
    assert prompt_format.prompt("How many?") == spelled(expected.replace("{asked}", asked))


@pytest.mark.parametrize("opened", ["<think>", "<think>\n"])
def test_a_template_that_opens_the_chain_leaves_that_to_the_chain(opened: str) -> None:
    plain, opening = letters(), letters(TEMPLATE.replace("[assistant|", f"[assistant|{opened}"))
    text = opening.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=False)
    assert text.rstrip().endswith("[assistant|<think>")
    assert PromptFormat(tokenizer=opening).prompt("Ann has 3.") == PromptFormat(tokenizer=plain).prompt("Ann has 3.")
    # A model that was trained elsewhere opens its chains as its template does.
    assert PromptFormat(tokenizer=opening).opening == spelled(opened)
    assert PromptFormat(tokenizer=plain).opening == spelled("<think>")


def test_a_model_of_the_hub_opens_a_chain_as_its_template_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasoning, "_knows", lambda *_: True)
    template = TEMPLATE.replace("[assistant|", "[assistant|<think>\n")
    texts = TextFormat(prompt_format=PromptFormat(tokenizer=letters(template)))
    found = reasoning.markers_of(SimpleNamespace(texts=texts, model=tiny_language_model("llama")), None)  # type: ignore[arg-type]
    assert found == (spelled("<think>\n"), spelled("</think>"))


def test_without_a_template_the_question_stands_behind_the_token_that_starts_every_text() -> None:
    assert PromptFormat(tokenizer=letters(template=None)).prompt("Ann has 3.") == (1, *spelled("Ann has 3."))


def test_without_a_template_and_a_starting_token_the_question_stands_alone() -> None:
    task, prompt_format = arithmetic()
    (problem,) = task.sample("train", np.arange(1))
    assert prompt_format.prompt(problem.question) == prompt_format.encode(problem.question)


def test_a_token_that_ends_every_text_is_left_out() -> None:
    tokenizer = letters(template=None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="~bos $A ~eos", special_tokens=[("~bos", 1), ("~eos", 2)]
    )
    assert PromptFormat(tokenizer=tokenizer).prompt("Ann") == (1, *spelled("Ann"))


def test_a_template_over_parts_gets_parts() -> None:
    pieces = TEMPLATE.replace("{{ message.content }}", "{% for part in message.content %}{{ part.text }}{% endfor %}")
    assert PromptFormat(tokenizer=letters(pieces)).prompt("Ann") == PromptFormat(tokenizer=letters()).prompt("Ann")


def test_a_template_that_prints_the_day_prints_the_same_every_day() -> None:
    dated = letters("{{ strftime_now('%d %b %Y') }} " + TEMPLATE)
    today = dated.apply_chat_template([{"role": "user", "content": "Ann"}], tokenize=False)
    assert not today.startswith("26 Jul 2024 ")
    start = PromptFormat(tokenizer=dated).prompt("Ann")[: len("26 Jul 2024 ")]
    assert start == spelled("26 Jul 2024 ")


def test_half_a_character_is_refused() -> None:
    texts = TextFormat(prompt_format=PromptFormat(tokenizer=letters()))
    turns = [{"role": "system", "content": "\udc80"}, {"role": "user", "content": "Ann"}]
    for act in (lambda: texts.prompt("half \ud83d"), lambda: texts.continued("\udfff"), lambda: texts.chat(turns)):
        with pytest.raises(ValueError, match=r"half a character \(U\+D\w{3}, a surrogate\), which no tokenizer reads"):
            act()
    assert texts.prompt("Ann") == texts.prompt_format.prompt("Ann")


def test_a_template_without_the_question_is_refused() -> None:
    with pytest.raises(ValueError, match="chat template leaves the question out of the prompt; set its chat_template"):
        PromptFormat(tokenizer=letters("[assistant|")).prompt("Ann")


def test_a_template_that_refuses_a_user_turn_alone_is_refused() -> None:
    needs = letters("{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + TEMPLATE)
    with pytest.raises(ValueError, match=r"chat template refuses a user turn .system first.; set its chat_template"):
        PromptFormat(tokenizer=needs).prompt("Ann")


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_spans_hold_the_first_chain_and_an_answer_in_a_box_that_ends(template: str | None) -> None:
    prompt_format = PromptFormat(tokenizer=letters(template))
    spans = prompt_format.spans(PROBLEM)
    assert spans.prompt == prompt_format.prompt("Ann has 3.")
    assert spans.chain == spelled("<<1+2=3>>")
    assert spans.answer == (*spelled("\\boxed{3}"), 2)


def test_a_problem_without_a_chain_has_an_empty_one() -> None:
    spans = PromptFormat(tokenizer=letters()).spans(replace(PROBLEM, chains=()))
    assert spans.chain == ()
    assert spans.answer == (*spelled("\\boxed{3}"), 2)


def test_a_tokenizer_that_merges_across_the_border_of_steps_gives_both_readings() -> None:
    entries = {
        token: position for position, token in enumerate(["~pad", "~eos", ".", " ", ". ", *string.ascii_letters])
    }
    tokenizer = Tokenizer(models.BPE(vocab=entries, merges=[(".", " ")]))
    tokenizer.decoder = decoders.Fuse()
    made = PromptFormat(
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="~pad", eos_token="~eos")
    )
    problem = ReasoningProblem(question="Why", chains=("So. Thus.",), answer="x", key="k", solution="x")
    spans = made.spans(problem)
    assert spans.chain == spans.merged == made.encode("So. Thus.")
    assert spans.steps == (made.encode("So."), made.encode(" Thus."))
    assert tuple(token for step in spans.steps for token in step) != spans.chain
    same = made.spans(replace(problem, chains=("So.",)))
    assert (same.merged, same.chain) == (None, made.encode("So."))


def test_many_problems_are_tokenised_like_each() -> None:
    for prompt_format, problems in (
        (PromptFormat(tokenizer=letters()), [PROBLEM, replace(PROBLEM, chains=())]),
        (PromptFormat(tokenizer=letters(template=None)), [PROBLEM, replace(PROBLEM, chains=("One. Two.\nThree",))]),
        (arithmetic()[1], arithmetic()[0].sample("train", range(20))),
    ):
        spans = prompt_format.spans_of(problems)
        assert spans == [prompt_format.spans(problem) for problem in problems]
        for problem, one in zip(problems, spans, strict=True):
            assert one.prompt == prompt_format.prompt(problem.question)
            assert one.chain == (prompt_format.encode(problem.chains[0]) if problem.chains else ())
            assert one.steps == tuple(prompt_format.encode(step) for step in problem.steps)
    assert prompt_format.spans_of([]) == []


def test_the_box_begins_every_answer() -> None:
    for prompt_format in (PromptFormat(tokenizer=letters()), arithmetic()[1]):
        answer = prompt_format.spans(replace(PROBLEM, answer="12")).answer
        assert answer[: len(prompt_format.box)] == prompt_format.box
        assert len(prompt_format.box) < len(answer)


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_prompts_are_padded_on_the_left(template: str | None) -> None:
    prompt_format = PromptFormat(tokenizer=letters(template))
    problems = [replace(PROBLEM, question=text) for text in ("Ann", "Ann has", "A")]
    ids, mask = prompt_format.prompts(problems)
    longest = len(prompt_format.prompt("Ann has"))
    assert ids.shape == mask.shape == (3, longest)
    for row, problem in enumerate(problems):
        own = prompt_format.prompt(problem.question)
        assert ids[row].tolist() == [0] * (longest - len(own)) + list(own)
        assert mask[row].tolist() == [0] * (longest - len(own)) + [1] * len(own)


def test_prompts_are_what_training_puts_before_the_open_marker() -> None:
    task, prompt_format = arithmetic()
    problems = task.sample("train", np.arange(8))
    ids, mask = prompt_format.prompts(problems)
    rows = compact_rows([prompt_format.spans(problem) for problem in problems], prompt_format.markers, rate=2, pad_id=0)
    assert len(set(mask.sum(dim=1).tolist())) > 1
    for row in range(8):
        own = ids[row][mask[row].bool()].tolist()
        assert rows.ids[row, : len(own) + 1].tolist() == [*own, *prompt_format.markers.open]


# --- back to text ----------------------------------------------------------------------------------------------------


def test_texts_of_the_arithmetic_task_round_trip() -> None:
    task, prompt_format = arithmetic()
    problems = task.sample("train", np.arange(64))
    for problem in problems:
        spans = prompt_format.spans(problem)
        output = [torch.tensor([piece]) for piece in (spans.prompt, spans.chain, spans.answer)]
        texts = [prompt_format.decode(piece)[0] for piece in output]
        assert texts[:2] == [problem.question, problem.chains[0]]
        assert texts[2].strip() == f"\\boxed{{{problem.answer}}}"


def test_said_answers_are_graded_right_whatever_stands_behind_their_end() -> None:
    task, prompt_format = arithmetic()
    problems = task.sample("train", np.arange(8))
    end, pad = task.tokenizer.eos_token_id, task.tokenizer.pad_token_id
    rows = [list(prompt_format.spans(problem).answer) for problem in problems]
    assert all(row[-1] == end for row in rows)
    for filler in (pad, end):
        output = torch.tensor([row + [filler] * (9 - len(row)) for row in rows])
        assert graded(prompt_format.decode(output), problems).all()
        assert not graded(prompt_format.decode(output.roll(1, dims=0)), problems).all()


def test_texts_leave_out_padding_and_end_and_keep_every_letter() -> None:
    prompt_format = PromptFormat(tokenizer=letters())
    output = torch.tensor([[*spelled("\\boxed{ 3 }"), 2, 0, 0], [*spelled("no box, 7.5 ?"), 0][:14]])
    assert prompt_format.decode(output) == ["\\boxed{ 3 }", "no box, 7.5 ?"]


def test_nothing_is_said_of_nothing() -> None:
    task, prompt_format = arithmetic()
    nothing = torch.full((2, 3), task.tokenizer.pad_token_id)
    assert prompt_format.decode(nothing) == ["", ""]


# --- what a person types ---------------------------------------------------------------------------------------------

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": " Ann has 3. "}
EARLIER = [{"role": "user", "content": "Hm"}, {"role": "assistant", "content": "So?"}]
ASKED = f"[user|{INSTRUCTION}\nAnn has 3.][assistant|"


def texts_of(template: str | None = TEMPLATE, trained_on: Any = None) -> TextFormat:
    return TextFormat(prompt_format=PromptFormat(tokenizer=letters(template)), trained_on=trained_on)


@pytest.mark.parametrize(
    ("turns", "how", "prompt"),
    [
        ([USER], {}, ASKED),
        ([{"role": "system", "content": " \n"}, USER], {}, ASKED),
        ([SYSTEM, USER], {}, f"[system|Be brief.][user|{INSTRUCTION}\n Ann has 3. ][assistant|"),
        ([*EARLIER, USER], {}, f"[user|Hm][assistant|So?][user|{INSTRUCTION}\n Ann has 3. ][assistant|"),
        ([SYSTEM, USER], {"instructed": False}, "[system|Be brief.][user| Ann has 3. ][assistant|"),
        ([USER], {"instructed": False}, "[user| Ann has 3. ][assistant|"),
    ],
)
def test_turns_of_a_chat_as_tokens(turns: list[dict[str, str]], how: dict[str, bool], prompt: str) -> None:
    assert texts_of().chat(turns, **how) == (1, *spelled(prompt))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "the last message is not a user's; send the question as the last message"),
        ([SYSTEM], "the last message is not a user's"),
        ([USER, EARLIER[1]], "the last message is not a user's"),
        ([{"role": "user", "content": " "}], "the question is empty; type one"),
        ([SYSTEM, {"role": "user", "content": " "}], "the question is empty; type one"),
    ],
)
def test_a_chat_ends_in_a_question(turns: list[dict[str, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        texts_of().chat(turns)


def test_a_model_that_reads_one_problem_takes_no_other_turns() -> None:
    bare = "this model has no chat template: it answers one question and reads neither system messages nor earlier"
    task, prompt_format = arithmetic()
    trained = TextFormat(prompt_format=prompt_format, trained_on=task.config)
    named = (
        "this model answers one problem of the task 'arithmetic' and reads neither system messages nor earlier turns"
    )
    for texts, message in ((texts_of(None), bare), (trained, named)):
        for turns, how in (([SYSTEM, USER], {}), ([*EARLIER, USER], {}), ([USER], {"instructed": False})):
            with pytest.raises(ValueError, match=message):
                texts.chat(turns, **how)
    (problem,) = task.sample("train", [0])
    assert trained.chat([{"role": "user", "content": problem.question}]) == prompt_format.prompt(problem.question)
    texts_of().require_turns()


def test_problems_out_of_files_are_plain_questions() -> None:
    texts = texts_of(trained_on=GradeSchoolConfig(train="none.jsonl"))
    assert texts.task is None
    assert texts.chat([SYSTEM, USER]) == texts_of().chat([SYSTEM, USER])
    assert texts.prompt(" Ann has 3. ") == (1, *spelled(ASKED))
    assert texts.continued(" Ann has 3. ") == spelled("Ann has 3.")
    assert texts_of(None).continued(" Ann has 3. ") == (1, *spelled("Ann has 3."))
    for act in (texts.prompt, texts.continued):
        with pytest.raises(ValueError, match="the question is empty; type one"):
            act(" \n")


def test_a_text_that_goes_on_is_a_problem_of_the_task() -> None:
    task, prompt_format = arithmetic()
    texts = TextFormat(prompt_format=prompt_format, trained_on=task.config)
    (problem,) = task.sample("train", [0])
    assert texts.continued(f" {problem.question} ") == texts.prompt(problem.question)
    with pytest.raises(ValueError, match="unknown word"):
        texts.continued("Colourless green ideas")
    assert texts.decode([*prompt_format.encode(problem.question), 1, 0]) == problem.question


def test_turns_that_a_template_refuses_are_named_by_their_roles() -> None:
    refuses = letters("{{ raise_exception('no') }}" + TEMPLATE)
    texts = TextFormat(prompt_format=PromptFormat(tokenizer=refuses))
    with pytest.raises(ValueError, match=r"chat template refuses the turns system, user \(no\)"):
        texts.chat([SYSTEM, USER])
    with pytest.raises(ValueError, match=r"chat template refuses a user turn \(no\)"):
        texts.chat([USER])


@pytest.mark.parametrize(
    ("prompt", "bare"),
    [("a<think>", "a"), ("a<think>\n", "a"), ("a\n", "a\n"), ("<think>a", "<think>a"), ("a </think>", "a </think>")],
)
def test_a_prompt_that_opens_a_chain_is_closed_before_it(prompt: str, bare: str) -> None:
    assert unopened(prompt) == bare


def test_rows_are_padded_on_the_left() -> None:
    ids, mask = left_padded([[5], [6, 7, 8], [9, 9]], 4)
    assert ids.tolist() == [[4, 4, 5], [6, 7, 8], [4, 9, 9]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert ids.dtype == mask.dtype == torch.long
