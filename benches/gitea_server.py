"""A real Gitea server on loopback, with a database of its own, for gitea.py."""

import base64
import contextlib
import http.cookiejar
import json
import os
import pathlib
import re
import secrets
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

PASSWORD = "e2e-" + secrets.token_hex(8)
# A runner reports every 5 s. A task without a report for this long is given up (Gitea's default: ten minutes).
ZOMBIE_SECONDS = 60
SETTINGS = """\
APP_NAME = e2e
RUN_MODE = prod
WORK_PATH = {dir}
I_AM_BEING_UNSAFE_RUNNING_AS_ROOT = true
[server]
HTTP_ADDR = 127.0.0.1
HTTP_PORT = {port}
ROOT_URL = {root_url}/
LOCAL_ROOT_URL = http://127.0.0.1:{port}/
STATIC_ROOT_PATH = {static}
DISABLE_SSH = true
OFFLINE_MODE = true
[database]
DB_TYPE = sqlite3
PATH = {dir}/gitea.db
SQLITE_JOURNAL_MODE = WAL
SQLITE_TIMEOUT = 5000
[repository]
ROOT = {dir}/repositories
[security]
INSTALL_LOCK = true
SECRET_KEY = {secret}
[log]
MODE = file
LEVEL = Info
ROOT_PATH = {dir}/log
[webhook]
ALLOWED_HOST_LIST = loopback
DELIVER_TIMEOUT = 5
[actions]
ENABLED = true
ZOMBIE_TASK_TIMEOUT = {zombie}s
[cron.stop_zombie_tasks]
SCHEDULE = @every 5s
[indexer]
ISSUE_INDEXER_TYPE = db
[session]
COOKIE_SECURE = false
[service]
DISABLE_REGISTRATION = true
[cron.update_checker]
ENABLED = false
"""


class Gitea:
    """`root_url`: the address that Mayfly, guests and links use; a front stands there."""

    def __init__(self, program, directory, port, root_url):
        self.program, self.dir = program, pathlib.Path(directory)
        self.dir.mkdir(parents=True)
        self.url = f"http://127.0.0.1:{port}"
        self.config = self.dir / "app.ini"
        # A server that was built without its data in the program finds it here.
        static = os.environ.get("GITEA_STATIC_ROOT", str(self.dir))
        self.config.write_text(SETTINGS.format(dir=self.dir, port=port, root_url=root_url, static=static,
                                               secret=secrets.token_hex(32), zombie=ZOMBIE_SECONDS))
        self.process = None
        self.browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))

    def start(self):
        self.command("migrate")
        with open(self.dir / "gitea.out", "ab") as out:
            self.process = subprocess.Popen([self.program, "--config", self.config, "web"], cwd=self.dir, env=self.env(),
                                            stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(self.url + "/api/v1/version", timeout=5).read()
                break
            if self.process.poll() is not None or time.monotonic() > until:
                raise SystemExit("Gitea does not start:\n" + (self.dir / "gitea.out").read_text()[-3000:])
            time.sleep(0.2)
        self.command("admin", "user", "create", "--admin", "--username", "boss", "--password", PASSWORD, "--email",
                     "boss@example.org", "--must-change-password=false")
        said = self.command("admin", "user", "generate-access-token", "--username", "boss", "--token-name", "e2e", "--scopes",
                            "all", "--raw")
        self.token = re.search(r"\b[0-9a-f]{40}\b", said)[0]
        login = urllib.parse.urlencode({"user_name": "boss", "password": PASSWORD}).encode()
        self.browser.open(urllib.request.Request(self.url + "/user/login", data=login, method="POST"), timeout=30).read()

    def env(self):
        keep = {k: v for k, v in os.environ.items() if not k.startswith("GITEA")}
        return {**keep, "HOME": str(self.dir), "GITEA_WORK_DIR": str(self.dir)}

    def command(self, *arguments):
        ran = subprocess.run([self.program, "--config", self.config, *arguments], cwd=self.dir, env=self.env(), text=True,
                             stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300)
        if ran.returncode != 0:
            raise SystemExit(f"gitea {arguments[0]} failed:\n{ran.stdout[-3000:]}")
        return ran.stdout

    def api(self, method, path, body=None, user=None):
        """`user`: with the password of this user, otherwise with the administrator's token."""
        login = "Basic " + base64.b64encode(f"{user}:{PASSWORD}".encode()).decode() if user else "token " + self.token
        request = urllib.request.Request(
            f"{self.url}/api/v1{path}", method=method, data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": login, "Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
            return json.loads(text) if text[:1] in b"{[" and text else text

    def prepare(self, workflow, hook_url, hook_secret):
        """An organisation with a repository and its workflow, and a user of Mayfly's who owns it. Returns that user's token."""
        self.api("POST", "/admin/users", {"username": "mayfly", "email": "mayfly@example.org", "password": PASSWORD,
                                          "must_change_password": False})
        self.api("POST", "/admin/users/mayfly/orgs", {"username": "acme"})
        token = self.api("POST", "/users/mayfly/tokens", {"name": "e2e", "scopes": ["write:repository", "write:organization"]},
                         user="mayfly")["sha1"]
        self.api("POST", "/orgs/acme/repos", {"name": "app", "auto_init": True, "default_branch": "main"})
        self.api("POST", "/repos/acme/app/contents/.gitea/workflows/job.yaml", {
            "content": base64.b64encode(workflow.encode()).decode(), "message": "the workflow", "branch": "main"})
        self.api("POST", "/repos/acme/app/hooks", {
            "type": "gitea", "active": True, "events": ["workflow_job"],
            "config": {"url": hook_url, "content_type": "json", "secret": hook_secret}})
        return token

    def dispatch(self, **inputs):
        """Starts the workflow; returns the id of its run."""
        return self.api("POST", "/repos/acme/app/actions/workflows/job.yaml/dispatches?return_run_details=true",
                        {"ref": "main", "inputs": {key: str(value) for key, value in inputs.items()}})["workflow_run_id"]

    def job_of(self, run):
        """The only job of a run."""
        jobs = self.api("GET", f"/repos/acme/app/actions/runs/{run}/jobs")["jobs"]
        return max(jobs, key=lambda job: job["id"])

    def log(self, job):
        return self.api("GET", f"/repos/acme/app/actions/jobs/{job}/logs").decode(errors="replace")

    def cancel(self, run):
        """As a click on the page: the API has no call for it."""
        request = urllib.request.Request(f"{self.url}/acme/app/actions/runs/{run}/cancel", data=b"", method="POST")
        self.browser.open(request, timeout=30).read()

    def rerun(self, run, job):
        self.api("POST", f"/repos/acme/app/actions/runs/{run}/jobs/{job}/rerun")

    def runners(self):
        rows = []
        for scope in ("/admin", "/orgs/acme", "/repos/acme/app"):
            rows += self.api("GET", f"{scope}/actions/runners")["runners"]
        return {row["id"]: row for row in rows}

    def registration_tokens(self):
        return [self.api("POST", f"{scope}/actions/runners/registration-token")["token"]
                for scope in ("/orgs/acme", "/repos/acme/app")]

    def stop(self):
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
