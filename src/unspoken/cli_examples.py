"""Examples of every verb, which its help shows."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": (
        "unspoken run tree-search",
        "unspoken run arithmetic --size small --seeds 3",
        "unspoken run codi --model FOLDER --data mine.jsonl --plan",
    ),
    "train": (
        "unspoken train latent-sft --model FOLDER --data mine.jsonl --output runs/mine",
        "unspoken train codi --model FOLDER --data mine.jsonl --grader my_module:my_function",
        "unspoken train mine.yaml --set stages.cot.steps=500",
    ),
    "new-recipe": (
        "unspoken new-recipe latent-sft --model FOLDER --data mine.jsonl",
        "unspoken new-recipe cot --model FOLDER --data mine.jsonl --output mine.yaml --set batch_size=4",
    ),
    "eval": (
        "unspoken eval runs/tree-search-tiny",
        "unspoken eval runs/mine --data other.jsonl --problems 500",
        "unspoken eval FOLDER --data mine.jsonl --reasoning soft_thinking",
    ),
    "convert": (
        "unspoken convert FOLDER reasoner",
        "unspoken convert FOLDER continuous --to codi",
    ),
    "generate": (
        "unspoken generate tree-search --chain",
        "unspoken generate runs/mine 'What is 2 plus 2?'",
        "unspoken generate runs/mine - --json < questions.txt",
    ),
    "chat": (
        "unspoken chat FOLDER",
        "unspoken chat FOLDER --reasoning soft_thinking --instruction 'Answer in one sentence.'",
        "unspoken chat FOLDER --once < letter.txt",
    ),
    "serve": (
        "unspoken serve runs/mine",
        "unspoken serve FOLDER --port 8080 --batch-size 8",
        "unspoken serve runs/mine --host 0.0.0.0 --api-key-file key.txt",
    ),
    "explore": (
        "unspoken explore tree-search",
        "unspoken explore runs/mine --output chains.html",
    ),
    "report": (
        "unspoken report runs/tree-search-tiny",
        "unspoken report runs/one runs/other --output both.html",
    ),
    "recipes": ("unspoken recipes", "unspoken recipes --json"),
    "doctor": ("unspoken doctor", "unspoken doctor --device cpu --json"),
}


def epilog(verb: str) -> str:
    """The examples of a verb, one a paragraph, which the help prints in a line of its own."""
    return "\n\n".join(["Examples:", *EXAMPLES[verb]])
