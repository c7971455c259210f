"""What a person types: help in words, refusals before anything is done, and pages where they belong."""

from __future__ import annotations

import io
import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_recipe import TEXT, quiet_train
from typer.main import get_command

from unspoken import cli, experiment
from unspoken.cli_inputs import typed_problems
from unspoken.draw.formats import write_every_sign
from unspoken.evaluation.results import RESULTS, read_results
from unspoken.experiment import measure_again, measure_run, open_run
from unspoken.probes.pass_at_k import PassAtKProbe
from unspoken.report.page import PAGE, default_page
from unspoken.tasks import TreeSearchConfig
from unspoken.tasks.prompt_format import PromptFormat
from unspoken.training.recipe import load, parse, shipped
from unspoken.training.run import train

RUN = Path(__file__).parent.parent / "results" / "tree-search-tiny.json"
PROBLEM = "LA,LB,AC,AD,BE,BF[ROOT]L[TARGET]E[ROUTE]"


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str, encoding: str = "utf-8") -> tuple[int, str, str]:
    """Status, output and errors of a command in this process, on a terminal of an encoding."""
    output, errors = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["unspoken", *arguments])
        patch.setattr(sys, "stdout", output)
        patch.setattr(sys, "stderr", errors)
        with pytest.raises(SystemExit) as end:
            cli.main()
    written = [stream.buffer.getvalue().decode(encoding) for stream in (output, errors)]  # type: ignore[attr-defined]
    return int(end.value.code or 0), written[0], written[1]


# --- help --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["", *sorted(get_command(cli.app).commands)])  # type: ignore[attr-defined]
def test_help_shows_no_python_type(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    status, output, _ = command(monkeypatch, *filter(None, [verb]), "--help")
    assert status == 0
    assert "--help" in output
    assert not re.search(r"<\w+|list\[|INTEGER|BOOLEAN", output), output


def test_help_shows_what_an_option_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    _, output, _ = command(monkeypatch, "run", "--help")
    for words in (
        r"--seeds +N",
        r"--output +FOLDER",
        r"--set +KEY=VALUE",
        r"RECIPE +A shipped recipe",
        r"--plan +Print",
    ):
        assert re.search(words, output), words


# --- refusals ----------------------------------------------------------------------------------------------------


def test_a_size_is_not_ignored_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    status, _, errors = command(monkeypatch, "run", "mine.yaml", "--size", "small")
    assert (status, errors) == (
        2,
        "unspoken: mine.yaml is a recipe of one size, so --size small means nothing; leave it out\n",
    )
    status, _, errors = command(monkeypatch, "train", "cot", "--model", "x", "--data", "y", "--size", "paper")
    assert (status, errors) == (2, "unspoken: --size paper means nothing beside --model and --data; leave it out\n")
    assert load("mine.yaml").size == "tiny"  # its own
    assert load("tree-search").size == "tiny"
    assert load("tree-search", "small").size == "small"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("threads: 1", "threads: 1\nthreads: 2", r"the key 'threads' stands twice \(lines \d+ and \d+\)"),
        ("depth: 3", "depth: 3, depth: 2", r"the key 'depth' stands twice"),
        ("steps: 4", "steps: 4\n    steps: 5", r"the key 'steps' stands twice"),
    ],
)
def test_a_key_that_stands_twice_is_refused(before: str, after: str, message: str) -> None:
    text = TEXT if before in TEXT else TEXT + f"\n{before}\n"
    parse(text, "mine.yaml")
    with pytest.raises(ValueError, match=f"mine.yaml: {message}"):
        parse(text.replace(before, after, 1), "mine.yaml")


def test_an_alias_is_no_duplicate() -> None:
    shared = "a: &a {x: 1}\nb: *a\nc: *a\n"
    with pytest.raises(ValueError, match=r"^here: (?!.*twice)"):
        parse(shared, "here")


def test_text_after_the_route_marker_is_refused() -> None:
    task = TreeSearchConfig(depth=3).build()
    assert len(task.parse(f" {PROBLEM} ")) == 1
    for rest in ("LBE", " and then?", PROBLEM):
        with pytest.raises(ValueError, match=r"after \[ROUTE\] stands .*; leave it out"):
            task.parse(PROBLEM + rest)


def test_a_busy_port_is_refused_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from unspoken.serving import server

    monkeypatch.setattr(server, "open_served", lambda *_, **__: pytest.fail("a model was loaded"))
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(
            ValueError, match=rf"nothing can listen at 127.0.0.1 port {port} \(.*in use\); give another"
        ):
            server.serve("anything", port=port)
    with pytest.raises(ValueError, match=r"host 'no\.such\.host\.invalid' has no address here"):
        server.serve("anything", host="no.such.host.invalid", api_key="k" * 20)


def test_a_line_of_standard_input_ends_at_a_line_feed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "stdin", io.StringIO("\ufeffone\u2028still one\x0bstill\r\n\n  \ntwo\x85still two", newline="")
    )
    assert typed_problems() == ["one\u2028still one\x0bstill", "two\x85still two"]


@pytest.mark.parametrize(
    ("logger", "message"),
    [
        ("wandb", "the logger 'wandb' is not installed; install its package"),
        ("tensorbord", "did you mean 'tensorboard'"),
    ],
)
def test_a_logger_that_is_not_there_is_refused_before_anything_is_trained(
    logger: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unspoken.training.run.get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=message):
        train(parse(TEXT, "here"), tmp_path, seeds=1, report_to=[logger], console=Console(quiet=True))
    assert not any(tmp_path.iterdir())


# --- a run folder ------------------------------------------------------------------------------------------------


def test_a_start_that_failed_does_not_bind_the_folder(tmp_path: Path) -> None:
    wrong = parse(TEXT, "wrong", ["task.depth=2"])
    with pytest.raises(ValueError, match="has no finished folder"):
        quiet_train(wrong, tmp_path, only="sst")
    assert (tmp_path / "recipe.json").is_file()
    right = parse(TEXT, "right")
    quiet_train(right, tmp_path, only="pretrain")
    with pytest.raises(ValueError, match="was started with another recipe"):
        quiet_train(wrong, tmp_path, only="pretrain")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "mine"
    quiet_train(parse(TEXT, "run"), output)
    measure_run(*open_run(output), command="unspoken run mine.yaml", say=lambda _: None)
    return output


def test_measuring_again_keeps_the_command_and_writes_the_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = Console(quiet=True)
    (run / PAGE).write_text("old")
    measure_again(run, console=quiet, command="unspoken eval mine")
    assert read_results(run)["command"] == "unspoken run mine.yaml"
    page = (run / PAGE).read_text()
    assert "unspoken run mine.yaml" in page
    assert "unspoken eval" not in page
    results = read_results(run)
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "measure_run", lambda *_, command, **__: {**results, "command": command})
        more = measure_again(run, console=quiet, command="unspoken eval mine --samples 2", optional=[PassAtKProbe(2)])
    assert more["command"] == "unspoken run mine.yaml\nunspoken eval mine --samples 2"
    assert "unspoken eval mine --samples 2" in (run / PAGE).read_text()
    (run / RESULTS).unlink()
    measure_again(run, console=quiet, command="unspoken eval mine")
    assert read_results(run)["command"] == "unspoken eval mine"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_without_our_signs_shows_an_answer(
    encoding: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, output, errors = command(monkeypatch, "generate", str(run), PROBLEM, "--chain", encoding=encoding)
    assert (status, errors) == (0, "")
    assert PROBLEM in output
    assert "made of" in output
    assert ("┌" in output) == (encoding == "utf-8")
    status, output, errors = command(monkeypatch, "eval", str(run), "--quiet", encoding=encoding)
    assert (status, errors) == (0, "")
    assert "exact match" in output


def test_signs_become_similar_ones() -> None:
    stream: Any = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    write_every_sign(stream)
    stream.write("99.7 −99.7 – “a” ┌─┴─┐ × ± ∨ é 😀")
    assert stream.buffer.getvalue() == rb"""99.7 -99.7 - "a" +-+-+ x ~ \u2228 \xe9 \U0001f600"""


# --- pages -------------------------------------------------------------------------------------------------------


def test_a_page_of_several_runs_leaves_their_own_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert default_page(tmp_path / "a", alone=True) == tmp_path / "a" / "report.html"
    assert default_page(tmp_path / "a.json", alone=True) == tmp_path / "a.html"
    for first in (tmp_path / "a", tmp_path / "a.json"):
        assert default_page(first, alone=False) == tmp_path / "compare.html"


def test_report_writes_a_comparison_beside_the_first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / RESULTS).write_bytes(RUN.read_bytes())
    (tmp_path / "a" / PAGE).write_text("its own")
    status, output, errors = command(monkeypatch, "report", str(tmp_path / "a"), str(tmp_path / "b"))
    assert (status, output, errors) == (0, f"{tmp_path / 'compare.html'}\n", "")
    assert (tmp_path / "a" / PAGE).read_text() == "its own"
    assert "2 runs" in (tmp_path / "compare.html").read_text()


@pytest.mark.parametrize(
    "content", [{}, [], 3, None, {"schema": 2}, {"schema": 2, "probes": {}}, {"systems": {"a": 1}}, {"name": "recipe"}]
)
def test_a_file_of_another_kind_is_one_line_and_nothing_is_left(
    content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "other.json"
    file.write_text(json.dumps(content))
    status, output, errors = command(monkeypatch, "report", str(file))
    assert (status, output) == (2, "")
    assert len(errors.splitlines()) == 1, errors
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]


# --- what can be run ---------------------------------------------------------------------------------------------


def test_recipes_show_time_hardware_and_where_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    status, output, _ = command(monkeypatch, "recipes")
    assert status == 0
    lines = output.splitlines()
    assert lines[1:4] == ["", "tree search", lines[3]]
    assert re.match(r"\* tree-search +tiny +2 min +2 CPU cores +Route finding", lines[3])
    assert sum(line.startswith("* ") for line in lines[:-1]) == 1
    assert re.search(r"^  grade-school +paper +\d+\.\d h +1 GPU ", output, re.MULTILINE)
    _, output, _ = command(monkeypatch, "recipes", "--json")
    listed = json.loads(output)
    assert {(entry["name"], entry["size"]) for entry in listed} == {(name, size) for name, size, _ in shipped()}
    seconds = {(entry["name"], entry["size"]): entry["seconds"] for entry in listed}
    # Measured, training and measuring together: two minutes, and 100 of one thread, which are 50 of two.
    assert seconds["tree-search", "tiny"] == pytest.approx(120, rel=0.25)
    assert seconds["arithmetic", "small"] == pytest.approx(50 * 60, rel=0.25)
    tasks = [entry["task"] for entry in listed]
    assert len(list(dict.fromkeys(tasks))) == sum(a != b for a, b in zip(tasks, ["", *tasks], strict=False))


def test_the_latent_sft_prompt_of_the_readme_is_what_its_model_was_trained_on() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    snippet = re.search(r'folder = "runs/([\w-]+)-tiny/.*?prompt = tokenizer\("(.*?)"', readme, re.DOTALL)
    assert snippet is not None
    folder, question = snippet.groups()
    recipe = load(folder)
    task: Any = recipe.task.build()
    tokenizer = recipe.tokenizer()
    problems = task.parse(question)
    ids, _ = task.prompts(problems, PromptFormat(tokenizer=tokenizer))
    assert tokenizer(question)["input_ids"] == ids[0].tolist()
    assert tokenizer.unk_token_id not in ids[0].tolist()
