"""Plays the part of GitLab that hands out jobs: what GitLab Runner asks for jobs, and reports to. Guests report to it, too."""

import collections
import http.server
import json
import re
import threading

TOKEN = "glrt-simulated-by-a-test"
# In every secret of every job. Letters only, so that no encoding changes it.
SECRET = "hushhushFiveCretOfTheJob"
# What GitLab shows as over. A job whose runner was killed is `running` there for an hour; here it is `abandoned` at once.
OVER = ("success", "failed", "canceled", "abandoned")


class GitLabJobs(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address="127.0.0.1", handler=None):
        super().__init__((address, 0), handler or Handler)
        self.lock = threading.Lock()
        self.jobs = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://{self.server_address[0]}:{self.server_address[1]}"

    @property
    def url_for_guests(self):
        return self.url.replace("//127.0.0.1:", "//10.0.2.2:")

    def add(self, job):
        with self.lock:
            job.id = len(self.jobs) + 101
            self.jobs.append(job)
        return job

    def runner(self, token):
        """The runner with this token, as `take` knows it."""
        return token if token == TOKEN else None

    def may_take(self, _runner, _job):
        return True

    def take(self, runner):
        with self.lock:
            for job in self.jobs:
                if job.state == "pending" and self.may_take(runner, job):
                    job.state, job.runner = "running", runner
                    job.taken += 1
                    return job
        return None

    def find(self, number):
        return next((job for job in self.jobs if job.id == number), None)

    def running(self):
        with self.lock:
            return [job for job in self.jobs if job.state == "running"]

    def cancel(self, job):
        with self.lock:
            if job.state in ("pending", "running"):
                job.state = "canceled"

    def abandon(self, jobs):
        """Their runner was killed."""
        with self.lock:
            for job in jobs:
                if job.state == "running":
                    job.state = "abandoned"


class Job:
    """`script` gets the number of the job, and the address to which the guest reports."""

    def __init__(self, script, image, timeout=3600):
        self.script, self.image, self.timeout = script, image, timeout
        self.id = None
        self.state, self.failure, self.exit_code, self.taken, self.runner = "pending", None, None, 0, None
        self.trace, self.final_updates = b"", 0
        # From the guests: what was said by which boot of which guest.
        self.said = collections.defaultdict(list)

    @property
    def token(self):
        return f"glcbt-{SECRET}-{self.id}"

    @property
    def secret(self):
        """With what would start a program, if a shell read it."""
        return f"{SECRET} $(touch /tmp/{SECRET}) `touch /tmp/{SECRET}` \"'; touch /tmp/{SECRET} #{self.id}"

    def over(self):
        return self.state in OVER

    def log(self):
        return self.trace.decode(errors="replace")

    def response(self, url, url_for_guests):
        def variable(key, value, public=True, file=False):
            return {"key": key, "value": value, "public": public, "masked": not public, "raw": True, "file": file}

        lines = self.script(self.id, f"{url_for_guests}/said/{self.id}")
        return {
            "id": self.id, "token": self.token, "allow_git_fetch": False,
            "job_info": {"name": f"job {self.id}", "stage": "test", "project_id": 3, "project_name": "app"},
            "git_info": {"repo_url": f"{url.replace('//', f'//gitlab-ci-token:{self.token}@')}/acme/app.git", "ref": "main",
                         "sha": "72863b1c72863b1c72863b1c72863b1c72863b1c", "before_sha": "0" * 40, "ref_type": "branch",
                         "refspecs": [], "depth": 0},
            "runner_info": {"timeout": self.timeout},
            "variables": [
                variable("CI_SERVER_URL", url), variable("CI_PROJECT_PATH", "acme/app"), variable("GIT_STRATEGY", "none"),
                # Authors of jobs can set it, and so it names no job.
                variable("CI_JOB_ID", "1"),
                variable("CI_JOB_TOKEN", self.token, public=False),
                variable("DEPLOY_KEY", self.secret, public=False),
                variable("KEY_FILE", self.secret, public=False, file=True),
            ],
            "steps": [{"name": "script", "script": lines, "timeout": self.timeout, "when": "on_success",
                       "allow_failure": False}],
            "image": {"name": self.image} if self.image else None,
            "services": [], "artifacts": [], "cache": [], "credentials": [], "dependencies": [],
            "features": {"trace_sections": True, "trace_checksum": True, "trace_size": True,
                         "failure_reasons": ["unknown_failure", "script_failure", "runner_system_failure",
                                             "job_execution_timeout"]},
        }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=None, **headers):
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(text)

    def body(self):
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def job(self):
        found = re.match(r"/api/v4/jobs/(\d+)", self.path)
        return found and self.server.find(int(found[1]))

    def do_POST(self):
        body = self.body()
        if said := re.fullmatch(r"/said/(\d+)/(\w+)/([0-9a-f-]{36})", self.path):
            self.server.find(int(said[1])).said[said[2]].append(said[3])
            return self.answer(200)
        body = json.loads(body or b"{}")
        if self.path != "/api/v4/jobs/request":
            return self.answer(200 if self.path == "/api/v4/runners/verify" else 404, {})
        runner = self.server.runner(body.get("token"))
        if runner is None:
            return self.answer(403, {"message": "403 Forbidden"})
        job = self.server.take(runner)
        if job is None:
            return self.answer(204, X_GitLab_Last_Update="now")
        self.answer(201, job.response(self.server.url, self.server.url_for_guests))

    def refused(self, job, token):
        """A job that is over takes no reports: this is how a runner learns that its job was canceled."""
        if job is None or token != job.token:
            self.answer(403, {"message": "403 Forbidden"})
            return True
        if job.state != "running":
            state = "failed" if job.state == "abandoned" else job.state
            self.answer(403, {"message": "403 Forbidden - Job is not running"}, Job_Status=state)
            return True
        return False

    def do_PATCH(self):
        body, job = self.body(), self.job()
        with self.server.lock:
            if self.refused(job, self.headers.get("JOB-TOKEN")):
                return
            begin = int(self.headers["Content-Range"].split("-")[0])
            if begin != len(job.trace):
                return self.answer(416, {"message": "416 Range Not Satisfiable"}, Range=f"0-{len(job.trace)}",
                                   Job_Status=job.state)
            job.trace += body
            self.answer(202, Job_Status=job.state, Range=f"0-{len(job.trace)}", X_GitLab_Trace_Update_Interval="3")

    def do_PUT(self):
        body, job = json.loads(self.body()), self.job()
        with self.server.lock:
            if self.refused(job, body.get("token")):
                return
            if body["state"] not in ("success", "failed"):
                return self.answer(200, Job_Status=job.state)
            job.final_updates += 1
            if job.final_updates == 1:
                # The log is not stored yet: the runner asks again.
                return self.answer(202, Job_Status=job.state, X_GitLab_Trace_Update_Interval="1")
            job.failure, job.exit_code = body.get("failure_reason") or None, body.get("exit_code")
            job.state = body["state"]
            self.answer(200, Job_Status=job.state)
