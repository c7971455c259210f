"""Runs everything that wants a GPU, one part after another, and writes what was found after each of them.

Every part is a process of its own with a time limit of its own, within one limit for all; what hangs is ended, what
fails leaves its text behind, and the next part begins. Nothing but the standard library is needed to start: what a part
needs is installed first, from the folder ``wheels`` beside ``src``, into a folder that is used by this run alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("unspoken", "torch", "transformers", "numpy", "tokenizers", "accelerate", "peft", "triton", "pytest")
# Seconds of each part, in their order. Together they are more than there is, since no part is expected to need all of
# its own; the one that compiles most comes last.
PARTS = {"install": 90, "tests": 150, "rates": 45, "training": 180, "answering": 90, "decoding": 300}
SPOKEN = 20_000  # characters kept of what a part printed
Found = dict[str, Any]


@dataclass
class Run:
    """One call.

    Attributes:
        output: the file with everything that was found.
        toy: small, on the CPU.
        seconds: for everything together.
        site: folder of what is installed for this run.
        content: what was found so far.
    """

    output: Path
    toy: bool
    seconds: float
    site: Path
    began: float = field(default_factory=time.monotonic)
    content: Found = field(default_factory=dict)

    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.began)

    def write(self) -> None:
        """Put everything on the disk; a reader sees the old file or the new one."""
        self.content["seconds"] = round(time.monotonic() - self.began, 1)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        staged = self.output.with_suffix(".part")
        staged.write_text(json.dumps(self.content, indent=1) + "\n")
        staged.replace(self.output)

    def environment(self) -> dict[str, str]:
        """Of a part: our sources first, then what was installed, then what the machine has."""
        known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        path = [str(ROOT / "src"), str(self.site), *filter(None, known)]
        device = "cpu" if self.toy else "cuda"
        # Disable the pytest plugins that the machine has installed.
        quiet = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        ours = {"PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1", "UNSPOKEN_TEST_DEVICE": device}
        return {**os.environ, **quiet, **ours}


def finished(command: list[str], seconds: float, environment: dict[str, str]) -> tuple[int | None, str, str]:
    """Status of a command, None where it had to be ended, and what it printed on its two streams."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            command, stdout=out, stderr=err, env=environment, cwd=ROOT, start_new_session=True, text=True
        )
        try:
            status: int | None = process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # Also what it started and left behind; a process that hangs in the driver may outlive even this.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
        printed = []
        for stream in (out, err):
            stream.seek(0)
            printed.append(stream.read())
    return status, printed[0], printed[1]


# --- the parts -------------------------------------------------------------------------------------------------------


def install(run: Run, seconds: float) -> Found:
    """What is in the pack, and a note that makes our own sources an installed package."""
    wheels = sorted(str(wheel) for wheel in (ROOT / "wheels").glob("*.whl"))
    status, out, err = 0, "", ""
    if wheels:
        how = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "install", "--quiet", *how, "--target", str(run.site), *wheels]
        status, out, err = finished(command, seconds, dict(os.environ))
    try:
        version("unspoken")
    except PackageNotFoundError:
        named = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        assert named is not None
        note = run.site / f"unspoken-{named[1]}.dist-info"
        note.mkdir(parents=True)
        (note / "METADATA").write_text(f"Metadata-Version: 2.1\nName: unspoken\nVersion: {named[1]}\n")
    sys.path.insert(0, str(run.site))
    return {**judged(status, out + err), "wheels": len(wheels)}


def judged(status: int | None, printed: str) -> Found:
    """How a part ended, with the end of what it printed where it did not end well."""
    words = {0: "done", None: "out of time"}.get(status, f"failed with status {status}")
    return {"status": words} if status == 0 else {"status": words, "error": printed[-SPOKEN:]}


def tests(run: Run, seconds: float) -> Found:
    """The tests marked "gpu": counts, and what failed."""
    # Beside small models a GPU has nothing to do, so several processes use it at once.
    cores = os.cpu_count() or 1
    workers = ["-p", "xdist", "-n", str(min(8, cores // 2))] if cores >= 8 and not run.toy else []
    # Deprecation warnings of other packages must not fail these tests.
    how = ["-p", "no:cacheprovider", "-o", "filterwarnings=default", "-o", "addopts=--import-mode=importlib"]
    how += ["-o", "faulthandler_timeout=60", "-m", "gpu", "-v", "-rfE", "--tb=short", *workers]
    few = ["-k", "not (qwen2 or gpt2 or sdpa or bf16 or flex)"] if run.toy else []
    command = [sys.executable, "-m", "pytest", "tests/gpu", *how, *few]
    status, out, err = finished(command, seconds, run.environment())
    lines = re.split(
        r"^=+ (?:FAILURES|ERRORS|warnings summary|short test summary)", out, maxsplit=1, flags=re.MULTILINE
    )
    counts = Counter(re.findall(r" (PASSED|FAILED|ERROR|SKIPPED)\b", lines[0]))
    names = {"passed": "PASSED", "failed": "FAILED", "errors": "ERROR", "skipped": "SKIPPED"}
    found: Found = {name: counts[word] for name, word in names.items()}
    failures = sorted(set(re.findall(r"^(?:FAILED|ERROR) (\S+::.*)$", out, re.MULTILINE)))
    return {**judged(status, out + err), **found, "failures": failures[:100]}


def measured(run: Run, seconds: float, part: str) -> Found:
    """One part of `gpu_speed.py`; of one that was ended, what it had found by then."""
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_speed.py"), part, *(["--toy"] if run.toy else [])]
    status, out, err = finished(command, seconds, run.environment())
    found: Found = {}
    for line in out.splitlines():
        with suppress(ValueError):
            content = json.loads(line)
            found = content.get(part, {}) if isinstance(content, dict) else found
    ended = judged(status, out + err)
    if status == 0 and failed(found):
        ended["status"] = "done, with errors"
    return {**found, **ended}


def failed(found: Any) -> bool:
    """Whether a measurement somewhere in it could not be made."""
    return isinstance(found, dict) and ("error" in found or any(map(failed, found.values())))


# --- everything ------------------------------------------------------------------------------------------------------


def machine() -> Found:
    """What the numbers belong to."""
    names = "name,driver_version,memory.total,power.limit,clocks.max.sm"
    found: Found = {"system": platform.platform(), "cores": os.cpu_count(), "card": None, "driver": None}
    with suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", f"--query-gpu={names}", "--format=csv,noheader"]
        line = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()[0]
        found |= dict(
            zip(("card", "driver", "memory", "power", "clock"), map(str.strip, line.split(",")), strict=False)
        )
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found["processor"] = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return found


def versions() -> Found:
    """Of what takes part."""
    found: Found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """Of the sources: a note in a pack, or what git knows."""
    if (note := ROOT / "COMMIT").is_file():
        return note.read_text().strip()
    with suppress(OSError, subprocess.SubprocessError):
        asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    return None


def part(run: Run, name: str) -> None:
    """One part, and a line about it; nothing that happens in it stops the next."""
    seconds = min(PARTS[name], run.left())
    began = time.monotonic()
    if seconds < 5:
        found: Found = {"status": "left out: no time was left"}
    else:
        try:
            if name == "install":
                found = install(run, seconds)
            else:
                found = tests(run, seconds) if name == "tests" else measured(run, seconds, name)
        except Exception as error:  # nobody can try again soon: the other parts are still worth having
            found = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    found["seconds"] = round(time.monotonic() - began, 1)
    run.content[name] = found
    print(f"== {name}: {found['status']} in {found['seconds']} s", flush=True)
    run.write()


def main() -> int:
    """Run the parts; the status is 1 if one of them did not end well."""
    parser = argparse.ArgumentParser(description="Tests and speed on a GPU, in one call of under ten minutes.")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "gpu-speed.json")
    parser.add_argument("--seconds", type=float, default=570, help="for everything together (570)")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, with commas between them; all by default")
    parser.add_argument("--toy", action="store_true", help="tiny sizes on the CPU, to see that it works")
    given = parser.parse_args()
    wanted = given.parts.split(",")
    if unknown := [name for name in wanted if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; known here: {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="unspoken-gpu-") as folder:
        run = Run(output=given.output.resolve(), toy=given.toy, seconds=given.seconds, site=Path(folder) / "site")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        command = " ".join(["benchmarks/gpu.sh", *sys.argv[1:]])
        run.content |= {"benchmark": "gpu", "toy": given.toy, "command": command, "date": now, "commit": commit()}
        run.content["machine"] = machine()
        part(run, "install")
        run.content["versions"] = versions()
        for name in PARTS:
            if name in wanted and name != "install":
                part(run, name)
    print(json.dumps(run.content))
    ended = [run.content[name]["status"] for name in PARTS if name in run.content]
    return 0 if all(status == "done" for status in ended) else 1


if __name__ == "__main__":
    sys.exit(main())
