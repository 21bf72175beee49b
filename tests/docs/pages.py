"""Reads the shell blocks of a page, and the markers before them.

A block is a fence with the language `sh`, `bash` or `console`. In a `console` block only the lines after the prompt `$ ` are
commands. A marker is an HTML comment on a line of its own before the fence, with at most one empty line between them. It is not
visible on the rendered page, and is about the block that follows:

    <!-- docs-blocks: not-run: REASON -->        cannot run on the machine of the test
    <!-- docs-blocks: serves: PATTERN -->        goes on for as long as the machine is used; the next block follows when its output
                                                 matches the regular expression
    <!-- docs-blocks: ctrl-c: PATTERN -->        goes on until Ctrl-C, which follows when its output matches
    <!-- docs-blocks: exits: STATUS -->          its last command ends with this status
    <!-- docs-blocks: problem: CODE -->          the service answers with this error

Everything that is not understood is refused, so that a misspelt marker does not take a block out of the test.
"""

import dataclasses
import re
import subprocess

LANGUAGES = ("sh", "bash", "console")
KINDS = ("not-run", "serves", "ctrl-c", "exits", "problem")
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})[ ]*(?P<info>.*?)[ ]*$")
MARKER = re.compile(r"^\s*<!--\s*docs-blocks:\s*(?P<kind>[a-z-]+):\s*(?P<value>\S.*?)\s*-->\s*$")


class PageError(Exception):
    """The page cannot be read as it is written."""


@dataclasses.dataclass
class Block:
    page: str
    line: int  # of the first command
    text: str
    kind: str = ""  # of the marker
    value: str = ""

    def __str__(self):
        return "%s:%d" % (self.page, self.line)


def blocks(page, text):
    """The shell blocks of a page in their order."""
    found, marker, fence = [], None, None
    for number, line in enumerate(text.splitlines(), 1):
        here = "%s:%d" % (page, number)
        match = FENCE.match(line)
        if fence:
            start, indent, opening, language, lines = fence
            if match and match["fence"].startswith(opening) and not match["info"]:
                if language in LANGUAGES:
                    found.append(block(page, start, lines, language, marker))
                elif marker:
                    raise PageError("%s:%d: a marker before a block of the language %s" % (page, start, language or "none"))
                fence = marker = None
            elif line[: len(indent)].strip():
                raise PageError("%s: a line of a fence has less indentation than the fence" % here)
            else:
                lines.append(line[len(indent):])
        elif match:
            words = match["info"].split()
            fence = (number, match["indent"], match["fence"], words[0] if words else "", [])
        elif "docs-blocks:" in line:
            comment = MARKER.match(line)
            if not comment or comment["kind"] not in KINDS:
                raise PageError("%s: no such marker: %s (there are %s)" % (here, line.strip(), ", ".join(KINDS)))
            if marker:
                raise PageError("%s: two markers before one block" % here)
            marker = (number, comment["kind"], comment["value"])
        elif marker and (line.strip() or number > marker[0] + 1):
            raise PageError("%s:%d: no block follows the marker" % (page, marker[0]))
    if fence:
        raise PageError("%s:%d: the fence is not closed" % (page, fence[0]))
    if marker:
        raise PageError("%s:%d: no block follows the marker" % (page, marker[0]))
    return found


def block(page, start, lines, language, marker):
    if language == "console":
        text = commands("%s:%d" % (page, start), lines)
    else:
        text = "\n".join(lines) + "\n"
    result = Block(page, start + 1, text)
    if marker:
        _, result.kind, result.value = marker
        try:
            if result.kind == "exits":
                int(result.value)
            elif result.kind in ("serves", "ctrl-c"):
                re.compile(result.value)
        except (ValueError, re.error) as error:
            raise PageError("%s: %s: %s" % (result, result.kind, error))
    return result


def commands(where, lines):
    """The commands of a `console` block. Each one goes on until the shell finds it complete."""
    found, command = [], []
    for line in lines:
        if not command and not line.startswith("$ "):
            continue  # output
        command.append(line[2:] if not command else line)
        if complete(command):
            found += command
            command = []
    if command or not found:
        raise PageError("%s: a console block without a complete command after the prompt `$ `" % where)
    return "\n".join(found) + "\n"


def complete(lines):
    if lines[-1].endswith("\\"):
        return False
    checked = subprocess.run(["bash", "-n"], input="\n".join(lines) + "\n", text=True, capture_output=True)
    # An open here-document is only warned of.
    return checked.returncode == 0 and not checked.stderr
