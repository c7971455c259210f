"""The key: where it comes from, which keys are refused, and what needs one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from unspoken.cli import app as command_line
from unspoken.serving import Served, serve
from unspoken.serving.keys import checked_key, read_key


@pytest.mark.parametrize("written", ["secret", "secret\n", "secret\r\n"])
def test_a_key_comes_from_a_file_without_the_end_of_its_line(written: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(written.encode())
    assert read_key(file) == "secret"


def test_a_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSPOKEN_API_KEY", "secret")
    assert read_key(None) == "secret"
    monkeypatch.setenv("UNSPOKEN_API_KEY", "")
    assert read_key(None) is None
    monkeypatch.delenv("UNSPOKEN_API_KEY")
    assert read_key(None) is None


@pytest.mark.parametrize("key", ["schlüssel", "a b", " a", "a\t", "a\x00", "a\nb", "a\n\n", "ключ", "\x7f", ""])
def test_a_key_that_no_client_can_send_is_refused_at_the_start(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="the API key in somewhere"):
        checked_key(key, "somewhere")
    (tmp_path / "key").write_text(key)
    with pytest.raises(ValueError, match=r"the API key in .*key"):
        serve(tmp_path, api_key_file=tmp_path / "key")
    with pytest.raises(ValueError, match="the API key in api_key"):
        serve(tmp_path, api_key=key)


def test_a_file_that_is_no_text_holds_no_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is no text"):
        read_key(tmp_path / "key")
    with pytest.raises(FileNotFoundError):
        read_key(tmp_path / "other")


def test_the_command_takes_no_key_that_would_show_in_the_list_of_processes(tmp_path: Path) -> None:
    refused = CliRunner().invoke(command_line, ["serve", str(tmp_path), "--api-key", "secret"])
    assert refused.exit_code == 2
    assert "No such option" in refused.output
    missing = CliRunner().invoke(command_line, ["serve", str(tmp_path), "--api-key-file", str(tmp_path / "none")])
    assert isinstance(missing.exception, FileNotFoundError)


def test_everything_but_health_and_counters_needs_the_key(start: Any, served: Served) -> None:
    with start(served, api_key="secret") as server:
        right = {"Authorization": "Bearer secret"}
        for path in ("/openapi.json", "/v1/models", "/v1/models/tiny"):
            assert httpx2.get(f"{server.url}{path}").status_code == 401
            assert httpx2.get(f"{server.url}{path}", headers=right).status_code == 200
        for path in ("/v1/completions", "/v1/chat/completions"):
            assert httpx2.post(f"{server.url}{path}", json={}).status_code == 401
            assert httpx2.post(f"{server.url}{path}", json={}, headers=right).status_code == 400
        for path in ("/docs", "/redoc"):
            assert httpx2.get(f"{server.url}{path}", headers=right).status_code == 404
        for path in ("/health", "/metrics"):
            assert httpx2.get(f"{server.url}{path}").status_code == 200
        for wrong in ("Bearer secre", "Bearer secrets", "Basic secret", "secret", "Bearer schl\u00fcssel"):
            headers = {"Authorization": wrong.encode("latin-1")}
            assert httpx2.get(f"{server.url}/v1/models", headers=headers).status_code == 401
