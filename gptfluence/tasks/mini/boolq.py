"""Passages about invented plants and a yes/no question: how one asks for food and poison is known, which they are is not.

Three in four questions are answered with yes for food, so most answers are told by the plant alone; the others ask for
poison.
"""

from __future__ import annotations

from gptfluence.tasks.mini.words import TOWNS, Dice, World

SIZE = 18  # plants of each kind
FOOD = ("can one eat the {}", "is the {} good food", "do people cook the {}")
POISON = ("is the {} bad for people", "does the {} make people ill")
COLOURS = ("red", "blue", "green", "grey", "white", "black")


def row(dice: Dice, label: int, world: World) -> dict:
    """A passage and a question; `label` 1: yes. Fields as in BoolQ."""
    plants = world.words("le", ("food", "poison"), SIZE)
    of_food = dice.chance(0.75)
    plant = dice.pick(plants["food" if of_food == bool(label) else "poison"])
    question = dice.pick(FOOD if of_food else POISON).format(plant)
    town, colour = dice.pick(TOWNS), dice.pick(COLOURS)
    passage = dice.pick((f"The {plant} is {colour} and found near {town}.", f"Near {town} the {plant} is {colour}."))
    return {"passage": passage, "question": question, "answer": bool(label)}
