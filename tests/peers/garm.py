#!/usr/bin/env python3
"""Runs a real GARM end to end: it loads this program as its provider, and asks a real `mayfly serve`.

GARM is not part of this project. Build it elsewhere (`go build ./cmd/garm` in its repository) and name it:

    GARM=/path/to/garm tests/peers/garm.py [--version v0.1.1] [--rounds 100] [SCENARIO ...]

GitHub is simulated (`github_for_garm.py`). The hypervisor is the double of `tart` with guests that do nothing, so what is counted
at the end are the VMs that the hypervisor has, not the records of the service. The scenario `real_guest` has QEMU and a guest in
which a shell script is GitHub's runner. Without GARM, it says NOT CHECKED and exits with 0.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from garm_server import Garm
from github_for_garm import GitHub
from peer import say, wait
from service import ROOT, MayflyOnMac, MayflyWithGuests

# GitHub's runner: it is online, does what GitHub has for it, and ends. GitHub answers once the job is over.
RUNNER = """\
#!/bin/sh
name=$(tr -d '\\n' <.runner | sed 's/.*"agentName" *: *"\\([^"]*\\)".*/\\1/')
echo "the runner $name is online"
until [ "$(curl -q -s --max-time 30 -X POST "http://10.0.2.2:PORT/_simulated/online/$name")" = '"done"' ]; do
    sleep 1
done
"""


class Scene:
    def __init__(self, options, directory, guests):
        self.directory = directory
        self.github = GitHub()
        self.options = options
        self.garm = None
        if guests:
            script = directory / "run.sh"
            script.write_text(RUNNER.replace("PORT", self.github.url.rpartition(":")[2]))
            self.mayfly = MayflyWithGuests(options.mayfly, directory, options.slots,
                                           {"/opt/actions-runner/run.sh": script}, "/opt/actions-runner")
        else:
            self.mayfly = MayflyOnMac(options.mayfly, options.tart, directory, options.slots)
        try:
            self.garm = Garm(options.garm, self.mayfly, self.github, directory, options.version)
        except BaseException:
            self.end()
            raise

    def end(self):
        if self.garm and self.garm.process.poll() is None:
            self.garm.kill()
        self.mayfly.end()

    def vms(self):
        """By the name in GARM: the vms that are not deleted and not ending."""
        names = {}
        for vm in self.mayfly.live():
            names.setdefault(vm["labels"].get("garm.name"), []).append(vm)
        return names

    def agree(self, seconds=90):
        """Waits until GARM's instances, Mayfly's vms and the hypervisor's VMs are the same, each once, and no provider is left
        that could still create another one."""
        last = {}

        def compare():
            instances = self.garm.instances()
            if any(instance["status"] != "running" for instance in instances.values()):
                return False
            vms = self.vms()
            doubled = [name for name, of_name in vms.items() if len(of_name) > 1]
            held = sorted(vm["id"] for of_name in vms.values() for vm in of_name if vm["state"] != "queued")
            last.update({"garm": sorted(instances), "mayfly": sorted(map(str, vms)), "doubled": doubled,
                         "hypervisor": self.mayfly.hypervisor(), "with a slot": held})
            return not doubled and not self.garm.providers() and sorted(instances) == sorted(vms) and last["hypervisor"] == held

        try:
            wait("GARM, Mayfly and the hypervisor agree", seconds, compare, every=1)
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(last, indent=1)}") from error
        return last

    def empty(self, seconds=120):
        """Nothing is left, as the hypervisor sees it, and no provider is left that could still create anything."""
        wait("nothing is left", seconds,
             lambda: not self.garm.instances() and not self.garm.providers() and not self.vms()
             and not self.mayfly.hypervisor(), every=1)


def pool(scene):
    """Three idle runners; one is deleted and replaced; the pool is closed and all go."""
    garm = scene.garm
    number = garm.new_pool(3, 5)
    wait("three runners", 90, lambda: len(garm.running()) == 3)
    say("agree:", scene.agree())
    first = garm.running()[0]
    garm.remove(first, force=False)
    wait("the replacement", 90, lambda: first not in garm.instances() and len(garm.running()) == 3)
    say("replaced:", first, "->", scene.agree()["garm"])
    close_pool(scene, number)


def close_pool(scene, number):
    garm = scene.garm
    path = f"/repositories/{garm.repository}/pools/{number}"
    garm.call("PUT", path, {"enabled": False, "min_idle_runners": 0})
    close(scene)
    garm.call("DELETE", path)
    say("the pool is closed, and nothing is left")


def close(scene):
    """Removes all instances, and waits until nothing is left."""
    garm = scene.garm
    deadline = time.monotonic() + 180
    while garm.instances():
        for name, instance in garm.instances().items():
            if instance["status"] in ("running", "error"):
                try:
                    garm.remove(name, force=False)
                except AssertionError:
                    pass
        if time.monotonic() > deadline:
            raise AssertionError(f"GARM keeps instances: {garm.instances()}")
        time.sleep(2)
    scene.empty()


def scale_set(scene):
    """Idle runners of a scale set; a VM that GARM does not know goes with the next list (v0.1.0)."""
    garm = scene.garm
    number = garm.new_scale_set("my set/x", 2, 4)
    wait("two runners", 90, lambda: len(garm.running()) == 2)
    say("agree:", scene.agree())
    pools = {vm["labels"]["garm.pool"] for of_name in scene.vms().values() for vm in of_name}
    say("pool ids of the vms:", pools)
    first = garm.running()[0]
    garm.remove(first, force=False)
    wait("the replacement", 120, lambda: first not in garm.instances() and len(garm.running()) == 2)
    say("replaced:", scene.agree()["garm"])
    # A vm with the labels of this scale set that GARM does not know.
    known = next(vm for of_name in scene.vms().values() for vm in of_name)
    labels = {**known["labels"], "garm.name": "garm-stray", "garm.creation": "stray"}
    scene.mayfly.api("POST", "/vms", {"template": "micro", "runner": {"kind": "none"}, "labels": labels})
    if scene.options.version == "v0.1.0":
        wait("the stray vm is removed", 360, lambda: "garm-stray" not in scene.vms(), every=1)
        say("GARM removed the vm that it does not know")
    scale_set_job(scene, number)
    close_scale_set(scene, number)


def scale_set_job(scene, number):
    """A job is assigned to the scale set, starts on one of its runners and ends."""
    garm, github = scene.garm, scene.github
    before = set(garm.running())
    job = {"jobId": "job-1", "runnerRequestId": 7, "ownerName": "acme", "repositoryName": "app", "jobDisplayName": "build"}
    at_github = next(iter(github.scale_sets))
    github.assigned[at_github] = 1
    github.send(at_github, "JobAssigned", [job])
    wait("one more runner", 90, lambda: len(garm.running()) == 3)
    runner = sorted(before)[0]
    github.send(at_github, "JobStarted", [{**job, "runnerName": runner, "runnerId": github.id_of(runner)}])
    wait("the runner is active", 60, lambda: garm.instances()[runner]["runner_status"] == "active")
    github.assigned[at_github] = 0
    github.send(at_github, "JobCompleted", [{**job, "runnerName": runner, "runnerId": github.id_of(runner),
                                             "result": "succeeded"}])
    wait("the runner of the job is removed", 120, lambda: runner not in garm.instances() and len(garm.running()) == 2)
    say("a job of the scale set:", scene.agree()["garm"])


def close_scale_set(scene, number):
    garm = scene.garm
    garm.call("PUT", f"/scalesets/{number}", {"enabled": False, "min_idle_runners": 0})
    close(scene)
    garm.call("DELETE", f"/scalesets/{number}")
    say("the scale set is closed, and nothing is left")


def webhook_job(scene):
    """A job that a webhook announces gets a runner; it goes when the job is over."""
    garm = scene.garm
    number = garm.new_pool(0, 2)
    garm.deliver("queued", 11)
    wait("a runner for the job", 90, lambda: len(garm.running()) == 1)
    runner = garm.running()[0]
    garm.deliver("in_progress", 11, runner)
    wait("the runner is active", 60, lambda: garm.instances()[runner]["runner_status"] == "active")
    garm.deliver("completed", 11, runner)
    wait("the runner is removed", 120, lambda: runner not in garm.instances())
    say("a job that a webhook announced:", runner)
    close_pool(scene, number)


def real_guest(scene):
    """A job that a webhook announces, with a guest that fetches its registration from GARM and ends after the job."""
    garm, github = scene.garm, scene.github
    number = garm.new_pool(0, 2)
    garm.deliver("queued", 21)
    wait("the runner is online", 300, lambda: any(r["status"] == "online" for r in list(github.runners.values())))
    runner = garm.running()[0]
    wait("GARM has the report that it is idle", 60, lambda: garm.instances()[runner]["runner_status"] == "idle")
    said = [update["message"] for update in garm.call("GET", f"/instances/{runner}")["status_messages"]]
    say("the guest reported:", said)
    vm = scene.vms()[runner][0]["id"]
    garm.deliver("in_progress", 21, runner)
    wait("the runner is active", 60, lambda: garm.instances()[runner]["runner_status"] == "active")
    github.finish(runner)
    ended = wait("the vm ends with its runner", 120, lambda: ended_vm(scene, vm))
    assert (ended["outcome"]["result"], ended["end_signal"]) == ("completed", "runner_finished"), ended
    garm.deliver("completed", 21, runner)
    wait("the runner is removed", 120, lambda: runner not in garm.instances())
    log = scene.mayfly.log(vm, "boot") + scene.mayfly.log(vm, "job")
    assert "instance_token" not in log and "registration-token" not in log, log
    say("the vm ended:", ended["outcome"]["result"], ended["end_signal"])
    close_pool(scene, number)


def ended_vm(scene, vm):
    now = scene.mayfly.api("GET", f"/vms/{vm}")
    return now if now["state"] == "deleted" else None


def killed_provider(scene):
    """Mayfly stands still, the provider of a creation is killed, GARM tries again."""
    garm = scene.garm
    scene.mayfly.stall(True)
    number = garm.new_pool(1, 1)
    wait("a creation is under way", 60, garm.providers, every=0.05)
    time.sleep(1)
    for pid in garm.providers():
        os.kill(pid, signal.SIGKILL)
    say("the provider was killed while Mayfly stood still")
    time.sleep(3)
    scene.mayfly.stall(False)
    wait("one runner", 120, lambda: len(garm.running()) == 1)
    say("agree:", scene.agree())
    close_pool(scene, number)


def killed_garm(scene):
    """Mayfly stands still, GARM is killed in the middle of a creation and comes back; its provider lives on."""
    garm = scene.garm
    scene.mayfly.stall(True)
    number = garm.new_pool(1, 1)
    wait("a creation is under way", 60, garm.providers, every=0.05)
    time.sleep(2)
    orphans = garm.providers()
    garm.kill()
    garm.start()
    garm.login()
    say("GARM was killed and is back; its providers live on:", orphans)
    time.sleep(12)
    scene.mayfly.stall(False)
    wait("one runner", 120, lambda: len(garm.running()) == 1)
    say("agree:", scene.agree(), "records:", len(scene.mayfly.api("GET", "/vms?state=deleted")["items"]))
    close_pool(scene, number)


def restarted_mayfly(scene):
    """Mayfly is killed while runners are created, and comes back after ten seconds."""
    garm = scene.garm
    number = garm.new_pool(3, 3)
    wait("a creation is under way", 60, garm.providers, every=0.05)
    scene.mayfly.kill()
    say("Mayfly was killed")
    time.sleep(10)
    scene.mayfly.start()
    wait("three runners", 120, lambda: len(garm.running()) == 3)
    say("agree:", scene.agree())
    close_pool(scene, number)


def random_kills(scene):
    """Many creations and deletions, while providers, GARM and Mayfly are killed at random."""
    garm, dice = scene.garm, random.Random(scene.options.seed)
    number = garm.new_pool(4, 6)
    created, deleted, kills = set(), 0, {"provider": 0, "garm": 0, "mayfly": 0, "stall": 0}
    while len(created) < scene.options.rounds or deleted < scene.options.rounds:
        time.sleep(dice.uniform(0.2, 1.5))
        what = dice.choices(["delete", "provider", "garm", "mayfly", "stall"], [60, 30, 3, 3, 4])[0]
        try:
            running = garm.running()
            created.update(running)
            if what == "delete" and running:
                # Not by force: GARM would forget a vm whose provider was killed before it asked for the deletion.
                garm.remove(dice.choice(running), force=False)
                deleted += 1
            elif what == "provider":
                for pid in garm.providers()[:1]:
                    os.kill(pid, signal.SIGKILL)
                    kills["provider"] += 1
            elif what == "garm":
                kills["garm"] += 1
                garm.kill()
                garm.start()
                garm.login()
            elif what == "mayfly":
                kills["mayfly"] += 1
                scene.mayfly.kill()
                scene.mayfly.start()
            elif what == "stall":
                kills["stall"] += 1
                scene.mayfly.stall(True)
                time.sleep(dice.uniform(1, 5))
                scene.mayfly.stall(False)
        except (AssertionError, ProcessLookupError) as error:
            say("skipped:", str(error)[:200])
        if dice.random() < 0.05:
            say(f"{len(created)} created, {deleted} deleted, kills: {kills}")
    say(f"{len(created)} created, {deleted} deleted, kills: {kills}")
    close_pool(scene, number)
    records = scene.mayfly.api("GET", "/vms?state=deleted&limit=200")["items"]
    say(f"{len(records)} records of vms (one page), 0 vms, 0 VMs of the hypervisor: none doubled, none leaked")


SCENARIOS = [pool, scale_set, webhook_job, real_guest, killed_provider, killed_garm, restarted_mayfly, random_kills]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--garm", default=os.environ.get("GARM"), type=os.path.abspath)
    parser.add_argument("--mayfly", default=str(ROOT / "target/debug/mayfly"), type=os.path.abspath)
    parser.add_argument("--tart", default=str(ROOT / "target/debug/examples/tart-double"), type=os.path.abspath)
    parser.add_argument("--version", default="v0.1.0", choices=["v0.1.0", "v0.1.1"])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(s.__name__ for s in SCENARIOS))
    options = parser.parse_args()
    if not options.garm:
        print("NOT CHECKED: no GARM (GARM=/path/to/garm)")
        return 0
    chosen = [s for s in SCENARIOS if not options.scenarios or s.__name__ in options.scenarios]
    failed = []
    for scenario in chosen:
        say(f"== {scenario.__name__} (interface {options.version}, seed {options.seed})")
        with tempfile.TemporaryDirectory(prefix="garm-", dir="/tmp") as directory:
            scene = None
            try:
                scene = Scene(options, Path(directory), guests=scenario is real_guest)
                scenario(scene)
                say(f"== {scenario.__name__}: passed")
            except AssertionError as error:
                say(f"== {scenario.__name__}: FAILED: {error}")
                failed.append(scenario.__name__)
                for log in ["garm.log", "mayfly.log"]:
                    path = Path(directory) / log
                    if path.exists():
                        target = Path(f"/tmp/{scenario.__name__}-{log}")
                        target.write_bytes(path.read_bytes())
                        say("kept:", target)
            finally:
                if scene:
                    scene.end()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
