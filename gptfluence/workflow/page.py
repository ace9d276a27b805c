"""One page with everything a study has drawn: `build/<study>/report/index.html`, with its files beside it.

The page needs no network and no server, so that its folder can be sent to somebody. What is not there is listed with the
reason. Tables are HTML tables made from their Markdown, pictures are inside the page.
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

from gptfluence.common import files
from gptfluence.common.errors import GPTfluenceError
from gptfluence.common.settings import ROOT
from gptfluence.drawing import names
from gptfluence.study.study import Study
from gptfluence.workflow import catalogue
from gptfluence.workflow.citation import cite
from gptfluence.workflow.outcomes import Outcome, outcomes, summary

TITLES = {
    "tab01": "Loss simulation in instruction tuning",
    "tab02": "Loss simulation in fine-tuning",
    "tab03": "BLEU and ROUGE-L simulation in instruction tuning",
    "tab04": "BLEU and ROUGE-L simulation in fine-tuning",
    "tab05": "Hyperparameters of instruction tuning",
    "tab06": "Hyperparameters of GPTfluence, instruction tuning",
    "tab07": "Hyperparameters of fine-tuning",
    "tab08": "Hyperparameters of GPTfluence, fine-tuning",
    "tab09": "Hyperparameters of Simfluence",
    "tab10": "Markov order",
    "tab11": "Unseen examples, fine-tuning",
    "tab12": "Unseen examples, instruction tuning",
    "tab13": "Computational cost",
    "fig01": "Collect, fit, simulate",
    "fig02": "Example trajectories",
    "fig03": "Checkpoint interval",
    "fig04": "Markov order",
    "fig05": "Encoders",
    "fig06": "Model sizes",
    "fig07": "Mislabelled data",
    "fig08": "Unseen examples",
    "fig09": "Convergence of fitting",
    "explore_quickstart": "The whole method on one page",
}
TOGETHER = {"tab05_hyperparameters": "Tables 5–9"}  # one output for several items of the paper
SHOWN = {".pdf": "PDF", ".png": "PNG", ".csv": "CSV", ".tex": "LaTeX", ".md": "Markdown", ".json": "provenance"}
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
    failed = [str(outcome) for outcome in told if outcome.state in ("failed", "blocked")]
    page = _template().render(
        study=study.label,
        title=study.profile.title,
        groups=groups,
        missing=_missing(items, found),
        failed=failed + damaged,
        count=len(items),
    )
    path = place / "index.html"
    files.write_text(path, page)
    if study.label == "mini":  # the default: reachable without knowing the name of a study
        redirect = _template("redirect.html.j2").render(target=f"../{build.name}/report/index.html")
        files.write_text(build.parent / "report" / "index.html", redirect)
    return path, "\n".join([summary(told, study.label), *(f"  {line}" for line in damaged), f"page: {path}"])


def _template(name: str = "report.html.j2") -> Any:
    environment = Environment(
        loader=PackageLoader("gptfluence.workflow", "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def label_of(name: str) -> str:
    """What an output is in the paper: "Table 2" of tab02_fine_tuning_loss; "" beyond the paper."""
    if name in TOGETHER:
        return TOGETHER[name]
    found = re.match(r"(tab|fig)(\d\d)_", name)
    return f"{'Table' if found[1] == 'tab' else 'Figure'} {int(found[2])}" if found else ""


def title_of(name: str) -> str:
    """A heading for an output, by its number, and for the galleries by what they show."""
    found = re.match(r"fig(\d\d)(_|$)", name)
    if found and 10 <= int(found[1]) <= 30:
        number = int(found[1])
        if number <= 18:
            setting, metric, size = catalogue.gallery(number)
            parts = [names.metric(metric), setting.replace("fine_", "fine-").replace("_", " "), size.upper()]
            return "Trajectories: " + ", ".join(filter(None, parts))
        task, metric, unseen = catalogue.unseen_gallery(number)
        what = "training and test" if unseen == "both" else unseen
        return f"Trajectories: {names.task(task)}, {names.metric(metric)}, unseen {what} examples"
    if name == "tab05_hyperparameters":
        return "Hyperparameters"
    return TITLES.get(name[:5]) or TITLES.get(name) or name.replace("_", " ")


def table_html(markdown: str, name: str) -> Markup:
    """A Markdown table as an HTML table that scrolls by itself, with its notes; HTML in cells is shown, not obeyed."""
    text = MarkdownIt("js-default").render(markdown)
    region = f'<div class="scroll" role="region" tabindex="0" aria-label="{name}">'
    text = text.replace("<table>", f"{region}<table>").replace("</table>", "</table></div>")
    return Markup(text.replace("<th", '<th scope="col"').replace('<th scope="col"ead>', "<thead>"))


def _items(
    figures: Path, build: Path, place: Path, planned: Mapping[str, catalogue.Output], by_name: Mapping[str, Outcome]
) -> tuple[list[Item], list[str]]:
    """Everything in the folder of figures, in the paper's order, and what could not be read."""
    items, damaged = [], []
    for path in sorted(figures.glob("*.json"), key=_place):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            items.append(_item(path, facts, build, place, planned, by_name))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, GPTfluenceError) as problem:
            damaged.append(f"{path.stem} cannot be shown: {path} is damaged ({problem!r}); run its notebook again")
    return items, damaged


def _item(
    path: Path,
    facts: Mapping[str, Any],
    build: Path,
    place: Path,
    planned: Mapping[str, catalogue.Output],
    by_name: Mapping[str, Outcome],
) -> Item:
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
    run = _run_of(name, str(facts["command"]), planned)
    outcome = by_name.get(run)
    if outcome is not None and outcome.state in ("failed", "blocked"):
        notes.append(f"What is shown is from an earlier run. The last one: {outcome}.")
    executed = build / "notebooks" / f"{run}.ipynb"
    if run and executed.is_file():
        files.write_bytes(place / "files" / executed.name, executed.read_bytes())
        links.append(("executed notebook", f"files/{executed.name}"))
    title, markdown, picture = title_of(name), folder / f"{name}.md", folder / f"{name}.png"
    is_table = markdown.is_file()
    return Item(
        name=name,
        label=label_of(name),
        title=title,
        caption=str(facts["caption"]),
        reading=str(facts.get("reading", "")),
        picture=_data_uri(picture) if picture.is_file() and not is_table else "",
        table=table_html(markdown.read_text(encoding="utf-8"), f"{title}, table") if is_table else Markup(""),
        links=links,
        made=_made(facts),
        citation=cite(name, folder),
        notes=notes,
    )


def _run_of(name: str, command: str, planned: Mapping[str, catalogue.Output]) -> str:
    """The planned run that made an output: the one of its name, or the only one of its notebook; "" if unclear."""
    if name in planned:
        return name
    found = re.search(r"notebooks/([\w.-]+)\.ipynb", command)
    runs = [run for run, output in planned.items() if found and output.notebook == found[1]]
    return runs[0] if len(runs) == 1 else ""


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
    """The paper's items without an output, each with the reason."""
    there = {label for item in items for label in _single(item.label)}
    by_label = {label: outcome for outcome in found for label in _single(label_of(outcome.output))}
    missing = []
    for kind, last in (("Table", 13), ("Figure", 30)):
        for number in range(1, last + 1):
            label = f"{kind} {number}"
            if label in there:
                continue
            outcome = by_label.get(label)
            if outcome is None:
                reason = "not part of this study"
            elif outcome.state == "made":
                reason = f"made by notebook {outcome.notebook}, but its files are gone"
            else:
                reason = str(outcome)
            missing.append(Missing(label, title_of(f"{kind[:3].lower()}{number:02d}"), reason))
    return missing


def _single(label: str) -> list[str]:
    """The items that a label stands for: "Tables 5–9" is five."""
    together = re.fullmatch(r"(Table|Figure)s (\d+)–(\d+)", label)
    if not together:
        return [label] if label else []
    return [f"{together[1]} {number}" for number in range(int(together[2]), int(together[3]) + 1)]


def _group(name: str) -> str:
    return name[:3] if label_of(name) else ""


def _place(path: Path) -> tuple[int, str]:
    return list(GROUPS).index(_group(path.stem)), path.stem


def _data_uri(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Files of items that are gone must not stay behind in a folder that is sent to others."""
    for path in folder.glob("*"):
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
