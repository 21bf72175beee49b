#!/usr/bin/env python3
"""Reads the Packer templates with an HCL parser: their plugins, variables, and the scripts that they run."""

import re
import sys
from pathlib import Path

import hcl2

ROOT = Path(__file__).resolve().parents[2] / "deploy/packer"
BUILT_IN = {"file", "shell"}  # provisioners of Packer itself
PLUGINS = {"linux": {"qemu": "qemu"}, "macos": {"tart-cli": "tart"}, "ec2-mac": {"amazon-ebs": "amazon"}}


def plain(value):
    """Some versions of the parser keep the quotes of names."""
    return value.strip('"') if isinstance(value, str) else value


def named(blocks):
    """[{"name": {…}}, …] as one dictionary."""
    return {plain(name): body for block in blocks for name, body in block.items() if not name.startswith("__")}


def check(name):
    faults = []
    parsed = {}
    for file in sorted((ROOT / name).glob("*.hcl")):
        try:
            parsed[file.name] = hcl2.loads(file.read_text())
        except Exception as error:  # the parser's errors have no common type
            return ["%s/%s is no HCL: %s" % (name, file.name, str(error).splitlines()[0])]
    templates = {file: body for file, body in parsed.items() if file.endswith(".pkr.hcl")}

    required = {}
    for file, body in templates.items():
        for block in body.get("packer", []):
            if file != "plugins.pkr.hcl":
                faults.append("%s/%s has a packer block: it belongs into plugins.pkr.hcl, which old versions leave out" % (name, file))
            for plugins in block.get("required_plugins", []):
                required |= {plain(key): value for key, value in plugins.items() if not key.startswith("__")}
    for plugin, body in required.items():
        body = body[0] if isinstance(body, list) else body
        body = {plain(key): plain(value) for key, value in body.items()}
        if not re.fullmatch(r"github\.com/[\w-]+/[\w-]+", body.get("source", "")):
            faults.append("%s: the plugin %s has the source %r" % (name, plugin, body.get("source")))
        if not re.fullmatch(r"(>=|~>|=) \d+\.\d+\.\d+", body.get("version", "")):
            faults.append("%s: the plugin %s has the version %r" % (name, plugin, body.get("version")))
    used = {plain(kind) for body in templates.values() for block in body.get("source", []) for kind in block}
    for kind in used:
        plugin = PLUGINS[name].get(kind)
        if plugin not in required:
            faults.append("%s: no plugin is required for the builder %s" % (name, kind))

    variables = {}
    for body in templates.values():
        variables |= named(body.get("variable", []))
    text = "\n".join((ROOT / name / file).read_text() for file in templates)
    for variable in set(re.findall(r"\bvar\.(\w+)", text)) - set(variables):
        faults.append("%s uses the variable %s, which is not declared" % (name, variable))
    for variable in set(variables) - set(re.findall(r"\bvar\.(\w+)", text)):
        faults.append("%s declares the variable %s and does not use it" % (name, variable))
    for file, body in parsed.items():
        if file.endswith(".pkrvars.hcl"):
            for variable in set(map(plain, body)) - set(variables):
                if not variable.startswith("__"):
                    faults.append("%s/%s sets %s, which is not declared" % (name, file, variable))
    scripts = set(re.findall(r'\$\{path\.root\}/\.\./(scripts/[\w./-]+)', text))
    for script in scripts:
        if not (ROOT / script).exists():
            faults.append("%s runs %s, which does not exist" % (name, script))
    if not scripts or not required or not variables:
        faults.append("%s: scripts, plugins or variables were not found" % name)
    return faults


def main():
    faults = [fault for name in PLUGINS for fault in check(name)]
    named_scripts = {path.relative_to(ROOT) for path in ROOT.glob("scripts/**/*.sh")}
    text = "\n".join(path.read_text() for path in ROOT.glob("*/*.pkr.hcl"))
    for script in sorted(named_scripts):
        if str(script) not in text and script.parent.name != "ec2-mac":
            faults.append("no template runs %s" % script)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
