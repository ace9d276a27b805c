"""Short news and claims: whether a claim follows depends on what the verbs mean, and on who did it.

Every verb of a premise has claims that follow from it and claims that do not; both kinds are shared by all examples.
Some false claims say "never" (told by one word), some need the pair of verbs, some only swap a name (hard).
"""

from __future__ import annotations

from gptfluence.tasks.mini.words import DAYS, PEOPLE, TOWNS, Dice

THINGS = ("house", "boat", "horse", "farm", "shop", "piano", "car", "garden")
# verb: (kind of its object, claims that follow, claims that do not)
VERBS = {
    "bought": ("thing", ("now owns", "paid for"), ("sold", "has lost", "never wanted")),
    "sold": ("thing", ("once had", "gave up"), ("now owns", "never had", "paid for")),
    "inherited": ("thing", ("now owns", "was given"), ("paid for", "never got", "gave up")),
    "rented": ("thing", ("uses", "paid for"), ("now owns", "never used", "sold")),
    "repaired": ("thing", ("worked on", "helped to save"), ("broke", "never saw", "has lost")),
    "moved to": ("town", ("lives in", "came to"), ("was born in", "left", "never saw")),
    "fled from": ("town", ("left", "was once in"), ("lives in", "came to", "never saw")),
    "grew up in": ("town", ("knows", "was once in"), ("never saw", "dislikes", "was mayor of")),
    "was elected in": ("town", ("won a vote in", "was mayor of"), ("lost a vote in", "never ran in", "left")),
    "married": ("person", ("is the spouse of", "knows"), ("never met", "is a child of", "hates")),
    "taught": ("person", ("knows", "gave lessons to"), ("never met", "was a pupil of", "is the spouse of")),
    "beat": ("person", ("won against", "played with"), ("lost to", "never met", "was a pupil of")),
}
EXTRAS = ("last year", "in spring", "for the second time", "with some luck", "to the surprise of all")


def row(dice: Dice, label: int) -> dict:
    """A premise and a claim; `label` 0: it follows, 1: it does not. Fields as in GLUE."""
    verb = dice.pick(tuple(VERBS))
    kind, true, false = VERBS[verb]
    who, whom, other = dice.some(PEOPLE, 3)
    what = {"thing": f"a {dice.pick(THINGS)}", "town": dice.pick(TOWNS), "person": whom}[kind]
    when = dice.pick((f"on {dice.pick(DAYS)}", dice.pick(EXTRAS), f"{dice.pick(EXTRAS)} , said {other}"))
    premise = (
        f"{who} {verb} {what} {when}." if dice.chance(0.7) else f"{when[0].upper()}{when[1:]} , {who} {verb} {what}."
    )
    what = what.replace("a ", "the ", 1) if kind == "thing" else what
    swapped = bool(label) and dice.chance(0.15)
    claim = dice.pick(true if swapped or not label else false)
    return {"premise": premise, "hypothesis": f"{other if swapped else who} {claim} {what}.", "label": label}
