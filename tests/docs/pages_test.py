#!/usr/bin/env python3
"""What the test of the pages' commands detects, and what must be the same on all pages."""

import os
import pathlib
import re
import tempfile
import unittest

import machine
import pages

ROOT = machine.ROOT
DOCS = ROOT / "docs"
# Made of other files when the site is built (.ci/docs.sh).
BUILT = {"architecture.md", "changelog.md"}


def page(*lines):
    return pages.blocks("page.md", "\n".join(lines))


class Reader(unittest.TestCase):
    def refused(self, text, *lines):
        with self.assertRaisesRegex(pages.PageError, text):
            page(*lines)

    def test_blocks_of_the_shell_are_found_with_their_lines(self):
        found = page("text", "```sh", "one", "", "two", "```", "```json", "{}", "```", "  ~~~ bash", "  three", "  ~~~")
        self.assertEqual([(str(b), b.text) for b in found], [("page.md:3", "one\n\ntwo\n"), ("page.md:11", "three\n")])

    def test_a_longer_fence_holds_a_shorter_one(self):
        self.assertEqual(page("````sh", "```", "````")[0].text, "```\n")
        self.assertEqual(page("````text", "```sh", "false", "```", "````"), [])

    def test_commands_of_a_console_stand_after_the_prompt(self):
        found = page("```console", "$ one \\", "    --more", "output", "$ two | ", "    three", "more output", "$ cat <<END", "x",
                     "END", "```")
        self.assertEqual(found[0].text, "one \\\n    --more\ntwo | \n    three\ncat <<END\nx\nEND\n")
        self.refused("without a complete command", "```console", "output", "```")
        self.refused("without a complete command", "```console", "$ echo 'open", "```")

    def test_a_marker_is_about_the_next_block_only(self):
        found = page("<!-- docs-blocks: not-run: needs a Mac -->", "", "```sh", "brew", "```", "```sh", "true", "```")
        self.assertEqual([(b.kind, b.value) for b in found], [("not-run", "needs a Mac"), ("", "")])

    def test_what_is_not_understood_is_refused(self):
        fence = ["```sh", "true", "```"]
        self.refused("not closed", "```sh", "true")
        self.refused("no such marker", "<!-- docs-blocks: notrun: a Mac -->", *fence)
        self.refused("no such marker", "<!-- docs-blocks: not-run: -->", *fence)
        self.refused("no such marker", "<!-- docs-blocks: not-run -->", *fence)
        self.refused("no such marker", "text <!-- docs-blocks: not-run: a Mac -->", *fence)
        self.refused("two markers", "<!-- docs-blocks: exits: 1 -->", "<!-- docs-blocks: exits: 2 -->", *fence)
        self.refused("no block follows", "<!-- docs-blocks: exits: 1 -->", "text", *fence)
        self.refused("no block follows", "<!-- docs-blocks: exits: 1 -->", "", "", *fence)
        self.refused("no block follows", *fence, "<!-- docs-blocks: exits: 1 -->")
        self.refused("language json", "<!-- docs-blocks: exits: 1 -->", "```json", "{}", "```")
        self.refused("exits", "<!-- docs-blocks: exits: one -->", *fence)
        self.refused("serves", "<!-- docs-blocks: serves: ( -->", *fence)


class Shell(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name)
        self.terminal = machine.Terminal(self.dir / "terminal", self.dir, {"PATH": os.environ["PATH"]})
        self.addCleanup(self.terminal.close)

    def paste(self, text, kind="", value=""):
        return self.terminal.paste(pages.Block("page.md", 1, text, kind, value))

    def fails(self, reason, *block):
        with self.assertRaisesRegex(machine.BlockFailed, reason):
            self.paste(*block)

    def test_a_shell_remembers_what_was_pasted(self):
        self.paste("ID=4711\nname() { echo \"vm $ID\"; }\ncd /\n")
        self.assertEqual(self.paste("name\npwd\n"), "vm 4711\n/\n")

    def test_every_command_counts(self):
        self.fails("status 0\n  status 1: false\n", "false\ntrue\n")
        self.fails("status 127", "make-nothing\n")
        self.fails("status 3", "exit_with() { return 3; }\nexit_with\n")
        self.fails("status 1: ID=", "ID=$(false | cat)\ntrue\n")
        self.fails("status 1: cat", "false | cat\n")
        # As in a terminal, the next block follows nevertheless, and an expected failure is none.
        self.paste("false || true\nif false; then :; fi\n")

    def test_the_end_of_the_shell_is_a_failure(self):
        self.fails("ended the shell", "exit 0\n")

    def test_a_syntax_error_is_a_failure(self):
        self.fails("status", "echo 'open\n")

    def test_an_error_of_the_service_is_a_failure_unless_it_is_expected(self):
        answer = "echo '{\"type\": \"/problems/vm.unknown\"}'\n"
        self.fails("answers .'vm.unknown'", answer)
        self.paste(answer + "false\n", "problem", "vm.unknown")
        self.fails("and vm.foreign is expected", answer, "problem", "vm.foreign")
        self.fails("answers no error", "true\n", "problem", "vm.unknown")

    def test_an_expected_status_is_required(self):
        self.paste("sh -c 'exit 3'\n", "exits", "3")
        self.fails("status 0, and 3 is expected", "true\n", "exits", "3")

    def test_what_serves_goes_on_and_must(self):
        self.fails("does not match", "echo other\n", "serves", "ready")
        self.paste("mkfifo gate\n")
        self.paste("echo ready; read line <gate\n", "serves", "ready")
        self.paste("echo still here\n")
        self.paste("echo over >gate\n")
        _, output = self.terminal.served.pop()
        self.assertTrue(output.wait(lambda o: o.ended, 20))
        self.terminal.served.append((pages.Block("page.md", 1, ""), output))
        self.fails("page.md:1 should go on, and has ended", "true\n")
        self.terminal.served.clear()

    def test_ctrl_c_ends_what_has_no_end(self):
        self.assertIn("first", self.paste("echo first; cat /dev/zero >/dev/null\n", "ctrl-c", "first"))
        self.assertEqual(self.paste("echo still here\n"), "still here\n")


class Pages(unittest.TestCase):
    def test_the_first_page_leads_to_all(self):
        navigation = set(re.findall(r": ([\w-]+\.md)$", (DOCS / "mkdocs.yml").read_text(), re.M))
        self.assertEqual(navigation, BUILT | {file.name for file in DOCS.glob("*.md")})
        linked = set(re.findall(r"\]\(([\w-]+\.md)", (DOCS / "index.md").read_text()))
        self.assertEqual(navigation - linked - {"index.md"}, set(), "index.md has no link to these")

    def test_readme_names_existing_files(self):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / "README.md").read_text()):
            self.assertTrue((ROOT / target).exists(), target)

    def test_readme_shows_what_the_demonstration_prints(self):
        demonstration = (ROOT / ".ci/demo.sh").read_text()
        sample = (ROOT / "README.md").read_text().partition("```text\n")[2].partition("```")[0]
        shown = re.findall(r"^(?:([A-Z][a-z ]+)|  yes  (.*)|\$ (.*))$", sample, re.M)
        self.assertGreater(len(shown), 6)
        for line in shown:
            self.assertIn("".join(line), demonstration)

    def test_every_page_can_be_read(self):
        for file in [ROOT / "README.md", *DOCS.glob("*.md")]:
            pages.blocks(file.name, file.read_text())

    def test_one_way_to_allow_the_local_network(self):
        """The same setting on every page and in the words of `mayfly doctor`."""
        told = "".join(file.read_text() for file in (ROOT / "tests/it/doctor/snapshots").glob("*.snap"))
        setting = re.compile(r"sudo defaults write (\S+) Allowed(\w+)LocalNetworkAddresses (-\S+ \S+)")
        of_doctor = set(setting.findall(told))
        self.assertEqual({kind for _, kind, _ in of_doctor}, {"Ethernet", "WiFi"})
        for file in [ROOT / "README.md", *DOCS.glob("*.md")]:
            text = file.read_text()
            self.assertEqual(set(setting.findall(text)) or of_doctor, of_doctor, file.name)
            # A loop or a variable would hide it from this test.
            self.assertEqual(text.count("network.local-network"), len(setting.findall(text)), file.name)

    def test_errors_on_the_page_are_errors_of_the_program(self):
        """Each text or code in the first cells of the tables of errors is in the sources."""
        sources = "".join(file.read_text() for file in (ROOT / "src").rglob("*.rs"))
        text = (DOCS / "first-github-job.md").read_text()
        checked = set()
        for heading, cells in [("## The check fails", 1), ("## The service does not start", 1), ("| Code | Text |", 2)]:
            rows = text[text.index(heading):].partition("|---|")[2].splitlines()[1:]
            for row in rows[: next(i for i, row in enumerate(rows) if not row.startswith("|"))]:
                for said in re.findall("`([^`]+)`", "|".join(row.strip("|").split("|")[:cells])):
                    for part in said.split("…"):
                        self.assertIn(part, sources, row)
                        checked.add(part)
        self.assertGreater(len(checked), 25)


if __name__ == "__main__":
    unittest.main()
