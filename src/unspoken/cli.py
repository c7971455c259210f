"""The command line. Each command calls one function that a notebook can call too."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from unspoken.cli_examples import epilog
from unspoken.cli_help import CommandGroup
from unspoken.cli_inputs import chosen_recipe, named_path, recipe_of_method, require_options_of, typed_problems
from unspoken.cli_options import (
    AnyModel,
    AsJson,
    Data,
    Device,
    Grader,
    Host,
    KeyFile,
    Logger,
    Model,
    Output,
    Port,
    Quiet,
    ReasoningOption,
    ReasoningOptions,
    RecipeName,
    Seed,
    Seeds,
    Set,
    Size,
    WhichStage,
)
from unspoken.draw.formats import escaped, write_every_sign
from unspoken.interruption import Interrupted, signals_raise

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_LONGEST = 2000  # characters of an error
_COLLECT_EVERY = 10_000  # new objects; Python's 700 cost seconds, for imports make half a million


def _print_version(asked: bool) -> None:
    if asked:
        print(escaped(f"unspoken {version('unspoken')}"))
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, run and inspect language models that reason in latents."""


def _is_main_rank() -> bool:
    """Whether this process prints; of several ranks one does."""
    return os.environ.get("RANK", "0") == "0"


def _console(*, quiet: bool) -> Console:
    return Console(quiet=quiet or not _is_main_rank(), stderr=True)


def _print_results(results: dict[str, Any], *, as_json: bool) -> None:
    from unspoken.report.terminal import print_results

    if as_json:
        print(json.dumps(results))
    else:
        print_results(results, Console())


def _messages(*, once: bool) -> Iterator[str]:
    """What a person types or pipes in, one message per line; with ``once`` a single one."""
    if sys.stdin is None:
        raise ValueError("standard input is closed; open a terminal, or send lines")
    if once and not sys.stdin.isatty():
        yield sys.stdin.read()
        return
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line
            if once:
                return


def _command() -> str:
    return " ".join(["unspoken", *sys.argv[1:]])


@app.command()
def run(
    recipe: RecipeName,
    size: Size = None,
    seeds: Seeds = 1,
    output: Output = None,
    overrides: Set = None,
    model: Model = None,
    data: Data = None,
    grader: Grader = None,
    report_to: Logger = None,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    plan: Annotated[bool, typer.Option("--plan", help="Print sizes and memory without training.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the recipe with all defaults, without training.")] = False,
) -> None:
    """Train every stage, measure on test problems, and write the report page. Run it again to continue."""
    chosen, folder = chosen_recipe(recipe, size, overrides, output, model, data, grader)
    if show:
        from unspoken.training.recipe import dump

        print(escaped(dump(chosen)), end="")
        return
    if plan:
        from unspoken.report.plan import print_plan
        from unspoken.training.recorded_plans import recorded_plan

        facts = recorded_plan(chosen)
        if facts is None:
            from unspoken.training.plan import plan as make_plan

            facts = make_plan(chosen)
        print(json.dumps(facts)) if as_json else print_plan(facts, Console())
        return
    from unspoken.experiment import run_experiment
    from unspoken.report.page import PAGE

    results = run_experiment(
        chosen,
        folder,
        seeds=seeds,
        report_to=report_to or ["tensorboard"],
        console=_console(quiet=quiet),
        command=_command(),
        device=device,
    )
    if not _is_main_rank():
        return
    _print_results(results, as_json=as_json)
    if not as_json:
        print(escaped(f"\nreport page: {folder / PAGE}"))


@app.command()
def train(
    recipe: RecipeName,
    size: Size = None,
    seeds: Seeds = 1,
    output: Output = None,
    overrides: Set = None,
    model: Model = None,
    data: Data = None,
    grader: Grader = None,
    report_to: Logger = None,
    device: Device = "auto",
    stage: Annotated[str | None, typer.Option(metavar="STAGE", help="Train this stage alone.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train stages without measuring them."""
    from unspoken.training.run import train as train_seeds

    chosen, folder = chosen_recipe(recipe, size, overrides, output, model, data, grader)
    runs = train_seeds(
        chosen,
        folder,
        seeds=seeds,
        report_to=report_to or ["tensorboard"],
        console=_console(quiet=quiet),
        only=stage,
        device=device,
    )
    for seed_run in runs:
        for entry in chosen.stages:
            if _is_main_rank() and seed_run.finished(entry):
                print(escaped(seed_run.model_folder(entry.name)))


@app.command("new-recipe")
def new_recipe(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="What is trained, such as cot or latent-sft.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="The pretrained model: a folder, or a name on the hub.")],
    data: Annotated[str, typer.Option(metavar="FILE", help="Your problems, with question, answer and steps or cot.")],
    output: Annotated[str | None, typer.Option(metavar="FILE", help="The file; METHOD.yaml if not given.")] = None,
    grader: Grader = None,
    overrides: Set = None,
) -> None:
    """Write the recipe that 'unspoken train METHOD --model ... --data ...' uses, to be changed by hand."""
    from unspoken.training.own_data import write_recipe

    recipe = recipe_of_method(method, model, data, grader, overrides)
    print(escaped(write_recipe(recipe, Path(f"{recipe.name}.yaml") if output is None else named_path(output))))


@app.command()
def eval(
    folder: AnyModel,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PROBE",
            help="Also measure an optional probe: geometry (hidden states beside embeddings). Repeatable.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(metavar="N", min=0, help="Also draw N noisy chains per problem, for pass@k.")
    ] = 0,
    data: Annotated[
        str | None, typer.Option(metavar="FILE", help="Measure any model on these problems, controls included.")
    ] = None,
    grader: Grader = None,
    problems: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="How many of --data; 200 if left out.")
    ] = None,
    reasoning: ReasoningOptions = None,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure every finished seed of a run again, controls included, and write results.json and the page.

    With --data, measure any model on the problems of a file and print the results; nothing is written.
    """
    require_options_of(
        data, of_data={"--grader": grader, "--problems": problems}, of_run={"--probe": probe, "--samples": samples}
    )
    if data is not None:
        from unspoken.api import load
        from unspoken.draw.table import print_table

        for way in (None, *(reasoning or ())):
            evaluation = load(folder, way, device=device).evaluate(data, grader=grader, problems=problems or 200)
            print(json.dumps(evaluation.results)) if as_json else print_table(evaluation.table(), Console())
        return
    from unspoken.experiment import measure_again
    from unspoken.probes.catalogue import optional_probe
    from unspoken.probes.pass_at_k import PassAtKProbe
    from unspoken.report.page import PAGE
    from unspoken.runs import reasoning_of

    results = measure_again(
        named_path(folder),
        device=device,
        console=_console(quiet=quiet),
        command=_command(),
        optional=[*(optional_probe(key) for key in probe or ()), *([PassAtKProbe(samples)] if samples else [])],
        reasonings=[reasoning_of(way) for way in reasoning or ()],
    )
    if not _is_main_rank():
        return
    _print_results(results, as_json=as_json)
    if not as_json:
        print(escaped(f"\nreport page: {Path(folder) / PAGE}"))


@app.command()
def convert(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A causal language model: a folder, or a hub name.")],
    output: Annotated[str, typer.Argument(metavar="FOLDER", help="Where the converted model is saved.")],
    to: Annotated[
        str, typer.Option(metavar="METHOD", help="jepa-reasoner, codi, or another package's method.")
    ] = "jepa-reasoner",
) -> None:
    """Make a pretrained model one of another method, with its weights and without any training."""
    from unspoken.api import convert as convert_model

    convert_model(model, to=to, output=named_path(output), device="cpu")
    print(escaped(output))


@app.command()
def generate(
    model: AnyModel,
    problem: Annotated[
        str | None,
        typer.Argument(metavar="PROBLEM", help="A problem of the run's task; '-' reads lines from standard input."),
    ] = None,
    seed: Seed = 0,
    stage: WhichStage = None,
    reasoning: ReasoningOption = None,
    device: Device = "auto",
    chain: Annotated[bool, typer.Option("--chain", help="Also print what each latent is made of.")] = False,
    as_json: AsJson = False,
) -> None:
    """Answer a problem: reason in latents or tokens, as the model was trained to, then print the answer.

    Without PROBLEM, a problem of the test split is answered.
    """
    from unspoken.report.answers import answer_problems, print_answer

    texts = typed_problems() if problem == "-" else [problem]
    for result in answer_problems(model, texts, seed=seed, stage=stage, reasoning=reasoning, device=device):
        if as_json:
            print(json.dumps(result))
        else:
            print_answer(result, Console(), chain=chain)


@app.command()
def chat(
    model: AnyModel,
    instruction: Annotated[str, typer.Option(metavar="TEXT", help="A system message before the first one.")] = "",
    once: Annotated[bool, typer.Option("--once", help="One message: a line, or all of what is piped in.")] = False,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", min=1, help="Longest answer, in tokens.")] = None,
    reasoning: ReasoningOption = None,
    device: Device = "auto",
) -> None:
    """Converse with a model that has a chat template: one message per line, until the end of the input."""
    from unspoken.api import load
    from unspoken.report.conversation import converse

    system = load(model, reasoning, device=device)
    for answer in converse(system, _messages(once=once), instruction=instruction, max_tokens=max_tokens):
        print(escaped(answer.text), flush=True)


@app.command()
def serve(
    model: AnyModel,
    seed: Seed = 0,
    stage: WhichStage = None,
    reasoning: ReasoningOption = None,
    device: Device = "auto",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: KeyFile = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Answers computed at once.")] = 32,
    queue: Annotated[int, typer.Option(metavar="N", min=1, help="Answers that may wait in the queue.")] = 256,
    prompt_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Longest prompt.")] = 4096,
    answer_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Longest answer that may be asked for.")
    ] = 1024,
) -> None:
    """Serve a finished model to OpenAI clients, until interrupted."""
    from unspoken.serving import Limits
    from unspoken.serving import serve as serve_run

    limits = Limits(batch_size=batch_size, queue=queue, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)
    served: dict[str, Any] = {"host": host, "port": port, "api_key_file": api_key_file, "reasoning": reasoning}
    serve_run(model, seed=seed, stage=stage, device=device, limits=limits, **served)


@app.command()
def explore(
    model: AnyModel,
    seed: Seed = 0,
    stage: WhichStage = None,
    reasoning: ReasoningOption = None,
    device: Device = "auto",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: KeyFile = None,
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="Serve nothing; write one page with every change precomputed.")
    ] = None,
    problems: Annotated[
        int, typer.Option(metavar="N", min=2, max=8, help="Number of test problems on that page (with --output).")
    ] = 3,
) -> None:
    """Look into chains in a browser, change them, and see what the answer becomes."""
    opened: dict[str, Any] = {"seed": seed, "stage": stage, "reasoning": reasoning, "device": device}
    if output is not None:
        from unspoken.explorer.record import write_record

        target = named_path(output)
        write_record(model, target, problems=problems, **opened)
        print(escaped(target))
        return
    from unspoken.explorer.routes import explore as serve_explorer

    serve_explorer(model, host=host, port=port, api_key_file=api_key_file, **opened)


@app.command()
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders or results files.")],
    output: Annotated[str | None, typer.Option(metavar="FILE", help="Where to write the page.")] = None,
) -> None:
    """Write the page of a run from its results; of several runs compare.html, which compares them."""
    from unspoken.evaluation.results import read_results
    from unspoken.report.page import default_page, write_page

    first, *others = map(named_path, runs)
    target = default_page(first, alone=not others) if output is None else named_path(output)
    write_page([read_results(path) for path in (first, *others)], target)
    print(escaped(target))


@app.command()
def recipes(as_json: AsJson = False) -> None:
    """List what can be run, with the time and the hardware that it takes."""
    from unspoken.report.terminal import print_recipes
    from unspoken.training.recorded_plans import offers

    if as_json:
        print(json.dumps([vars(offer) for offer in offers()]))
    else:
        print_recipes(offers(), Console())


@app.command()
def doctor(device: Device = "auto", as_json: AsJson = False) -> None:
    """Print what this machine has, how fast it is, the settings chosen for it, and the optional extras."""
    from unspoken.doctor import diagnose, print_diagnosis

    facts = diagnose(device)
    if as_json:
        print(json.dumps(facts))
    else:
        print_diagnosis(facts, Console())


for command in app.registered_commands:
    command.epilog = epilog(str(command.name or getattr(command.callback, "__name__", "")))


def _short(error: Exception) -> str:
    """An error in one line, which may quote what somebody else wrote at any length."""
    line = " ".join(str(error).split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


def main() -> None:
    """Entry point: bad input ends in one line and status 2; ``UNSPOKEN_DEBUG=1`` shows the traceback.

    Of several ranks one prints the line: an error of one ends all, with nothing more to say.
    """
    gc.set_threshold(_COLLECT_EVERY)
    write_every_sign(sys.stdout)
    write_every_sign(sys.stderr)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    try:
        if several:
            from unspoken import distributed

            distributed.init_distributed()
        with signals_raise():
            app(standalone_mode=True)
    except (ValueError, OSError) as error:
        if os.environ.get("UNSPOKEN_DEBUG"):
            raise
        if not several or distributed.claims_error_output():
            print(f"unspoken: {escaped(_short(error))}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError:
        # The message of a rank whose peers are gone; the first of them has printed why.
        if not several or distributed.claims_error_output():
            raise
        sys.exit(2)
    except Interrupted as stop:
        if not several or distributed.claims_error_output():
            with suppress(OSError):  # the terminal is gone
                print("unspoken: stopped; run the same command to continue", file=sys.stderr)
        sys.exit(stop.status)
    finally:
        gc.freeze()  # or Python looks at every object once more before it exits: two seconds


if __name__ == "__main__":
    main()
