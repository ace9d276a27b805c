"""Film reviews with invented adjectives: that adjectives are good or bad is known, which of them are is to be learned.

A review has one to three judgements. Each adjective is good (+2) or bad (-2); "very" makes it 3, "quite" 1, "not" turns
it round, more weakly. The sign of the sum is the label, so some reviews are told by one word and some need them all.
"""

from __future__ import annotations

from gptfluence.tasks.mini.words import Dice, World

SIZE = 24  # words of either polarity
NOUNS = ("plot", "music", "cast", "ending", "story", "hero", "pace", "film", "scene", "humour")
DEGREES = (("", 2), ("", 2), ("very ", 3), ("quite ", 1), ("not ", -1))


def row(dice: Dice, label: int, world: World) -> dict:
    """A review whose label (0 negative, 1 positive) is `label`; fields as in GLUE."""
    words = world.words("ish", ("good", "bad"), SIZE)
    while True:
        nouns = dice.some(NOUNS, dice.pick((1, 1, 2, 2, 3)))
        total, parts = 0, []
        for noun in nouns:
            # most of the words of a review lean its way, as in real ones; the rest makes it hard
            good = dice.chance(0.75) == bool(label)
            degree, weight = dice.pick(DEGREES)
            total += weight if good else -weight
            parts.append(f"the {noun} was {degree}{dice.pick(words['good' if good else 'bad'])}")
        if total and (total > 0) == bool(label):
            break
    if len(parts) == 1:
        opening = dice.pick(("", "I think ", "all in all ", "we felt that "))
        return {"sentence": f"{opening}{parts[0]} .", "label": label}
    joint = dice.pick((" and ", " but ", " , and "))
    return {"sentence": " , ".join(parts[:-1]) + joint + parts[-1] + " .", "label": label}
