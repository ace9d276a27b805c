"""One page with everything that a study has drawn: `build/<study>/report/index.html`, with its files beside it.

The page needs neither a network nor a server: its folder can be sent to somebody. It shows tables as HTML and holds the
pictures itself. Of each output it says whether it was made here, and how far its numbers are from those of the committed
one (beside_committed.csv has the same as a table). At the end it lists the tables and figures of the paper that the study
does not have, each with the reason.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markdown_it import MarkdownIt
from markupsafe import Markup

from gptfluence.common import files, provenance
from gptfluence.common.errors import GPTfluenceError
from gptfluence.common.settings import ROOT
from gptfluence.study.study import Study
from gptfluence.workflow import beside, catalogue
from gptfluence.workflow.beside import Beside, beside_committed
from gptfluence.workflow.catalogue import label_of, title_of
from gptfluence.workflow.citation import cite
from gptfluence.workflow.outcomes import Outcome, outcomes, summary
from gptfluence.workflow.row import Output

SHOWN = {
    ".pdf": "PDF",
    ".png": "PNG",
    ".csv": "CSV",
    ".tex": "LaTeX",
    ".html": "HTML",
    ".md": "Markdown",
    ".json": "provenance",
}
GROUPS = {"tab": "Tables", "fig": "Figures", "": "Beyond the paper"}


@dataclass(frozen=True)
class Item:
    """One figure or table on the page."""

    name: str
    label: str  # Table 2; "" beyond the paper
    title: str
    caption: str
    reading: str
    picture: str  # a data URI; "" for tables
    table: Markup  # "" for figures
    links: list[tuple[str, str]]  # what, where
    made: list[tuple[str, str]]  # how it was made, in words
    citation: str
    beside: Beside  # whether it was made here, and how far it is from the committed one
    notes: list[str] = field(default_factory=list)  # what a reader must know before believing it


@dataclass(frozen=True)
class Missing:
    """An item of the paper that this study does not have, and why."""

    label: str
    title: str
    reason: str


def write(study: Study, build: Path, *, only: str = "*", figures: Path | None = None) -> tuple[Path, str]:
    """Write the page of a study into `build`/report; returns its path and a summary of what was made and what failed.

    build: the folder of executed notebooks and logs (build/<study>); figures: that of outputs (default: the study's)
    only: which planned outputs the summary is about; the page shows whatever the study has drawn
    """
    figures = ROOT / "figures" / study.label if figures is None else figures
    planned = catalogue.outputs(study)
    found = outcomes(planned, build)
    chosen = catalogue.chosen(study, only)
    told = [outcome for outcome in found if outcome.output in chosen]
    place = build / "report"
    items, damaged = _items(figures, build, place, planned, {outcome.output: outcome for outcome in found})
    _remove_others(place / "files", {Path(link).name for item in items for _, link in item.links})
    groups = [
        (heading, [item for item in items if _group(item.name) == kind])
        for kind, heading in GROUPS.items()
        if any(_group(item.name) == kind for item in items)
    ]
    compared = {item.name: item.beside for item in items}
    failed = [str(outcome) for outcome in told if outcome.state in ("failed", "blocked")]
    page = _template().render(
        study=study.label,
        title=study.profile.subject,
        groups=groups,
        missing=_missing(items, found),
        failed=failed + damaged,
        items=items,
        compared=beside.overall(compared) if items else "",
    )
    path = place / "index.html"
    files.write_text(path, page)
    files.write_text(place / "beside_committed.csv", beside.table(compared).to_csv(index=False, float_format="%.6g"))
    if study.label == "mini":  # the default: reachable without knowing the name of a study
        redirect = _template("redirect.html.j2").render(target=f"../{build.name}/report/index.html")
        files.write_text(build.parent / "report" / "index.html", redirect)
    said = [summary(told, study.label), *(f"  {line}" for line in damaged), beside.overall(compared), f"page: {path}"]
    return path, "\n".join(said)


def _template(name: str = "report.html.j2") -> Any:
    environment = Environment(
        loader=PackageLoader("gptfluence.workflow", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def table_html(text: str, name: str) -> Markup:
    """A table that scrolls by itself, with its notes. text: Markdown, or a fragment of HTML that begins with `<`.

    HTML in the cells of Markdown is shown as text.
    """
    text = text if text.lstrip().startswith("<") else MarkdownIt("js-default").render(text)
    region = f'<div class="scroll" role="region" tabindex="0" aria-label="{name}">'
    text = re.sub(r"<table\b", f"{region}<table", text).replace("</table>", "</table></div>")
    return Markup(re.sub(r"<th(?=[\s>])(?![^>]*\bscope=)", '<th scope="col"', text))


def _table(folder: Path, name: str, label: str) -> Markup:
    """The table of an output, from its HTML or its Markdown; empty for a figure."""
    for path in (folder / f"{name}.html", folder / f"{name}.md"):
        if path.is_file():
            return table_html(path.read_text(encoding="utf-8"), label)
    return Markup("")


def _items(
    figures: Path, build: Path, place: Path, planned: Mapping[str, Output], by_name: Mapping[str, Outcome]
) -> tuple[list[Item], list[str]]:
    """Everything in the folder of figures, in the paper's order, and what could not be read."""
    items, damaged = [], []
    head = str(provenance.git_state()["commit"] or "")
    for path in sorted(figures.glob("*.json"), key=lambda path: _place(path.stem)):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            outcome = by_name.get(path.stem)
            compared = beside_committed(path, made=outcome is not None and outcome.state == "made", head=head)
            items.append(_item(path, facts, build, place, _run_of(path.stem, planned), outcome, compared))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, GPTfluenceError) as problem:
            damaged.append(f"{path.stem} cannot be shown: {path} is damaged ({problem!r}); run its notebook again")
    return items, damaged


def _item(
    path: Path,
    facts: Mapping[str, Any],
    build: Path,
    place: Path,
    run: str,
    outcome: Outcome | None,
    compared: Beside,
) -> Item:
    """Copy the files of an output to the page's; run: of its notebook, outcome: what became of it (None: not planned)."""
    name, folder, notes, links = path.stem, path.parent, [], []
    for file, expected in facts["files"].items():
        source = folder / file
        if not source.is_file():
            notes.append(f"{file} is missing; run the notebook again.")
            continue
        content = source.read_bytes()
        if hashlib.sha256(content).hexdigest() != expected:
            notes.append(f"{file} is not what the notebook wrote: it was changed since.")
        files.write_bytes(place / "files" / file, content)
        links.append((SHOWN.get(source.suffix, source.suffix.lstrip(".")), f"files/{file}"))
    links.sort(key=lambda link: list(SHOWN.values()).index(link[0]) if link[0] in SHOWN.values() else len(SHOWN))
    files.write_bytes(place / "files" / path.name, path.read_bytes())
    links.append((SHOWN[".json"], f"files/{path.name}"))
    if outcome is not None and outcome.state in ("failed", "blocked"):
        shown = "the committed one" if compared.same else "from an earlier run"
        notes.append(f"What is shown is {shown}. The last run: {outcome}.")
    executed = build / "notebooks" / f"{run}.ipynb"
    if run and executed.is_file():
        files.write_bytes(place / "files" / executed.name, executed.read_bytes())
        links.append(("executed notebook", f"files/{executed.name}"))
    title, picture = title_of(name), folder / f"{name}.png"
    table = _table(folder, name, f"{title}, table")
    return Item(
        name=name,
        label=label_of(name),
        title=title,
        caption=str(facts["caption"]),
        reading=str(facts.get("reading", "")),
        picture=_data_uri(picture) if picture.is_file() and not table else "",
        table=table,
        links=links,
        made=_made(facts),
        citation=cite(name, folder),
        beside=compared,
        notes=notes,
    )


def _run_of(name: str, planned: Mapping[str, Output]) -> str:
    """The run of a notebook that made an output; "" if the study has no such output."""
    return catalogue.leader(planned[name].row).name if name in planned else ""


def _made(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Provenance in words."""
    run, seconds = facts.get("run", {}), facts.get("run", {}).get("wall_time_seconds")
    state = {True: "", False: ", with local changes", None: ""}[run.get("clean")]
    rows = [
        ("command", str(facts["command"])),
        ("profile", str(facts["profile"])),
        ("parameters", _pairs(facts.get("parameters", {}))),
        ("seeds", _pairs(facts["seeds"]) if isinstance(facts.get("seeds"), dict) else str(facts.get("seeds", ""))),
        ("commit", f"{run['commit'][:12]}{state}" if run.get("commit") else ""),
        ("date", str(run.get("date") or "")),
        ("time of the notebook", f"{seconds:g} s" if isinstance(seconds, (int, float)) else ""),
        ("device", ", ".join(filter(None, [str(run.get("device") or ""), str(run.get("platform") or "")]))),
        ("drawn from", "; ".join(f"{folder} ({len(runs)} runs)" for folder, runs in facts["artifacts"].items())),
        ("versions", _pairs(facts.get("versions", {}))),
    ]
    return [(what, value) for what, value in rows if value]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _missing(items: Sequence[Item], found: Sequence[Outcome]) -> list[Missing]:
    """The tables and figures of the paper without an output in this study, each with the reason."""
    there, by_name = {item.name for item in items}, {outcome.output: outcome for outcome in found}
    missing = []
    for row in sorted(catalogue.ROWS, key=lambda row: _place(row.name)):
        if not row.label or row.name in there:
            continue
        outcome = by_name.get(row.name)
        if outcome is None:
            reason = "not part of this study"
        elif outcome.state == "made":
            reason = f"made by notebook {outcome.notebook}, but its files are gone"
        else:
            reason = str(outcome)
        missing.append(Missing(row.label, row.title, reason))
    return missing


def _group(name: str) -> str:
    return name[:3] if label_of(name) else ""


def _place(name: str) -> tuple[int, str]:
    """Where an output stands on the page: tables, figures, then what the paper does not have."""
    return list(GROUPS).index(_group(name)), name


def _data_uri(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Files of items that are gone must not stay behind in a folder that is sent to others."""
    for path in folder.glob("*"):
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
