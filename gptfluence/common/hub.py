"""Whether the Hugging Face Hub can be asked at all: found out once, in seconds, instead of by long retries."""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from functools import lru_cache


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
