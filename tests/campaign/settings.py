"""Parameters of a campaign from the environment, and paths."""

import os
import pathlib
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
IMAGE = pathlib.Path(os.environ.get("MAYFLY_TEST_IMAGE", pathlib.Path.home() / ".cache/mayfly/images/micro"))

# Rates of the other disturbances, as fractions of the kills. Each occurs at least once, so that a short campaign has all of
# them.
EXTRAS = {"disk": 0.08, "descriptors": 0.06, "clock": 0.10, "stall": 0.10}


def number(name, default, least=0, most=1_000_000):
    text = os.environ.get(name, "")
    try:
        value = int(text or default)
    except ValueError:
        raise SystemExit(f"{name} is {text!r}, but must be a whole number")
    if not least <= value <= most:
        raise SystemExit(f"{name} is {value}, but must be from {least} to {most}")
    return value


@dataclass(frozen=True)
class Settings:
    kills: int
    seed: int
    lanes: int
    slots: int
    boot_seconds: int
    configure_seconds: int
    lifetime_seconds: int
    long_percent: int
    ssh_percent: int
    accelerator: str
    profile: str
    name: str
    extras: tuple

    @property
    def binary(self):
        return TARGET / self.profile / "mayfly"

    @property
    def replay(self):
        return TARGET / self.profile / "examples" / "campaign-replay"

    @property
    def output(self):
        return TARGET / "bench"

    @property
    def evidence(self):
        return self.output / self.name


def from_environment():
    boot = number("CAMPAIGN_BOOT_SECONDS", 30, 5, 600)
    wanted = os.environ.get("CAMPAIGN_EXTRAS", ",".join(EXTRAS)).replace(",", " ").split()
    if unknown := set(wanted) - set(EXTRAS):
        raise SystemExit(f"CAMPAIGN_EXTRAS: unknown: {', '.join(sorted(unknown))}; expected: {', '.join(EXTRAS)}")
    kills = number("KILLS", 500, 1)
    return Settings(
        kills=kills,
        seed=number("SEED", 1),
        lanes=min(kills, number("CAMPAIGN_LANES", 1, 1, 64)),
        slots=number("CAMPAIGN_SLOTS", 2, 1, 16),
        boot_seconds=boot,
        configure_seconds=number("CAMPAIGN_CONFIGURE_SECONDS", boot, 5, 600),
        lifetime_seconds=number("CAMPAIGN_LIFETIME_SECONDS", 20 * boot, 60, 7200),
        long_percent=number("CAMPAIGN_LONG_PERCENT", 25, 0, 100),
        ssh_percent=number("CAMPAIGN_SSH_PERCENT", 25, 0, 100),
        accelerator=os.environ.get("CAMPAIGN_ACCELERATOR") or "tcg",
        profile=os.environ.get("CAMPAIGN_PROFILE") or "release",
        name=os.environ.get("CAMPAIGN_NAME") or "campaign",
        extras=tuple(name for name in EXTRAS if name in wanted),
    )
