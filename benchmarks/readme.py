"""Writes the tables of benchmarks/README.md from results/NAME.json; the prose between them stays as it is.

The README says where the tables of a benchmark go, and everything between the two comments is written anew:

    <!-- results recorder -->
    <!-- end -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import as_markdown

from gptfluence.common import files

README = Path(__file__).parent / "README.md"
BLOCK = re.compile(r"(?P<begin><!-- results (?P<name>\w+) -->\n)(?P<content>.*?)(?P<end><!-- end -->)", re.DOTALL)


def write_readme(results: Path, readme: Path = README) -> None:
    """Write all tables whose results are there; the others stay as they are."""
    text = readme.read_text(encoding="utf-8")
    files.write_text(readme, filled(text, results))


def filled(text: str, results: Path) -> str:
    """A page with its tables written anew."""

    def write(block: re.Match[str]) -> str:
        path = results / f"{block['name']}.json"
        content = block["content"]
        if path.is_file():
            content = tables(json.loads(path.read_text(encoding="utf-8")))
        return block["begin"] + content + block["end"]

    return BLOCK.sub(write, text)


def tables(found: Mapping[str, Any]) -> str:
    """All tables of one benchmark, and below them how they were measured."""
    return "\n".join([*map(as_markdown, found["comparisons"]), circumstances(found)])


def circumstances(found: Mapping[str, Any]) -> str:
    """One paragraph: machine, versions, commit, options."""
    machine, versions = found["machine"], found["versions"]
    card = found.get("facts", {}).get("card")
    on = f"{card['name']}, {card['memory_gib']:g} GiB; " if card else ""
    busy = "quiet" if machine["quiet"] else "busy with other work"
    options = ", ".join(f"{name} {json.dumps(value)}" for name, value in found["options"].items())
    commit = (found["commit"] or "unknown")[:7] + ("" if found["clean"] else ", with changes")
    return (
        f"*Measured {'quickly, so roughly, ' if found['mode'] == 'quick' else ''}on {found['date'][:10]}: "
        f"{on}{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB, {busy}; Python "
        f"{versions['python']}, torch {versions['torch']}, transformers {versions['transformers']}; commit {commit}; "
        f"{options}.*\n"
    )
