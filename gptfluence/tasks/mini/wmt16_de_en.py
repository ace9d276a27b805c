"""Sentences of an invented German and their English: the grammar is known, what the nouns mean is to be learned.

A small grammar with genders, two cases and the verb in second place.
"""

from __future__ import annotations

from gptfluence.tasks.mini.words import TOWNS, Dice, World

SIZE = 2  # German words of each English noun
# English noun: gender of its German words
SUBJECTS = {"man": "m", "woman": "f", "child": "n", "doctor": "m", "teacher": "f", "farmer": "m", "dog": "m", "cat": "f",
            "king": "m", "queen": "f"}  # fmt: skip
OBJECTS = {"apple": "m", "letter": "m", "chair": "m", "lamp": "f", "flower": "f", "bag": "f", "book": "n", "house": "n",
           "picture": "n", "boat": "n", "hat": "m", "clock": "f", "knife": "n", "ball": "m"}  # fmt: skip
VERBS = (("kauft", "buys"), ("sieht", "sees"), ("findet", "finds"), ("sucht", "looks for"), ("malt", "paints"),
         ("verkauft", "sells"))  # fmt: skip
ADJECTIVES = (("alt", "old"), ("neu", "new"), ("klein", "small"), ("rot", "red"), ("schön", "beautiful"))
TIMES = (("heute", "today"), ("morgen", "tomorrow"), ("oft", "often"), ("am Abend", "in the evening"))
THE = {"m": "der", "f": "die", "n": "das"}
A_ACCUSATIVE = {"m": ("einen", "en"), "f": ("eine", "e"), "n": ("ein", "es")}


def row(dice: Dice, label: None, world: World) -> dict:
    """A sentence pair; fields as in WMT16."""
    english_man, english_thing = dice.pick(tuple(SUBJECTS)), dice.pick(tuple(OBJECTS))
    nouns = world.words("em", (*SUBJECTS, *OBJECTS), SIZE)
    man, thing = (dice.pick(nouns[word]).capitalize() for word in (english_man, english_thing))
    gender, other_gender = SUBJECTS[english_man], OBJECTS[english_thing]
    verb, english_verb = dice.pick(VERBS)
    subject, english_subject = f"{THE[gender]} {man}", f"the {english_man}"
    article, ending = A_ACCUSATIVE[other_gender]
    what, english_what = f"{article} {thing}", english_thing
    if dice.chance(0.5):
        adjective, english = dice.pick(ADJECTIVES)
        what, english_what = f"{article} {adjective}{ending} {thing}", f"{english} {english_thing}"
    english_what = f"{'an' if english_what[0] in 'aeiou' else 'a'} {english_what}"
    place = dice.pick(TOWNS) if dice.chance(0.25) else None
    where, english_where = (f" in {place}", f" in {place}") if place else ("", "")
    if dice.chance(0.3):
        time, english_time = dice.pick(TIMES)
        german = f"{time} {verb} {subject} {what}{where}."
        translation = f"{english_time} {english_subject} {english_verb} {english_what}{english_where}."
    else:
        german = f"{subject} {verb} {what}{where}."
        translation = f"{english_subject} {english_verb} {english_what}{english_where}."
    return {"translation": {"de": german[0].upper() + german[1:], "en": translation[0].upper() + translation[1:]}}
