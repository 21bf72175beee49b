"""The plan of faults: a list that depends only on the seed and the number of kills."""

import random
from dataclasses import dataclass
from typing import Optional

import settings

# Fractions of kills by their moment.
COMING_UP, STARTING = 0.75, 0.08


@dataclass
class Step:
    """One kill, with an additional fault."""

    number: int
    # coming_up: while a guest comes up; starting: right after the service was started; any: at any moment.
    moment: str
    # Where in the wait for that moment, 0 to 1.
    fraction: float
    # How long the service stays down, in seconds.
    away: float
    # disk, descriptors, clock, stall, or nothing more.
    extra: Optional[str]
    # How long that lasts, in seconds; of a clock step: by how much.
    extent: float
    # Whether the kill happens during that fault.
    within: bool


def away(u, boot):
    """Mostly short, a tenth longer than a guest may take to boot, twice that at most."""
    between = lambda a, b, part: a + (b - a) * part
    if u < 0.70:
        return between(0.5, 3.0, u / 0.70)
    if u < 0.90:
        return between(3.0, 0.6 * boot, (u - 0.70) / 0.20) if boot > 5 else 3.0
    return between(0.6 * boot, 2.0 * boot, (u - 0.90) / 0.10)


def spread(dice, count):
    """`count` numbers from 0 to 1, one in each of as many equal parts, in any order: a short campaign has a tail, too."""
    parts = [(n + dice.random()) / count for n in range(count)]
    dice.shuffle(parts)
    return parts


def extras(dice, count, wanted):
    hand = []
    for name in wanted:
        hand += [name] * max(1, round(settings.EXTRAS[name] * count))
    hand = hand[:count] + [None] * (count - len(hand))
    dice.shuffle(hand)
    return hand


def extent(dice, extra, boot):
    if extra == "clock":
        # Backwards as well as forwards, mostly by more than a guest may take to boot: no step may end a budget or prolong it.
        size = 10 * boot if dice.random() < 0.2 else dice.uniform(5, 3 * boot)
        return round(size if dice.random() < 0.5 else -size)
    return dice.uniform(*{"disk": (1, 8), "descriptors": (4, 12), "stall": (1, 8)}[extra]) if extra else 0.0


def make(seed, count, boot, wanted):
    dice = random.Random(f"plan {seed}")
    moments, aways = spread(dice, count), spread(dice, count)
    steps = []
    for number, extra in enumerate(extras(dice, count, wanted)):
        u = moments[number]
        moment = "coming_up" if u < COMING_UP else "starting" if u < COMING_UP + STARTING else "any"
        steps.append(Step(number + 1, moment, dice.random(), away(aways[number], boot), extra,
                          extent(dice, extra, boot), dice.random() < 0.5))
    return steps
