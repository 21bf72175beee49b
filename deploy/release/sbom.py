#!/usr/bin/env python3
"""Writes the list of crates that are compiled into the program, in CycloneDX's format: sbom.py TARGET FILE

By cargo-cyclonedx, the tool of CycloneDX's own project, which knows licences and sources. It asks `cargo metadata`, which also
names crates of features that are off; what `cargo tree` does not have is left out, because a list with crates that are not there
reports vulnerabilities that are not there. Reproducible with the same SOURCE_DATE_EPOCH (default: the time of the last commit).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]


def out(*command):
    return subprocess.run(command, cwd=TREE, check=True, stdout=subprocess.PIPE, text=True).stdout


def described(target):
    # The tool writes beside the manifest, and nowhere else.
    name = f"mayfly-{os.getpid()}"
    file = TREE / f"{name}.json"
    try:
        options = ["--format", "json", "--spec-version", "1.5", "--no-build-deps", "--target", target, "--override-filename", name]
        out("cargo", "cyclonedx", "--quiet", *options)
        text = file.read_text()
    finally:
        file.unlink(missing_ok=True)
    # Its name for this crate has the directory of the tree.
    this = json.loads(text)["metadata"]["component"]
    return json.loads(text.replace(this["bom-ref"], f"{this['name']}@{this['version']}"))


def main():
    target, file = sys.argv[1:]
    os.environ.setdefault("SOURCE_DATE_EPOCH", out("git", "log", "-1", "--format=%ct").strip())
    tree = out("cargo", "tree", "--locked", "--target", target, "--edges", "normal", "--prefix", "none", "--format", "{p}")
    compiled = {tuple(line.split()[:2]) for line in tree.splitlines() if line}
    bom = described(target)
    bom["components"] = [part for part in bom["components"] if (part["name"], f"v{part['version']}") in compiled]
    kept = {part["bom-ref"] for part in bom["components"]} | {bom["metadata"]["component"]["bom-ref"]}
    bom["dependencies"] = [
        {**edges, **({"dependsOn": [on for on in edges["dependsOn"] if on in kept]} if "dependsOn" in edges else {})}
        for edges in bom["dependencies"]
        if edges["ref"] in kept
    ]
    new = Path(f"{file}.new")
    new.parent.mkdir(parents=True, exist_ok=True)
    new.write_text(json.dumps(bom, indent=1) + "\n")
    new.replace(file)


if __name__ == "__main__":
    main()
