#!/usr/bin/env python3
"""Runs jobs of GitLab through a real GitLab Runner, which has `mayfly gitlab-executor` as its custom executor, in real guests.

GitLab Runner is not part of this project. Build it elsewhere and name it (15.4 is the last version whose source can be had
completely); GitLab itself is played by gitlab_jobs.py:

    GITLAB_RUNNER=/path/gitlab-runner gitlab.py

Jobs succeed, fail with exit codes of their own, name an image that is not allowed, are canceled, and lose their guest or their
runner. Each has to end as its script said, no vm may be left, and the secret of the jobs may be an argument of no program on
this machine. Without the program, it says NOT CHECKED and exits with 0.
"""

import argparse
import glob
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from gitlab_jobs import TOKEN, GitLabJobs
from peer import say, wait
from service import IMAGE, ROOT, MayflyWithGuests

SECRET = "hush-hush-5eCret-of-the-job"


class Mayfly(MayflyWithGuests):
    def template(self):
        return {**super().template(), "ssh_key": str(IMAGE / "id_ed25519")}


class Arguments(threading.Thread):
    """Looks for the secret in the arguments of all processes of this machine."""

    def __init__(self):
        super().__init__(daemon=True)
        self.found, self.looks, self.over = set(), 0, threading.Event()

    def run(self):
        while not self.over.wait(0.2):
            self.looks += 1
            for path in glob.glob("/proc/[0-9]*/cmdline"):
                try:
                    line = Path(path).read_bytes()
                except OSError:
                    continue
                if SECRET.encode() in line:
                    self.found.add(line)


class Runner:
    """GitLab Runner with its configuration."""

    def __init__(self, program, directory, gitlab, mayfly, executor):
        self.program, self.directory = program, directory
        (directory / "token").write_text(mayfly.token)
        (directory / "token").chmod(0o600)
        (directory / "mayfly.toml").write_text(
            f'url = "{mayfly.url}"\ntoken_file = "{directory}/token"\n[defaults]\nshell = ["sh"]\nnetwork = "host"\n'
            f'[images."micro:1"]\ntemplate = "micro"\n')
        stages = "".join(
            f'    {stage}_exec = "{executor}"\n'
            f'    {stage}_args = ["gitlab-executor", "--config", "{directory}/mayfly.toml", "{stage}"]\n'
            for stage in ("config", "prepare", "run", "cleanup"))
        (directory / "config.toml").write_text(
            f'concurrent = 3\ncheck_interval = 1\n[[runners]]\n  name = "peer"\n  url = "{gitlab.url}"\n  token = "{TOKEN}"\n'
            f'  executor = "custom"\n  shell = "sh"\n  request_concurrency = 3\n  builds_dir = "/tmp/builds"\n'
            f'  cache_dir = "/tmp/cache"\n  [runners.custom]\n{stages}    graceful_kill_timeout = 20\n')
        self.process = None
        self.start()

    def start(self):
        with open(self.directory / "runner.log", "ab") as log:
            self.process = subprocess.Popen(
                [self.program, "run", "--config", self.directory / "config.toml", "--working-directory", self.directory],
                env={"PATH": os.environ["PATH"], "HOME": str(self.directory)}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


def check(job, state, failure=None, exit_code=None, words=()):
    found = (job.state, job.failure, job.exit_code)
    if job.state != state or (failure and job.failure != failure) or (exit_code is not None and job.exit_code != exit_code):
        raise AssertionError(f"job {job.id}: expected {(state, failure, exit_code)}, found {found}:\n{job.log()}")
    for word in words:
        if word not in job.log():
            raise AssertionError(f"job {job.id}: {word!r} is not in its log:\n{job.log()}")
    if job.taken != 1:
        raise AssertionError(f"job {job.id} was taken {job.taken} times")
    say(f"job {job.id}: {', '.join(str(part) for part in found if part is not None)}")


def run(gitlab, mayfly, runner, jobs):
    good = [gitlab.add([f"echo one-{n}; id -un", "echo $DEPLOY_KEY | wc -c"], "micro:1", SECRET) for n in range(jobs - 3)]
    bad = [gitlab.add([f"echo before; exit {code}"], "micro:1", SECRET) for code in (1, 42)]
    refused = gitlab.add(["echo never"], "windows:11", SECRET)
    everything = [*good, *bad, refused]
    wait("all jobs end", 1200, lambda: all(job.over() for job in everything))
    for number, job in enumerate(good):
        check(job, "success", words=[f"one-{number}\n", "runner\n", "of the template micro", ": ready after"])
    for job in bad:
        check(job, "failed", "script_failure", words=["before\n"])
    check(refused, "failed", "script_failure", words=['image: "windows:11" is not allowed on this runner: use micro:1'])
    if not any("waits for a slot, position" in job.log() for job in everything):
        raise AssertionError("no job waited for a slot, with more jobs than slots")

    canceled = gitlab.add(["echo begun; sleep 500"], "micro:1", SECRET)
    wait("it runs", 300, lambda: "begun\n" in canceled.log())
    canceled.canceled = True
    wait("the vm of the canceled job ends", 120, lambda: not mayfly.live())
    say(f"job {canceled.id}: canceled, and its vm has ended")

    lost = gitlab.add(["echo begun; sleep 500"], "micro:1", SECRET)
    wait("it runs", 300, lambda: "begun\n" in lost.log())
    os.kill(mayfly.instances()[0], signal.SIGKILL)
    wait("the job of the lost guest ends", 180, lost.over)
    check(lost, "failed", "runner_system_failure")

    orphan = gitlab.add(["echo begun; sleep 500"], "micro:1", SECRET)
    wait("it runs", 300, lambda: "begun\n" in orphan.log())
    runner.kill()
    wait("the vm of a runner that was killed ends", 60, lambda: not mayfly.live())
    say(f"job {orphan.id}: its runner was killed, and its vm has ended")
    runner.start()
    after = gitlab.add(["echo after"], "micro:1", SECRET)
    wait("a job after all of these", 300, after.over)
    check(after, "success", words=["after\n"])
    wait("nothing is left", 120, lambda: not mayfly.live() and not mayfly.hypervisor())
    records = mayfly.api("GET", "/vms?limit=200&state=deleted")["items"]
    say(f"{len(records)} vms for {len(gitlab.jobs)} jobs, 0 left")
    text = (runner.directory / "mayfly.log").read_text() + (runner.directory / "runner.log").read_text() + str(records)
    if SECRET in text:
        raise AssertionError("the secret is in a log or a record")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mayfly", default=str(ROOT / "target/debug/mayfly"), type=os.path.abspath)
    parser.add_argument("--jobs", default=10, type=int, help="jobs that end by themselves")
    options = parser.parse_args()
    program = os.environ.get("GITLAB_RUNNER")
    if not program:
        print("NOT CHECKED: GITLAB_RUNNER not set")
        return 0
    with tempfile.TemporaryDirectory(prefix="gitlab-", dir="/tmp") as name:
        directory = Path(name)
        mayfly = runner = None
        arguments = Arguments()
        gitlab = GitLabJobs()
        try:
            mayfly = Mayfly(options.mayfly, directory, 2, {})
            arguments.start()
            runner = Runner(os.path.abspath(program), directory, gitlab, mayfly, options.mayfly)
            run(gitlab, mayfly, runner, options.jobs)
            if arguments.found or not arguments.looks:
                raise AssertionError(f"the secret is an argument of {arguments.found}")
            say(f"the secret was an argument of no program in {arguments.looks} looks")
        except AssertionError as error:
            say("FAILED:", error)
            for log in ("runner.log", "mayfly.log"):
                if (directory / log).exists():
                    Path(f"/tmp/failed-gitlab-{log}").write_bytes((directory / log).read_bytes())
            return 1
        finally:
            arguments.over.set()
            if runner:
                runner.end()
            if mayfly:
                mayfly.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
