#!/usr/bin/env python3
"""Runs a real myshoes end to end: it loads a copy of this program as its plugin, and the plugin asks a real `mayfly serve`.

myshoes is not part of this project. Build it elsewhere (`go build ./cmd/server` in its repository) and name it, and the schema
of its database (`pkg/datastore/mysql/schema.sql`). MariaDB has to be installed.

    MYSHOES=/path/to/server MYSHOES_SCHEMA=/path/to/schema.sql tests/peers/myshoes.py [--rounds 100] [SCENARIO ...]

GitHub is simulated (`github_for_myshoes.py`). The hypervisor is the double of QEMU (`tests/doubles/qemu`), and its guests
are simulated (`simulated_guests.py`), so what is counted at the end are the VMs that the hypervisor has, not the records of the service, against
the list of runners in the database of myshoes. The scenario `real_guest` has QEMU and a guest that runs the setup script of
myshoes, with shell scripts in place of GitHub's runner. myshoes deletes a runner five minutes after its creation at the
earliest, so most scenarios take eight minutes. Without myshoes, it says NOT CHECKED and exits with 0.
"""

import argparse
import glob
import io
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from github_for_myshoes import RUNNER_VERSION, GitHub
from myshoes_server import Database, Myshoes
from peer import free_port, say, wait
from simulated_guests import SimulatedGuests
from service import ROOT, Mayfly, MayflyWithGuests

# What the setup script of myshoes takes from the archive of GitHub's runner. The service of the runner runs under its `node`.
CONFIG = """\
#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
    --token) token=$2 ;;
    --name) name=$2 ;;
    esac
    shift
done
echo "$name" >.runner
[ "$(curl -q -s --max-time 30 -X POST --data "$token" "http://10.0.2.2:PORT/_simulated/register/$name")" = '"registered"' ]
"""
NODE = """\
#!/bin/sh
name=$(cat .runner)
echo "the runner $name is online"
until [ "$(curl -q -s --max-time 30 -X POST "http://10.0.2.2:PORT/_simulated/done/$name")" = '"done"' ]; do
    sleep 1
done
"""


class MayflyForMyshoes(Mayfly):
    """The service with a QEMU that is simulated: its guests do nothing by themselves.

    Guests are seeded, because only these report by themselves that they are configured; others are provisioned by the service.
    """

    def prepare(self):
        self.guest_port = free_port()
        self.guest_url = f"http://127.0.0.1:{self.guest_port}"
        usual = f"qemu-system-{platform.machine()}"
        home = self.directory / "stand-in"
        home.mkdir()
        self.qemu = home / usual
        shutil.copy(ROOT / "tests/doubles/qemu/stand-in.py", self.qemu)
        self.qemu.chmod(0o755)
        (home / "stand-in.json").write_text(json.dumps({
            "version": "QEMU emulator version 7.2.0 (stand-in 1)", "kvm": "hangs", "emulator": usual}))
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.directory / "disk.qcow2", "64M"], check=True)

    def settings(self):
        return {
            "MAYFLY_GUEST__LISTEN": f"127.0.0.1:{self.guest_port}",
            "MAYFLY_DRIVERS__QEMU__BINARY": str(self.qemu),
            "MAYFLY_DRIVERS__QEMU__ACCELERATOR": "kvm",
            "MAYFLY_DRIVERS__QEMU__FIRST_GUEST_SECONDS": "600",
            "MAYFLY_DRIVERS__QEMU__ISOLATED": "false",
            "MAYFLY_SLOTS__COUNT_FOREIGN": "false",
            "MAYFLY_SLOTS__CPUS": "256",
            "MAYFLY_SLOTS__MEMORY_MIB": "65536",
        }

    def template(self):
        return {"os": "linux", "disk": str(self.directory / "disk.qcow2"), "cpus": 1, "memory_mib": 64, "handover": "seed",
                "user": "runner"}

    def running(self):
        """Ids of vms whose hypervisor has begun, from its pid files."""
        found = glob.glob(str(self.directory / "data/instances/mayfly-*/qemu.pid"))
        return [Path(path).parent.name.removeprefix("mayfly-")[:36] for path in found if os.path.getsize(path)]

    hypervisor = MayflyWithGuests.hypervisor
    instances = MayflyWithGuests.instances


def archive_of_runner(directory, github):
    """The archive that the setup script of myshoes finds in the guest, in place of GitHub's runner."""
    port = github.url.rpartition(":")[2]
    path = directory / "runner.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in [("config.sh", CONFIG), ("bin/runsvc.sh", "#!/bin/sh\n"), ("externals/node20/bin/node", NODE)]:
            data = text.replace("PORT", port).encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    return path


class Scene:
    def __init__(self, options, directory, real_guests):
        self.directory, self.options = directory, options
        self.github = GitHub()
        self.database = self.guests = self.myshoes = None
        self.numbers = iter(range(1, 1 << 30))
        if real_guests:
            # The setup script asks for these two, and runs neither.
            present = directory / "present.sh"
            present.write_text("#!/bin/sh\nexit 1\n")
            self.mayfly = MayflyWithGuests(options.mayfly, directory, 2, {
                f"/usr/local/etc/actions-runner-linux-x64-{RUNNER_VERSION}.tar.gz": archive_of_runner(directory, self.github),
                "/usr/local/bin/jq": present, "/usr/local/bin/docker": present}, "/usr/local/etc")
        else:
            self.mayfly = MayflyForMyshoes(options.mayfly, directory, options.slots)
        try:
            if not real_guests:
                self.guests = SimulatedGuests(self.mayfly, self.github)
            token, config = directory / "shoes.token", directory / "shoes.toml"
            token.write_text(self.mayfly.token)
            size = 192 if real_guests else 64
            config.write_text(f'url = "{(self.guests or self.mayfly).url}"\ntoken_file = "{token}"\ntemplate = "micro"\n'
                              f'[resource_types.micro]\ncpus = 1\nmemory_mib = {size}\n')
            self.database = Database(directory / "database", options.schema)
            self.myshoes = Myshoes(options.myshoes, options.mayfly, config, self.database, self.github, directory)
        except BaseException:
            self.end()
            raise

    def end(self):
        if self.guests:
            self.guests.end()
        if self.myshoes:
            if self.myshoes.process.poll() is None:
                self.myshoes.kill()
            for pid in self.myshoes.providers():
                os.kill(pid, signal.SIGKILL)
        if self.database:
            self.database.kill()
        self.mayfly.end()

    def job(self):
        number = next(self.numbers)
        wait("the webhook is accepted", 30, lambda: self.myshoes.deliver(number))

    def vms(self):
        """By the name of the runner: the vms that are not deleted and not ending."""
        names = {}
        for vm in self.mayfly.live():
            names.setdefault(vm["labels"]["myshoes.runner"], []).append(vm)
        return names

    def only(self, what, state=None, seconds=60):
        """The one vm that there is."""
        def one():
            vms = [vm for of_name in self.vms().values() for vm in of_name]
            return vms[0] if len(vms) == 1 and state in (None, vms[0]["state"]) else None
        return wait(what, seconds, one, every=0.1)

    def said(self, vm):
        """The logs of a real guest."""
        return self.mayfly.log(vm["id"], "boot") + self.mayfly.log(vm["id"], "job")

    def agree(self, count, seconds=90):
        """Waits until myshoes has so many runners, and these are the VMs that the hypervisor has, each once."""
        last = {}

        def compare():
            jobs, runners, vms = self.myshoes.jobs(), self.myshoes.runners(), self.vms()
            doubled = [name for name, of_name in vms.items() if len(of_name) > 1]
            last.update({"jobs": sorted(jobs), "myshoes": runners, "doubled": doubled,
                         "mayfly": sorted(vm["id"] for of_name in vms.values() for vm in of_name),
                         "hypervisor": self.mayfly.hypervisor(), "providers": self.myshoes.providers()})
            return (not jobs and not doubled and not last["providers"] and len(runners) == count
                    and sorted(runners.values()) == last["mayfly"] == last["hypervisor"])

        try:
            wait("myshoes, Mayfly and the hypervisor agree", seconds, compare, every=1)
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(last, indent=1)}") from error
        return f"{count} runners of myshoes are the {count} VMs of the hypervisor, no job waits, no plugin is left"

    def empty(self, seconds=600):
        """myshoes deletes all of its runners. Then nothing is left, as the hypervisor sees it."""
        last = {}

        def nothing():
            last.update({"jobs": len(self.myshoes.jobs()), "myshoes": len(self.myshoes.runners()),
                         "vms": len(self.vms()), "hypervisor": len(self.mayfly.hypervisor()),
                         "providers": len(self.myshoes.providers())})
            return not any(last.values())

        try:
            wait("nothing is left", seconds, nothing, every=2)
        except AssertionError as error:
            raise AssertionError(f"{error}: {last}") from error
        # Nothing of the runners' secrets is in what myshoes logs, which contains all that the plugin says.
        log = self.myshoes.log() + (self.directory / "mayfly.log").read_text(errors="replace")
        assert self.github.tokens and not any(token in log for token in self.github.tokens), "a token is in a log"
        say("nothing is left: no job, no runner of myshoes, no vm, no VM of the hypervisor, no plugin")


def lives(scene):
    """A vm that ends with its job, one that hangs after it, and one whose runner never appears."""
    courses, seen = iter(["ends", "hangs", "silent"]), {}

    def choose(name):
        # A name that comes again gets a runner.
        course = "hangs" if name in seen else next(courses)
        seen.setdefault(name, []).append(course)
        return course

    scene.guests.choose = choose
    for _ in range(3):
        scene.job()
    wait("all guests run", 60, lambda: len(seen) == 3)
    wait("two runners", 60, lambda: len(scene.myshoes.runners()) == 2)
    wait("one vm has ended with its job", 60, lambda: len(scene.vms()) == 2)
    silent = next(name for name, courses in seen.items() if courses == ["silent"])
    first = scene.vms()[silent][0]["id"]
    say("one ended with its job, one hangs, one has no runner:", silent)
    wait("it is asked for again", 420, lambda: len(seen[silent]) == 2)
    again = scene.myshoes.runners
    wait("its runner is known", 60, lambda: silent in again())
    second = again()[silent]
    assert second != first, f"the vm {first} was deleted and is here again"
    say("deleted after five minutes, and the same name got a new vm:", first, "->", second)
    scene.empty()


def killed_provider(scene):
    """The plugin of a call is killed while its vm boots, and before its request is served."""
    scene.guests.choose = lambda name: "hangs"
    scene.guests.hold.set()
    scene.job()
    vm = scene.only("a vm boots", "booting")
    for pid in scene.myshoes.providers():
        os.kill(pid, signal.SIGKILL)
    say("the plugin was killed while the vm booted")
    wait("the call is repeated", 60, scene.myshoes.providers, every=0.1)
    time.sleep(2)
    assert scene.only("one vm")["id"] == vm["id"], "a second vm"
    scene.guests.hold.clear()
    say(scene.agree(1))
    scene.mayfly.stall(True)
    scene.job()
    wait("a call is under way", 60, scene.myshoes.providers, every=0.05)
    time.sleep(1)
    for pid in scene.myshoes.providers():
        os.kill(pid, signal.SIGKILL)
    say("the plugin was killed while Mayfly stood still")
    time.sleep(3)
    scene.mayfly.stall(False)
    say(scene.agree(2))
    scene.empty()


def killed_host(scene):
    """myshoes is killed while its plugin waits, boots a vm, and asks a service that stands still."""
    scene.guests.choose = lambda name: "hangs"
    scene.guests.hold.set()
    scene.job()
    vm = scene.only("a vm boots", "booting")
    for sent in [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]:
        wait("a call is under way", 60, scene.myshoes.providers, every=0.05)
        time.sleep(1)
        scene.myshoes.process.send_signal(sent)
        scene.myshoes.process.wait()
        wait("its plugin ends by itself", 10, lambda: not scene.myshoes.providers(), every=0.05)
        scene.myshoes.start()
        say(f"{sent.name}: the plugin ended by itself")
    wait("the call is repeated", 60, scene.myshoes.providers, every=0.1)
    time.sleep(2)
    assert scene.only("one vm")["id"] == vm["id"], "a second vm"
    scene.guests.hold.clear()
    say(scene.agree(1))

    scene.mayfly.stall(True)
    scene.job()
    wait("a call is under way", 60, scene.myshoes.providers, every=0.05)
    time.sleep(2)
    orphans = scene.myshoes.providers()
    scene.myshoes.kill()
    scene.myshoes.start()
    wait("the next call is under way", 60, lambda: set(scene.myshoes.providers()) - set(orphans), every=0.05)
    say("myshoes was killed and is back while Mayfly stood still; plugins:", orphans, "->", scene.myshoes.providers())
    time.sleep(2)
    scene.mayfly.stall(False)
    say(scene.agree(2))
    scene.empty()


def restarted_mayfly(scene):
    """Mayfly is killed while calls are under way, and comes back after ten seconds."""
    scene.guests.choose = lambda name: "hangs"
    for _ in range(3):
        scene.job()
    wait("a call is under way", 60, scene.myshoes.providers, every=0.05)
    scene.mayfly.kill()
    say("Mayfly was killed")
    time.sleep(10)
    scene.mayfly.start()
    say(scene.agree(3, 180))
    scene.empty()


def random_kills(scene):
    """Many creations and deletions, while plugins, myshoes and Mayfly are killed at random."""
    dice, rounds = random.Random(scene.options.seed), scene.options.rounds
    scene.guests.choose = lambda name: "ends" if random.Random(name).random() < 0.2 else "hangs"
    asked, kills = 0, {"provider": 0, "myshoes": 0, "mayfly": 0, "stall": 0}
    calls = 0

    def deleted():
        return int(scene.database.run("SELECT COUNT(*) FROM myshoes.runners_deleted")[0][0])

    begun = time.monotonic()
    while deleted() < rounds:
        if time.monotonic() - begun > scene.options.minutes * 60:
            raise AssertionError(f"{asked} jobs, {deleted()} deleted after {scene.options.minutes} minutes: {kills}")
        time.sleep(dice.uniform(0.2, 1.5))
        what = dice.choices(["job", "provider", "myshoes", "mayfly", "stall"], [60, 30, 1, 2, 4])[0]
        try:
            if what == "job" and asked < rounds:
                scene.job()
                asked += 1
            elif what == "provider":
                for pid in dice.sample(providers := scene.myshoes.providers(), min(1, len(providers))):
                    os.kill(pid, signal.SIGKILL)
                    kills["provider"] += 1
            elif what == "myshoes":
                kills["myshoes"] += 1
                scene.myshoes.kill()
                scene.myshoes.start()
            elif what == "mayfly":
                kills["mayfly"] += 1
                scene.mayfly.kill()
                scene.mayfly.start()
            elif what == "stall":
                kills["stall"] += 1
                scene.mayfly.stall(True)
                time.sleep(dice.uniform(1, 5))
                scene.mayfly.stall(False)
            doubled = [name for name, of_name in scene.vms().items() if len(of_name) > 1]
            assert not doubled, f"doubled: {doubled}"
        except (ProcessLookupError, OSError) as error:
            say("skipped:", str(error)[:200])
        calls += 1
        if calls % 50 == 0:
            say(f"{asked} jobs, {len(scene.myshoes.runners())} runners, {deleted()} deleted, kills: {kills}")
    scene.empty()
    say(f"{asked} jobs, {deleted()} runners deleted by myshoes, kills: {kills}: none doubled, none leaked")


def real_guest(scene):
    """The setup script of myshoes in a real guest, while the plugin, myshoes and Mayfly are killed."""
    scene.job()
    vm = scene.only("a vm boots", "booting", 120)
    for pid in scene.myshoes.providers():
        os.kill(pid, signal.SIGKILL)
    say("the plugin was killed while the guest booted")
    wait("the call is repeated", 60, scene.myshoes.providers, every=0.1)
    name = vm["labels"]["myshoes.runner"]

    def ended():
        now = scene.mayfly.api("GET", f"/vms/{vm['id']}")
        return now if now["state"] == "deleted" else None

    wait("the runner is online", 300, lambda: scene.github.has(name) or ended())
    assert not ended(), scene.said(vm)
    assert scene.only("one vm")["id"] == vm["id"], f"a second vm: {scene.said(vm)}"
    wait("myshoes has the runner", 120, lambda: scene.myshoes.runners().get(name) == vm["id"])
    say("the setup script registered the runner:", name)
    scene.github.change(name, busy=True)
    scene.mayfly.kill()
    scene.myshoes.kill()
    scene.mayfly.start()
    scene.myshoes.start()
    say("Mayfly and myshoes were killed during the job, and are back")
    assert scene.only("the vm lives")["id"] == vm["id"], "another vm"
    scene.github.finish(name)
    end = wait("the vm ends with its runner", 120, ended)
    assert (end["outcome"]["result"], end["end_signal"]) == ("completed", "runner_finished"), end
    said = scene.said(vm)
    assert f"the runner {name} is online" in said, said
    assert not any(token in said for token in scene.github.tokens), "a token is in a log of the vm"
    say("the vm ended:", end["outcome"]["result"], end["end_signal"])
    scene.empty()


SCENARIOS = [lives, killed_provider, killed_host, restarted_mayfly, real_guest, random_kills]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--myshoes", default=os.environ.get("MYSHOES"), type=os.path.abspath)
    parser.add_argument("--schema", default=os.environ.get("MYSHOES_SCHEMA"), type=os.path.abspath)
    parser.add_argument("--mayfly", default=str(ROOT / "target/debug/mayfly"), type=os.path.abspath)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--minutes", type=int, default=60, help="longest time of random_kills")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--slots", type=int, default=60)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(s.__name__ for s in SCENARIOS))
    options = parser.parse_args()
    if not options.myshoes or not options.schema:
        print("NOT CHECKED: no myshoes (MYSHOES=/path/to/server MYSHOES_SCHEMA=/path/to/schema.sql)")
        return 0
    chosen = [s for s in SCENARIOS if not options.scenarios or s.__name__ in options.scenarios]
    if chosen != [real_guest] and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        print("NOT CHECKED: the simulated QEMU needs /dev/kvm")
        return 0
    if not shutil.which("mariadb"):
        print("NOT CHECKED: no MariaDB (apt-get install mariadb-server)")
        return 0
    # A shell ignores it for what it starts in the background, and myshoes would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    failed = []
    for scenario in chosen:
        say(f"== {scenario.__name__} (seed {options.seed})")
        with tempfile.TemporaryDirectory(prefix="shoes-", dir="/tmp") as directory:
            scene = None
            try:
                scene = Scene(options, Path(directory), scenario is real_guest)
                scenario(scene)
                say(f"== {scenario.__name__}: passed")
            except AssertionError as error:
                say(f"== {scenario.__name__}: FAILED: {error}")
                failed.append(scenario.__name__)
                for log in ["myshoes.log", "mayfly.log"]:
                    path = Path(directory) / log
                    if path.exists():
                        target = Path(f"/tmp/{scenario.__name__}-{log}")
                        shutil.copy(path, target)
                        say("kept:", target)
            finally:
                if scene:
                    scene.end()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
