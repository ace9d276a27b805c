"""Fetch the published GPTDynamics data from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from gptfluence.common import files
from gptfluence.common.errors import DataError, HubUnreachableError
from gptfluence.common.hub import hub_reachable

DATASET = "ernie-research/GPTDynamics"
RECORD = "download.json"


def download(folder: Path, revision: str = "main") -> dict[str, str]:
    """Download the data set, or what is missing of it, into `folder`.

    Returns what `download.json` in it says: dataset, revision, and the commit that the revision stood for. Raises
    HubUnreachableError within seconds if no hub answers, DataError if the revision does not exist or a transfer fails.
    """
    if not hub_reachable():
        raise HubUnreachableError(
            f"the data set {DATASET} lives on the Hugging Face Hub, and no hub is reachable. Connect (HF_ENDPOINT names a "
            "mirror), or get its files on another machine and run: gptfluence import-published FOLDER"
        )
    from huggingface_hub import HfApi, snapshot_download

    try:
        commit = str(HfApi().dataset_info(DATASET, revision=revision).sha)
        # by commit: a branch that moves meanwhile would mix two states
        snapshot_download(DATASET, repo_type="dataset", revision=commit, local_dir=folder)
    except Exception as error:  # huggingface_hub and the HTTP library below it each raise their own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"data set {DATASET}, revision {revision!r}: {first}; run again to go on where it stopped"
        ) from error
    found = {"dataset": DATASET, "revision": revision, "commit": commit}
    files.write_json(folder / RECORD, found)
    return found
