#!/usr/bin/env python3
"""Runs the recipe for GitLab (`run-single`) with a real GitLab Runner in real guests.

    GITLAB_RUNNER=/path/gitlab-runner gitlab_recipe.py

GitLab Runner is not part of this project. Build it elsewhere, static (CGO_ENABLED=0), and name it. GitLab itself is simulated by
gitlab_project.py. Jobs succeed, fail, are canceled before and in their work, and lose their vm; each has to end as GitLab says,
and no vm and no runner may be left. Without the program, it says NOT CHECKED and exits with 0.

All runs in a network namespace in which the simulated GitLab has an address that the passes and the guests reach.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gitlab_jobs import SECRET, Job
from gitlab_project import PROJECT, GitLabProject
from peer import say, wait
from service import ROOT, MayflyWithGuests

ADDRESS = "10.77.0.2"
TAGS = "linux,large"


class RecipeJob(Job):
    def __init__(self, work, tags=("linux",)):
        super().__init__(lambda number, said: [
            f'curl -q -sS --retry 20 --retry-connrefused -o /dev/null -X POST "{said}/begin/$(cat /proc/sys/kernel/random/boot_id)"',
            'echo "in the guest of $(hostname), as $(id -un)"', work], None)
        self.tags = list(tags)


class Scene:
    def __init__(self, options, directory):
        self.directory, self.started = directory, []
        self.gitlab = GitLabProject(ADDRESS, "glpat-simulated-by-a-test")
        self.mayfly = MayflyWithGuests(options.mayfly, directory, 2, {"/usr/bin/gitlab-runner": options.runner})
        (directory / "programs").mkdir()
        (directory / "programs/mayfly").symlink_to(options.mayfly)
        for name, text in {"gitlab.token": self.gitlab.access_token, "mayfly.token": self.mayfly.token}.items():
            (directory / name).write_text(text)
            (directory / name).chmod(0o600)

    def make_pass(self):
        environment = {
            "PATH": f"{self.directory}/programs:{os.environ['PATH']}", "HOME": str(self.directory),
            "MAYFLY_URL": self.mayfly.url, "MAYFLY_TOKEN_FILE": str(self.directory / "mayfly.token"),
            "GITLAB_URL": self.gitlab.url, "GITLAB_TOKEN_FILE": str(self.directory / "gitlab.token"),
            "GITLAB_PROJECT": str(PROJECT), "GITLAB_TAGS": TAGS,
            "RECIPE_NAME": "e2e", "RECIPE_TEMPLATE": "micro", "RECIPE_MAX_VMS": "2"}
        ran = subprocess.run([ROOT / "deploy/recipes/gitlab/pass.sh"], env=environment, capture_output=True, text=True,
                             timeout=120)
        for line in (ran.stdout + ran.stderr).splitlines():
            say(line)
        if ran.returncode != 0:
            raise AssertionError(f"a pass ended with {ran.returncode}")
        self.started += re.findall(r"started (\S+)", ran.stdout)

    def until(self, what, seconds, condition):
        """Passes, until the condition is met."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"waited {seconds} s in vain: {what}")
            self.make_pass()
            time.sleep(2)

    def add(self, *job):
        return self.gitlab.add(RecipeJob(*job))

    def vms(self):
        return {vm["name"]: vm for vm in self.mayfly.api("GET", "/vms?limit=200&state=deleted")["items"]}

    def nothing_left(self):
        return not self.mayfly.live() and not self.mayfly.hypervisor() and not self.gitlab.runners


def expect(job, *end):
    found = (job.state, job.failure, job.exit_code)
    if found[:len(end)] != end or job.taken > 1 or len(job.said["begin"]) > 1:
        raise AssertionError(f"job {job.id}: expected {end}, found {found}, taken {job.taken} times:\n{job.log()[-2000:]}")
    say(f"job {job.id}:", *[part for part in found if part is not None])


def run(scene):
    gitlab = scene.gitlab
    good, bad = scene.add("exit 0"), scene.add("exit 3", ("linux", "large"))
    others = [scene.add("exit 0", ()), scene.add("exit 0", ("windows",))]
    scene.until("two jobs end", 600, lambda: good.over() and bad.over())
    expect(good, "success")
    expect(bad, "failed", "script_failure", 3)
    if "in the guest of" not in good.log() or [job.state for job in others] != ["pending", "pending"]:
        raise AssertionError(f"{good.log()}\n{[job.state for job in others]}")
    scene.until("nothing is left", 180, scene.nothing_left)
    ends = [vm["outcome"]["result"] for vm in scene.vms().values()]
    if len(scene.started) != 2 or ends != ["completed", "completed"]:
        raise AssertionError(f"started {scene.started}, ends {ends}")
    say("one job succeeded, one failed, each in a vm of its own; both vms are", *set(ends))

    canceled = scene.add("sleep 900")
    scene.until("it runs", 300, lambda: canceled.said["begin"])
    gitlab.cancel(canceled)
    scene.until("the vm of the canceled job ends", 300, scene.nothing_left)
    expect(canceled, "canceled")

    lost = scene.add("sleep 900")
    scene.until("it runs", 300, lambda: lost.said["begin"])
    os.kill(scene.mayfly.instances()[0], 9)
    say("killed the guest of job", lost.id)
    scene.until("the pass cancels the job of the lost vm", 180, scene.nothing_left)
    expect(lost, "canceled")

    # Its vm has no job when it is up, and takes the next one.
    early = scene.add("exit 0")
    before = len(scene.started)
    scene.until("a vm for it", 60, lambda: len(scene.started) > before)
    gitlab.cancel(early)
    after = scene.add("exit 0")
    scene.until("a job after all of these", 300, lambda: after.over() and scene.nothing_left())
    expect(early, "canceled")
    expect(after, "success")
    if len(scene.started) != before + 1:
        raise AssertionError(f"{scene.started[before:]} were started for one job")
    for vm in scene.vms().values():
        if SECRET in scene.mayfly.log(vm["id"], "boot") + scene.mayfly.log(vm["id"], "job"):
            raise AssertionError(f"a secret is in the log of {vm['name']}")
    say(f"{len(scene.started)} vms for {len(gitlab.jobs) - len(others)} jobs; 0 vms, 0 guests, 0 runners left")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mayfly", default=str(ROOT / "target/debug/mayfly"), type=os.path.abspath)
    parser.add_argument("--runner", default=os.environ.get("GITLAB_RUNNER"), type=os.path.realpath)
    parser.add_argument("--in-namespace", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.runner:
        print("NOT CHECKED: GITLAB_RUNNER not set")
        return 0
    if not options.in_namespace:
        how = ["--net"] if os.geteuid() == 0 else ["--user", "--map-root-user", "--net"]
        os.execvp("unshare", ["unshare", *how, sys.executable, "-B", __file__, *sys.argv[1:], "--in-namespace"])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
    with tempfile.TemporaryDirectory(prefix="glrec-", dir="/tmp") as directory:
        scene = None
        try:
            scene = Scene(options, Path(directory))
            run(scene)
        except AssertionError as error:
            say("FAILED:", error)
            Path("/tmp/failed-gitlab-recipe.log").write_bytes((Path(directory) / "mayfly.log").read_bytes())
            if scene:
                for vm in scene.vms().values():
                    say(vm["name"], vm["outcome"], scene.mayfly.log(vm["id"], "job")[-1500:])
            return 1
        finally:
            if scene:
                scene.mayfly.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
