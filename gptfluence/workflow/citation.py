"""How to cite a figure or a table of this project, and the paper that it implements."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gptfluence.common.errors import ArtifactError, ConfigurationError, unknown
from gptfluence.drawing.typeset import tex
from gptfluence.workflow import catalogue

PAPER = """\
@inproceedings{chai-etal-2024-training,
  title     = {On Training Data Influence of {GPT} Models},
  author    = {Chai, Yekun and Liu, Qingyi and Wang, Shuohuan and Sun, Yu and Peng, Qiwei and Wu, Hua},
  booktitle = {Proceedings of the 2024 Conference on Empirical Methods in Natural Language Processing},
  month     = nov,
  year      = {2024},
  address   = {Miami, Florida, USA},
  publisher = {Association for Computational Linguistics},
  url       = {https://aclanthology.org/2024.emnlp-main.183},
  pages     = {3126--3150}
}
"""


def cite(name: str, figures: Path) -> str:
    """BibTeX of a figure or table and of the paper, and a line of provenance to put into a caption.

    name: the name of its files, or its number: "Table 6", "tab06", "fig16"
    figures: the folder of a study's outputs, e.g. figures/mini

    Raises ConfigurationError for a name that is not there or means several outputs, ArtifactError if the provenance of the
    output is damaged.
    """
    path = _find(name, Path(figures))
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        run, versions = facts.get("run", {}), facts["versions"]
        caption, command, profile = facts["caption"], facts["command"], facts["profile"]
    except (OSError, ValueError, KeyError, AttributeError) as problem:
        raise ArtifactError(f"{path} cannot be read as provenance ({problem!r}); run its notebook again") from problem
    title = re.sub(r"\s+", " ", caption).strip().split(". ")[0].rstrip(".")
    version = versions.get("gptfluence", "")
    commit = run.get("commit")
    source = (
        f"commit {commit[:12]}{'' if run.get('clean') else ', with local changes'}" if commit else f"version {version}"
    )
    lines = [
        f"@misc{{gptfluence-{profile}-{path.stem.replace('_', '-')},",
        f"  title        = {{{_in_braces(title)}}},",
        "  author       = {{The gptfluence authors}},",
        f"  year         = {{{run.get('date', '')[:4]}}}," if run.get("date") else None,
        "  howpublished = {gptfluence, an implementation of GPTfluence},",
        f"  note         = {{{_in_braces(f'{path.stem}, profile {profile}, {source}')}}}",
        "}",
    ]
    entry = "\n".join(line for line in lines if line is not None)
    line = f"Source: gptfluence {version}, {source}, profile {profile}; remade by `{command}`."
    return f"{entry}\n\n{PAPER}\n{line}\n"


def _find(name: str, figures: Path) -> Path:
    known = {path.stem: path for path in sorted(figures.glob("*.json"))}
    if not known:
        raise ConfigurationError(
            f"{figures} holds no figure or table yet; make some: ./run_all.sh --profile {figures.name}"
        )
    meant = catalogue.named(name, known)
    if len(meant) > 1:
        raise ConfigurationError(f"{name!r} means {', '.join(meant)} in {figures}; give the whole name")
    if not meant:
        raise ConfigurationError(unknown("figure or table", name, known, where=f"{figures}: "))
    return known[meant[0]]


def _in_braces(text: str) -> str:
    """Text as the value of a field in braces, which BibTeX counts even where they are escaped."""
    return tex(text).replace(r"\{", r"\textbraceleft{}").replace(r"\}", r"\textbraceright{}")
