"""The check against the headers of other torches: what it says, and how it reads a wheel."""

from __future__ import annotations

import http.server
import os
import threading
from pathlib import Path

import pytest

from . import old_headers_check
from .build_tools import toolchain


def test_headers_out_of_reach_fail_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert old_headers_check.main(["0.1"]) == 0
    assert (
        "torch 0.1: its headers are not checked: is there a network? pip: ERROR: "
        in capsys.readouterr().out
    )


def test_code_that_other_headers_refuse_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(version: str) -> None:
        raise toolchain.BuildFailed(f"c++ -c\nerror: torch {version} has no such thing")

    monkeypatch.setattr(old_headers_check, "check", refuse)
    assert old_headers_check.main(["2.10"]) == 1
    assert "error: torch 2.10 has no such thing" in capsys.readouterr().out


def test_a_wheel_is_read_in_parts(tmp_path: Path) -> None:
    """As zipfile does it: the end first."""
    text = bytes(range(256)) * 20

    class Parts(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(text)}")
            self.end_headers()
            self.wfile.write(text[first : last + 1])

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Parts) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with old_headers_check.opened(f"http://127.0.0.1:{server.server_port}/wheel") as file:
            file.seek(-300, os.SEEK_END)
            assert file.read() == text[-300:]
            file.seek(7)
            assert file.read(1000) == text[7:1007]
        server.shutdown()
