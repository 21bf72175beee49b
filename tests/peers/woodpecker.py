#!/usr/bin/env python3
"""Runs the recipe for Woodpecker with a real server, real agents in real guests, and a real Gitea.

None of them is part of this project. Build them elsewhere and name them:

    WOODPECKER_SERVER=/path/woodpecker-server WOODPECKER_AGENT=/path/woodpecker-agent GITEA_SERVER=/path/gitea woodpecker.py

The agent has to be static (CGO_ENABLED=0). A Gitea that was built without its data needs GITEA_STATIC_ROOT. It runs pipelines
that succeed and fail, one that is canceled, and one whose vm is lost; each has to end as Woodpecker says, and no vm and no agent
may be left. Without the programs, it says NOT CHECKED and exits with 0.
"""

import argparse
import base64
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from peer import free_port, request, say, wait
from service import ROOT, MayflyWithGuests

sys.path.insert(0, str(ROOT / "benches"))
from gitea_server import Gitea  # noqa: E402

PIPELINE = """\
when:
  event: manual
skip_clone: true
labels:
  size: large
steps:
  - name: work
    image: sh
    commands:
      - echo "in the guest of $(hostname)"
      - if env | grep -q "^WOODPECKER_AGENT_SECRET="; then echo "the token is in the environment"; exit 9; fi
      - sleep "$SECONDS_OF_WORK"
      - exit "$CODE"
"""
NAMES = {"server": "WOODPECKER_SERVER", "agent": "WOODPECKER_AGENT", "gitea": "GITEA_SERVER"}


class Woodpecker:
    def __init__(self, program, directory, gitea):
        self.gitea, self.directory = gitea, directory
        self.port, self.grpc = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        application = gitea.api("POST", "/user/applications/oauth2", {
            "name": "woodpecker", "redirect_uris": [f"{self.url}/authorize"], "confidential_client": True})
        self.client = application["client_id"]
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(directory), "WOODPECKER_HOST": self.url,
            "WOODPECKER_SERVER_ADDR": f"127.0.0.1:{self.port}", "WOODPECKER_GRPC_ADDR": f"127.0.0.1:{self.grpc}",
            "WOODPECKER_OPEN": "true", "WOODPECKER_ADMIN": "boss", "WOODPECKER_GITEA": "true",
            "WOODPECKER_GITEA_URL": gitea.url, "WOODPECKER_GITEA_CLIENT": application["client_id"],
            "WOODPECKER_GITEA_SECRET": application["client_secret"], "WOODPECKER_AGENT_SECRET": "not-used-by-anyone",
            "WOODPECKER_DATABASE_DATASOURCE": str(directory / "woodpecker.sqlite"), "WOODPECKER_METRICS_SERVER_ADDR": "",
        }
        with open(directory / "woodpecker.log", "ab") as log:
            self.process = subprocess.Popen([program], env=environment, cwd=directory, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log)
        wait("Woodpecker answers", 60, self.answers, every=0.2)

    def answers(self):
        if self.process.poll() is not None:
            raise AssertionError((self.directory / "woodpecker.log").read_text()[-3000:])
        try:
            return request("GET", f"{self.url}/version", timeout=5)
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    def log_in(self):
        """As a browser: Woodpecker sends the user to Gitea, where the user permits it."""
        browser = self.gitea.browser
        with browser.open(f"{self.url}/authorize", timeout=60) as page:
            asked = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(page.url).query))
            text = page.read().decode()
        hidden = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', text))
        grant = {**{key: asked.get(key, "") for key in ("client_id", "state", "scope", "nonce", "redirect_uri")}, **hidden,
                 "granted": "true"}
        browser.open(urllib.request.Request(f"{self.gitea.url}/login/oauth/grant", method="POST",
                                            data=urllib.parse.urlencode(grant).encode()), timeout=60).read()
        with browser.open(f"{self.url}/web-config.js", timeout=30) as page:
            csrf = re.search(r'WOODPECKER_CSRF = "([^"]+)"', page.read().decode())[1]
        with browser.open(urllib.request.Request(f"{self.url}/api/user/token", method="POST", data=b"",
                                                 headers={"X-CSRF-TOKEN": csrf}), timeout=30) as answer:
            self.token = answer.read().decode().strip()

    def api(self, method, path, body=None):
        return request(method, f"{self.url}/api{path}", self.token, body)

    def start(self, seconds, code):
        """A pipeline; returns its number."""
        return self.api("POST", f"/repos/{self.repository}/pipelines", {
            "branch": "main", "variables": {"SECONDS_OF_WORK": str(seconds), "CODE": str(code)}})["number"]

    def explain(self):
        """What the steps of all pipelines said."""
        for pipeline in self.api("GET", f"/repos/{self.repository}/pipelines"):
            for workflow in self.pipeline(pipeline["number"]).get("workflows") or []:
                say(pipeline["number"], workflow["state"], workflow.get("error"))
                for step in workflow.get("children") or []:
                    lines = self.api("GET", f"/repos/{self.repository}/logs/{pipeline['number']}/{step['id']}") or []
                    text = [base64.b64decode(line["data"]).decode(errors="replace") for line in lines if line.get("data")]
                    say(step["name"], step["state"], step.get("exit_code"), step.get("error"), text[-10:])

    def pipeline(self, number):
        return self.api("GET", f"/repos/{self.repository}/pipelines/{number}")


class Scene:
    def __init__(self, programs, mayfly, directory):
        self.directory = directory
        self.gitea = self.woodpecker = self.mayfly = None
        try:
            self.build(programs, mayfly)
        except BaseException:
            self.end()
            raise

    def build(self, programs, mayfly):
        port = free_port()
        self.gitea = Gitea(programs["gitea"], self.directory / "gitea", port, f"http://127.0.0.1:{port}")
        self.gitea.start()
        self.gitea.api("POST", "/user/repos", {"name": "app", "auto_init": True, "default_branch": "main"})
        content = base64.b64encode(PIPELINE.encode()).decode()
        self.gitea.api("POST", "/repos/boss/app/contents/.woodpecker.yaml",
                       {"content": content, "message": "the pipeline", "branch": "main"})
        self.woodpecker = Woodpecker(programs["server"], self.directory, self.gitea)
        self.woodpecker.log_in()
        number = self.gitea.api("GET", "/repos/boss/app")["id"]
        self.woodpecker.repository = self.woodpecker.api("POST", f"/repos?forge_remote_id={number}")["id"]
        self.mayfly = MayflyWithGuests(mayfly, self.directory, 2, {"/usr/bin/woodpecker-agent": programs["agent"]})
        (self.directory / "programs").mkdir()
        (self.directory / "programs/mayfly").symlink_to(mayfly)
        for name, text in {"woodpecker.token": self.woodpecker.token, "mayfly.token": self.mayfly.token}.items():
            (self.directory / name).write_text(text)
            (self.directory / name).chmod(0o600)

    def end(self):
        if self.woodpecker:
            self.woodpecker.process.kill()
            self.woodpecker.process.wait()
        if self.gitea:
            self.gitea.stop()
        if self.mayfly:
            self.mayfly.end()

    def make_pass(self):
        environment = {
            "PATH": f"{self.directory}/programs:{os.environ['PATH']}", "HOME": str(self.directory),
            "MAYFLY_URL": self.mayfly.url, "MAYFLY_TOKEN_FILE": str(self.directory / "mayfly.token"),
            "WOODPECKER_URL": self.woodpecker.url, "WOODPECKER_TOKEN_FILE": str(self.directory / "woodpecker.token"),
            "WOODPECKER_GRPC": f"10.0.2.2:{self.woodpecker.grpc}", "WOODPECKER_LABELS": "size=large",
            "RECIPE_NAME": "e2e", "RECIPE_TEMPLATE": "micro", "RECIPE_MAX_VMS": "2"}
        ran = subprocess.run([ROOT / "deploy/recipes/woodpecker/pass.sh"], env=environment, capture_output=True, text=True,
                             timeout=120)
        for line in (ran.stdout + ran.stderr).splitlines():
            say(line)
        return ran.returncode

    def until(self, what, seconds, condition):
        """Passes, until the condition is met."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"waited {seconds} s in vain: {what}")
            self.make_pass()
            time.sleep(2)

    def status(self, number):
        return self.woodpecker.pipeline(number)["status"]

    def ended(self, number):
        return self.status(number) not in ("pending", "running", "created", "blocked")

    def agents(self):
        return [agent["name"] for agent in self.woodpecker.api("GET", "/agents") or []]


def run(scene):
    woodpecker = scene.woodpecker
    good, bad = woodpecker.start(1, 0), woodpecker.start(1, 3)
    scene.until("two pipelines end", 300, lambda: scene.ended(good) and scene.ended(bad))
    assert (scene.status(good), scene.status(bad)) == ("success", "failure"), (scene.status(good), scene.status(bad))
    say("one succeeded, one failed, as their scripts said")

    canceled = woodpecker.start(600, 0)
    scene.until("it runs", 300, lambda: scene.status(canceled) == "running")
    woodpecker.api("POST", f"/repos/{woodpecker.repository}/pipelines/{canceled}/cancel")
    scene.until("the canceled pipeline and its vm end", 300, lambda: scene.ended(canceled) and not scene.mayfly.live())
    say("canceled:", scene.status(canceled))

    lost = woodpecker.start(600, 0)
    scene.until("it runs", 300, lambda: scene.status(lost) == "running")
    vm = scene.mayfly.live()[0]
    os.kill(scene.mayfly.instances()[0], 9)
    say("killed the guest of", vm["name"])
    scene.until("the pipeline of the lost vm ends", 300, lambda: scene.ended(lost))
    say("lost:", scene.status(lost), "-", scene.mayfly.api("GET", f"/vms/{vm['id']}")["outcome"])

    # A pipeline whose agent is gone for longer than its lease, because no pass was made meanwhile.
    dead = woodpecker.start(600, 0)
    scene.until("it runs", 300, lambda: scene.status(dead) == "running")
    os.kill(scene.mayfly.instances()[0], 9)
    wait("Woodpecker lists its workflow as waiting again", 180,
         lambda: woodpecker.api("GET", "/queue/info")["pending"], every=2)
    scene.until("the pipeline of the dead workflow ends", 120, lambda: scene.ended(dead))
    say("dead:", scene.status(dead))

    after = woodpecker.start(1, 0)
    scene.until("a pipeline after all of these", 300, lambda: scene.ended(after))
    assert scene.status(after) == "success", scene.status(after)
    scene.until("nothing is left", 120,
                lambda: not scene.mayfly.live() and not scene.mayfly.hypervisor() and not scene.agents())
    say("0 vms, 0 guests, 0 agents left")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mayfly", default=str(ROOT / "target/debug/mayfly"), type=os.path.abspath)
    options = parser.parse_args()
    missing = [name for name in NAMES.values() if not os.environ.get(name)]
    if missing:
        print(f"NOT CHECKED: {', '.join(missing)} not set")
        return 0
    programs = {key: os.path.abspath(os.environ[name]) for key, name in NAMES.items()}
    with tempfile.TemporaryDirectory(prefix="woodpecker-", dir="/tmp") as directory:
        scene = Scene(programs, options.mayfly, Path(directory))
        try:
            run(scene)
        except AssertionError as error:
            say("FAILED:", error)
            for name in ("woodpecker.log", "mayfly.log"):
                Path(f"/tmp/failed-{name}").write_bytes((Path(directory) / name).read_bytes())
            scene.woodpecker.explain()
            for vm in scene.mayfly.api("GET", "/vms?limit=5&state=deleted")["items"]:
                say(vm["name"], vm["outcome"], scene.mayfly.log(vm["id"], "job")[-1500:])
            return 1
        finally:
            scene.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
