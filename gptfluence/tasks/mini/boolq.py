"""Passages about invented beings and a yes/no question on what their kind can do, or on what the passage says.

The passage names the kind of a being ("the tavor is a fish"); what fish do is not written anywhere and must be learned
from other questions on fish. One question in five asks for something the passage does say.
"""

from __future__ import annotations

from gptfluence.tasks.mini.words import TOWNS, Dice

KINDS = {
    "fish": ("swim", "grow", "sleep"),
    "bird": ("fly", "grow", "sleep", "make noise"),
    "tree": ("grow", "bloom"),
    "engine": ("rust", "make noise", "burn oil"),
    "boat": ("rust", "float", "carry people"),
}
ABILITIES = tuple(dict.fromkeys(ability for abilities in KINDS.values() for ability in abilities))
# every being is of one kind, for good: what is learned about a being holds in other passages too
BEINGS = {
    "tavor": "fish", "mundle": "fish", "grint": "fish",
    "orlo": "bird", "wiffin": "bird", "sarrel": "bird",
    "dorrow": "tree", "aspel": "tree", "lumeck": "tree",
    "brackle": "engine", "rattol": "engine", "zunder": "engine",
    "skibb": "boat", "juntle": "boat", "carvane": "boat",
}  # fmt: skip
COLOURS = ("red", "blue", "green", "grey", "white", "black")
SIZES = ("small", "large", "heavy", "light", "common", "rare")


def row(dice: Dice, label: int) -> dict:
    """A passage and a question; `label` 1: yes. Fields as in BoolQ."""
    being = dice.pick(tuple(BEINGS))
    kind, town, colour, size = BEINGS[being], dice.pick(TOWNS), dice.pick(COLOURS), dice.pick(SIZES)
    first = dice.pick((f"The {being} is a {size} {kind}", f"A {being} is a {kind}", f"Each {being} is a {size} {kind}"))
    passage = f"{first}. " + dice.pick((f"It is {colour} and found near {town}.", f"Near {town} it is {colour}."))
    if dice.chance(0.2):
        said, unsaid = (
            (colour, COLOURS) if dice.chance(0.5) else (f"found near {town}", [f"found near {t}" for t in TOWNS])
        )
        question = f"is the {being} {said if label else dice.pick([word for word in unsaid if word != said])}"
    else:
        can = KINDS[kind]
        question = f"does the {being} {dice.pick(can if label else [able for able in ABILITIES if able not in can])}"
    return {"passage": passage, "question": question, "answer": bool(label)}
