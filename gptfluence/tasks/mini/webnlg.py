"""Triples and the sentence that says them: every relation has its own phrases, which must be learned from its pairs."""

from __future__ import annotations

from gptfluence.tasks.mini.words import DAYS, JOBS, PEOPLE, TOWNS, Dice

FIRMS = ("Alba", "Borea", "Corvo", "Delta", "Elmo", "Fjord")
DISHES = ("soup", "bread", "curry", "cake", "rice", "stew")
RIVERS = ("Rhine", "Douro", "Lagan", "Mur")
YEARS = tuple(str(year) for year in range(1950, 2020, 10))
# relation: (objects, phrase as a sentence's only or last part, the other way to say it)
PERSON = {
    "birthPlace": (TOWNS, "was born in {}", "comes from {}"),
    "birthYear": (YEARS, "was born in the year {}", "came to the world in {}"),
    "occupation": (JOBS, "works as a {}", "earns a living as a {}"),
    "employer": (FIRMS, "is employed by {}", "has a post at {}"),
    "spouse": (PEOPLE, "is married to {}", "is the partner of {}"),
    "favouriteDish": (DISHES, "likes {} best", "eats {} with joy"),
    "residence": (TOWNS, "now lives in {}", "has a home in {}"),
}
TOWN = {
    "mayor": (PEOPLE, "is led by {}", "has {} as its mayor"),
    "river": (RIVERS, "lies on the {}", "is crossed by the {}"),
    "marketDay": (DAYS, "holds a market on {}", "sells its goods on {}"),
    "localDish": (DISHES, "is known for its {}", "is proud of its {}"),
    "twinTown": (TOWNS, "is twinned with {}", "has a friend in {}"),
}


def row(dice: Dice, label: None) -> dict:
    """One or two triples about one subject, a sentence and its variants; fields as in GEM's WebNLG."""
    subjects, relations = (PEOPLE, PERSON) if dice.chance(0.65) else (TOWNS, TOWN)
    subject = dice.pick(subjects)
    chosen = dice.some(tuple(relations), 1 if dice.chance(0.3) else 2)
    facts = [(name, dice.pick([o for o in relations[name][0] if o != subject])) for name in chosen]
    usual = " and ".join(relations[name][1].format(value) for name, value in facts)
    other = " and ".join(relations[name][2].format(value) for name, value in facts)
    sentence = f"{subject} {usual}."
    return {
        "input": [f"{subject} | {name} | {value}" for name, value in facts],
        "target": sentence,
        "references": [sentence, f"{subject} {other}."],
    }
