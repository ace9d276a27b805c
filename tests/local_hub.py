"""The part of the Hugging Face Hub's HTTP interface that uploads and downloads need, on this machine, with folders behind it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_AStrongSecretThatNobodyMaySee"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing: a test's output is its own."""

    def _answer(self, value: object, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body, path = self.rfile.read(int(self.headers.get("Content-Length", 0))), urlsplit(self.path).path
        self.server.asked.append(path)  # type: ignore[attr-defined]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, 401)
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            made = json.loads(body)
            place = self._folder(made.get("type", "model"), f"{made['organization']}/{made['name']}")
            place.mkdir(parents=True, exist_ok=True)
            return self._answer({"url": f"{self.server.address}/{made['organization']}/{made['name']}"})  # type: ignore[attr-defined]
        kind, name, what = re.fullmatch(r"/api/(\w+)s/([^/]+/[^/]+)/(preupload|commit)/main", path).groups()
        if what == "preupload":
            files = [each["path"] for each in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            return self._answer({"files": [{"path": each, **regular} for each in files]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                place = self._folder(kind, name) / line["value"]["path"]
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(base64.b64decode(line["value"]["content"]))
        commit = self._commit(kind, name)
        address = f"{self.server.address}/{name}/commit/{commit}"  # type: ignore[attr-defined]
        return self._answer({"commitUrl": address, "commitOid": commit, "hookOutput": ""})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)  # type: ignore[attr-defined]
        if path == "/":
            return self._answer({})
        if found := re.fullmatch(r"/api/(\w+)s/([^/]+/[^/]+)/(revision|tree)/[^/]+", path):
            kind, name, what = found.groups()
            if not self._folder(kind, name).is_dir():
                return self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            if what == "revision":
                return self._answer({"id": name, "sha": self._commit(kind, name), "siblings": []})
            files = [(each, each.relative_to(self._folder(kind, name)).as_posix()) for each in self._files(kind, name)]
            return self._answer(
                [{"type": "file", "path": path, "size": each.stat().st_size, "oid": _sum(each)} for each, path in files]
            )
        if not (found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)):
            return self._answer({"error": "not known here"}, 401)
        kind, name, file = found.groups()
        kind = "dataset" if kind else "model"
        place = self._folder(kind, name) / file
        return self._answer(place.read_bytes(), ETag=f'"{_sum(place)}"', X_Repo_Commit=self._commit(kind, name))

    do_HEAD = do_GET

    def _folder(self, kind: str, name: str) -> Path:
        return self.server.folder / kind / name  # type: ignore[attr-defined]

    def _files(self, kind: str, name: str) -> list[Path]:
        return sorted(path for path in self._folder(kind, name).rglob("*") if path.is_file())

    def _commit(self, kind: str, name: str) -> str:
        return hashlib.sha1("".join(map(_sum, self._files(kind, name))).encode()).hexdigest()


def _sum(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


class LocalHub:
    """folder: what was uploaded, as model/user/name and dataset/user/name; asked: paths of all requests"""

    def __init__(self, server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        self.folder: Path = server.folder  # type: ignore[attr-defined]
        self.asked: list[str] = server.asked  # type: ignore[attr-defined]
        self.address: str = server.address  # type: ignore[attr-defined]
        self._monkeypatch, self._cache = monkeypatch, cache

    def online(self) -> None:
        self._set(offline=False)

    def offline(self) -> None:
        self._set(offline=True)

    def _set(self, *, offline: bool) -> None:
        constants = {
            "ENDPOINT": self.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": offline,
            "HF_HUB_CACHE": str(self._cache),
        }
        for name, value in constants.items():
            self._monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)


@contextmanager
def local_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """huggingface_hub, with a Hub on this machine that knows the token `TOKEN`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.asked = folder / "hub", []  # type: ignore[attr-defined]
    server.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = LocalHub(server, monkeypatch, folder / "cache")
    found.online()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
