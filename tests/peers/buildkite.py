#!/usr/bin/env python3
"""Runs jobs of Buildkite with its real agent in real guests, through a source of the kind `buildkite`.

    BUILDKITE_AGENT=/path/buildkite-agent buildkite.py [--jobs 6] [--slots 2] [--seed 1]

The agent is not part of this project. Build it elsewhere, static (CGO_ENABLED=0), and name it. Buildkite itself is simulated by
tests/doubles/buildkite, behind TLS.

Each job has a fate: it succeeds, fails, is canceled while it runs, loses its guest before or after its agent has taken it, or
runs while the service is killed and started again. Each has to end as Buildkite and its command say, in a guest of its own, and
no job may begin twice. At the end no vm, guest, agent or process may be left. The tokens of the queue and of the jobs may be in
no argument or environment of a program of this machine, in no file of the service, and in no argument, environment or file that
a job can read. Without the program, it says NOT CHECKED and exits with 0.

All runs in a network namespace in which the simulated Buildkite has an address that the service and the guests reach.
"""

import argparse
import collections
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from buildkite_double import QUEUE, BuildkiteDouble
from host_watch import SecretWatch, files_with, processes_of
from peer import say, wait
from service import ROOT, MayflyWithGuests

ADDRESS = "10.77.0.2"
BOOT_SECONDS = 240
# An agent asks for the state of its job every ten seconds at the latest.
LOST_SECONDS = 60
FATES = ["succeeds", "fails", "canceled", "guest_killed", "guest_killed_early", "service_killed"]
# How tokens begin: of the queue, and of a job. Both have to be kept from jobs and from this machine.
SECRETS = ("bkct_", "bkjat_")

# What a template may have of an earlier use: settings with which the agent would not start for one job, and a token of its own.
AGENT_SETTINGS = """\
token="xxx"
name="%hostname-%spawn"
tags="queue=other,os=linux"
queue="other"
spawn=4
spawn-with-priority=true
reflect-exit-status=true
build-path="/nonexistent"
"""

# The names of the tokens are put together, so that the command itself is not found. /tmp/control has to be found.
COMMAND = r"""
echo "begin $(cat /proc/sys/kernel/random/boot_id)"
echo "as $(id -un)"
a=bkc b=bkja
echo "${b}t_control" >/tmp/control
for f in /proc/[0-9]*/cmdline /proc/self/environ; do
    if grep -q -s -e "${a}t_" -e "${b}t_" "$f"; then echo "found in $f: $(tr '\0' ' ' <"$f" | cut -c 1-60)"; fi
done
find /etc /home /opt /root /run /tmp /usr/local /var -type f -exec grep -l -s -e "${a}t_" -e "${b}t_" {} + 2>/dev/null |
    sed 's/^/found in /'
echo looked
sleep @SECONDS@
echo end
exit @CODE@
"""


class Mayfly(MayflyWithGuests):
    def __init__(self, program, directory, slots, agent, buildkite):
        self.buildkite = buildkite
        settings = directory / "buildkite-agent.cfg"
        settings.write_text(AGENT_SETTINGS)
        super().__init__(program, directory, slots, {
            "/usr/bin/buildkite-agent": agent, "/usr/bin/buildkite-agent.cfg": settings})

    def prepare(self):
        super().prepare()
        data = self.directory / "data"
        data.mkdir(mode=0o700)
        token = data / "kite.token"
        token.touch(mode=0o600)
        token.write_text(self.buildkite.tell("tokens")["token"] + "\n")
        (data / "mayfly.toml").write_text(f"""\
[sources.kite]
kind = "buildkite"
url = "{self.buildkite.url}"
ca_file = "{self.buildkite.authority}"
organization = "acme"
queue = "{QUEUE}"
stack = "peer"
token_file = "{token}"
poll_seconds = 2

[pools.linux]
job_source = "kite"
template = "micro"
scope = "acme"
labels = ["queue={QUEUE}"]
max_vms = {self.slots}

[network]
ca_bundle_file = "{self.buildkite.authority}"
""")

    def settings(self):
        return {key: value for key, value in super().settings().items() if not key.endswith("__ISOLATED")}

    def job(self, id):
        found = [job for job in self.api("GET", "/jobs?source=kite&limit=200")["items"] if job["id"] == id]
        return found[0] if found else None

    def state_of(self, id):
        """The state of the vm that was made for this job."""
        job = self.job(id)
        return job and job["made_vm_id"] and self.api("GET", f"/vms/{job['made_vm_id']}")["state"]

    def guest_of(self, id):
        """The pid of the hypervisor of the vm that was made for this job."""
        job = self.job(id)
        for path in (self.directory / "data/instances").glob(f"mayfly-{job and job['made_vm_id']}*/qemu.pid"):
            try:
                return int(path.read_text())
            except (OSError, ValueError):
                continue
        return None


class Watch(SecretWatch):
    """Leaves out the processes of the machine's own namespace: other tests may run there, with tokens of their own."""

    def __init__(self, secret, outside):
        super().__init__(secret, lambda *_: False)
        self.outside = outside

    def look(self, path):
        if os.readlink(f"{path}/ns/net") != self.outside:
            super().look(path)


class Job:
    def __init__(self, buildkite, fate, dice):
        self.fate, self.buildkite, self.struck = fate, buildkite, False
        self.code = dice.choice([1, 3, 77, 255]) if fate == "fails" else 0
        seconds = {"canceled": 900, "guest_killed": 900, "service_killed": 30}.get(fate, dice.randint(1, 5))
        command = COMMAND.replace("@SECONDS@", str(seconds)).replace("@CODE@", str(self.code))
        # The guests have no Git.
        self.id = buildkite.job(command, {"BUILDKITE_SKIP_CHECKOUT": "true"})

    def boots(self):
        return re.findall(r"^begin (\S+)$", self.buildkite.log(self.id), re.MULTILINE)

    def begun(self):
        return "\nlooked\n" in self.buildkite.log(self.id)


class Scene:
    def __init__(self, options, directory):
        self.options, self.directory = options, directory
        self.buildkite = self.mayfly = None
        self.watches = [Watch(secret, options.outside) for secret in SECRETS]
        try:
            self.buildkite = BuildkiteDouble(options.double, directory, ADDRESS)
            self.buildkite.tell("knobs", {"lost_seconds": LOST_SECONDS})
            self.mayfly = Mayfly(options.mayfly, directory, options.slots, options.agent, self.buildkite)
            self.token = directory / "data/kite.token"
            for watch in self.watches:
                watch.start()
            self.prove_the_watches()
        except BaseException:
            self.end()
            raise

    def prove_the_watches(self):
        """They find a token in arguments, and so does the search in files."""
        for watch in self.watches:
            program = [sys.executable, "-c", "import sys; sys.stdin.read()", watch.secret.decode() + "control"]
            with subprocess.Popen(program, stdin=subprocess.PIPE):
                wait("a token in arguments is found", 20, lambda: watch.found, every=0.1)
            watch.found.clear()
        if files_with(SECRETS[0], self.directory / "data") != [str(self.token)]:
            raise AssertionError("the token of the queue is not in its file, or in another one as well")

    def end(self):
        for watch in self.watches:
            if watch.is_alive():
                watch.stop()
        if self.mayfly:
            self.mayfly.end()
        if self.buildkite:
            self.buildkite.end()

    def strike(self, job, state):
        """Does to a job what its fate is, once it has got there."""
        if job.struck:
            return
        if job.fate == "guest_killed_early" and state["state"] == "reserved":
            if self.mayfly.state_of(job.id) in ("booting", "configuring") and (pid := self.mayfly.guest_of(job.id)):
                os.kill(pid, 9)
                job.struck = True
        elif job.fate in ("canceled", "guest_killed", "service_killed") and state["state"] == "running" and job.begun():
            job.struck = True
            if job.fate == "canceled":
                self.buildkite.tell("cancel", {"job": job.id})
            elif job.fate == "guest_killed":
                os.kill(self.mayfly.guest_of(job.id), 9)
            else:
                self.mayfly.kill()
                time.sleep(3)
                self.mayfly.start()
        if job.struck:
            say(f"job {job.id} ({job.fate}): struck")

    def run(self):
        dice = random.Random(self.options.seed)
        number = max(self.options.jobs, len(FATES))
        fates = FATES + dice.choices(FATES, k=number - len(FATES))
        jobs = [Job(self.buildkite, fate, dice) for fate in fates]
        told, end, look_at = set(), time.monotonic() + BOOT_SECONDS * (number + 1), 0
        while len(told) < number:
            states = self.buildkite.jobs()
            for job in jobs:
                state = states[job.id]
                if state["end"] is None and state["state"] not in ("canceled", "expired"):
                    self.strike(job, state)
                elif job.id not in told:
                    told.add(job.id)
                    say(f"job {job.id} ({job.fate}): {state['state']} {state['end']}, {len(told)} of {number}")
            if time.monotonic() > end:
                raise AssertionError(f"not all jobs ended: {states}")
            if time.monotonic() > look_at:
                self.look_for_tokens()
                look_at = time.monotonic() + 15
            time.sleep(0.5)
        wait("the service knows that all jobs are over", 60,
             lambda: all(self.mayfly.job(job.id)["status"] == "completed" for job in jobs))
        wait("no vm is left", 180, lambda: not self.mayfly.live() and not self.mayfly.hypervisor() and not self.processes())
        self.look_for_tokens()
        self.judge(jobs)

    def look_for_tokens(self):
        found = files_with("bkjat_", self.directory / "data") + files_with("bkct_", self.directory / "data")
        found = [path for path in found if path != str(self.token)]
        for watch in self.watches:
            found += watch.found
        if found:
            raise AssertionError(f"a token is in {found}")

    def processes(self):
        return processes_of(self.directory, {self.mayfly.process.pid})

    def judge(self, jobs):
        states, boots, vms = self.buildkite.jobs(), collections.Counter(), set()
        ends = {"canceled": ("canceled", "agent"), "guest_killed": ("finished", "buildkite")}
        for job in jobs:
            state, log, known = states[job.id], self.buildkite.log(job.id), self.mayfly.job(job.id)
            vm = self.mayfly.api("GET", f"/vms/{known['vm_id'] or known['made_vm_id']}")
            say(f"job {job.id} ({job.fate}): vm {vm['name']}, attempt {vm['attempt']}, {known['tries']} tried; {vm['outcome']}")
            found = (state["state"], state["end"]["by"])
            problems = [f"ended as {found}"] if found != ends.get(job.fate, ("finished", "agent")) else []
            if state["starts"] != 1 or len(job.boots()) != 1:
                problems.append(f"begun {state['starts']} times, in {job.boots()}")
            if job.fate not in ends and (state["end"]["exit_status"] != job.code or "\nend\n" not in log):
                problems.append("not as its command said")
            if job.fate == "guest_killed_early" and (vm["attempt"], known["tries"]) == (1, 1):
                problems.append("its first guest was not lost")
            if job.fate == "canceled" and state["end"]["signal_reason"] != "cancel":
                problems.append("canceled without the reason")
            if re.findall(r"^found in (.*)$", log, re.MULTILINE) != ["/tmp/control"]:
                problems.append("it can read a token")
            if "as runner\n" not in log:
                problems.append("not as the user of the template")
            if problems:
                raise AssertionError(f"job {job.id} ({job.fate}): {'; '.join(problems)}\n{state}\n{log}")
            boots.update(job.boots())
            vms.add(vm["id"])
            for source in ("boot", "job"):
                if any(secret in self.mayfly.log(vm["id"], source) for secret in SECRETS):
                    raise AssertionError(f"a token is in the log of {vm['name']}")
        if len(vms) != len(jobs) or len(boots) != len(jobs):
            raise AssertionError(f"{len(jobs)} jobs had {len(vms)} vms and {len(boots)} guests")
        if not any("starts" in note for state in states.values() for note in state["notifications"]):
            raise AssertionError("no page of a job said what it waited for")
        agents = self.buildkite.tell("state")["agents"]
        left = [agent["name"] for agent in agents if not agent["gone"]]
        versions = {agent["version"] for agent in agents}
        if left or len(agents) != len(jobs) or len(versions) != 1:
            raise AssertionError(f"{len(agents)} agents {versions}, left: {left}")
        say(f"agent {versions.pop()}: {len(jobs)} jobs, each begun once and in a guest of its own; "
            "0 vms, guests, agents, processes left")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mayfly", default=str(ROOT / "target/debug/mayfly"), type=os.path.realpath)
    parser.add_argument("--double", default=str(ROOT / "target/debug/examples/buildkite-double"), type=os.path.realpath)
    parser.add_argument("--agent", default=os.environ.get("BUILDKITE_AGENT"), type=os.path.realpath)
    parser.add_argument("--jobs", default=len(FATES), type=int, help=f"at least {len(FATES)}: one of each fate")
    parser.add_argument("--slots", default=2, type=int)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--outside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.agent:
        print("NOT CHECKED: BUILDKITE_AGENT not set")
        return 0
    if not options.outside:
        how = ["--net"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net"]
        os.execvp("unshare", ["unshare", *how, sys.executable, "-B", __file__, *sys.argv[1:],
                              "--outside", os.readlink("/proc/self/ns/net")])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
    with tempfile.TemporaryDirectory(prefix="kite-", dir="/tmp") as directory:
        scene = None
        try:
            scene = Scene(options, Path(directory))
            scene.run()
        except AssertionError as error:
            say("FAILED:", error)
            if (log := Path(directory, "mayfly.log")).exists():
                Path("/tmp/failed-buildkite.log").write_bytes(log.read_bytes())
            if scene:
                for vm in scene.mayfly.api("GET", "/vms?limit=20&state=deleted")["items"] + scene.mayfly.live():
                    say(vm["name"], vm["state"], vm["outcome"], scene.mayfly.log(vm["id"], "job")[-1500:])
            return 1
        finally:
            if scene:
                scene.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
