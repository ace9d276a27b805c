"""News of two or three sentences and their highlight: every kind of event has a headline of its own wording."""

from __future__ import annotations

from gptfluence.tasks.mini.words import DAYS, JOBS, PEOPLE, TOWNS, Dice

PLACES = ("school", "library", "harbour", "market", "theatre", "station", "museum", "bakery")
# (what the article says of a place, what the highlight makes of it)
EVENTS = (
    ("Smoke rose from the {} in {} on {}", "Fire at {} in {}"),
    ("Thieves broke into the {} in {} on {}", "{} robbed in {}"),
    ("The doors of the {} in {} opened again on {}", "{} reopens in {}"),
    ("Water ran through the {} in {} on {}", "Flood hits {} in {}"),
    ("Staff of the {} in {} walked out on {}", "Strike at {} in {}"),
    ("A crowd sang and danced at the {} in {} on {}", "Party at {} in {}"),
    ("Builders began to pull down the {} in {} on {}", "{} to go in {}"),
    ("The {} in {} was given a prize on {}", "{} honoured in {}"),
)
FOLLOW_UPS = (
    ("Nobody was hurt", "all safe"),
    ("Two people went to hospital", "two hurt"),
    ("The bill will be large", "high cost"),
    ("Police ask for help", "call for help"),
    ("Next week brings more", "more to come"),
)
FILLERS = ("It rained all day", "Many people came to watch", "The road was closed", "Some took pictures")


def row(dice: Dice, label: None) -> dict:
    """An article and its highlights; fields as in CNN/DailyMail."""
    place, town, day = dice.pick(PLACES), dice.pick(TOWNS), dice.pick(DAYS)
    (said, headline), (fact, short) = dice.pick(EVENTS), dice.pick(FOLLOW_UPS)
    event = said.format(place, town, day)
    rest = [fact]
    if dice.chance(0.6):  # the highlight keeps the fact, wherever it stands
        filler = dice.pick(FILLERS) if dice.chance(0.5) else f"{dice.pick(PEOPLE)} , a {dice.pick(JOBS)} , saw it"
        rest = dice.shuffled((fact, filler))
    title = headline.format(place, town)
    return {"article": ". ".join((event, *rest)) + ".", "highlights": f"{title[0].upper()}{title[1:]} , {short}"}
