"""No link in a folder turns what is written there elsewhere, and no kind of file that is read there never ends."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_recipe import one_stage, quiet_train

import unspoken
from unspoken import storage
from unspoken.backbone.folder import FolderError, numbered, publish, remove, write_manifest
from unspoken.storage import (
    discard,
    make_folder,
    new_folder,
    one_line_error,
    read_json,
    read_text,
    write_json,
    write_text,
)

SOURCE = Path(unspoken.__file__).parent
# Names that older versions wrote under, or that a reader of this one might expect.
NAMES = (
    *(".lock", "results.json", "report.html", "recipe.json"),
    *(".results.json.tmp", ".report.html.tmp", ".recipe.json.tmp", ".run.json.tmp"),
)
FOLDERS = (
    ".best",
    ".checkpoint",
    ".model",
    ".best.tmp",
    "best-2",
    "checkpoint-2",
    "best-0",
    "checkpoint-4",
    "tensorboard",
)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of somebody else's."""
    folder = tmp_path / "victim"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "run.json", "tokenizer.json", "words"):
        (folder / name).write_text("kept")
    return folder


def untouched(victim: Path) -> bool:
    """Whether every file is there as it was, and no other."""
    names = ["config.json", "model.safetensors", "run.json", "tokenizer.json", "words"]
    return [path.name for path in sorted(victim.iterdir())] == names and all(
        path.read_text() == "kept" for path in victim.iterdir()
    )


def test_a_link_in_place_of_a_file_is_replaced(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "results.json").symlink_to(victim / "words")
    (tmp_path / "page").hardlink_to(victim / "words")
    (tmp_path / "nothing").symlink_to(victim / "new")
    for name in ("results.json", "page", "nothing"):
        write_text(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"
        assert not (tmp_path / name).is_symlink()
    assert untouched(victim)


def test_a_temporary_name_is_never_the_same_and_never_opened_twice(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    replace = Path.replace

    def seen(self: Path, target: Path) -> Path:
        names.append(self.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", seen)
    for _ in range(3):
        write_json(tmp_path / "facts", {})
    assert len(set(names)) == 3
    monkeypatch.setattr("unspoken.storage.secrets.token_hex", lambda _: "known")
    (tmp_path / ".facts.known.tmp").symlink_to(victim / "words")
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "facts", "new")
    assert untouched(victim)


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"empty": {}, "none": [], "text": "a ]\n[ b, \u2028 {", "curve": [0.1] * 200, "pairs": [["a", 0.5]] * 30},
        {1: [{"x": None, "y": True}] * 20, None: ({"long": "x" * 200},), 0.5: [[[1, 2], [3]] * 30]},
    ],
)
def test_json_is_read_as_it_was_written(tmp_path: Path, content: Any) -> None:
    write_json(tmp_path / "facts", content)
    assert read_json(tmp_path / "facts") == json.loads(json.dumps(content))


def test_json_has_an_entry_a_line_but_curves_and_what_is_short_on_one(tmp_path: Path) -> None:
    write_json(
        tmp_path / "facts", {"curve": [0.125] * 50, "system": {"mean": 1, "low": [{}]}, "many": [{"x": "y" * 120}] * 2}
    )
    lines = read_text(tmp_path / "facts").splitlines()
    assert [line.strip()[:12] for line in lines] == [
        "{", '"curve": [0.', '"system": {"', '"many": [', "{", '"x": "yyyyyy', "},", "{", '"x": "yyyyyy', "}", "]", "}",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "facts", {"far": [float("inf")]})


def test_a_file_of_json_to_the_letter(tmp_path: Path) -> None:
    """A line has at most 110 characters, and what is inside something is one further to the right."""
    fits, longer = "x" * (110 - len('{"a": ""}')), "x" * (111 - len('{"a": ""}'))
    write_json(tmp_path / "facts", {"a": fits})
    assert read_text(tmp_path / "facts") == f'{{"a": "{fits}"}}\n'
    write_json(tmp_path / "facts", {"a": longer})
    assert read_text(tmp_path / "facts") == f'{{\n "a": "{longer}"\n}}\n'
    write_json(tmp_path / "facts", [[{"a": longer}], {"b": {"c": longer}}])
    lines = [
        "[",
        " [",
        "  {",
        f'   "a": "{longer}"',
        "  }",
        " ],",
        " {",
        '  "b": {',
        f'   "c": "{longer}"',
        "  }",
        " }",
        "]",
    ]
    assert read_text(tmp_path / "facts").splitlines() == lines
    write_json(tmp_path / "facts", [0.125] * 100)
    assert len(read_text(tmp_path / "facts").splitlines()) == 1


def test_others_may_read_and_nobody_may_run_what_is_written(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_text(tmp_path / "facts", "new")
    finally:
        os.umask(before)
    assert (tmp_path / "facts").stat().st_mode & 0o777 == 0o644


def test_an_interruption_just_after_the_move_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        replace(self, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "facts", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["facts"]


def test_folders_above_are_made_and_what_is_gone_is_discarded(tmp_path: Path) -> None:
    assert new_folder(tmp_path / "not" / "there" / "best").parent == tmp_path / "not" / "there"
    make_folder(tmp_path / "nor" / "here", tmp_path / "nor" / "here" / "seed-0")
    assert (tmp_path / "nor" / "here" / "seed-0").is_dir()
    discard(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("one", "one"),
        ("one\ntwo", "one"),
        ("", ""),
        ("  one:\n\n  two\nthree", "one: two"),
        ("one:", "one:"),
    ],
)
def test_an_error_is_its_first_line_and_the_next_after_a_colon(message: str, line: str) -> None:
    with pytest.raises(FolderError) as refusal, one_line_error("it cannot be read", "restore it"):
        raise LookupError(message)
    assert str(refusal.value) == f"it cannot be read (LookupError: {line}); restore it"
    with (
        pytest.raises(LookupError, match="as it is"),
        one_line_error("it", "remedy", lambda error: "as it" in str(error)),
    ):
        raise LookupError("as it is")
    with pytest.raises(FolderError, match="other"), one_line_error("it", "remedy", lambda error: "as it" in str(error)):
        raise LookupError("other")


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "facts", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "facts", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["facts"]
    assert (tmp_path / "facts").read_text() == "old"


def test_a_new_folder_is_empty_whatever_stood_there(tmp_path: Path, victim: Path) -> None:
    (tmp_path / ".best.0123456789abcdef.tmp").symlink_to(victim)
    (tmp_path / ".best.fedcba9876543210.tmp").mkdir()
    folder = new_folder(tmp_path / "best")
    assert list(folder.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, "victim"]
    assert untouched(victim)


@pytest.mark.parametrize("names", [("seed-0",), ("seed-0", "cot")], ids=["seed", "stage"])
def test_a_folder_is_not_made_through_a_link(tmp_path: Path, victim: Path, names: tuple[str, ...]) -> None:
    link = (tmp_path / "run").joinpath(*names)
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    with pytest.raises(FolderError, match=f"{link} is a symbolic link"):
        make_folder(tmp_path / "run", tmp_path / "run" / "seed-0" / "cot")
    assert untouched(victim)


def test_the_run_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    make_folder(tmp_path / "run", tmp_path / "run" / "seed-0" / "cot")
    assert (tmp_path / "disk" / "seed-0" / "cot").is_dir()


def test_links_to_folders_are_removed_and_not_what_they_point_to(tmp_path: Path, victim: Path) -> None:
    for act in (discard, remove):
        (tmp_path / "link").symlink_to(victim)
        act(tmp_path / "link")
        assert not os.path.lexists(tmp_path / "link")
    (tmp_path / "checkpoint-3").symlink_to(victim)
    assert numbered(tmp_path, "checkpoint") == []
    staging = new_folder(tmp_path / "checkpoint-3")
    publish(staging, tmp_path / "checkpoint-3", {"step": 3})
    assert [path.name for path in numbered(tmp_path, "checkpoint")] == ["checkpoint-3"]
    assert untouched(victim)


def test_a_manifest_does_not_list_what_a_kill_left(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / ".run.json.0123456789abcdef.tmp").symlink_to(victim / "words")
    write_manifest(tmp_path / "model", {})
    assert '"files": {}' in (tmp_path / "model" / "run.json").read_text()
    assert untouched(victim)


@pytest.mark.parametrize("folder", ["run", "stage"])
def test_training_in_a_folder_full_of_links_writes_nowhere_else(tmp_path: Path, victim: Path, folder: str) -> None:
    stage = tmp_path / "run" / "seed-0" / "pretrain"
    stage.mkdir(parents=True)
    for name in NAMES[1:] if folder == "run" else ():
        (tmp_path / "run" / name).symlink_to(victim / ("words" if name != "recipe.json" else "new"))
    for name in FOLDERS[:-1] if folder == "stage" else ():
        (stage / name).symlink_to(victim)
    quiet_train(one_stage(), tmp_path / "run")
    assert (stage / "model" / "run.json").is_file()
    assert untouched(victim)


@pytest.mark.parametrize("name", ["seed-0", "seed-0/pretrain", "seed-0/pretrain/tensorboard", ".lock"])
def test_training_through_a_link_is_refused(tmp_path: Path, victim: Path, name: str) -> None:
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(victim / "words" if name == ".lock" else victim)
    with pytest.raises(ValueError, match=f"{link} is a symbolic link"):
        quiet_train(one_stage(), tmp_path / "run")
    assert untouched(victim)


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (lambda path: path.mkdir(), "no regular file|directory"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "is damaged"),
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_text("[" * 200_000), "is damaged"),
        (lambda path: path.write_text('{"a":' * 200_000), "is damaged"),
        (lambda path: path.write_text("1" * 10_000), "is damaged"),
        (lambda path: (path.touch(), os.truncate(path, 2**28 + 1)), "no file of this kind is as large"),
    ],
    ids=["pipe", "device", "folder", "no text", "empty", "nested lists", "nested objects", "digits", "too large"],
)
def test_a_file_that_is_none_is_refused_at_once(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    make(tmp_path / "facts.json")
    with pytest.raises((ValueError, OSError), match=message):
        read_json(tmp_path / "facts.json")
    (tmp_path / "words").write_text("ä")
    assert read_text(tmp_path / "words") == "ä"


def test_the_largest_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LARGEST_TEXT", 4)
    (tmp_path / "words").write_text("four")
    assert read_text(tmp_path / "words") == "four"
    (tmp_path / "words").write_text("fives")
    with pytest.raises(FolderError, match="has 5 bytes"):
        read_text(tmp_path / "words")


# --- nobody writes beside this module --------------------------------------------------------------------------------

# What else writes, and why that is safe.
WRITERS = {
    "backbone/folder.py": {
        "path.open",  # reads
        "(folder / MANIFEST).unlink",  # of no link
        "staging.replace",  # renames a folder of `new_folder`
    },
    "methods/latent_sft/label_store.py": {
        "self._unfinished.rename",  # a folder of `make_folder`
        "shutil.rmtree",  # refuses links
    },
    "methods/latent_sft/labelling.py": {  # into a folder of `new_folder`
        "model.decoder.save_pretrained",
        "context.tokenizer.save_pretrained",
        "shutil.copytree",
    },
    "explorer/record.py": {"target.parent.mkdir"},  # as the page of a report
    "training/conversion.py": {"model.save_pretrained", "prompt_format.tokenizer.save_pretrained"},  # likewise
    "training/trainer.py": {
        "plain.save_pretrained",  # likewise
        "self.processing_class.save_pretrained",
        "torch.save",
        "self.model.save_pretrained",
        "best.replace",  # `numbered` leaves out links
    },
    "training/lock.py": {
        "os.write",  # to the descriptor of the lock, which is no link
        "os.ftruncate",
        "path.unlink",  # its name
        "path.parent.mkdir",  # the run folder itself
        "path.open",  # reads
    },
    "report/page.py": {"target.parent.mkdir"},  # where the user wants it
    "backbone/checks.py": {"folder.mkdir"},  # the user's own cache
}
CALLS = {
    *(
        "open",
        "write_text",
        "write_bytes",
        "mkdir",
        "touch",
        "rename",
        "replace",
        "unlink",
        "symlink_to",
        "hardlink_to",
    ),
    *("save", "save_file", "save_pretrained", "save_to_json", "to_json_file", "dump", "savez", "tofile", "to_csv"),
    *(
        "rmtree",
        "copy",
        "copyfile",
        "copytree",
        "makedirs",
        "mkstemp",
        "NamedTemporaryFile",
        "ftruncate",
        "write",
    ),
}


def _writes(node: ast.Call) -> bool:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in ("write_text", "write_bytes") and isinstance(node.func, ast.Name):
        return False  # of storage
    if name == "replace" and len(node.args) != 1:
        return False  # of texts and dataclasses
    if name in ("replace", "rename") and node.keywords:
        return False
    if name in ("copy", "dump", "write", "save", "open"):
        return ast.unparse(node.func) in ("json.dump", "os.write", "torch.save", "shutil.copy", "open", "path.open")
    return name in CALLS


def test_every_file_is_written_by_one_module_or_for_a_reason() -> None:
    writers: dict[str, set[str]] = {}
    for path in SOURCE.rglob("*.py"):
        name = str(path.relative_to(SOURCE))
        for node in ast.walk(ast.parse(path.read_text())):
            if name != "storage.py" and isinstance(node, ast.Call) and _writes(node):
                writers.setdefault(name, set()).add(ast.unparse(node.func))
    assert {
        name: calls - WRITERS.get(name, set()) for name, calls in writers.items() if calls - WRITERS.get(name, set())
    } == {}
