"""A real GitLab Runner with `mayfly gitlab-executor` as its custom executor."""

import os
import signal
import subprocess
from pathlib import Path

from gitlab_jobs import TOKEN

# For images of a short life: the vm ends so many seconds after its guest was configured.
SHORT_LIFETIME = 60


class GitLabRunner:
    """`executor` is started with the arguments of `mayfly`."""

    def __init__(self, program, directory, gitlab, mayfly, executor, concurrent):
        self.program, self.directory = program, directory
        self.temporary = directory / "runner-tmp"
        self.temporary.mkdir()
        (directory / "token").write_text(mayfly.token)
        (directory / "token").chmod(0o600)
        (directory / "mayfly.toml").write_text(
            f'url = "{mayfly.url}"\ntoken_file = "{directory}/token"\n[defaults]\nshell = ["sh"]\nnetwork = "host"\n'
            f'[images."micro:1"]\ntemplate = "micro"\n'
            f'[images."micro:short"]\ntemplate = "micro"\nbudgets = {{ lifetime_seconds = {SHORT_LIFETIME} }}\n')
        stages = "".join(
            f'    {stage}_exec = "{executor}"\n'
            f'    {stage}_args = ["gitlab-executor", "--config", "{directory}/mayfly.toml", "{stage}"]\n'
            for stage in ("config", "prepare", "run", "cleanup"))
        (directory / "config.toml").write_text(
            f'concurrent = {concurrent}\ncheck_interval = 1\n[[runners]]\n  name = "peer"\n  url = "{gitlab.url}"\n'
            f'  token = "{TOKEN}"\n  executor = "custom"\n  shell = "sh"\n  request_concurrency = {concurrent}\n'
            f'  builds_dir = "/tmp/builds"\n  cache_dir = "/tmp/cache"\n  [runners.custom]\n{stages}'
            f'    graceful_kill_timeout = 20\n')
        self.process = None
        self.start()

    def start(self):
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.directory), "TMPDIR": str(self.temporary)}
        with open(self.directory / "runner.log", "ab") as log:
            self.process = subprocess.Popen(
                [self.program, "run", "--config", self.directory / "config.toml", "--working-directory", self.directory],
                env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def kill_with_stages(self):
        """As if its machine had failed: what it started does not live on either."""
        stages = [pid for pid in self.descendants() if pid != self.process.pid]
        self.process.send_signal(signal.SIGSTOP)
        for pid in stages:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.kill()
        return len(stages)

    def descendants(self):
        """Pids of the runner and of all that it started."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def version(self):
        shown = subprocess.run([self.program, "--version"], capture_output=True, text=True, timeout=60).stdout
        return next((line.split(":", 1)[1].strip() for line in shown.splitlines() if line.startswith("Version:")), "unknown")

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
