"""Parameters of a soak from the environment, and the limits that its service is given."""

import os
from dataclasses import dataclass

import settings as campaign

MIB = 1 << 20

SLOTS = 3
# Small, so that a short run reaches them.
CONSOLE_BYTES = MIB // 4
BODY_MEMORY_BYTES = 32 * MIB
MAX_CONNECTIONS = 1024
MIN_FREE_BYTES = 128 * MIB
# Size of the file system with the data directory, in addition to the templates. An image that claims less than it unpacks
# to could fill it.
SPARE_MIB = 768
# How long a vm waits for a hostile image.
IMAGE_SECONDS = 15


@dataclass(frozen=True)
class Parameters:
    seconds: int
    seed: int
    alone: int
    profile: str
    name: str

    @property
    def binary(self):
        return campaign.TARGET / self.profile / "mayfly"

    @property
    def replay(self):
        return campaign.TARGET / self.profile / "examples" / "campaign-replay"

    @property
    def output(self):
        return campaign.TARGET / "bench"

    @property
    def lifetime_seconds(self):
        return self.seconds + 1800


def from_environment():
    return Parameters(
        seconds=campaign.number("SOAK_SECONDS", 3600, 20, 1_000_000),
        seed=campaign.number("SEED", 1),
        alone=campaign.number("SOAK_ALONE", 8, 3, 100),
        profile=os.environ.get("SOAK_PROFILE") or "release",
        name=os.environ.get("SOAK_NAME") or "soak",
    )


def environment(scratch, parameters, secret):
    """What the service is configured with."""
    return {
        "TMPDIR": str(scratch),
        "MAYFLY_SERVER__MAX_CONNECTIONS": str(MAX_CONNECTIONS),
        "MAYFLY_SERVER__MAX_BODY_MEMORY_BYTES": str(BODY_MEMORY_BYTES),
        "MAYFLY_SLOTS__LINUX": str(SLOTS),
        "MAYFLY_SLOTS__CPUS": str(SLOTS),
        # Guests of other programs on this machine do not count.
        "MAYFLY_SLOTS__COUNT_FOREIGN": "false",
        "MAYFLY_DRIVERS__QEMU__ACCELERATOR": "tcg",
        "MAYFLY_DRIVERS__QEMU__CONSOLE_LOG_BYTES": str(CONSOLE_BYTES),
        "MAYFLY_TEMPLATES__MIN_FREE_BYTES": str(MIN_FREE_BYTES),
        "MAYFLY_BUDGETS__LIFETIME_SECONDS": str(parameters.lifetime_seconds),
        "MAYFLY_GITHUB_WEBHOOK_SECRET": secret,
    }
