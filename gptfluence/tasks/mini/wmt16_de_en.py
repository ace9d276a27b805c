"""German sentences and their English: a small grammar with genders, two cases and the verb in second place."""

from __future__ import annotations

from gptfluence.tasks.mini.words import TOWNS, Dice

# (German, gender, English)
SUBJECTS = (("Mann", "m", "man"), ("Frau", "f", "woman"), ("Kind", "n", "child"), ("Arzt", "m", "doctor"),
            ("Lehrerin", "f", "teacher"), ("Bauer", "m", "farmer"), ("Hund", "m", "dog"),
            ("Katze", "f", "cat"))  # fmt: skip
OBJECTS = (("Apfel", "m", "apple"), ("Brief", "m", "letter"), ("Stuhl", "m", "chair"), ("Lampe", "f", "lamp"),
           ("Blume", "f", "flower"), ("Tasche", "f", "bag"), ("Buch", "n", "book"), ("Haus", "n", "house"),
           ("Bild", "n", "picture"), ("Boot", "n", "boat"))  # fmt: skip
VERBS = (("kauft", "buys"), ("sieht", "sees"), ("findet", "finds"), ("sucht", "looks for"), ("malt", "paints"),
         ("verkauft", "sells"), ("bringt", "brings"), ("holt", "fetches"))  # fmt: skip
ADJECTIVES = (("alt", "old"), ("neu", "new"), ("klein", "small"), ("rot", "red"), ("grün", "green"),
              ("schön", "beautiful"), ("schwer", "heavy"), ("jung", "young"))  # fmt: skip
TIMES = (("heute", "today"), ("morgen", "tomorrow"), ("oft", "often"), ("am Abend", "in the evening"),
         ("jeden Tag", "every day"), ("im Winter", "in winter"))  # fmt: skip
THE = {"m": "der", "f": "die", "n": "das"}
A_ACCUSATIVE = {"m": ("einen", "en"), "f": ("eine", "e"), "n": ("ein", "es")}


def row(dice: Dice, label: None) -> dict:
    """A sentence pair; fields as in WMT16."""
    (man, gender, english_man), (thing, other_gender, english_thing) = dice.pick(SUBJECTS), dice.pick(OBJECTS)
    verb, english_verb = dice.pick(VERBS)
    subject, english_subject = f"{THE[gender]} {man}", f"the {english_man}"
    if dice.chance(0.3):
        adjective, english = dice.pick(ADJECTIVES)
        subject, english_subject = f"{THE[gender]} {adjective}e {man}", f"the {english} {english_man}"
    article, ending = A_ACCUSATIVE[other_gender]
    what, english_what = f"{article} {thing}", english_thing
    if dice.chance(0.5):
        adjective, english = dice.pick(ADJECTIVES)
        what, english_what = f"{article} {adjective}{ending} {thing}", f"{english} {english_thing}"
    english_what = f"{'an' if english_what[0] in 'aeiou' else 'a'} {english_what}"
    place = dice.pick(TOWNS) if dice.chance(0.25) else None
    where, english_where = (f" in {place}", f" in {place}") if place else ("", "")
    if dice.chance(0.5):
        time, english_time = dice.pick(TIMES)
        german = f"{time} {verb} {subject} {what}{where}."
        translation = f"{english_time} {english_subject} {english_verb} {english_what}{english_where}."
    else:
        german = f"{subject} {verb} {what}{where}."
        translation = f"{english_subject} {english_verb} {english_what}{english_where}."
    return {"translation": {"de": german[0].upper() + german[1:], "en": translation[0].upper() + translation[1:]}}
