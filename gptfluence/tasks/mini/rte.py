"""Short news and claims with invented verbs: what kinds of deed imply is known, which kind a verb is is to be learned.

Every kind of deed has claims that follow from it; what follows from one kind does not follow from the other kind with the
same object. Some false claims only swap a name, which needs no verb.
"""

from __future__ import annotations

from gptfluence.tasks.mini.words import DAYS, PEOPLE, TOWNS, Dice, World

SIZE = 6  # verbs of each kind
THINGS = ("house", "boat", "horse", "farm", "shop", "piano", "car", "garden")
# kind of deed: (object, claims that follow)
DEEDS = {
    "get": ("thing", ("now owns", "was given", "did get")),
    "lose": ("thing", ("gave up", "no longer has", "did lose")),
    "arrive": ("town", ("lives in", "came to", "is now in")),
    "leave": ("town", ("went from", "was once in", "fled")),
    "like": ("person", ("is a friend of", "is fond of", "would help")),
    "hate": ("person", ("is a foe of", "is tired of", "would harm")),
}
OTHER = {"get": "lose", "lose": "get", "arrive": "leave", "leave": "arrive", "like": "hate", "hate": "like"}
EXTRAS = ("last year", "in spring", "with some luck", "once more")


def row(dice: Dice, label: int, world: World) -> dict:
    """A premise and a claim; `label` 0: it follows, 1: it does not. Fields as in GLUE."""
    deed = dice.pick(tuple(DEEDS))
    verb = dice.pick(world.words("ed", tuple(DEEDS), SIZE)[deed])
    kind, follows = DEEDS[deed]
    who, whom, other = dice.some(PEOPLE, 3)
    what = {"thing": f"the {dice.pick(THINGS)}", "town": dice.pick(TOWNS), "person": whom}[kind]
    when = f"on {dice.pick(DAYS)}" if dice.chance(0.5) else dice.pick(EXTRAS)
    swapped = bool(label) and dice.chance(0.1)
    claim = dice.pick(DEEDS[OTHER[deed]][1] if label and not swapped else follows)
    return {
        "premise": f"{who} {verb} {what} {when}.",
        "hypothesis": f"{other if swapped else who} {claim} {what}.",
        "label": label,
    }
