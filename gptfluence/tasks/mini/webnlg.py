"""Triples and the sentence that says them: the phrases are known, which relation takes which phrase is to be learned.

What a relation's objects are (towns, jobs, people, dishes) leaves four phrases to choose from.
"""

from __future__ import annotations

from gptfluence.tasks.mini.words import JOBS, PEOPLE, TOWNS, Dice, World

SIZE = 2  # relations of each phrase
DISHES = ("soup", "bread", "curry", "cake", "rice", "stew")
OBJECTS = {"town": TOWNS, "job": JOBS, "person": PEOPLE, "dish": DISHES}
# phrase, as a relation's meaning: (kind of object, what is said, another way to say it)
PHRASES = {
    "birth": ("town", "was born in {}", "comes from {}"),
    "home": ("town", "now lives in {}", "has a home in {}"),
    "office": ("town", "travels daily to {}", "earns money in {}"),
    "dream": ("town", "dreams often of {}", "would love to see {}"),
    "work": ("job", "works as a {}", "earns a living as a {}"),
    "past": ("job", "once was a {}", "used to be a {}"),
    "wish": ("job", "hopes to become a {}", "wants to be a {}"),
    "parent": ("job", "is the child of a {}", "has a parent who is a {}"),
    "spouse": ("person", "is married to {}", "is the partner of {}"),
    "boss": ("person", "gives orders to {}", "is the boss of {}"),
    "pupil": ("person", "learns from {}", "is taught by {}"),
    "rival": ("person", "plays chess against {}", "is a rival of {}"),
    "taste": ("dish", "likes {} best", "eats {} with joy"),
    "cook": ("dish", "cooks {} well", "makes good {}"),
    "shop": ("dish", "sells {} at noon", "has a stall with {}"),
    "dislike": ("dish", "never eats {}", "will not touch {}"),
}


def row(dice: Dice, label: None, world: World) -> dict:
    """One or two triples about one subject, a sentence and its variants; fields as in GEM's WebNLG."""
    subject = dice.pick(PEOPLE)
    facts = []
    for phrase in dice.some(tuple(PHRASES), 1 if dice.chance(0.4) else 2):
        kind, said, other = PHRASES[phrase]
        value = dice.pick([one for one in OBJECTS[kind] if one != subject])
        relation = dice.pick(world.words("of", tuple(PHRASES), SIZE)[phrase])
        facts.append((relation, value, said.format(value), other.format(value)))
    sentence, variant = (f"{subject} {' and '.join(fact[way] for fact in facts)}." for way in (2, 3))
    return {
        "input": [f"{subject} | {relation} | {value}" for relation, value, _, _ in facts],
        "target": sentence,
        "references": [sentence, variant],
    }
