"""Plays a project of GitLab with its runners: what the recipe asks, beside what a runner asks."""

import json
import re
import secrets
import urllib.parse

from gitlab_jobs import GitLabJobs, Handler

PROJECT = 5
PAGE = 2


class GitLabProject(GitLabJobs):
    """Runners take jobs of which they have all tags. `access_token` is that of a user who may manage them."""

    def __init__(self, address, access_token):
        super().__init__(address, ProjectHandler)
        self.access_token, self.runners, self.last_id = access_token, {}, 0

    def new_runner(self, asked):
        with self.lock:
            self.last_id += 1
            runner = {"id": self.last_id, "description": asked["description"], "tags": asked["tag_list"].split(","),
                      "untagged": asked["run_untagged"], "token": f"glrt-{secrets.token_hex(10)}"}
            self.runners[runner["id"]] = runner
            return runner

    def runner(self, token):
        return next((runner for runner in self.runners.values() if runner["token"] == token), None)

    def may_take(self, runner, job):
        return set(job.tags) <= set(runner["tags"]) if job.tags else runner["untagged"]


class ProjectHandler(Handler):
    def page(self, items, query):
        """Of a list. There are few entries on it, so that there are pages."""
        begin = (int(query.get("page", "1")) - 1) * PAGE
        self.answer(200, items[begin:begin + PAGE])

    def is_allowed(self):
        if self.headers.get("PRIVATE-TOKEN") == self.server.access_token:
            return True
        self.answer(401, {"message": "401 Unauthorized"})
        return False

    def do_GET(self):
        path, _, query = self.path.partition("?")
        query = dict(urllib.parse.parse_qsl(query))
        if not self.is_allowed():
            return
        if path == f"/api/v4/projects/{PROJECT}/runners":
            return self.page([{"id": runner["id"], "description": runner["description"], "runner_type": "project_type"}
                              for runner in list(self.server.runners.values())], query)
        if path == f"/api/v4/projects/{PROJECT}/jobs":
            found = [job for job in self.server.jobs if job.state == query["scope[]"]]
            return self.page([{"id": job.id, "status": job.state, "tag_list": job.tags,
                               "runner": job.runner and {"id": job.runner["id"]}} for job in found], query)
        self.answer(404, {"message": "404 Not Found"})

    def do_POST(self):
        if self.path == "/api/v4/user/runners":
            asked = json.loads(self.body())
            if not self.is_allowed():
                return None
            if (asked["runner_type"], asked["project_id"]) != ("project_type", PROJECT):
                return self.answer(400, {"message": "400 Bad request"})
            runner = self.server.new_runner(asked)
            return self.answer(201, {"id": runner["id"], "token": runner["token"], "token_expires_at": None})
        if cancel := re.fullmatch(rf"/api/v4/projects/{PROJECT}/jobs/(\d+)/cancel", self.path):
            self.body()
            if self.is_allowed():
                job = self.server.find(int(cancel[1]))
                self.server.cancel(job)
                self.answer(201, {"id": job.id, "status": job.state})
            return None
        return super().do_POST()

    def do_DELETE(self):
        if not self.is_allowed():
            return None
        found = re.fullmatch(r"/api/v4/runners/(\d+)", self.path)
        if not found or self.server.runners.pop(int(found[1]), None) is None:
            return self.answer(404, {"message": "404 Not found"})
        return self.answer(204)
