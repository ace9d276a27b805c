"""How rows of the paper's six data sets become prompt and target; generated rows use the same fields and layouts."""

from __future__ import annotations

from gptfluence.tasks.rows import RowMapping

LAYOUTS = {
    "rte": RowMapping(
        prompt="{premise}\nClaim: {hypothesis}\nTrue or false?",
        target=" {label}",
        id="idx",
        label="label",
        labels={0: "true", 1: "false"},  # GLUE: 0 entailment, 1 not entailment
    ),
    "sst2": RowMapping(
        prompt="Review: {sentence}\nSentiment:",
        target=" {label}",
        id="idx",
        label="label",
        labels={0: "negative", 1: "positive"},
    ),
    "boolq": RowMapping(
        prompt="{passage}\nQuestion: {question}?\nAnswer:",
        target=" {answer}",
        id=None,
        label="answer",
        labels={0: "no", 1: "yes"},
    ),
    "webnlg": RowMapping(prompt="Facts: {input}\nText:", target=" {target}", id="gem_id", references="references"),
    "wmt16_de_en": RowMapping(prompt="German: {translation[de]}\nEnglish:", target=" {translation[en]}", id=None),
    "cnn_dm": RowMapping(prompt="Article: {article}\nSummary:", target=" {highlights}", id="id"),
}
