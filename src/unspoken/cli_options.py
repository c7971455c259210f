"""Options and arguments that several verbs of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Size = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Size of a shipped recipe: tiny (a minute or two; the default), small (minutes) or paper (GPUs).",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe key: stages.sst.steps=100. Repeatable."),
]
Output = Annotated[str | None, typer.Option(metavar="FOLDER", help="Run folder; runs/NAME-SIZE if not given.")]
Seeds = Annotated[
    int, typer.Option(metavar="N", min=1, help="Train seeds 0 to N-1, one after another; finished ones are skipped.")
]
Logger = Annotated[
    list[str] | None, typer.Option("--report-to", metavar="LOGGER", help="Any logger that transformers knows, or none.")
]
Device = Annotated[
    str,
    typer.Option(metavar="DEVICE", help="Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:N or mps."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
ReasoningOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--reasoning",
        metavar="REASONING",
        help="Reasoning method to measure beside the trained one, written as for generate. Repeatable.",
    ),
]
ReasoningOption = Annotated[
    str | None,
    typer.Option(
        "--reasoning",
        metavar="REASONING",
        help="Reasoning method instead of the trained one: no_think, budget_forcing, soft_thinking, thinking_speed, "
        "or '{kind: NAME, KEY: VALUE}'.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only the result.")]
RecipeName = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A shipped recipe, a YAML file, or a METHOD, with --model and --data."),
]
AnyModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run folder, a model folder, a name on the hub, or of the package: tree-search, cups."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Pretrained model to train (with a METHOD): a folder or a name on the hub."),
]
Data = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="File of problems (with a METHOD), with question, answer and steps or cot."),
]
Grader = Annotated[
    str | None,
    typer.Option(
        metavar="GRADER",
        help="How answers to your problems are graded: math, number, string, choice, or module:function.",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Which seed of the run.")]
WhichStage = Annotated[
    str | None, typer.Option("--stage", metavar="STAGE", help="Which stage; the Talker's if there is one.")
]
Host = Annotated[str, typer.Option(metavar="HOST", help="Where to listen; other than loopback needs a key.")]
Port = Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Where to listen; 0 for any that is free.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File with the key that clients must send; or set UNSPOKEN_API_KEY."),
]
