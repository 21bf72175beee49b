#!/usr/bin/env python3
"""Runs the commands of the pages as a reader pastes them, with real guests.

    main.py [--binary target/debug/mayfly] [PAGE]...

Each group of pages below is read by one reader on a machine of its own: the pages in their order, each in a new shell, every
block in its order. A block fails if one of its commands fails or the service answers with an error, unless a marker in the page
expects it (tests/docs/pages.py). At the end, no job in a vm may have failed, unless its block expects a status. A block that cannot
run here has a marker with the reason, and is listed at the end.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import machine
import pages

ROOT = machine.ROOT
IMAGE = os.environ.get("MAYFLY_TEST_IMAGE", str(pathlib.Path.home() / ".cache/mayfly/images/micro"))
# What each reader reads, in this order.
READERS = [
    ["README.md", "docs/networks.md"],
    ["docs/quick-start.md", "docs/api.md", "docs/script-runner.md", "docs/make-golden-image.md"],
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", default=os.path.join(os.environ.get("CARGO_TARGET_DIR", "target"), "debug/mayfly"))
    parser.add_argument("--inside", metavar="DIR", help=argparse.SUPPRESS)
    parser.add_argument("--show", action="store_true", help="print what each block prints")
    parser.add_argument("pages", nargs="*", help="only these pages, read by one reader")
    options = parser.parse_args()
    if options.inside:
        return read_pages(pathlib.Path(options.inside), options.pages, options.show)
    binary, image = (ROOT / options.binary).resolve(), (ROOT / IMAGE).resolve()
    for needed, how in [(binary, "cargo build"), (image / "template.json", "make image")]:
        if not needed.exists():
            sys.exit("docs-blocks: there is no %s: run %s" % (needed, how))
    if machine.enter("/", ["true"]) is None:
        print("NOT CHECKED: the commands of the pages (namespaces are not allowed here)")
        return 0
    readers = [options.pages] if options.pages else READERS
    with tempfile.TemporaryDirectory(prefix="mfd-") as directory, concurrent.futures.ThreadPoolExecutor(len(readers)) as pool:
        work = [pathlib.Path(directory) / str(number) for number in range(len(readers))]
        codes = list(pool.map(lambda job: reader(*job, binary, image, options.show), zip(work, readers)))
        ran, skipped, failed = 0, [], 0
        for one in work:
            for entry in json.loads((one / "report").read_text()) if (one / "report").exists() else []:
                ran += entry["result"] == "ran"
                failed += entry["result"] == "failed"
                if entry["result"] == "not run":
                    skipped.append("  %s: %s" % (entry["block"], entry["reason"]))
    print("\nnot run:\n%s\n%d blocks ran, %d were not run, %d failed" % ("\n".join(skipped), ran, len(skipped), failed))
    return 1 if failed or any(codes) or not ran else 0


def reader(work, names, binary, image, show):
    """One machine. It ends with everything that was started in it."""
    home = work / "home"
    home.mkdir(parents=True)
    machine.prepare(home, binary, image)
    options = ["--show"] if show else []
    inside = machine.enter(work, [sys.executable, "-B", os.path.abspath(__file__), "--inside", str(work), *options, *names])
    return subprocess.run(inside, env=machine.environment(home)).returncode


def read_pages(work, names, show):
    """Runs in the machine."""
    report, terminals, clone = [], [], work / "home/mayfly"
    try:
        for number, name in enumerate(names):
            terminals.append(machine.Terminal(work / ("terminal-%d" % number), clone, dict(os.environ)))
            read_page(terminals[-1], clone, name, report, show)
        machine.check_jobs(sum(entry.get("fails", 0) for entry in report))
        for terminal in terminals:
            terminal.close()
        return 0
    except (machine.BlockFailed, pages.PageError) as error:
        # What follows on the pages depends on it.
        print("FAIL %s" % error, flush=True)
        return 1
    finally:
        (work / "report").write_text(json.dumps(report))


def read_page(terminal, clone, name, report, show):
    for block in pages.blocks(name, (clone / name).read_text()):
        if block.kind == "not-run":
            report.append({"block": str(block), "result": "not run", "reason": block.value})
            continue
        begin = time.monotonic()
        try:
            printed = terminal.paste(block)
        except machine.BlockFailed as error:
            report.append({"block": str(block), "result": "failed"})
            lines = [str(block), indent(block.text, "    > "), indent(str(error), "    ")]
            raise machine.BlockFailed("\n".join(lines)) from None
        report.append({"block": str(block), "result": "ran", "fails": int(block.kind == "exits")})
        print("ok   %s (%.1f s)" % (block, time.monotonic() - begin), flush=True)
        if show:
            print(indent(printed, "    "), flush=True)


def indent(text, by):
    return "\n".join(by + line for line in text.splitlines())


if __name__ == "__main__":
    sys.exit(main())
