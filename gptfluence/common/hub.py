"""The Hugging Face Hub: whether it can be asked at all, found out once, in seconds, instead of by long retries; and downloads."""

from __future__ import annotations

import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from gptfluence.common.errors import ArtifactError, HubUnreachableError

NAME = re.compile(r"^[\w-][\w.-]*/[\w-][\w.-]*$")  # "user/name"
KINDS = {"model": "model", "dataset": "data set"}  # the Hub's words for repositories, and ours


def hub_reachable(timeout: float = 3.0) -> bool:
    """Whether the Hub answers within `timeout` seconds. False at once where HF_HUB_OFFLINE is set; proxies are used.

    A process asks once.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or any(_is_on(name) for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")):
        return False
    return _answers(constants.ENDPOINT, timeout)


@lru_cache
def _answers(endpoint: str, timeout: float) -> bool:
    answers: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(endpoint, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=timeout).close()
            answers.append(True)
        except urllib.error.HTTPError as error:
            answers.append(error.code < 500 and error.code not in (403, 407))  # these are a proxy's refusals
        except (OSError, ValueError):
            answers.append(False)

    # looking up a name has no timeout of its own, so the question is asked beside the one who waits for it
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout + 0.5)
    return bool(answers and answers[0])


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def is_name(place: str | Path) -> bool:
    """Whether `place` is "user/name" and no folder here."""
    return isinstance(place, str) and bool(NAME.match(place)) and not Path(place).exists()


def require_reachable(name: str, what: str) -> None:
    """Raises HubUnreachableError where there is no network. what: what cannot be done, e.g. "runs cannot be shared"."""
    if not hub_reachable():
        raise HubUnreachableError(_offline(name, what))


def downloaded(name: str, repo_type: str, patterns: Sequence[str], **options: Any) -> Path:
    """The folder with the files of a repository that fit `patterns`, downloaded or from the local cache.

    repo_type: one of `KINDS`; options: of `snapshot_download`, e.g. revision. Raises HubUnreachableError if there is neither,
    ArtifactError with the Hub's words if it does not give them.
    """
    from huggingface_hub import snapshot_download

    offline = not hub_reachable()
    options["local_files_only"] = offline or options.get("local_files_only", False)
    try:
        return Path(snapshot_download(name, repo_type=repo_type, allow_patterns=list(patterns), **options))
    except OSError as error:  # a file that is not in the cache, and what the Hub answers
        if offline:
            raise HubUnreachableError(_offline(name, "it is neither a folder here nor in the local cache")) from error
        raise ArtifactError(
            f"{name} is no folder here, and cannot be read as a {KINDS[repo_type]} of the Hugging Face Hub: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _offline(name: str, what: str) -> str:
    return f"{name}: {what}, and no hub is reachable; connect (HF_HUB_OFFLINE must not be set), or give the path of a folder"
