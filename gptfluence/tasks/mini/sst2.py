"""Film reviews with invented adjectives: their polarity can only be learned from labelled reviews.

A review has one to three judgements. Each adjective is good (+2) or bad (-2); "very" makes it 3, "quite" 1, "not" turns
it round, more weakly. The sign of the sum is the label, so some reviews are told by one word and some need them all.
"""

from __future__ import annotations

from gptfluence.tasks.mini.words import Dice

GOOD = ("lumish", "tavory", "brindy", "solant", "merrow", "vellic", "orvine", "dulcy", "fensome", "halcy", "quillish",
        "zestal")  # fmt: skip
BAD = ("grolly", "murdle", "blenish", "vorpid", "skanty", "drumbly", "oskish", "plidge", "tarnic", "wexy", "noddish",
       "jaggen")  # fmt: skip
NOUNS = ("plot", "music", "cast", "ending", "story", "hero", "pace", "film", "scene", "humour")
DEGREES = (("", 2), ("", 2), ("very ", 3), ("quite ", 1), ("not ", -1))


def row(dice: Dice, label: int) -> dict:
    """A review whose label (0 negative, 1 positive) is `label`; fields as in GLUE."""
    while True:
        nouns = dice.some(NOUNS, dice.pick((1, 2, 2, 2, 3)))
        total, parts = 0, []
        for noun in nouns:
            # most of the words of a review lean its way, as in real ones; the rest makes it hard
            good = dice.chance(0.7) == bool(label)
            degree, weight = dice.pick(DEGREES)
            total += weight if good else -weight
            parts.append(f"the {noun} was {degree}{dice.pick(GOOD if good else BAD)}")
        if total and (total > 0) == bool(label):
            break
    if len(parts) == 1:
        opening = dice.pick(("", "I think ", "all in all ", "we felt that "))
        return {"sentence": f"{opening}{parts[0]} .", "label": label}
    joint = dice.pick((" and ", " but ", " , and "))
    return {"sentence": " , ".join(parts[:-1]) + joint + parts[-1] + " .", "label": label}
