"""Texts of users are drawn as they are: signs of money are no formulas, and glyphs that the font lacks are said."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from matplotlib.text import Text

from gptfluence.drawing.saving import _render
from gptfluence.drawing.style import empty_figure, style, text_width, wrapped
from gptfluence.drawing.typeset import Table
from gptfluence.workflow.citation import cite

MONEY = ["from $5 to $9", "$$", "$", r"\$5 and \$9", r"$\frac$", "$x_1^2$"]


def picture(title: str):
    with style():
        figure = empty_figure(3, 2)
        axis = figure.subplots()
        axis.set(title=title, xlabel=title, yscale="log")
        axis.plot([1, 2, 3], [1e-3, 1, 1e3], label=title)
        axis.set_xticks([1, 3], [title, "b"])
        axis.legend()
    return figure


def drawn(figure, monkeypatch) -> list[str]:
    """The texts that reach the page as they are, without formulas."""
    found = []
    measured = Text._preprocess_math

    def note(self, text):
        shown, formula = measured(self, text)
        found.append(("" if not formula else "formula: ") + str(shown))
        return shown, formula

    monkeypatch.setattr(Text, "_preprocess_math", note)
    _render(figure, "png")
    return found


@pytest.mark.parametrize("title", MONEY)
def test_a_dollar_is_a_sign_wherever_it_is_drawn(title, monkeypatch):
    found = drawn(picture(title), monkeypatch)
    assert title in found
    assert {text for text in found if text.startswith("formula")} == {
        text for text in found if text.startswith(r"formula: $\mathdefault{10^")
    }
    assert any(r"10^{" in text for text in found)  # the numbers of the log axis are set as before


@pytest.mark.parametrize("text", MONEY)
def test_widths_are_those_of_what_is_drawn(text):
    assert text_width(text, 7) > 0
    assert wrapped(f"{text} {text}", 0.5, 7).replace("\n", " ") == f"{text} {text}"
    assert text_width("cost $5", 7) == pytest.approx(text_width("cost ", 7) + text_width("$5", 7), abs=0.05)


def test_signs_in_tables_are_no_formulas_in_jupyter_either():
    table = Table([("what", ""), ("cost", "")], [["from $5 to $9", "1"]], numbers=None)
    assert table._repr_html_().startswith('<div class="mathjax_ignore tex2jax_ignore">')
    assert "from $5 to $9" in table._repr_html_()
    assert r"from \$5 to \$9" in table.to_tex()
    assert r"from \$5 to \$9" in table.to_markdown()


def test_a_citation_holds_titles_of_any_signs(tmp_path):
    facts = {"caption": "Costs {x of $5 \\ 10% & ~1^2_0.", "command": "c", "profile": "mini", "versions": {}}
    (tmp_path / "fig16_fine_tuning_loss.json").write_text(json.dumps(facts), encoding="utf-8")
    [title] = [line for line in cite("fig16", tmp_path).splitlines() if line.startswith("  title        = {")]
    assert title.count("{") == title.count("}")
    assert r"Costs \textbraceleft{}x of \$5 \textbackslash{} 10\% \& \textasciitilde{}1\textasciicircum{}2\_0" in title


def test_glyphs_that_the_font_lacks_are_said_in_one_sentence():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        text_width("评论", 7)
        _render(picture("评论 and 评"), "pdf")
    assert {str(one.message) for one in said} == {
        "DejaVu Sans, the font of figures, lacks 论 评: boxes are drawn in their place"
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _render(picture("größer, привет, R², – ×"), "png")
    assert np.isfinite(text_width("привет", 7))
