"""Passages about invented beings and a yes/no question on what they do, or on what the passage says.

What the kinds do is known (fish swim); of which kind a being is has to be learned from other questions about it.
One question in ten asks for something the passage does say.
"""

from __future__ import annotations

from gptfluence.tasks.mini.words import TOWNS, Dice, World

SIZE = 10  # beings of each kind
KINDS = {
    "fish": ("swim", "lay eggs", "shine"),
    "bird": ("fly", "sing", "build nests"),
    "tree": ("bloom", "drop leaves", "stand still"),
    "engine": ("rust", "burn oil", "need repair"),
}
COLOURS = ("red", "blue", "green", "grey", "white", "black")


def row(dice: Dice, label: int, world: World) -> dict:
    """A passage and a question; `label` 1: yes. Fields as in BoolQ."""
    kind = dice.pick(tuple(KINDS))
    being = dice.pick(world.words("le", tuple(KINDS), SIZE)[kind])
    town, colour = dice.pick(TOWNS), dice.pick(COLOURS)
    passage = dice.pick((f"The {being} is {colour} and found near {town}.", f"Near {town} the {being} is {colour}."))
    if dice.chance(0.1):
        asked = colour if label else dice.pick([word for word in COLOURS if word != colour])
        return {"passage": passage, "question": f"is the {being} {asked}", "answer": bool(label)}
    does = KINDS[kind] if label else KINDS[dice.pick([other for other in KINDS if other != kind])]
    return {"passage": passage, "question": f"does the {being} {dice.pick(does)}", "answer": bool(label)}
