"""Short news and claims with invented verbs: what getting and losing imply is known, which of them a verb means is not.

Three in four claims follow from getting, so most labels are told by the verb alone; the others follow from losing.
"""

from __future__ import annotations

from gptfluence.tasks.mini.words import DAYS, PEOPLE, Dice, World

SIZE = 12  # verbs of either meaning
THINGS = ("house", "boat", "horse", "farm", "shop", "piano", "car", "garden")
GET = ("now owns", "was given", "has got")
LOSE = ("gave up", "no longer has")
EXTRAS = ("last year", "in spring", "with some luck", "once more")


def row(dice: Dice, label: int, world: World) -> dict:
    """A premise and a claim; `label` 0: it follows, 1: it does not. Fields as in GLUE."""
    of_getting = dice.chance(0.75)
    verb = dice.pick(world.words("ed", ("get", "lose"), SIZE)["lose" if of_getting == bool(label) else "get"])
    claim = dice.pick(GET if of_getting else LOSE)
    who, thing = dice.pick(PEOPLE), dice.pick(THINGS)
    when = f"on {dice.pick(DAYS)}" if dice.chance(0.5) else dice.pick(EXTRAS)
    return {"premise": f"{who} {verb} the {thing} {when}.", "hypothesis": f"{who} {claim} the {thing}.", "label": label}
