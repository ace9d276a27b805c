"""What every part of a profile is made of, and where the repository and its artifacts lie."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

ROOT = Path(__file__).resolve().parents[2]  # the repository; profiles, figures and artifacts are found below it


class Settings(BaseModel):
    """Base of every part of a profile: unknown fields are errors, values are not changed after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def canonical(settings: BaseModel) -> dict[str, Any]:
    """Plain JSON values, for hashes and for files."""
    return json.loads(settings.model_dump_json())


def artifacts_dir() -> Path:
    """Where recorded runs, models and caches live: $GPTFLUENCE_ARTIFACTS, else `artifacts/` of the repository."""
    return Path(os.environ.get("GPTFLUENCE_ARTIFACTS") or ROOT / "artifacts").expanduser().resolve()
