#!/usr/bin/env python3
"""The recipes of deploy/recipes, against simulated servers, a real service and stand-ins for the runners.

    BINARY=target/debug/mayfly recipes_test.py

The service is real, on a Mac that is simulated by the double of `tart`; its guests do nothing.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/peers"))
from peer import wait  # noqa: E402
from service import MayflyOnMac  # noqa: E402

TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BINARY = Path(os.environ.get("BINARY", TARGET / "debug/mayfly")).resolve()
TART = (BINARY.parent / "examples/tart-double").resolve()
RECIPES = ROOT / "deploy/recipes"


class SimulatedServer:
    """A server of a CI system, of which a test knows the state. `calls` are the requests that change something."""

    def __init__(self, authorization):
        self.calls, self.broken, self.last_id = [], None, 100
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self):
                text = self.rfile.read(int(self.headers.get("content-length") or 0))
                path, _, query = self.path.partition("?")
                query = dict(urllib.parse.parse_qsl(query))
                if authorization not in self.headers.items():
                    status, value = 401, {"message": "unauthorized"}
                elif server.broken and server.broken in self.path:
                    status, value = 500, {"message": "broken"}
                else:
                    if self.command != "GET":
                        server.calls.append(f"{self.command} {path}")
                    status, value = server.handle(self.command, path, query, json.loads(text) if text else None)
                data = b"" if status == 204 else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_DELETE = answer

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def end(self):
        self.server.shutdown()
        self.server.server_close()

    def new_id(self):
        self.last_id += 1
        return self.last_id

    def made(self):
        calls, self.calls = self.calls, []
        return calls


class Woodpecker(SimulatedServer):
    def __init__(self):
        super().__init__(("Authorization", "Bearer secret"))
        self.agents, self.pending, self.running, self.paused = {}, [], [], False
        # An agent takes this task while a pass looks at its pipeline.
        self.taken = None

    def task(self, number, agent=0, **labels):
        return {"id": str(number), "repo_id": 7, "pipeline_number": number, "agent_id": agent,
                "labels": {"repo": "acme/app", "org-id": "1", "woodpecker-ci.org/forge": "x", "platform": "", **labels}}

    def handle(self, method, path, query, body):
        if path == "/api/agents" and method == "POST":
            number = self.new_id()
            self.agents[number] = {"id": number, "name": body["name"], "token": f"token-of-{number}"}
            return 200, self.agents[number]
        if path == "/api/agents":
            # Two on a page, so that there are pages.
            page = list(self.agents.values())[2 * (int(query["page"]) - 1):][:2]
            return 200, page or None
        if path == "/api/queue/info":
            return 200, {"pending": self.pending or None, "running": self.running or None, "paused": self.paused}
        agent = re.fullmatch(r"/api/agents/(\d+)", path)
        if agent and method == "DELETE":
            if any(task["agent_id"] == int(agent[1]) for task in self.running):
                return 409, "agent has running tasks"
            return (204, None) if self.agents.pop(int(agent[1]), None) else (404, None)
        pipeline = re.fullmatch(r"/api/repos/7/pipelines/(\d+)(/cancel)?", path)
        if pipeline and pipeline[2]:
            self.pending = [task for task in self.pending if task["pipeline_number"] != int(pipeline[1])]
            self.running = [task for task in self.running if task["pipeline_number"] != int(pipeline[1])]
            return 204, None
        if pipeline:
            for task in [task for task in self.pending if task["id"] == self.taken]:
                self.pending.remove(task)
                self.running.append({**task, "agent_id": 77})
            of_it = [task for task in self.pending + self.running if task["pipeline_number"] == int(pipeline[1])]
            return 200, {"workflows": [{"id": int(task["id"]), "agent_id": task["agent_id"]} for task in of_it]}
        return 404, {"message": path}


class GitLab(SimulatedServer):
    def __init__(self):
        super().__init__(("PRIVATE-TOKEN", "secret"))
        self.runners, self.jobs = {}, {}

    def job(self, number, tags, status="pending", runner=None):
        self.jobs[number] = {"id": number, "tag_list": tags, "status": status, "runner": runner and {"id": runner}}

    def handle(self, method, path, query, body):
        if path == "/api/v4/user/runners":
            assert (body["runner_type"], body["project_id"], body["run_untagged"]) == ("project_type", 5, False), body
            number = self.new_id()
            self.runners[number] = {"id": number, "description": body["description"], "tag_list": body["tag_list"]}
            return 201, {"id": number, "token": f"glrt-{number}"}
        if path == "/api/v4/projects/5/runners":
            return 200, list(self.runners.values()) if query["page"] == "1" else []
        if path == "/api/v4/projects/5/jobs":
            found = [job for job in self.jobs.values() if job["status"] == query["scope[]"]]
            return 200, found if query["page"] == "1" else []
        cancel = re.fullmatch(r"/api/v4/projects/5/jobs/(\d+)/cancel", path)
        if cancel:
            self.jobs[int(cancel[1])]["status"] = "canceled"
            return 201, self.jobs[int(cancel[1])]
        runner = re.fullmatch(r"/api/v4/runners/(\d+)", path)
        if runner and method == "DELETE":
            return (204, None) if self.runners.pop(int(runner[1]), None) else (404, None)
        return 404, {"message": path}


class Forgejo(SimulatedServer):
    def __init__(self):
        super().__init__(("Authorization", "token secret"))
        self.runners, self.jobs = {}, {}

    def handle(self, method, path, query, body):
        base = "/api/v1/orgs/acme/actions/runners"
        if path == f"{base}/jobs":
            assert query["labels"] == "linux", query
            return 200, list(self.jobs.values()) or None
        if path == base and method == "POST":
            assert body["ephemeral"] is True, body
            number = self.new_id()
            self.runners[number] = {"id": number, "name": body["name"]}
            return 201, {"id": number, "uuid": f"uuid-{number}", "token": f"token-{number}"}
        if path == base:
            return 200, list(self.runners.values()) if query["page"] == "1" else []
        runner = re.fullmatch(base + r"/(\d+)", path)
        if runner and method == "DELETE":
            return (204, None) if self.runners.pop(int(runner[1]), None) else (404, None)
        return 404, {"message": path}


class Passes(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = Path(tempfile.mkdtemp(prefix="recipes"))
        cls.mayfly = MayflyOnMac(BINARY, TART, cls.directory, slots=2)

    @classmethod
    def tearDownClass(cls):
        cls.mayfly.end()
        shutil.rmtree(cls.directory)

    def setUp(self):
        self.name = re.sub("[^a-z0-9]", "-", self.id().rsplit(".", 1)[1].lower())[-20:].strip("-")
        self.token = self.directory / f"{self.name}.token"
        self.token.write_text("secret\n")
        (self.directory / "mayfly.token").write_text(self.mayfly.token)

    def run_pass(self, recipe, most=3, **settings):
        programs = self.directory / "programs"
        programs.mkdir(exist_ok=True)
        if not (programs / "mayfly").exists():
            (programs / "mayfly").symlink_to(BINARY)
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(self.directory),
                       "MAYFLY_URL": self.mayfly.url, "MAYFLY_TOKEN_FILE": str(self.directory / "mayfly.token"),
                       "RECIPE_NAME": self.name, "RECIPE_TEMPLATE": "micro", "RECIPE_MAX_VMS": str(most), **settings}
        return subprocess.run([RECIPES / recipe / "pass.sh"], env=environment, capture_output=True, text=True, timeout=120)

    def passed(self, recipe, **settings):
        ran = self.run_pass(recipe, **settings)
        self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)
        return ran.stdout

    def vms(self):
        return {vm["name"]: vm["id"] for vm in self.mayfly.api("GET", "/vms?limit=200")["items"]
                if vm["labels"].get("owner", "").endswith(f"/{self.name}")}

    def lose(self, name):
        """The vm goes, with its job."""
        number = self.vms()[name]
        self.mayfly.api("DELETE", f"/vms/{number}?force=true")
        wait("the vm is gone", 60, lambda: name not in self.vms(), every=0.1)

    def test_woodpecker(self):
        server = Woodpecker()
        self.addCleanup(server.end)
        settings = {"WOODPECKER_URL": server.url, "WOODPECKER_TOKEN_FILE": str(self.token),
                    "WOODPECKER_GRPC": "192.0.2.1:9000", "WOODPECKER_LABELS": "size=large"}
        # Of another Mayfly; it has no vm here.
        server.agents[1] = {"id": 1, "name": "mayfly-other-00000000"}
        # Left by a pass that was interrupted.
        server.agents[2] = {"id": 2, "name": f"mayfly-{self.name}-00000000"}
        server.pending = [server.task(1, size="large", backend="local"), server.task(2),
                          server.task(3, size="small"), server.task(4, other="label"), server.task(5, agent=77)]
        self.passed("woodpecker", **settings)
        calls = server.made()
        self.assertEqual(calls.count("POST /api/agents"), 2, calls)
        # Its agent is gone, so no agent will do it.
        self.assertIn("POST /api/repos/7/pipelines/5/cancel", calls)
        self.assertIn("DELETE /api/agents/2", calls)
        self.assertEqual(len(calls), 4, calls)
        vms = self.vms()
        own = {agent["name"]: number for number, agent in server.agents.items() if number > 2}
        self.assertEqual(sorted(vms), sorted(own))
        self.assertIn(1, server.agents)

        # Both have no workflow yet, so none is added.
        self.passed("woodpecker", **settings)
        self.assertEqual(server.made(), [])

        # One has a workflow and its vm is lost; the agents that wait suffice for what is pending.
        first = sorted(vms)[0]
        server.pending = [server.task(2)]
        server.running = [server.task(1, agent=own[first])]
        self.passed("woodpecker", **settings)
        self.assertEqual(server.made(), [])
        self.lose(first)
        self.passed("woodpecker", **settings)
        self.assertEqual(server.made(), ["POST /api/repos/7/pipelines/1/cancel", f"DELETE /api/agents/{own[first]}"])

        # An agent of another machine takes a workflow while the pass looks at it.
        server.pending, server.running, server.taken = [server.task(6, size="large")], [], "6"
        self.passed("woodpecker", **settings)
        self.assertEqual(server.made(), [])
        self.assertEqual(len(server.running), 1)

        # No more than the most, and none while the queue is paused.
        server.pending = [server.task(number) for number in range(10, 20)]
        server.paused = True
        self.passed("woodpecker", **settings)
        self.assertEqual(server.made(), [])
        server.paused = False
        self.passed("woodpecker", **settings)
        self.assertEqual(server.made(), ["POST /api/agents"] * 2)
        self.assertEqual(len(self.vms()), 3)

        # Nothing is concluded from a list that is missing.
        for missing in ["/api/agents?", "/api/queue/info"]:
            server.broken = missing
            ran = self.run_pass("woodpecker", **settings)
            self.assertEqual((ran.returncode, server.made()), (1, []))
            self.assertIn("status 500", ran.stderr)
        server.broken = None
        ran = self.run_pass("woodpecker", **{**settings, "MAYFLY_URL": "http://127.0.0.1:1"})
        self.assertEqual((ran.returncode, server.made()), (1, []))

    def test_gitlab(self):
        server = GitLab()
        self.addCleanup(server.end)
        settings = {"GITLAB_URL": server.url, "GITLAB_TOKEN_FILE": str(self.token), "GITLAB_PROJECT": "5",
                    "GITLAB_TAGS": "mac,large"}
        server.runners[1] = {"id": 1, "description": "mayfly-other-00000000"}
        server.runners[2] = {"id": 2, "description": None}
        server.job(11, ["mac"])
        server.job(12, ["mac", "large"])
        server.job(13, [])
        server.job(14, ["windows"])
        self.passed("gitlab", **settings)
        self.assertEqual(server.made(), ["POST /api/v4/user/runners"] * 2)
        own = {runner["description"]: number for number, runner in server.runners.items() if number > 2}
        self.assertEqual(sorted(self.vms()), sorted(own))
        first, second = sorted(own)
        server.job(11, ["mac"], "running", own[first])
        self.passed("gitlab", **settings)
        self.assertEqual(server.made(), [])
        self.lose(first)
        server.job(12, ["mac", "large"], "success", own[second])
        self.lose(second)
        self.passed("gitlab", **settings)
        self.assertEqual(sorted(server.made()), sorted(
            ["POST /api/v4/projects/5/jobs/11/cancel", f"DELETE /api/v4/runners/{own[first]}",
             f"DELETE /api/v4/runners/{own[second]}"]))
        self.assertEqual(sorted(server.runners), [1, 2])

    def test_forgejo(self):
        server = Forgejo()
        self.addCleanup(server.end)
        settings = {"FORGEJO_URL": server.url, "FORGEJO_TOKEN_FILE": str(self.token), "FORGEJO_SCOPE": "orgs/acme",
                    "FORGEJO_LABEL": "linux"}
        handles = [f"0000000{n}-1111-2222-3333-444444444444" for n in range(4)]
        server.jobs = {n: {"id": n, "handle": handle, "status": "waiting"} for n, handle in enumerate(handles)}
        server.jobs[3]["status"] = "running"
        server.runners[1] = {"id": 1, "name": "mayfly-other-0"}
        server.runners[2] = {"id": 2, "name": f"mayfly-{self.name}-99999999"}
        base = "/api/v1/orgs/acme/actions/runners"
        self.passed("forgejo", most=2, **settings)
        self.assertEqual(server.made(), [f"POST {base}"] * 2 + [f"DELETE {base}/2"])
        vms = self.vms()
        self.assertEqual(sorted(vms), [f"mayfly-{self.name}-0000000{n}111122223333"[:len(f'mayfly-{self.name}-') + 20] for n in (0, 1)])
        self.passed("forgejo", most=2, **settings)
        self.assertEqual(server.made(), [])

        # One is canceled, so its vm would wait for ever. The next in line takes its place.
        del server.jobs[0]
        self.passed("forgejo", most=2, **settings)
        self.assertEqual(server.made(), [])
        canceled = sorted(vms)[0]
        wait("the vm of the job ends", 90, lambda: canceled not in self.vms(), every=0.2)
        self.passed("forgejo", most=2, **settings)
        gone = next(number for number in (101, 102) if number not in server.runners)
        self.assertEqual(sorted(server.made()), sorted([f"POST {base}", f"DELETE {base}/{gone}"]))

    def test_settings_are_checked(self):
        for settings, words in [({}, "WOODPECKER_URL is not set"),
                                ({"WOODPECKER_URL": "http://127.0.0.1:1", "WOODPECKER_GRPC": "x:1",
                                  "WOODPECKER_TOKEN_FILE": "/nonexistent"}, "cannot read the token"),
                                ({"WOODPECKER_URL": "http://127.0.0.1:1", "WOODPECKER_GRPC": "x:1", "RECIPE_NAME": "a b",
                                  "WOODPECKER_TOKEN_FILE": str(self.token)}, "RECIPE_NAME may hold")]:
            ran = self.run_pass("woodpecker", **settings)
            self.assertEqual(ran.returncode, 1)
            self.assertIn(words, ran.stderr)

    def test_one_pass_at_a_time(self):
        settings = {"WOODPECKER_URL": "http://127.0.0.1:1", "WOODPECKER_GRPC": "x:1",
                    "WOODPECKER_TOKEN_FILE": str(self.token)}
        with subprocess.Popen(["flock", f"{self.token}.lock", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
            holder.stdin.write(b"held\n")
            holder.stdin.flush()
            self.assertEqual(holder.stdout.read(5), b"held\n")
            ran = self.run_pass("woodpecker", **settings)
            self.assertEqual(ran.returncode, 1)
            self.assertIn("another pass is running", ran.stderr)
            holder.stdin.close()
        # The file that stays is no sign of a running pass.
        self.assertIn("no answer from", self.run_pass("woodpecker", **settings).stderr)


class Guests(unittest.TestCase):
    """The scripts of the guests, with stand-ins that write down how they were started."""

    def started(self, shell, recipe, program, code, **environment):
        with tempfile.TemporaryDirectory(prefix="recipes") as directory:
            standin = Path(directory) / program
            standin.write_text(f"#!/bin/sh\nenv >'{directory}/env'\nprintf '%s\\n' \"$@\" >'{directory}/args'\n"
                               f'if [ -p "$WOODPECKER_AGENT_SECRET_FILE" ]; then cat "$WOODPECKER_AGENT_SECRET_FILE" >"{directory}/token"; fi\n'
                               f"for word; do case $word in file:*) cp \"${{word#file:}}\" '{directory}/token';; esac; done\n"
                               f"exit {code}\n")
            standin.chmod(0o755)
            ran = subprocess.run([shell, RECIPES / recipe / "guest.sh"], capture_output=True, text=True, timeout=60,
                                 env={"PATH": f"{directory}:{os.environ['PATH']}", "HOME": directory, "TMPDIR": directory,
                                      **environment})
            self.assertEqual(ran.returncode, code, ran.stderr)
            lines = (Path(directory) / "env").read_text().splitlines()
            token = Path(directory) / "token"
            left = [path.name for path in Path(directory).iterdir() if path.is_dir()]
            self.assertEqual(left, [])
            return (dict(line.split("=", 1) for line in lines if "=" in line),
                    (Path(directory) / "args").read_text().splitlines(), token.read_text() if token.exists() else None)

    def shells(self):
        return [shell for shell in ["dash", "bash"] if shutil.which(shell)] or ["sh"]

    def test_woodpecker(self):
        for shell in self.shells():
            environment, arguments, token = self.started(
                shell, "woodpecker", "woodpecker-agent", 1, WOODPECKER_SERVER="s:9000", WOODPECKER_AGENT_SECRET="hush",
                WOODPECKER_AGENT_LABELS="size=large")
            self.assertEqual((arguments, token), ([""], "hush"))
            self.assertNotIn("WOODPECKER_AGENT_SECRET", environment)
            for key, value in {"WOODPECKER_AGENT_SINGLE_WORKFLOW": "true", "WOODPECKER_BACKEND": "local",
                               "WOODPECKER_AGENT_CONFIG_FILE": "", "WOODPECKER_HEALTHCHECK": "false",
                               "WOODPECKER_AGENT_LABELS": "size=large"}.items():
                self.assertEqual(environment[key], value)

    def test_gitlab(self):
        for shell in self.shells():
            environment, arguments, _ = self.started(shell, "gitlab", "gitlab-runner", 0, CI_SERVER_URL="https://gitlab",
                                                     CI_SERVER_TOKEN="hush")
            self.assertEqual(environment["CI_SERVER_TOKEN"], "hush")
            self.assertNotIn("hush", arguments)
            self.assertEqual(arguments[:9], ["run-single", "--executor", "shell", "--shell", "bash", "--max-builds", "1",
                                             "--wait-timeout", "600"])

    def test_forgejo(self):
        for shell in self.shells():
            environment, arguments, token = self.started(
                shell, "forgejo", "forgejo-runner", 3, FORGEJO_URL="https://f", FORGEJO_UUID="u", FORGEJO_TOKEN="hush",
                FORGEJO_LABEL="linux", FORGEJO_HANDLE="h")
            self.assertEqual(token, "hush")
            self.assertNotIn("FORGEJO_TOKEN", environment)
            self.assertNotIn("hush", " ".join(arguments))
            self.assertEqual(arguments[-5:], ["--label", "linux:host", "--handle", "h", "--wait"])


if __name__ == "__main__":
    unittest.main()
