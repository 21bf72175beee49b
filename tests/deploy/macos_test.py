#!/usr/bin/env python3
"""The installation on a Mac, simulated on any system.

The scripts run in two strict shells, in a scratch home, and find nothing but what stands in one directory of stand-ins:
Apple's own programs, which keep their state in files, and the common tools, which refuse every option that macOS's lack.
"""

import json
import os
import plistlib
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "macos"
AGENT, LOGS = "dev.mayfly.agent", "dev.mayfly.logs"
VM = "mayfly-01933b6e-8f2a-7c31-9d42-000000000001"

# Options of macOS's tools that scripts may use. Letters may be combined.
BSD = {
    "cat": "benstuv", "chmod": "fhvRHLPCENa", "cmp": "lsxhz", "cp": "RHLPfipvXacln", "dirname": "x",
    "grep": "EFGHILOPRSUVZabcdefhilmnopqrsuvwxyz", "gzip": "cdfhlkLNnqrStVv123456789", "head": "nc", "ln": "Ffhinsvw",
    "mkdir": "pvm", "mv": "fhinv", "rm": "dfiIPRrvWx", "rmdir": "pv", "sed": "EalnruIief", "sort": "bcCdfghikmMnorRstTuVz",
    "tail": "FfrqbnCc", "wc": "clmwL", "basename": "as",
}

TOOL = """#!/bin/sh
for argument in "$@"; do
    case $argument in
    -- | -) break ;;
    --* | -*[!{allowed}0-9]*) echo "{name}: illegal option $argument" >&2; exit 64 ;;
    -*) ;;
    *) break ;;
    esac
done
exec {real} "$@"
"""

FIND = """#!/bin/sh
for argument in "$@"; do
    case $argument in
    -path | -name | -type | -print) ;;
    -*) echo "find: $argument: unknown primary or operator" >&2; exit 1 ;;
    esac
done
exec {real} "$@"
"""

# Stores loaded agents in state.json: label -> {{pid, plist, leaving}}. As on a Mac, bootout does not
# wait, and the first bootstrap after it is refused.
LAUNCHCTL = """#!{python} -IS
import json, plistlib, sys
path = {state!r}
state = json.load(open(path))
loaded = state["loaded"]
verb, arguments = sys.argv[1], sys.argv[2:]
state["calls"].append(sys.argv[1:])

def done(code, text=""):
    json.dump(state, open(path, "w"))
    if text:
        print(text, file=sys.stderr if code else sys.stdout)
    sys.exit(code)

if verb == "bootstrap":
    domain, plist = arguments
    if domain != "gui/501" or not state["session"]:
        done(125, "Bootstrap failed: 125: Domain does not support specified action")
    job = plistlib.load(open(plist, "rb"))
    label = job["Label"]
    refused, state["settling"] = label in state["settling"], [s for s in state["settling"] if s != label]
    if refused or label in loaded or label in state["disabled"]:
        done(5, "Bootstrap failed: 5: Input/output error")
    state["pids"] += 1
    program = job["ProgramArguments"][0]
    runs = job.get("RunAtLoad", False) and not state["crashes"]
    loaded[label] = {{"pid": state["pids"] if runs else None, "plist": plist, "leaving": 0, "program": program}}
    done(0)
target = arguments[-1]
label = target[len("gui/501/"):]
if verb == "enable":
    state["disabled"] = [d for d in state["disabled"] if d != label]
    done(0)
if verb == "print":
    if target == "gui/501":
        done(0 if state["session"] else 125, "gui/501 = {{")
    job = loaded.get(label)
    if job and job["leaving"]:
        job["leaving"] -= 1
        if not job["leaving"]:
            del loaded[label]
            state["settling"].append(label)
            job = None
    if not job:
        done(113, "Could not find service")
    pid = job["pid"]
    done(0, target + " = {{\\n\\tstate = " + ("running" if pid else "not running") + ("\\n\\tpid = %d" % pid if pid else "") + "\\n\\tlast exit code = 0\\n}}")
if label not in loaded:
    done(113, "Could not find service")
if verb == "bootout":
    loaded[label]["leaving"], loaded[label]["pid"] = 3, None
    done(36, "Boot-out failed: 36: Operation now in progress")
if verb == "kickstart":
    if arguments[0] != "-k":
        done(64, "usage")
    state["pids"] += 1
    loaded[label]["pid"] = None if state["crashes"] else state["pids"]
    done(0)
done(64, "Unrecognized subcommand: " + verb)
"""

PLUTIL = """#!{python} -IS
import plistlib, sys
if sys.argv[1] == "-lint":
    try:
        plistlib.load(open(sys.argv[2], "rb"))
    except Exception as error:
        sys.exit(sys.argv[2] + ": " + str(error))
    print(sys.argv[2] + ": OK")
elif sys.argv[1] == "-extract" and sys.argv[3:6] == ["raw", "-o", "-"]:
    value = plistlib.load(open(sys.argv[6], "rb"))
    try:
        for part in sys.argv[2].split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
    except (KeyError, IndexError):
        sys.exit("Could not extract value")
    print(value)
else:
    sys.exit("plutil: unknown use " + repr(sys.argv[1:]))
"""

# Plays the service's command line. Its vms are lines of a file.
MAYFLY = """#!/bin/sh
# {version}
case "$1 ${{2:-}}" in
'--version ') [ ! -e {dir}/broken ] || exit 137; echo 'mayfly {version}' ;;
'serve --check') [ ! -e {dir}/refused ] || {{ echo 'mayfly: configuration: unknown key servr' >&2; exit 2; }} ;;
'vm list') [ ! -e {dir}/no-token ] || {{ echo 'mayfly: there is no token' >&2; exit 5; }}; cat {dir}/vms ;;
'vm delete') echo "$*" >>{dir}/deleted; : >{dir}/vms ;;
'doctor --help') [ -e {dir}/doctor ] || exit 2 ;;
'doctor --data-dir') printf 'doctor %s\\n' "$3" >>{dir}/doctor; exit 1 ;;
*) echo "mayfly: unknown: $*" >&2; exit 2 ;;
esac
"""


class Mac:
    """A scratch home, and the programs of a healthy Mac."""

    def __init__(self, shell):
        self.shell = shell
        self.dir = Path(tempfile.mkdtemp(prefix="mayfly-mac-"))
        # A path that has to be escaped, in XML and for sed.
        self.home = self.dir / "Ann & Bob's |home\\1"
        self.home.mkdir()
        self.bin = self.dir / "bin"
        self.bin.mkdir()
        self.state = self.dir / "state.json"
        self.write_state(loaded={}, session=True, disabled=[AGENT], settling=[], crashes=False, pids=100, calls=[])
        (self.dir / "vms").write_text("")
        (self.dir / "ps").write_text("/sbin/launchd\n/usr/libexec/logd\n")
        for name, allowed in BSD.items():
            self.program(name, TOOL.format(name=name, real=shutil.which(name), allowed=allowed))
        self.program("find", FIND.format(real=shutil.which("find")))
        self.program("launchctl", LAUNCHCTL.format(python=sys.executable, state=str(self.state)))
        self.program("plutil", PLUTIL.format(python=sys.executable))
        self.says("uname", "[ \"$1\" = -s ] && echo Darwin")
        self.says("id", "[ \"$1\" = -u ] && echo 501")
        self.says("sw_vers", "[ \"$1\" = -productVersion ] && echo 26.1")
        self.says("sysctl", "[ \"$*\" = '-n hw.optional.arm64' ] && echo 1")
        self.says("tart", "[ \"$*\" = --version ] && echo 2.35.0")
        self.says("sleep", "[ \"$1\" = 1 ]")
        self.says("ps", f"[ \"$*\" = '-axww -o command=' ] && cat '{self.dir}/ps'")
        os.symlink(shutil.which("curl"), self.bin / "curl")
        self.binary = self.dir / "mayfly"
        self.build("1.0.0")
        self.listen()

    def listen(self):
        """The service: answers while launchd has a process for it."""
        mac = self

        class Health(BaseHTTPRequestHandler):
            def do_GET(self):
                up = self.path == "/healthz" and (
                    mac.other_service or any(job["pid"] for label, job in mac.read_state()["loaded"].items() if label == AGENT)
                )
                self.send_response(200 if up else 503)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.other_service = False
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Health)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        shutil.rmtree(self.dir)

    def program(self, name, text, directory=None):
        file = (directory or self.bin) / name
        file.write_text(text)
        file.chmod(0o755)

    def says(self, name, line):
        self.program(name, f"#!/bin/sh\n{line}\n")

    def build(self, version):
        self.program("mayfly", MAYFLY.format(version=version, dir=self.dir), self.dir)

    def read_state(self):
        return json.loads(self.state.read_text())

    def write_state(self, **changes):
        state = self.read_state() if self.state.exists() else {}
        self.state.write_text(json.dumps(state | changes))

    def calls(self):
        """The changes that launchctl was asked for, without queries."""
        calls = self.read_state()["calls"]
        self.write_state(calls=[])
        return [call for call in calls if call[0] != "print"]

    def run(self, script, *arguments):
        environment = {"HOME": str(self.home), "PATH": str(self.bin), "LC_ALL": "C"}
        return subprocess.run(
            [*self.shell, str(DEPLOY / script), *arguments, "--url", self.url],
            env=environment, capture_output=True, text=True, cwd=self.dir, timeout=60,
        )

    def install(self, *arguments):
        return self.run("install.sh", "--binary", str(self.binary), *arguments)

    def uninstall(self, *arguments):
        return self.run("uninstall.sh", *arguments)

    def tree(self):
        """Every file of the home, with its content."""
        return {
            str(p.relative_to(self.home)): p.read_bytes() if p.is_file() else None for p in sorted(self.home.rglob("*"))
        }

    @property
    def installed(self):
        return self.home / ".local/bin/mayfly"

    @property
    def plist(self):
        return self.home / "Library/LaunchAgents" / f"{AGENT}.plist"


class Cases:
    shell: list

    def setUp(self):
        self.mac = Mac(self.shell)
        self.addCleanup(self.mac.close)

    def ok(self, ran):
        self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)
        return ran

    def refused(self, ran, text):
        self.assertEqual(ran.returncode, 1, ran.stdout + ran.stderr)
        self.assertIn(text, ran.stderr)

    def installed(self):
        self.ok(self.mac.install())
        self.mac.calls()

    def test_a_first_installation(self):
        mac = self.mac
        ran = self.ok(mac.install())
        self.assertIn(f"mayfly 1.0.0 answers at {mac.url}", ran.stderr)
        self.assertEqual(mac.installed.read_bytes(), mac.binary.read_bytes())
        self.assertEqual(stat.S_IMODE(mac.installed.stat().st_mode), 0o755)
        agent = plistlib.loads(mac.plist.read_bytes())
        self.assertEqual(agent["Label"], AGENT)
        self.assertEqual(agent["ProgramArguments"], [str(mac.installed), "serve"])
        environment = agent["EnvironmentVariables"]
        self.assertEqual(environment["MAYFLY_DATA_DIR"], str(mac.home / ".mayfly"))
        # The directory of tart comes first, because it is not one of the usual ones.
        self.assertEqual(environment["PATH"], f"{mac.bin}:/opt/homebrew/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        self.assertIs(agent["AbandonProcessGroup"], True)
        self.assertIs(agent["KeepAlive"], True)
        self.assertEqual(agent["LimitLoadToSessionType"], "Aqua")
        self.assertEqual(agent["Umask"], 0o077)
        logs = mac.home / "Library/Logs/mayfly"
        self.assertEqual({agent["StandardOutPath"], agent["StandardErrorPath"]}, {str(logs / "mayfly.log")})
        self.assertEqual(stat.S_IMODE(logs.stat().st_mode), 0o700)
        rotation = plistlib.loads((mac.plist.parent / f"{LOGS}.plist").read_bytes())
        self.assertEqual(rotation["ProgramArguments"], ["/bin/sh", str(mac.home / ".local/libexec/mayfly/rotate-logs.sh"), str(logs)])
        self.assertNotIn("@", mac.plist.read_text())
        self.assertEqual(set(mac.read_state()["loaded"]), {AGENT, LOGS})
        self.assertFalse(list(mac.home.rglob("*.new")))

    def test_an_archive_installs_the_binary_that_is_in_it(self):
        mac = self.mac
        scripts = mac.dir / "an archive/share/mayfly/macos"
        shutil.copytree(DEPLOY, scripts)
        ran = mac.run(scripts / "install.sh")
        self.refused(ran, f"{mac.dir}/an archive/bin/mayfly does not exist")
        program = mac.dir / "an archive/bin/mayfly"
        program.parent.mkdir()
        shutil.copy(mac.binary, program)
        self.ok(mac.run(scripts / "install.sh"))
        self.assertEqual(mac.installed.read_bytes(), program.read_bytes())

    def test_again_changes_nothing(self):
        self.installed()
        before, inode = self.mac.tree(), self.mac.installed.stat().st_ino
        self.ok(self.mac.install())
        self.assertEqual(self.mac.calls(), [])
        self.assertEqual(self.mac.tree(), before)
        self.assertEqual(self.mac.installed.stat().st_ino, inode)

    def test_an_upgrade_swaps_the_binary_and_restarts_once(self):
        mac = self.mac
        self.installed()
        old, held = mac.installed.read_bytes(), mac.installed.open("rb")
        self.addCleanup(held.close)
        mac.build("1.1.0")
        self.ok(mac.install())
        self.assertEqual(mac.calls(), [["kickstart", "-k", f"gui/501/{AGENT}"]])
        self.assertIn(b"1.1.0", mac.installed.read_bytes())
        # The running file was not written to; it exists under another name.
        self.assertEqual(held.read(), old)
        self.assertEqual((mac.installed.parent / "mayfly.previous").read_bytes(), old)

    def test_another_data_directory_loads_the_agent_anew_and_is_kept(self):
        mac = self.mac
        self.installed()
        self.ok(mac.install("--data-dir", "/Volumes/ci/mayfly", "--prefix", str(mac.home / "opt")))
        self.assertEqual([call[0] for call in mac.calls()][:4], ["bootout", "enable", "bootstrap", "bootstrap"])
        self.ok(mac.install())
        self.assertEqual(mac.calls(), [])
        agent = plistlib.loads(mac.plist.read_bytes())
        self.assertEqual(agent["EnvironmentVariables"]["MAYFLY_DATA_DIR"], "/Volumes/ci/mayfly")
        self.assertEqual(agent["ProgramArguments"][0], str(mac.home / "opt/bin/mayfly"))

    def test_a_service_that_is_down_is_started_again(self):
        self.installed()
        state = self.mac.read_state()
        state["loaded"][AGENT]["pid"] = None
        self.mac.write_state(loaded=state["loaded"])
        self.ok(self.mac.install())
        self.assertEqual(self.mac.calls(), [["kickstart", "-k", f"gui/501/{AGENT}"]])

    def test_whatever_is_missing_is_said_and_nothing_is_changed(self):
        mac = self.mac
        cases = {
            "this is not macOS": lambda: mac.says("uname", "echo Linux"),
            "without sudo": lambda: mac.says("id", "echo 0"),
            "no Apple chip": lambda: mac.says("sysctl", "exit 1"),
            "this is 12.7.6": lambda: mac.says("sw_vers", "echo 12.7.6"),
            "expected a version of macOS, found: Mac OS": lambda: mac.says("sw_vers", "echo Mac OS X 26"),
            "there is neither tart nor macosvm: brew install": lambda: (mac.bin / "tart").unlink(),
            "tart 2.32 or later is needed": lambda: mac.says("tart", "echo 2.31.9"),
            "is 1.99.0: brew upgrade": lambda: mac.says("tart", "echo 1.99.0"),
            "--version, found: zsh: killed": lambda: mac.says("tart", "echo zsh: killed"),
            "found: no version: dyld": lambda: mac.says("tart", "echo dyld; exit 6"),
            "nobody is logged in at the screen": lambda: mac.write_state(session=False),
            "does not run": lambda: (mac.dir / "broken").touch(),
            "unknown key servr": lambda: (mac.dir / "refused").touch(),
            "expected a version of mayfly": lambda: mac.says("../mayfly", "echo hello"),
            "build it with make build": lambda: mac.binary.unlink(),
            "another service answers at": lambda: setattr(mac, "other_service", True),
            "is not a directory in which this user may write": lambda: (mac.home / "Library").write_text("a file"),
        }
        for text, spoil in cases.items():
            with self.subTest(text):
                self.mac = mac = Mac(self.shell)
                self.addCleanup(mac.close)
                spoil()
                before = mac.tree()
                self.refused(mac.install(), text)
                self.assertEqual(mac.tree(), before)
                self.assertEqual(mac.calls(), [])

    def test_several_faults_are_told_at_once(self):
        self.mac.says("sw_vers", "echo 11.0")
        self.mac.says("tart", "echo 2.0.0")
        ran = self.mac.install()
        self.refused(ran, "macOS 13 or later")
        self.refused(ran, "tart 2.32 or later")
        self.refused(ran, "nothing was changed")

    def test_usable_versions_of_tart(self):
        for version in ("2.32.1", "2.33.0", "2.100", "3.0.0", "SNAPSHOT"):
            with self.subTest(version):
                self.mac.says("tart", f"echo {version}")
                self.ok(self.mac.install())

    def test_macosvm_without_tart(self):
        mac = self.mac
        (mac.bin / "tart").unlink()
        mac.says("macosvm", "exit 1")
        self.ok(mac.install())
        environment = plistlib.loads(mac.plist.read_bytes())["EnvironmentVariables"]
        self.assertTrue(environment["PATH"].startswith(f"{mac.bin}:"), environment)

    def test_a_rehearsal_of_everything(self):
        mac = self.mac
        before = mac.tree()
        ran = self.ok(mac.install("--dry-run"))
        self.assertIn("would run: launchctl bootstrap gui/501", ran.stdout)
        self.assertIn(f"would write: {mac.plist}", ran.stdout)
        self.assertEqual((mac.tree(), mac.calls()), (before, []))
        self.installed()
        (mac.dir / "vms").write_text("an-id\n")
        before = mac.tree()
        ran = self.ok(mac.uninstall("-n", "--force"))
        self.assertIn("vm delete --force", ran.stdout)
        self.assertIn(f"would run: launchctl bootout gui/501/{AGENT}", ran.stdout)
        self.assertEqual((mac.tree(), mac.calls()), (before, []))
        self.assertFalse((mac.dir / "deleted").exists())

    def test_a_new_version_that_does_not_come_up(self):
        mac = self.mac
        self.installed()
        (mac.home / "Library/Logs/mayfly/mayfly.log").write_text("mayfly: cannot listen on 127.0.0.1:8470\n")
        mac.build("2.0.0")
        mac.write_state(crashes=True)
        ran = mac.install()
        self.refused(ran, "does not answer")
        self.assertIn("cannot listen on 127.0.0.1:8470", ran.stderr)
        self.assertIn("to restore the previous version: mv -f", ran.stderr)

    def test_doctor_is_asked_when_there_is_one(self):
        (self.mac.dir / "doctor").touch()
        ran = self.ok(self.mac.install())
        self.assertEqual((self.mac.dir / "doctor").read_text(), f"doctor {self.mac.home}/.mayfly\n")
        self.assertIn("resolve the findings of doctor", ran.stderr)

    def with_data(self):
        data = self.mac.home / ".mayfly"
        data.mkdir()
        (data / "mayfly.db").write_text("records")
        return data

    def test_uninstalling_keeps_the_data(self):
        mac = self.mac
        self.installed()
        data = self.with_data()
        (mac.home / "Library/LaunchAgents/com.example.other.plist").write_text("not ours")
        self.ok(mac.uninstall())
        self.assertEqual(mac.read_state()["loaded"], {})
        left = {name for name, content in mac.tree().items() if content is not None}
        self.assertEqual(left, {".mayfly/mayfly.db", "Library/LaunchAgents/com.example.other.plist"})
        self.assertTrue((data / "mayfly.db").exists())
        # Repeated: there is nothing to do, which is no error.
        self.ok(mac.uninstall())
        self.ok(mac.install())
        self.ok(mac.uninstall("--purge"))
        left = {name for name, content in mac.tree().items() if content is not None}
        self.assertEqual(left, {"Library/LaunchAgents/com.example.other.plist"})
        self.ok(mac.uninstall("--purge"))

    def test_vms_stop_an_uninstallation(self):
        mac = self.mac
        self.installed()
        before = mac.tree()
        (mac.dir / "vms").write_text("id-1\nid-2\n")
        self.refused(mac.uninstall(), "these vms are live or queued")
        # A service that does not answer may have vms.
        (mac.dir / "no-token").touch()
        self.refused(mac.uninstall("--force"), "does not list its vms")
        self.assertEqual((mac.tree(), mac.calls()), (before, []))
        (mac.dir / "no-token").unlink()
        self.ok(mac.uninstall("--force"))
        deleted = (mac.dir / "deleted").read_text().splitlines()
        self.assertEqual([line.split()[-1] for line in deleted], ["id-1", "id-2"])
        self.assertEqual(mac.read_state()["loaded"], {})

    def test_vms_of_a_service_that_is_down(self):
        mac = self.mac
        self.installed()
        data = self.with_data()
        state = mac.read_state()
        state["loaded"][AGENT]["pid"] = None
        mac.write_state(loaded=state["loaded"])
        (mac.dir / "ps").write_text(f"/opt/homebrew/bin/tart run {VM} --no-graphics\ntart run somebody-elses\n")
        before = mac.tree()
        ran = mac.uninstall()
        self.refused(ran, VM)
        self.assertNotIn("somebody-elses", ran.stderr)
        self.assertEqual((mac.tree(), mac.calls()), (before, []))
        ran = mac.uninstall("--force", "--purge")
        self.refused(ran, "is not removed, because running vms")
        self.assertTrue((data / "mayfly.db").exists())
        self.assertFalse(mac.installed.exists())
        # Processes cannot be listed: nothing is removed.
        mac.says("ps", "exit 1")
        self.refused(mac.uninstall("--purge"), "cannot list processes")
        self.assertTrue((data / "mayfly.db").exists())

    def test_a_purge_removes_nothing_that_is_not_mayflys(self):
        mac = self.mac
        self.installed()
        data = mac.home / ".mayfly"
        data.mkdir()
        before = mac.tree()
        self.refused(mac.uninstall("--purge"), "holds no mayfly.db")
        (data / "mayfly.db").write_text("records")
        for name in (VM, "xcode"):
            (data / "tart/vms" / name).mkdir(parents=True)
            (data / "tart/vms" / name / "config.json").write_text("{}")
        ran = mac.uninstall("--purge")
        self.refused(ran, "VMs that are not Mayfly's")
        self.assertNotIn(VM, ran.stderr)
        for directory in ("/", str(mac.home), f"{mac.home}/.mayfly/.."):
            self.refused(mac.uninstall("--purge", "--data-dir", directory), "is not removed")
        self.assertEqual(mac.calls(), [])
        self.assertLessEqual(before.items(), mac.tree().items())
        shutil.rmtree(data / "tart/vms/xcode")
        self.ok(mac.uninstall("--purge"))
        self.assertFalse(data.exists())

    def test_logs_are_kept_small(self):
        mac = self.mac
        logs = mac.dir / "logs"
        logs.mkdir()
        log = logs / "mayfly.log"
        environment = {"PATH": str(mac.bin), "LC_ALL": "C"}
        # Like launchd: open while the service runs, and always appending.
        with log.open("ab", buffering=0) as service:
            for turn in range(5):
                service.write(b"%d" % turn * 1000 + b"\n")
                subprocess.run([*mac.shell, str(DEPLOY / "rotate-logs.sh"), str(logs), "500", "3"], env=environment, check=True)
                self.assertEqual(log.stat().st_size, 0)
            service.write(b"small\n")
            subprocess.run([*mac.shell, str(DEPLOY / "rotate-logs.sh"), str(logs), "500", "3"], env=environment, check=True)
        self.assertEqual(log.read_bytes(), b"small\n")
        self.assertEqual(sorted(p.name for p in logs.iterdir()), ["mayfly.log"] + [f"mayfly.log.{n}.gz" for n in (1, 2, 3)])
        read = subprocess.run(["gzip", "-dc", logs / "mayfly.log.1.gz"], capture_output=True, check=True).stdout
        self.assertEqual(read, b"4" * 1000 + b"\n")
        self.assertEqual(stat.S_IMODE((logs / "mayfly.log.1.gz").stat().st_mode), 0o600)

    def test_wrong_use(self):
        for script in ("install.sh", "uninstall.sh"):
            self.assertEqual(self.mac.run(script, "--frobnicate").returncode, 2)
            self.assertEqual(self.mac.run(script, "--help").returncode, 0)
        self.assertEqual(self.mac.calls(), [])


class Dash(Cases, unittest.TestCase):
    shell = [shutil.which("dash") or "dash"]


class Bash(Cases, unittest.TestCase):
    shell = [shutil.which("bash") or "bash", "--posix"]


if __name__ == "__main__":
    unittest.main()
