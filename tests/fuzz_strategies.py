"""Inputs that other people's programs write, for `test_fuzz.py` and `tools/fuzz`: one strategy for each kind of input.

Each mixes what is right with what is nearly right, so that results are reached as well as errors.
"""

from __future__ import annotations

import json

import numpy as np
from hypothesis import strategies as st

LABELS = [
    0,
    1,
    0.0,
    1.0,
    True,
    False,
    "0",
    "1",
    "1.0",
    "pos",
    "neg",
    "Pos",
    "pos ",
    "p\u043es",
    "true",
    "True",
    "nan",
    "",
]
ODD_TEXTS = [
    "cut \ud83d",
    "\ude00",
    "\udc80",
    "\U0001f600",
    "\x00",
    "\u2028",
    "{text}",
    "nan",
    " ",
    "\u200b",
    "\ufeff",
    "е\u0301",
]

texts = st.one_of(
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.text(st.sampled_from("ab {}[]:;'\"\\\n#&*!|>%@`,?-=~$0.é中ह"), max_size=10),
    st.sampled_from(ODD_TEXTS),
    st.text(st.characters(), max_size=4),  # with halves of surrogate pairs
)
numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([10**20, 2**53, -(2**63), 10**400]),
    st.floats(),
    st.sampled_from([0.0, -0.0, 1.0, 2.5, 1e-7, 1e16, 1e300]),
)
plain = st.one_of(texts, numbers, st.booleans(), st.none())
values = st.one_of(
    plain,
    st.lists(plain, max_size=3),
    st.lists(st.lists(plain, max_size=2), max_size=2),
    st.dictionaries(texts, plain, max_size=2),
)
usual = st.text(st.sampled_from("abcde xyz"), min_size=1, max_size=6)


@st.composite
def rows(draw, *, most: int = 6) -> list[dict]:
    """Rows with the fields text and label, and perhaps others: half of the time usual ones, or with one value that is not."""
    classes = draw(st.lists(st.sampled_from(LABELS), min_size=2, max_size=3))
    fields = {"text": usual, "label": st.sampled_from(classes)}
    odd = draw(st.booleans())
    if odd:
        fields["text"] = draw(st.sampled_from([usual, texts, values]))
        fields["label"] = draw(st.sampled_from([fields["label"], fields["label"], values]))
    if draw(st.booleans()):
        fields["id"] = values if odd and draw(st.booleans()) else st.uuids().map(str)
    if odd and draw(st.booleans()):
        fields["more"] = values
    made = draw(st.lists(st.fixed_dictionaries(fields), min_size=1, max_size=most))
    if draw(st.integers(0, 7)) == 0:
        made[draw(st.integers(0, len(made) - 1))][draw(st.sampled_from(["text", "label"]))] = draw(values)
    if draw(st.integers(0, 9)) == 0:
        made[-1].pop(draw(st.sampled_from(["text", "label"])))
    return made


COLUMNS = {  # a column of a table holds values of one type, or null
    "text": [usual, usual, texts, st.lists(usual, max_size=2), st.integers(-3, 3), st.fixed_dictionaries({"a": usual})],
    "label": [
        st.integers(0, 1),
        st.sampled_from([0.0, 1.0]),
        st.booleans(),
        st.sampled_from(["0", "1"]),
        st.sampled_from(["pos", "neg"]),
        st.sampled_from([label for label in LABELS if isinstance(label, str)]),
        st.sampled_from([0.0, 1.0, float("nan"), 0.5, float("inf")]),
        st.lists(st.sampled_from(["pos", "neg"]), max_size=2),
    ],
}


@st.composite
def tables(draw, *, most: int = 6) -> list[dict]:
    """Rows as a data set holds them: each field has one type, which may be another in the next table."""
    fields = {name: draw(st.sampled_from(kinds)) for name, kinds in COLUMNS.items()}
    if draw(st.integers(0, 4)) == 0:
        gaps = draw(st.sampled_from(sorted(fields)))
        fields[gaps] = st.one_of(fields[gaps], st.none())
    if draw(st.booleans()):
        fields["id"] = draw(st.sampled_from([st.integers(0, 99), st.floats(0, 99), usual]))
    return draw(st.lists(st.fixed_dictionaries(fields), min_size=1, max_size=most))


@st.composite
def json_lines(draw) -> bytes:
    """A file of rows, as Python writes it, sometimes with a line that is none."""
    ascii_only = draw(st.booleans())
    lines = []
    for row in draw(rows()):
        line = json.dumps(row, ensure_ascii=ascii_only)
        lines.append(line.encode("utf-8", "surrogatepass" if draw(st.booleans()) else "replace"))
    if draw(st.integers(0, 7)) == 0:
        odd = st.one_of(
            st.binary(max_size=12), st.sampled_from([b"[]", b"null", b"{", b'{"a": 1, "a": 2}', b"\xef\xbb\xbf{}"])
        )
        lines.insert(draw(st.integers(0, len(lines))), draw(odd))
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    return draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"])) + end.join(lines)


RIGHT = [
    {"prompt": "{text}", "target": " {label}", "label": "label"},
    {"prompt": "Review: {text}", "target": " {label}"},
    {"prompt": "{text}", "target": " {label}", "label": "label", "labels": {0: "neg", 1.0: "pos"}},
    {"prompt": "", "target": "{text} {label}", "references": "text"},
]


@st.composite
def layouts(draw) -> dict:
    """Arguments of `RowMapping`: right ones, and half of the time some that are changed."""
    layout = dict(draw(st.sampled_from(RIGHT)))
    if draw(st.booleans()):
        return layout
    changes = {
        "prompt": st.sampled_from(["{text}:", "", "{more}", "{text[0]}", "{{{text}}}", "{", "{a.b}", "\ud83d"]),
        "target": st.sampled_from(["{text}", " {label[0]}", ""]),
        "label": st.sampled_from([None, "text", "label[0]"]),
        "labels": st.one_of(
            st.dictionaries(st.sampled_from([value for value in LABELS if value == value]), texts, max_size=4),
            st.lists(plain, max_size=3),
            values,
        ),
        "id": st.sampled_from([None, "more", "text"]),
        "references": st.sampled_from([None, "text", "more", "label"]),
    }
    for name in draw(st.lists(st.sampled_from(sorted(changes)), min_size=1, max_size=2)):
        layout[name] = draw(changes[name])
    return layout


# --- profiles --------------------------------------------------------------------------------------------------------


def fields_of(profile: dict, above: str = "") -> dict[str, object]:
    """The dotted names of all fields of a profile with their values, those that hold fields included."""
    found = {}
    for name, value in profile.items():
        found[f"{above}{name}"] = value
        if isinstance(value, dict):
            found |= fields_of(value, f"{above}{name}.")
    return found


def changes_of(known: dict[str, object], others: st.SearchStrategy) -> st.SearchStrategy[tuple[str, object]]:
    """A field and a value for it: half of the time one that it may have, or a number near it."""

    def near(field: str) -> st.SearchStrategy:
        value = known[field]
        right = [st.just(value)] * 2 if len(str(value)) < 80 else [st.just(field)]  # a large one takes long to read
        right += [st.integers(0, 9)] if type(value) is int else []
        right += [st.floats(0, 1)] if type(value) is float else []
        right += [texts] if field == "title" else []
        return st.tuples(st.just(field), st.one_of(*right))

    right = st.sampled_from(sorted(known)).flatmap(near)
    return st.one_of(right, right, st.tuples(field_names(sorted(known)), others))


def field_names(known: list[str]) -> st.SearchStrategy[str]:
    """Dotted names: those that a profile has, others below them, and anything."""
    below = st.builds(
        "{}.{}".format, st.sampled_from(known), st.sampled_from(["x", "labels", "0", "", "runs.train", "kind"])
    )
    anything = st.text(st.characters(exclude_characters="="), max_size=8)
    return st.one_of(st.sampled_from(known), st.sampled_from(known), below, anything)


profile_values = st.one_of(
    values,
    st.recursive(
        plain,
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
        max_leaves=6,
    ),
    st.tuples(plain, plain),
    st.builds(np.int64, st.integers(-3, 99)),
    st.builds(np.float32, st.floats(width=32)),
    st.sets(usual, max_size=2),
    st.binary(max_size=4),
)
yaml_texts = st.one_of(
    texts,
    st.text(st.sampled_from("0123456789:_.eExob+-"), max_size=8),
    st.sampled_from(
        ["!!int x", "!!timestamp x", "!!python/object:os.system {}", "&a [*a]", "<<: 1", "{a: 1, a: 2}", "[1, 2", "? a"]
    ),
    st.builds(json.dumps, st.one_of(texts, st.integers(), st.lists(usual, max_size=2))),
)
