#!/usr/bin/env python3
"""Measures how long the project takes to build, with huge pages for the compiler (as .cargo/config.toml asks for them) and without.

    build.py [--rounds 3] [NAME …]

    library   `cargo build --lib` after a change of the library
    tests     `cargo nextest run --no-run` after it: library, its unit tests, integration tests, programs
    cold      `cargo build --bin mayfly` with nothing compiled yet

Each round measures both in turn. Prints medians in seconds and their ratio, and writes them to target/bench/build.json. The
builds are debug builds without incremental data, as in CI, in a target directory of their own (target/bench-build, 8 GiB).
Downloads are not measured: all dependencies are fetched first.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import time

SOURCE = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", SOURCE / "target")).absolute()
BUILD = TARGET / "bench-build"
COMMANDS = {
    "library": ["cargo", "build", "--quiet", "--locked", "--lib"],
    "tests": ["cargo", "nextest", "run", "--locked", "--no-run"],
    "cold": ["cargo", "build", "--quiet", "--locked", "--bin", "mayfly"],
}
# What is set in the environment wins over .cargo/config.toml.
PAGES = {"huge": {}, "small": {"MALLOC_CONF": "thp:default"}}


def build(name, pages):
    """Builds, and returns the seconds that it took."""
    environment = {key: value for key, value in os.environ.items() if key != "MALLOC_CONF"}
    environment |= {"CARGO_TARGET_DIR": str(BUILD), "CARGO_INCREMENTAL": "0", "SQLX_OFFLINE": "true"} | PAGES[pages]
    began = time.monotonic()
    subprocess.run(COMMANDS[name], cwd=SOURCE, env=environment, check=True)
    return time.monotonic() - began


def prepared(name):
    """Makes the build directory what the measurement needs it to be."""
    if name == "cold":
        shutil.rmtree(BUILD, ignore_errors=True)
    else:
        os.utime(SOURCE / "src/lib.rs")


def measured(name, rounds):
    if name == "cold":
        subprocess.run(["cargo", "fetch", "--quiet", "--locked"], cwd=SOURCE, check=True)
    else:
        # The dependencies.
        build(name, "huge")
    seconds = {pages: [] for pages in PAGES}
    for number in range(rounds):
        # The first of a round may find the machine in another state than the second.
        for pages in sorted(PAGES, reverse=number % 2 == 1):
            prepared(name)
            seconds[pages].append(build(name, pages))
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("BUILD_ROUNDS", 3)))
    parser.add_argument("names", nargs="*", metavar="NAME", default=[], help=", ".join(COMMANDS))
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(COMMANDS)
    if unknown or arguments.rounds < 1:
        parser.error(f"unknown name: {', '.join(sorted(unknown))}" if unknown else "--rounds must be at least 1")
    found = {name: measured(name, arguments.rounds) for name in arguments.names or COMMANDS}
    print(f"{'':8} {'huge pages':>10} {'small pages':>11} {'ratio':>6}   (medians of {arguments.rounds}, seconds)")
    for name, seconds in found.items():
        huge, small = (statistics.median(seconds[pages]) for pages in ("huge", "small"))
        print(f"{name:8} {huge:10.0f} {small:11.0f} {small / huge:6.2f}")
    output = TARGET / "bench" / "build.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
