"""Runs of one's own files: what does not fit is refused or counted before anything is trained."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_hub import save_hub_folder, save_problems, save_tokenizer, tiny_hub_model
from tiny_recipe import quiet_train

from unspoken.backbone.folder import read_manifest
from unspoken.experiment import open_run
from unspoken.tasks.chat_template import DATE
from unspoken.training.own_data import own_recipe
from unspoken.training.problem_checks import beyond_caps, beyond_positions, require_written_chains
from unspoken.training.recipe import Recipe, parse
from unspoken.training.run import train

SMALL = """
name: mine
size: tiny
precision: fp32
attention: eager
task: {kind: jsonl, train: FILE, vocabulary: 270, validation_rows: 4, test_rows: 4}
backbone: {hidden_size: 16, attention_size: 16, intermediate_size: 32, layers: 1, heads: 2}
stages:
  - {name: cot, objective: {kind: next_token}, steps: 2, evaluate_every: 1, batch_size: 4}
evaluation: {problems: 4, validation_problems: 4, batch_size: 4, max_latents: 30, max_answer: 20}
threads: 1
"""


def rows_of(file: Path, *rows: dict[str, Any]) -> Path:
    """Some problems, and after them these."""
    save_problems(file)
    file.write_text(file.read_text() + "".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def small(file: Path) -> Recipe:
    """A run that takes a second."""
    return parse(SMALL, "mine", [f"task.train={file}"])


def hub_recipe(folder: Path, file: Path, *overrides: str, markers: bool = True, **model: Any) -> Recipe:
    """A recipe by which a tiny pretrained model learns explicit chains from a file."""
    folder.mkdir()
    rows = save_tokenizer(folder) if markers else save_tokenizer(folder, ())
    tiny_hub_model(vocab_size=rows, **model).save_pretrained(folder)
    return own_recipe("cot", folder, file, [*overrides, "steps=12"])


def long_problem(**changes: Any) -> dict[str, Any]:
    return {"question": "long " * 40 + "?", "steps": ["1+1=2"], "answer": "2", **changes}


# --- a file that changes ---------------------------------------------------------------------------------------------


def test_a_file_that_was_edited_is_refused_by_resume_and_measurement(tmp_path: Path) -> None:
    file, output = save_problems(tmp_path / "mine.jsonl"), tmp_path / "run"
    quiet_train(small(file), output)
    before = file.read_text()
    file.write_text(before.replace("What is 3 plus", "What was 3 plus"))
    message = (
        r"run/seed-0/cot/model was trained on other rows than the files of the task hold now \(fingerprint \w{16}, "
    )
    with pytest.raises(ValueError, match=message):
        quiet_train(small(file), output, seeds=2)
    assert not (output / "seed-1").exists()
    with pytest.raises(ValueError, match=message):
        open_run(output)
    file.write_text(before)
    open_run(output)


def test_the_day_in_prompts_is_recorded(tmp_path: Path) -> None:
    folder, file = save_hub_folder(tmp_path / "hub"), save_problems(tmp_path / "mine.jsonl")
    template = "{{ strftime_now('%d %b %Y') }}|{% for message in messages %}{{ message.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    recipe = own_recipe(
        "answer-only", folder, file, ["steps=1", "evaluate_every=1", "evaluation.validation_problems=2"]
    )
    quiet_train(recipe, tmp_path / "run")
    manifest = read_manifest(tmp_path / "run" / "seed-0" / "answer_only" / "model")
    assert manifest["prompt_date"] == DATE


# --- rows that are left out ------------------------------------------------------------------------------------------


def test_rows_that_are_left_out_are_shown_and_recorded(tmp_path: Path) -> None:
    file = rows_of(tmp_path / "mine.jsonl", {"question": "No answer?"}, {"question": "None here?"})
    recipe, printed = parse(SMALL, "mine", [f"task.train={file}", "task.skip_malformed=true"]), StringIO()
    train(recipe, tmp_path / "run", seeds=1, report_to=[], console=Console(file=printed, width=500))
    shown = [line for line in printed.getvalue().splitlines() if "left out" in line]
    assert "left out: 2 (train: malformed)" in shown[0]
    assert [f"mine.jsonl, line {number}: column 'answer' is missing" in shown[number - 40] for number in (41, 42)]
    manifest = read_manifest(tmp_path / "run" / "seed-0" / "cot" / "model")
    assert manifest["dropped"] == {"train: malformed": 2}
    assert [f"line {number}" in manifest["left_out"]["train: malformed"][number - 41] for number in (41, 42)]


# --- positions -------------------------------------------------------------------------------------------------------


def test_a_row_beyond_a_table_of_positions_is_named_before_step_1(tmp_path: Path) -> None:
    file = rows_of(tmp_path / "mine.jsonl", long_problem())
    gpt = {"kind": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 200}
    overrides = ("task.validation_rows=2", "task.test_rows=2", "evaluation.max_latents=20")
    recipe = hub_recipe(tmp_path / "hub", file, *overrides, **gpt)
    with pytest.raises(
        ValueError,
        match=r"^the training problem 'long long .* \.\.\.': a row of \d+ positions does not fit .*table has 200",
    ):
        quiet_train(recipe, tmp_path / "run")
    assert not list((tmp_path / "run").glob("seed-0/*/checkpoint-*"))


def test_a_test_question_without_room_for_its_answer_is_named_before_step_1(tmp_path: Path) -> None:
    test = rows_of(tmp_path / "exam.jsonl", long_problem())
    file = save_problems(tmp_path / "mine.jsonl", rows=90)
    overrides = (f"task.tests=[{test}]", "task.validation_rows=2", "evaluation.max_latents=20")
    llama = {"kind": "llama", "max_position_embeddings": 128}
    recipe = hub_recipe(tmp_path / "hub", file, *overrides, **llama)
    message = (
        r"^the prompt of the exam problem 'long long .* \.\.\.' has 20\d tokens, and up to \d+ further steps do not"
    )
    with pytest.raises(ValueError, match=message):
        quiet_train(recipe, tmp_path / "run")
    assert not list((tmp_path / "run").glob("seed-0/*/checkpoint-*"))


def test_rows_beyond_positions_that_are_computed_are_counted(tmp_path: Path) -> None:
    file = rows_of(tmp_path / "mine.jsonl", long_problem())
    overrides = ("task.validation_rows=2", "task.test_rows=2")
    recipe = hub_recipe(tmp_path / "hub", file, *overrides, kind="llama", max_position_embeddings=128)
    (line,) = beyond_positions(recipe)
    assert line.startswith("train: 1 problems are longer than the 128 positions that ")
    assert "the longest has 2" in line
    assert (
        beyond_positions(hub_recipe(tmp_path / "other", file, *overrides, kind="llama", max_position_embeddings=512))
        == []
    )


# --- caps ------------------------------------------------------------------------------------------------------------


def test_answers_and_chains_beyond_their_caps_are_counted(tmp_path: Path) -> None:
    test = rows_of(tmp_path / "exam.jsonl", long_problem(question="Long?", answer="123456789", steps=["1" * 30]))
    file = save_problems(tmp_path / "mine.jsonl", rows=90)
    overrides = (f"task.tests=[{test}]", "evaluation.max_answer=14", "evaluation.max_latents=29")
    recipe = hub_recipe(tmp_path / "hub", file, *overrides, kind="llama")
    assert beyond_caps(recipe) == [
        "exam: 1 of 41 right answers are longer than evaluation.max_answer 14, so no model can write them; "
        "the longest has 18 tokens, of 'Long?'",
        "exam: 1 of 41 chains are longer than evaluation.max_latents 29, so no model can write them; "
        "the longest has 30 tokens, of 'Long?'",
    ]


# --- the end marker --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["<<1+1=2>>", "<1+1", "1+1 <2"])
def test_a_chain_in_which_the_end_marker_s_first_token_stands_is_refused(tmp_path: Path, step: str) -> None:
    file = rows_of(tmp_path / "mine.jsonl", *[long_problem(question=f"Q{n}?", steps=[step]) for n in range(9)])
    letters = hub_recipe(tmp_path / "hub", file, kind="llama", markers=False)
    with pytest.raises(
        ValueError, match=r"first token of the end marker '</think>', '<', also occurs in the chain of 'Q\d\?', so"
    ):
        quiet_train(letters, tmp_path / "run")
    assert not (tmp_path / "run" / "recipe.json").exists()
    require_written_chains(hub_recipe(tmp_path / "other", file, kind="llama"))
    # No chain is written here.
    answers = own_recipe("answer-only", save_hub_folder(tmp_path / "third"), file)
    require_written_chains(answers)
