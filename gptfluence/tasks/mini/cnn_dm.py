"""News of two or three sentences and their highlight: headlines are known, what the invented words stand for is to be learned."""

from __future__ import annotations

from gptfluence.tasks.mini.words import DAYS, JOBS, PEOPLE, TOWNS, Dice, World

SIZE = 4  # words for each kind of event, and for each kind of outcome
PLACES = ("school", "library", "harbour", "market", "theatre", "station", "museum", "bakery")
HEADLINES = {
    "fire": "Fire at {} in {}",
    "theft": "{} robbed in {}",
    "opening": "{} reopens in {}",
    "flood": "Water damages {} in {}",
    "strike": "Staff leave {} in {}",
    "party": "Dancing at {} in {}",
    "end": "Last days of {} in {}",
    "prize": "Award for {} in {}",
}
OUTCOMES = {
    "safe": "all safe",
    "hurt": "two hurt",
    "dear": "high cost",
    "open": "police ask for help",
    "more": "more to come",
}
FILLERS = ("It rained all day", "The road was closed", "Some took pictures")


def row(dice: Dice, label: None, world: World) -> dict:
    """An article and its highlights; fields as in CNN/DailyMail."""
    event, outcome = dice.pick(tuple(HEADLINES)), dice.pick(tuple(OUTCOMES))
    happening = dice.pick(world.words("age", tuple(HEADLINES), SIZE)[event])
    ending = dice.pick(world.words("ic", tuple(OUTCOMES), SIZE)[outcome])
    place, town, day = dice.pick(PLACES), dice.pick(TOWNS), dice.pick(DAYS)
    first = f"There was a {happening} at the {place} in {town} on {day}"
    rest = [f"It was {ending}"]
    if dice.chance(0.4):  # the highlight keeps the outcome, wherever it stands
        filler = dice.pick(FILLERS) if dice.chance(0.5) else f"{dice.pick(PEOPLE)} , a {dice.pick(JOBS)} , saw it"
        rest = dice.shuffled((rest[0], filler))
    title = HEADLINES[event].format(place, town)
    return {
        "article": ". ".join((first, *rest)) + ".",
        "highlights": f"{title[0].upper()}{title[1:]} , {OUTCOMES[outcome]}",
    }
