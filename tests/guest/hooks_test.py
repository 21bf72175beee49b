"""The scripts of hooks/ on this machine, under every installed shell.

No guest: a kit in a temporary directory and a stand-in for the guest API. What needs a
second user, a reboot or a network of its own is in guest_test.py.
"""

import concurrent.futures
import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time

from support import (
    BUILDKITE_JOB, BUILDKITE_TOKEN, GITEA_REGISTRATION, HOOKS, JOB_TOKEN, REGISTRATION, TOKEN, VM_ID, Failed, Workspace,
    buildkite_files, check, files_with, gitea_files, github_files, kit_files, main, ready_file, write_kit, write_program,
)

SHELLS = {
    name: argv
    for name, argv in {
        "dash": ["dash", "-e"],
        "bash": ["bash", "-e"],
        "busybox": ["busybox", "sh", "-e"],
        "sh": ["/bin/sh", "-e"],
    }.items()
    if shutil.which(argv[0])
}
HOOK_LIMIT = 15  # longest wait of a runner, in seconds


def clean_env(**more):
    env = {"PATH": os.environ["PATH"], "HOME": "/tmp"}
    env.update(more)
    return env


def hook(shell, kit, name="job-completed.sh", cwd="/", env=None, path=None):
    """Runs a hook like a runner; returns (exit code, output, seconds)."""
    begin = time.monotonic()
    result = subprocess.run(SHELLS[shell] + [path or str(kit / name)], cwd=cwd, env=env or clean_env(),
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    return result.returncode, result.stdout.decode(), time.monotonic() - begin


def each_shell(test):
    """The same for all shells at once; the first failure names its shell."""
    with concurrent.futures.ThreadPoolExecutor(len(SHELLS)) as pool:
        futures = {name: pool.submit(test, name) for name in SHELLS}
        for name, future in futures.items():
            try:
                future.result()
            except Exception as error:
                raise Failed("%s: %s" % (name, error)) from error


def quiet(output):
    check(TOKEN not in output, "token in the output: " + output)


def announces():
    def one(shell):
        with Workspace() as w:
            kit = write_kit(w.dir / "a kit", kit_files(w.api.url))
            for name, call in (("job-started.sh", "job_started"), ("job-completed.sh", "DELETE")):
                code, output, _ = hook(shell, kit, name)
                check(code == 0, "%s ended with %s: %s" % (name, code, output))
                quiet(output)
                request = w.api.wait(call, 1)
                check(request["auth"] == "Bearer " + TOKEN, request["auth"])
                check(request["path"].startswith("/vms/" + VM_ID), request["path"])
            check(w.api.names() == ["job_started", "DELETE"], w.api.names())
            check(not w.api.leaks, "token in argv: %s" % w.api.leaks)
            # By a bare name, in the bundle's directory.
            check(hook(shell, kit, cwd=str(kit), path="./job-completed.sh")[0] == 0, "relative path")
            w.api.wait("DELETE", 1, count=2)

    each_shell(one)


def refusals():
    """A permanent refusal is not retried. A request without an answer is retried, whatever the failure, also after
    the hook has returned."""

    def one(shell):
        for status in (401, 404, 410):
            with Workspace() as w:
                w.api.rule(lambda r: True, status)
                kit = write_kit(w.dir / "kit", reinterpreted(kit_files(w.api.url), shell))
                code, output, took = hook(shell, kit)
                check(code == 0 and took < HOOK_LIMIT, "%s: code %s after %.1f s" % (status, code, took))
                quiet(output)
                check(len(w.api.names()) == 1, "%s calls on %s" % (len(w.api.names()), status))
        for status in (500, 503, "close", "cut", "reset"):
            with Workspace() as w:
                w.api.rule(lambda r: True, status, times=2)
                kit = write_kit(w.dir / "kit", reinterpreted(kit_files(w.api.url), shell))
                for name, call in (("job-started.sh", "job_started"), ("job-completed.sh", "DELETE")):
                    code, output, took = hook(shell, kit, name)
                    check(code == 0 and took < HOOK_LIMIT, "%s: code %s after %.1f s" % (status, code, took))
                    quiet(output)
                    w.api.wait(call, 1)

    each_shell(one)


def after_the_hook():
    """The service is down for longer than a hook may take: its report arrives nevertheless."""

    def one(shell):
        with Workspace() as w:
            w.api.rule(lambda r: True, "close")
            kit = write_kit(w.dir / "kit", reinterpreted(kit_files(w.api.url), shell))
            for name in ("job-started.sh", "job-completed.sh"):
                code, output, took = hook(shell, kit, name, env=clean_env(RUNNER_TRACKING_ID="github_1"))
                check(code == 0 and took < HOOK_LIMIT and "repeated" in output, "%s %.1f %s" % (code, took, output))
            # The variable by which a runner finds processes to kill after a job.
            for entry in pathlib.Path("/proc").iterdir():
                try:
                    text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                except OSError:
                    continue
                check(str(kit).encode() not in text or b"github_1" not in text, "the runner would kill it")
            w.api.rules.clear()
            w.api.wait("job_started", 20)
            w.api.wait("DELETE", 20)
            check(not w.api.leaks, "token in argv: %s" % w.api.leaks)

    each_shell(one)


def hanging_and_dead():
    """A hanging or missing service delays the end of the job, but within the limit."""

    def one(shell):
        with Workspace() as w:
            w.api.rule(lambda r: True, "hang")
            dead = socket.socket()
            dead.bind(("127.0.0.1", 0))  # bound, not listening: refuses
            refused = "http://127.0.0.1:%d" % dead.getsockname()[1]
            for url in (w.api.url, refused, "http://no-such-host.invalid", "not a url"):
                for name in ("job-completed.sh", "job-started.sh") if url == refused else ("job-completed.sh",):
                    kit = write_kit(w.dir / "kit", kit_files(url))
                    code, output, took = hook(shell, kit, name)
                    check(code == 0 and took < HOOK_LIMIT, "%s: code %s after %.1f s" % (url, code, took))
                    quiet(output)
            check(not w.api.leaks, "token in argv: %s" % w.api.leaks)
            dead.close()

    each_shell(one)


def broken_kits():
    """Missing, unreadable and malformed files: a line in the job's log, never a failed job."""

    def one(shell):
        with Workspace() as w:
            whole = kit_files(w.api.url)
            broken = {"empty": {}}
            for name in ("mayfly.env", "wrapper.curlrc"):
                broken["no " + name] = {k: v for k, v in whole.items() if k != name}
                broken["empty " + name] = {**whole, name: (0o600, b"")}
            broken["quote"] = {**whole, "mayfly.env": (0o600, b"MAYFLY_VM_ID='vm-1\n")}
            broken["syntax"] = {**whole, "mayfly.env": (0o600, b")(\nMAYFLY_URL='x'\n")}
            broken["false"] = {**whole, "mayfly.env": (0o600, b"false\nexit 9\n")}
            broken["curlrc"] = {**whole, "wrapper.curlrc": (0o600, b"\0\xff = no = such\n--option\n")}
            for case, files in broken.items():
                for name in ("job-started.sh", "job-completed.sh"):
                    files = {**files, name: whole[name]}
                    shutil.rmtree(w.dir / "kit", ignore_errors=True)
                    code, output, _ = hook(shell, write_kit(w.dir / "kit", files), name)
                    check(code == 0, "%s with %s: %s %s" % (name, case, code, output))
                    quiet(output)

    each_shell(one)


def hostile_environment():
    """The job shadowed PATH, left a ~/.curlrc, a proxy and odd shell settings."""

    def one(shell):
        with Workspace() as w:
            evil = w.dir / "evil"
            evil.mkdir()
            for program in ("curl", "sleep", "cat", "sh", "env", "date", "base64", "id"):
                (evil / program).write_text("#!/bin/sh\necho %s >>%s/called\nexit 1\n" % (program, w.dir))
                (evil / program).chmod(0o755)
            (evil / ".curlrc").write_text("proxy = 127.0.0.1:1\nmax-time = 0.001\n")
            kit = write_kit(w.dir / "kit", kit_files(w.api.url))
            env = {
                "PATH": str(evil), "HOME": str(evil), "CURL_HOME": str(evil), "IFS": "/:aeiou", "CDPATH": "/",
                "http_proxy": "http://127.0.0.1:1", "all_proxy": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1",
                "RUNNER_TRACKING_ID": "github_1", "MAYFLY_URL": "http://127.0.0.1:1", "MAYFLY_VM_ID": "someone-else",
                "GITHUB_ACTIONS": "true", "CI": "true",
            }
            absolute = dict(SHELLS)
            absolute[shell] = [shutil.which(SHELLS[shell][0])] + SHELLS[shell][1:]
            for name in ("job-started.sh", "job-completed.sh"):
                result = subprocess.run(absolute[shell] + [str(kit / name)], cwd=str(evil), env=env,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, timeout=60)
                check(result.returncode == 0, result.stdout)
            check(w.api.names() == ["job_started", "DELETE"], w.api.names())
            check(not (w.dir / "called").exists(), "a shadowed program ran")

    each_shell(one)


def cancelled_hook():
    """A signal in the middle of the call: still exit 0."""

    def one(shell):
        with Workspace() as w:
            w.api.rule(lambda r: True, "hang")
            kit = write_kit(w.dir / "kit", kit_files(w.api.url))
            process = subprocess.Popen(SHELLS[shell] + [str(kit / "job-completed.sh")], env=clean_env(),
                                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL, start_new_session=True)
            with w.api.news:
                check(w.api.news.wait_for(lambda: w.api.requests, 20), "no call")
            os.killpg(process.pid, signal.SIGTERM)
            check(process.wait(20) == 0, "ended with %s" % process.returncode)

    each_shell(one)


# --- boot.sh and wrapper.sh -----------------------------------------------------


def boot(kit, shell="sh", env=None, seconds=40, through=()):
    result = subprocess.run([*through, *SHELLS[shell][:-1], str(kit / "boot.sh")], env=env or clean_env(), cwd="/",
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds)
    return result.returncode, result.stdout.decode()


def reinterpreted(files, shell):
    """The bundle, whose inner shell calls use the shell under test."""
    argv = shutil.which(SHELLS[shell][0]) + (" sh" if shell == "busybox" else "")
    changed = dict(files)
    for name in ("boot.sh", "watch.sh", "wrapper.sh", "ready.sh", "tell.sh", "job-started.sh", "job-completed.sh"):
        if name in files:
            text = files[name][1].decode()
            check("\nsh=/bin/sh\n" in text, "%s no longer says how it starts another script" % name)
            changed[name] = (0o755, text.replace("\nsh=/bin/sh\n", "\nsh='%s'\n" % argv).encode())
    return changed


def lives(shell, files, w, env=None):
    kit = write_kit(w.dir / "kit", reinterpreted(files, shell))
    code, output = boot(kit, shell, env)
    check(code == 0, "boot.sh ended with %s: %s" % (code, output))
    quiet(output)
    return kit


def once(names):
    """Without repetitions: a report whose answer was slow is repeated."""
    return [name for n, name in enumerate(names) if name not in names[:n]]


SCRIPT_ORDER = ["guest_ready", "guest_configured", "runner_started", "runner_finished"]
COMMAND_ORDER = ["guest_ready", "guest_configured", "job_started", "DELETE", "job_result", "runner_finished"]


def wrapper_command():
    def one(shell):
        with Workspace() as w:
            payload = (
                "#!/usr/bin/env bash\n"
                "printf 'bytes \\001\\377\\n'; echo path=$PATH; echo tracking=${RUNNER_TRACKING_ID-unset} $GREETING\n"
                "env; cat; echo hooks $ACTIONS_RUNNER_HOOK_JOB_STARTED $ACTIONS_RUNNER_HOOK_JOB_COMPLETED\n"
                "echo last >&2; exit 42\n"
            )
            files = kit_files(w.api.url, payload=payload, env={"GREETING": "it's \"$HOME\" `x`"})
            path = os.environ["PATH"] + ":/last/of/path"
            kit = lives(shell, files, w, clean_env(PATH=path, RUNNER_TRACKING_ID="github_1"))
            check(w.api.wait("runner_finished", 40)["json"]["exit_code"] == 42, "wrong exit code")
            check(w.api.wait("job_result", 1)["json"]["exit_code"] == 42, "wrong result")
            check(w.api.names() == COMMAND_ORDER, w.api.names())
            log = w.api.log()
            lines = log.split(b"\n")
            check(lines[0] == b"bytes \x01\xff", log[:200])
            entries = next(line for line in lines if line.startswith(b"path=")).decode()[5:].split(":")
            check({"/usr/local/bin", *path.split(":")} - {p for p in path.split(":") if not os.path.isdir(p)} <= set(entries),
                  "PATH of the payload: %s" % entries)
            check(b"tracking=unset it's \"$HOME\" `x`" in lines, log)
            check(TOKEN.encode() not in log, "token in the payload's environment")
            check(("hooks %s/job-started.sh %s/job-completed.sh" % (kit, kit)).encode() in lines, log)
            check(("MAYFLY_HOME=%s" % kit).encode() in lines and b"last" in lines, log)
            check(not w.api.leaks, "token in argv: %s" % w.api.leaks)
            # The bundle was used: one VM, one job.
            check(boot(kit, shell)[0] == 0, "second boot.sh")
            check(w.api.names()[6:] == ["guest_ready"], w.api.names())

    each_shell(one)


def additional_certificates():
    """The host's certificates are appended to the guest's own; every user of the guest may read them."""

    def one(shell):
        with Workspace() as w:
            extra = b"-----BEGIN CERTIFICATE-----\nextra\n-----END CERTIFICATE-----\n"
            payload = ('#!/bin/sh\nls -l "$SSL_CERT_FILE" "$NODE_EXTRA_CA_CERTS"\ncmp "$NODE_EXTRA_CA_CERTS" %s && '
                       'echo same\ntail -n 3 "$SSL_CERT_FILE"\n' % (w.dir / "extra"))
            (w.dir / "extra").write_bytes(extra)
            files = kit_files(w.api.url, payload=payload)
            files["runner.env"] = (0o600, b'export NODE_EXTRA_CA_CERTS="$MAYFLY_HOME"/ca-extra.pem\n'
                                          b'export SSL_CERT_FILE="$MAYFLY_HOME"/ca-bundle.pem\n')
            files["ca-extra.pem"] = (0o600, extra)
            kit = lives(shell, files, w)
            w.api.wait("runner_finished", 40)
            lines = w.api.log().decode().split("\n")
            check([line[:10] for line in lines[:2]] == ["-rw-r--r--"] * 2 and lines[2] == "same", lines)
            check("\n".join(lines[3:6]).encode() + b"\n" == extra, lines)
            own = [p for p in ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt",
                               "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem") if os.path.exists(p)]
            whole = (kit / "ca-bundle.pem").read_bytes()
            before = pathlib.Path(own[0]).read_bytes() + b"\n" if own else b""
            check(whole == before + extra, "%d bytes, not those of %s and the additional ones" % (len(whole), own[:1]))

    each_shell(one)


def wrapper_script_none_unknown():
    def one(shell):
        cases = (
            ("script", "echo set up; exit 3\n", SCRIPT_ORDER, 3),
            ("script", None, SCRIPT_ORDER, 127),
            ("command", "no-such-program\n", COMMAND_ORDER, 127),
            ("tomorrow", "exit 0\n", ["guest_ready", "guest_configured", "runner_finished"], 127),
        )
        for kind, payload, order, code in cases:
            with Workspace() as w:
                lives(shell, kit_files(w.api.url, kind=kind, payload=payload), w)
                end = w.api.wait("runner_finished", 40)["json"]["exit_code"]
                check(end == code if code is not None else end != 0, "%s: exit code %s" % (kind, end))
                check(w.api.names() == order, "%s: %s" % (kind, w.api.names()))
        with Workspace() as w:
            kit = lives(shell, kit_files(w.api.url, kind="none"), w)
            w.api.wait("guest_configured", 20)
            wait_gone(int((kit / "run" / "wrapper.pid").read_text()))
            check(w.api.names() == ["guest_ready", "guest_configured"], w.api.names())
            # A warm guest: the real bundle is delivered later, into the same directory.
            write_kit(kit, reinterpreted(kit_files(w.api.url, payload="exit 0\n"), shell))
            check(boot(kit, shell)[0] == 0, "second boot.sh")
            w.api.wait("runner_finished", 40)

    each_shell(one)


def wait_gone(pid, seconds=20):
    """Waits for the end of a process that is not our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    import select
    ready = select.select([descriptor], [], [], seconds)[0]
    os.close(descriptor)
    check(ready, "process %d goes on" % pid)


def long_log():
    """A log over the cap: its beginning, a note, its end; while the job runs, too."""
    with Workspace() as w:
        payload = (
            "#!/bin/sh\necho the beginning\n"
            'until curl -sf -o /dev/null "$MAYFLY_URL/streamed"; do sleep 0.2; done\n'
            "yes 0123456789abcdef | head -c 3000000\necho the end\n"
        )
        w.api.rule(lambda r: r["path"] == "/streamed" and not w.api.log(), 404)
        lives("sh", kit_files(w.api.url, payload=payload), w)
        w.api.wait("runner_finished", 60)
        log = w.api.log()
        check(log.startswith(b"the beginning\n"), log[:60])
        check(b"bytes left out" in log and b"the end\n" in log, log[-300:])
        check(900_000 < len(log) < 1_100_000, "%d bytes" % len(log))
        check(max(r["length"] for r in w.api.requests) < 65536, "a body over the limit")


def lost_calls():
    """Failed log requests are repeated; runner_finished is repeated until it is accepted."""
    with Workspace() as w:
        w.api.rule(lambda r: r["name"] == "log:job", 503, times=2)
        w.api.rule(lambda r: r["name"] == "runner_finished", 503, times=2)
        w.api.rule(lambda r: r["name"] == "guest_ready", 403)
        lives("sh", kit_files(w.api.url, payload="i=0; while [ $i -lt 4000 ]; do i=$((i+1)); echo line $i; done\n"), w)
        w.api.wait("runner_finished", 40)
        check([x for x in w.api.log().splitlines() if x.startswith(b"line")][-1] == b"line 4000", "log not complete")
        check(w.api.names().count("runner_finished") == 3, w.api.names())


def acknowledged_start():
    """The job starts once, and only after the permission, however answers get lost."""

    def one(shell):
        for status in (503, "close", "cut", "reset", "lost"):
            with Workspace() as w:
                for name in ("guest_ready", "guest_configured"):
                    w.api.rule(lambda r, name=name: r["name"] == name, status, times=3)
                payload = 'echo ran\ncurl -s -o /dev/null "$MAYFLY_URL/ran"\n'
                lives(shell, kit_files(w.api.url, payload=payload), w)
                w.api.wait("runner_finished", 60)
                names = w.api.names()
                check(names.count("GET /ran") == 1 and w.api.log().count(b"ran\n") == 1, "%s: %s" % (status, names))
                taken = w.api.wait("guest_configured", 1)
                check(taken["json"] == {"type": "guest_configured", "attempt": 1, "separate_users": False}, taken["json"])
                check(w.api.wait("GET /ran", 1)["at"] > taken["at"], "%s: it ran before it was allowed to" % status)

    each_shell(one)


def never_started():
    """Refused, or not permitted in time: the guest is powered off, and its job does not start, not even later."""

    def one(shell):
        for status, seconds in ((409, "40"), (410, "40"), ("close", "1"), (503, "0")):
            with Workspace() as w:
                w.api.rule(lambda r: r["name"] == "guest_configured", status)
                files = kit_files(w.api.url, payload="echo ran\n", extra={"MAYFLY_START_SECONDS": seconds})
                kit = lives(shell, files, w)
                wait_gone(int((kit / "run" / "wrapper.pid").read_text()))
                check((kit / "run" / "powered-off").exists(), "%s: not powered off" % status)
                check(not {"job_started", "runner_finished"} & set(w.api.names()), "%s: %s" % (status, w.api.names()))
                check(b"the job was not started" in w.api.log("boot"), w.api.log("boot"))

    each_shell(one)


def started_by_the_host():
    """The guest API cannot be reached: the permission comes in the way of the bundle."""

    def one(shell):
        with Workspace() as w:
            w.api.rule(lambda r: r["name"] == "guest_configured", "close")
            kit = lives(shell, kit_files(w.api.url, payload="echo ran\n"), w)
            (kit / "run" / "start").write_text("2\n")  # of another attempt
            with w.api.news:
                w.api.news.wait_for(lambda: w.api.names().count("guest_configured") > 2, 20)
            check("job_started" not in w.api.names(), w.api.names())
            (kit / "run" / "start").write_text("1\n")
            w.api.wait("runner_finished", 30)
            check(w.api.log().count(b"ran\n") == 1, w.api.log())

    each_shell(one)


def not_twice():
    """The wrapper ends in the middle of the job, as in a reboot: the job is not started again."""

    def one(shell):
        with Workspace() as w:
            files = kit_files(w.api.url, kind="script", payload='echo ran\nexec sleep 60 # "$MAYFLY_HOME"\n')
            kit = lives(shell, files, w)
            with w.api.news:
                check(w.api.news.wait_for(lambda: b"ran" in w.api.log(), 30), "it does not run")
            # All of it: the session of the wrapper and that of the payload. Some end by themselves after they were listed,
            # and some were started since.
            for _ in range(100):
                left = w.processes()
                if not left:
                    break
                for pid, _ in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            check(not left, left)
            code, output = boot(kit, shell)
            check(code != 0 and "not started again" in output, output)
            check(w.api.log().count(b"ran") == 1, w.api.log())

    each_shell(one)


def vm_is_gone():
    """404 for runner_finished: there is nothing left to report, the wrapper ends."""
    with Workspace() as w:
        w.api.rule(lambda r: r["name"] == "runner_finished", 404)
        kit = lives("sh", kit_files(w.api.url, payload="exit 0\n"), w)
        wait_gone(int((kit / "run" / "wrapper.pid").read_text()))
        check(w.api.names().count("runner_finished") == 1, w.api.names())


def one_wrapper():
    """Boots at once and boots while the job runs: one job."""
    with Workspace() as w:
        payload = '#!/bin/sh\necho ran\nuntil curl -sf -o /dev/null "$MAYFLY_URL/release"; do sleep 0.1; done\n'
        w.api.rule(lambda r: r["path"] == "/release", 404)
        kit = write_kit(w.dir / "kit", kit_files(w.api.url, payload=payload))
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _: boot(kit), range(4)))
        check([code for code, _ in results] == [0] * 4, results)
        check(boot(kit)[0] == 0, "boot while the job runs")
        w.api.rules.clear()
        w.api.wait("runner_finished", 30)
        check(w.api.names().count("job_started") == 1, w.api.names())
        check(w.api.log().count(b"ran\n") == 1, w.api.log())


def violent_job():
    """A job that signals its whole process group ends only itself."""
    with Workspace() as w:
        lives("sh", kit_files(w.api.url, payload="echo before\nkill -9 0\n"), w)
        check(w.api.wait("runner_finished", 30)["json"]["exit_code"] == 137, "exit code")
        check(w.api.names() == COMMAND_ORDER, w.api.names())
        check(b"before\n" in w.api.log(), w.api.log())


def signals_ignored():
    """The caller ignored signals, which no shell can undo: the end of the job is detected nevertheless."""

    def one(shell):
        with Workspace() as w:
            files = kit_files(w.api.url, payload="echo last; exit 4\n")
            kit = write_kit(w.dir / "kit", reinterpreted(files, shell))
            through = ["sh", "-c", "trap '' HUP INT TERM; exec \"$@\"", "sh"]
            code, output = boot(kit, shell, through=through)
            check(code == 0, "boot.sh ended with %s: %s" % (code, output))
            check(w.api.wait("runner_finished", 30)["json"]["exit_code"] == 4, "exit code")
            check(w.api.names() == COMMAND_ORDER and b"last\n" in w.api.log(), w.api.names())

    each_shell(one)


def no_base64():
    """Without a base64 tool there is no log, but everything else works."""
    with Workspace() as w:
        tools = w.dir / "tools"
        tools.mkdir()
        for tool in "sh bash mkdir cat rm mv tee uname id chmod chown tail head tr wc sleep setsid date kill curl sed awk od cut".split():
            if shutil.which(tool):
                (tools / tool).symlink_to(shutil.which(tool))
        files = kit_files(w.api.url, payload="echo unseen\n")
        for name in ("boot.sh", "watch.sh", "wrapper.sh", "job.sh", "tell.sh"):
            text = files[name][1].decode()
            check("\nPATH=/usr/bin:/bin:/usr/sbin:/sbin\n" in text, "PATH line changed")
            files[name] = (0o755, text.replace("PATH=/usr/bin:/bin:/usr/sbin:/sbin", "PATH=%s" % tools).encode())
        lives("sh", files, w)
        w.api.wait("runner_finished", 30)
        check(w.api.names(logs=True) == COMMAND_ORDER, w.api.names(logs=True))


def boot_says_no():
    """boot.sh is no job hook: it fails if no wrapper was started."""
    with Workspace() as w:
        whole = kit_files(w.api.url, payload="exit 0\n")
        for case, change in {
            "no settings": {"mayfly.env": None},
            "broken settings": {"mayfly.env": (0o600, b"MAYFLY_URL='\n")},
            "unknown user": {"mayfly.env": (0o600, whole["mayfly.env"][1].replace(
                b"RUNNER_USER=''", b"RUNNER_USER='no-such-user'"))},
            "no wrapper": {"wrapper.sh": None},
            "no tell.sh": {"tell.sh": None},
            "no token": {"wrapper.curlrc": None},
            "no job.sh": {"job.sh": None},
        }.items():
            if case == "unknown user" and os.getuid() != 0:
                continue
            files = {k: v for k, v in {**whole, **change}.items() if v}
            shutil.rmtree(w.dir / "kit", ignore_errors=True)
            before = w.api.names().count("guest_failed")
            code, output = boot(write_kit(w.dir / "kit", files))
            check(code != 0, "%s: exit 0, %s" % (case, output))
            # Whatever can be reported is reported at once, in words.
            if not {"mayfly.env", "tell.sh", "wrapper.curlrc"} & set(change) or case == "unknown user":
                said = w.api.wait("guest_failed", 1, count=before + 1)["json"]
                check(said["attempt"] == 1 and said["detail"] in output, said)
        check("runner_finished" not in w.api.names(), w.api.names())


class Service:
    """An HTTP service in the guest. `answers`: path → list of (status, body); the last one is repeated."""

    def __init__(self, answers):
        self.seen = []
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                service.seen.append(self.path)
                left = answers[self.path]
                status, body = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(status)
                self.end_headers()
                # A body without a length and larger than what is read of it.
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def refusing_port():
    """Bound and not listening: connections are refused as long as the socket exists."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    return held


def ready_checks():
    """The job is prepared and started after the check has succeeded, and not before. What the service says is reported as
    plain text."""

    def one(shell):
        nasty = b'{"version": "1.2\\u0022 \x1b[31m\xc3\xa9' + b"x" * 300 + b'"}'
        answers = {
            "/health?full=[1]": [(503, b"starting"), (200, b"not yet"), (200, b"up\nall is WELL " + b"." * 200_000)],
            "/version": [(200, nasty)],
            "/status": [(200, b'{"state":02,"runner_name":"state","job":{"state":9}}')],
        }
        with Workspace() as w, Service(answers) as service:
            ready = ready_file(check="http", port=service.port, path="/health?full=[1]", expect="is WELL", seconds=30,
                               version_path="/version", state_path="/status")
            kit = lives(shell, {**kit_files(w.api.url, kind="none"), **ready}, w)
            # boot.sh ended after the check.
            said = w.api.wait("guest_checked", 0)["json"]
            check(said["attempt"] == 1 and said["state"] == 2, said)
            check(said["version"].startswith("1.2?u0022 ??31m??xxx") and len(said["version"]) == 100, said)
            w.api.wait("guest_configured", 10)
            check(w.api.names() == ["guest_ready", "guest_checked", "guest_configured"], w.api.names())
            check(once(service.seen) == ["/health?full=[1]", "/version", "/status"] and len(service.seen) >= 5, service.seen)
            check((kit / "run" / "ready").read_text() == "ready\n", "no result")
            check(not (kit / "run" / "ready.work").exists(), "its files are left")

        # A service that tells nothing of use is ready all the same.
        answers = {"/health": [(204, b"")], "/version": [(404, b'"9"')], "/status": [(200, b"<html>")]}
        with Workspace() as w, Service(answers) as service:
            ready = ready_file(check="http", port=service.port, path="/health", version_path="/version", state_path="/status")
            lives(shell, {**kit_files(w.api.url, kind="none"), **ready}, w)
            said = w.api.wait("guest_checked", 0)["json"]
            check(said == {"type": "guest_checked", "attempt": 1}, said)

        # After a seed, boot.sh does not wait; the wrapper does.
        with Workspace() as w:
            go = w.dir / "go"
            command = 'test -e "%s" || { echo not there; exit 3; }' % go
            files = kit_files(w.api.url, kind="none", extra={"MAYFLY_HANDOVER": "seed"})
            lives(shell, {**files, **ready_file(check="exec", command=command, seconds=30)}, w)
            check(w.api.names() == ["guest_ready"], w.api.names())
            go.touch()
            w.api.wait("guest_configured", 20)
            check(w.api.names() == ["guest_ready", "guest_checked", "guest_configured"], w.api.names())

        with Workspace() as w, socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            lives(shell, {**kit_files(w.api.url, kind="none"), **ready_file(check="tcp", port=port)}, w)
            w.api.wait("guest_checked", 0)

    each_shell(one)


def never_ready():
    """The attempt is over, with what was seen last; nothing of the job has run."""

    def one(shell):
        hangs = 'echo begun; sleep 60 & exec sleep 60'
        with refusing_port() as held, Service({"/": [(500, b"")], "/up": [(200, b'"no"\n')]}) as service:
            port = held.getsockname()[1]
            cases = (
                (dict(check="http", port=port, path="/"), "no answer: curl: (7) "),
                (dict(check="http", port=service.port, path="/"), "HTTP status 500"),
                (dict(check="http", port=service.port, path="/up", expect="yes"), "HTTP status 200 without the expected text: ?no?"),
                (dict(check="tcp", port=port), "no process listens"),
                (dict(check="exec", command="echo 'x \"y\"' >&2; exit 7"), "exit code 7: x ?y?"),
                (dict(check="exec", command=hangs), "the command did not end in time"),
                (dict(check="ftp"), "unknown check 'ftp'"),
            )
            for settings, seen in cases:
                with Workspace() as w:
                    files = kit_files(w.api.url, payload=": >%s/ran\n" % w.dir)
                    kit = write_kit(w.dir / "kit", reinterpreted({**files, **ready_file(**{"seconds": 1, **settings})}, shell))
                    code, output = boot(kit, shell)
                    check(code == 4, "%s: boot.sh ended with %s: %s" % (settings, code, output))
                    last = output.strip().split("\n")[-1]
                    check(last.startswith("mayfly boot: not ready: " + seen), output)
                    said = w.api.wait("guest_failed", 10)["json"]
                    check(said["check_failed"] and said["attempt"] == 1 and said["detail"].startswith(seen), said)
                    wait_gone(int((kit / "run" / "wrapper.pid").read_text()))
                    check(w.api.names() == ["guest_ready", "guest_failed"], w.api.names())
                    check(not (w.dir / "ran").exists() and not (kit / "run" / "powered-off").exists(), "it went on")
                    check(not [text for _, text in w.processes() if "sleep 60" in text], w.processes())

        # It cannot be reported: the guest does not stay on without a use.
        with Workspace() as w:
            w.api.rule(lambda r: r["name"] == "guest_failed", "close")
            files = kit_files(w.api.url, payload="true\n", extra={"MAYFLY_START_SECONDS": "1", "MAYFLY_HANDOVER": "seed"})
            kit = lives(shell, {**files, **ready_file(check="exec", command="exit 1", seconds=1)}, w)
            wait_gone(int((kit / "run" / "wrapper.pid").read_text()))
            check((kit / "run" / "powered-off").exists(), "not powered off")

    each_shell(one)


RUN_SH = """#!/usr/bin/env bash
[ $# = 0 ] || echo "arguments: $*"
echo "jit=$ACTIONS_RUNNER_INPUT_JITCONFIG token=$ACTIONS_RUNNER_INPUT_TOKEN deprecated=$ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE"
echo "hooks $ACTIONS_RUNNER_HOOK_JOB_STARTED $ACTIONS_RUNNER_HOOK_JOB_COMPLETED greeting=$GREETING tracking=${RUNNER_TRACKING_ID-unset}"
echo "left: $(ls "$MAYFLY_HOME/registration" 2>/dev/null)"
echo "proxy=$https_proxy certificates=$SSL_CERT_FILE"
echo 'dotenv:'; cat .env
echo "2026-01-01 00:00:00Z: Listening for Jobs"
until [ -e go ]; do sleep 0.1; done
bash -e "$ACTIONS_RUNNER_HOOK_JOB_COMPLETED" </dev/null
exit @END@
"""


def runner_in(directory, code=0, version="2.336.0", config="exit 0"):
    """A stand-in for GitHub's runner, which waits for the file `go` once it is idle."""
    directory = pathlib.Path(directory)
    (directory / "bin").mkdir(parents=True)
    listener = "#!/bin/sh\n[ \"$1\" = --version ] && echo %s\n" % version
    # As GitHub's: a runner that is configured already is not configured again.
    configured = ("[ -e .runner ] && { echo \"Cannot configure the runner because it is already configured. To reconfigure "
                  "the runner, run 'config.cmd remove' or './config.sh remove' first.\"; exit 1; }")
    config = "#!/bin/sh\n%s\n%s\n" % (configured, config)
    for name, text in (("run.sh", RUN_SH.replace("@END@", str(code))), ("config.sh", config),
                       ("bin/Runner.Listener", listener)):
        write_program(directory / name, text)
    (directory / ".env").write_text("LANG=C.UTF-8\nACTIONS_RUNNER_HOOK_JOB_COMPLETED=/stale/hook.sh\nMAYFLY_URL=http://stale\n")
    return directory


GITHUB_ORDER = ["guest_ready", "guest_configured", "runner_started", "runner_online", "DELETE", "runner_finished"]


def github_runner():
    def one(shell):
        with Workspace() as w:
            runner = runner_in(w.dir / "runner", code=3)
            with open(runner / ".env", "a") as old:
                old.write("HTTPS_PROXY=http://stale.corp:1\nno_proxy=stale\nSSL_CERT_FILE=/stale\nGIT_SSL_CAINFO=/kept\n")
            proxy = "http://user:s3cret@proxy.corp:3128"
            env = {"GREETING": "hi", "https_proxy": proxy, "SSL_CERT_FILE": "/new"}
            kit = lives(shell, github_files(w.api.url, runner, env=env), w,
                        clean_env(RUNNER_TRACKING_ID="github_1"))
            w.api.wait("runner_online", 40)
            # The registration was used and removed.
            check(not (kit / "registration").exists() and not (kit / "run/job/registration").exists(), "it is still there")
            (runner / "go").touch()
            check(w.api.wait("runner_finished", 40)["json"]["exit_code"] == 3, "wrong exit code")
            check(w.api.names() == GITHUB_ORDER, w.api.names())
            lines = w.api.log().decode().split("\n")
            check("jit=%s token= deprecated=1" % REGISTRATION in lines, lines)
            hooks = "hooks %s/job-started.sh %s/job-completed.sh greeting=hi tracking=unset" % (kit, kit)
            check(hooks in lines and "left: " in lines, lines)
            dotenv = lines[lines.index("dotenv:") + 1:]
            check(dotenv[0] == "LANG=C.UTF-8", dotenv)
            check("ACTIONS_RUNNER_HOOK_JOB_COMPLETED=%s/job-completed.sh" % kit in dotenv, dotenv)
            check(not any("stale" in line or "s3cret" in line for line in dotenv), dotenv)
            check("GIT_SSL_CAINFO=/kept" in dotenv and "proxy=%s certificates=/new" % proxy in lines, lines)
            check("MAYFLY_URL=%s" % w.api.url in dotenv, dotenv)
            check(not any("arguments" in line for line in lines), lines)
            check(not w.api.leaks, "token in argv: %s" % w.api.leaks)

    each_shell(one)


def github_registration_fetched():
    """A bundle without the registration: it is fetched before the start, and is in no file while the runner runs."""

    def one(shell):
        with Workspace() as w:
            runner = runner_in(w.dir / "runner")
            where = "/vms/%s/registration" % VM_ID
            w.api.bodies[where] = REGISTRATION.encode()
            w.api.rule(lambda r: r["path"] == where, "cut", times=2)
            w.api.rule(lambda r: r["name"] == "guest_configured", "close", times=2)
            files = github_files(w.api.url, runner)
            del files["registration"]
            kit = lives(shell, files, w)
            w.api.wait("runner_online", 40)
            found = files_with([REGISTRATION], w.dir)
            check(not found, found)
            for entry in pathlib.Path("/proc").iterdir():
                try:
                    argv, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
                except OSError:
                    continue
                # It is in the runner's own environment, as GitHub documents.
                if REGISTRATION.encode() in environment and str(w.dir).encode() in environment + argv:
                    check(b"run.sh" in argv or os.readlink(entry / "cwd") == str(runner), argv)
                check(REGISTRATION.encode() not in argv, argv)
            (runner / "go").touch()
            w.api.wait("runner_finished", 40)
            names = [n for n in w.api.names() if n != "GET " + where]
            check([n for i, n in enumerate(names) if i == 0 or names[i - 1] != n] == GITHUB_ORDER, names)
            check(b"jit=%s token=" % REGISTRATION.encode() in w.api.log(), w.api.log())
            check(not (kit / "run/job/registration").exists(), "the pipe is left")

    each_shell(one)


def github_registration_refused():
    """A registration of another vm, or a used one: nothing is started."""
    with Workspace() as w:
        runner = runner_in(w.dir / "runner")
        w.api.rule(lambda r: r["path"].endswith("/registration"), 410)
        files = github_files(w.api.url, runner)
        del files["registration"]
        kit = lives("sh", files, w)
        wait_gone(int((kit / "run" / "wrapper.pid").read_text()))
        check((kit / "run" / "powered-off").exists(), "not powered off")
        check(w.api.names() == ["guest_ready", "GET /vms/%s/registration" % VM_ID], w.api.names())


def as_another_user():
    """Started by root for another user: the wrapper stays root. The job's user reads neither the wrapper's token nor the
    used registration, writes no file of the wrapper, and ends none of its processes. Its profile and its login shell are
    not needed."""
    if os.getuid() != 0:
        return "skipped, not root"

    def one(shell):
        with Workspace() as w:
            runner = runner_in(w.dir / "runner")
            subprocess.run(["chown", "-R", "nobody:", str(runner)], check=True, timeout=60)
            files = github_files(w.api.url, runner)
            files["mayfly.env"] = (0o600, files["mayfly.env"][1].replace(b"RUNNER_USER=''", b"RUNNER_USER='nobody'"))
            kit = lives(shell, files, w)
            configured = w.api.wait("runner_online", 40) and w.api.wait("guest_configured", 1)
            check(configured["json"]["separate_users"] is True, configured["json"])
            reads = shlex.join(["cat", *(str(kit / name) for name in ("registration", "run/job/registration", "wrapper.curlrc"))])
            seen = subprocess.run(["su", "-s", "/bin/sh", "nobody", "-c", reads], stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL, timeout=60)
            check(seen.stdout == b"", seen.stdout)
            found = files_with([REGISTRATION, TOKEN], kit, user="nobody")
            check(not found, found)
            found = files_with([REGISTRATION, TOKEN], kit)
            check(str(kit / "wrapper.curlrc") in found, "root finds only %s" % found)
            (runner / "go").touch()
            w.api.wait("runner_finished", 40)
            check(b"jit=%s token=" % REGISTRATION.encode() in w.api.log(), w.api.log())
            check(b"rm: " not in w.api.log(), w.api.log())
            by = {r["name"]: r["auth"] for r in w.api.requests}
            check(by["DELETE"] == "Bearer " + JOB_TOKEN and by["runner_finished"] == "Bearer " + TOKEN, by)
        with Workspace() as w:
            payload = (
                "#!/bin/sh\necho user=$(id -un) home=$HOME; echo again >>/dev/stdout && echo log=open\n"
                "cd \"$MAYFLY_HOME\" || exit 1\n"
                "for file in *.sh mayfly.env job.env wrapper.curlrc run/wrapper.pid run/wrapper.log; do\n"
                "    (: >>\"$file\") 2>/dev/null && echo \"wrote $file\"\ndone\n"
                "rm -rf run/job.log run/wrapper.pid *.sh; mv run gone\n"
                # Not `kill -9 -1`, which would reach the user's processes of tests that run at the same time.
                "for process in /proc/[0-9]*; do\n"
                "    grep -qa \"$MAYFLY_HOME\" $process/cmdline 2>/dev/null && kill -9 ${process#/proc/}\ndone\n"
                "kill -9 $PPID $$\n"
            )
            kit = lives(shell, kit_files(w.api.url, payload=payload, user="nobody"), w)
            check(w.api.wait("runner_finished", 30)["json"]["exit_code"] == 137, w.api.log())
            check(once(w.api.names()) == COMMAND_ORDER, w.api.names())
            log = w.api.log().decode()
            check("user=nobody home=" in log and "log=open" in log and "wrote" not in log, log)
        with Workspace() as w:
            w.api.rule(lambda r: r["name"] == "guest_configured", 409)
            files = kit_files(w.api.url, payload="echo ran\n", user="nobody")
            stub = files["power-off.sh"][1] + b'id -u >"${0%/*}/run/powered-off"\n'
            kit = lives(shell, {**files, "power-off.sh": (0o755, stub)}, w)
            wait_gone(int((kit / "run" / "wrapper.pid").read_text()))
            check((kit / "run" / "powered-off").read_text() == "0\n", "not powered off, or not by root")

    each_shell(one)


def job_that_cannot_start():
    """What keeps a job from starting is reported before its start, in words, and ends the vm."""

    def one(shell):
        for payload, words in (
            (b"#!/no/such/interpreter\necho ran\n", "interpreter /no/such/interpreter is not in this guest"),
            (b"#!/usr/bin/env no-such-interpreter\necho ran\n", "interpreter no-such-interpreter is not in the PATH"),
            (b"#!/bin/sh\r\necho ran\r\n", "carriage return"),
            (b"\xef\xbb\xbf#!/bin/sh\necho ran\n", "byte order mark"),
        ):
            with Workspace() as w:
                kit = lives(shell, kit_files(w.api.url, payload=payload), w)
                said = w.api.wait("guest_failed", 20)["json"]
                check(words in said["detail"] and said["is_final"] is True and said["attempt"] == 1, said)
                wait_gone(int((kit / "run" / "wrapper.pid").read_text()))
                check(once(w.api.names()) == ["guest_ready", "guest_failed"], w.api.names())
        for payload in ("#!/usr/bin/env sh\necho ran\n", "#! /bin/sh -e\necho ran\n", "echo ran\n"):
            with Workspace() as w:
                lives(shell, kit_files(w.api.url, payload=payload), w)
                w.api.wait("runner_finished", 30)
                check(b"ran\n" in w.api.log(), w.api.log())

    each_shell(one)


def heartbeats():
    """While the wrapper lives, Mayfly hears from it; its death is reported; and when everything is killed, it is silent."""

    def one(shell):
        payload = "#!/bin/sh\necho ran\nexec sleep 60 # $MAYFLY_HOME\n"
        files = kit_files(w.api.url, kind="script", payload=payload, extra={"MAYFLY_HEARTBEAT_EVERY": "1"})
        return lives(shell, files, w)

    for shell in SHELLS:
        with Workspace() as w:
            kit = one(shell)
            w.api.wait("heartbeat", 30, count=3)
            os.kill(int((kit / "run" / "wrapper.pid").read_text()), signal.SIGKILL)
            said = w.api.wait("guest_failed", 20)["json"]
            check("without a result" in said["detail"] and not said.get("is_final"), said)
            check("runner_finished" not in w.api.names(), w.api.names())
            for pid, _ in w.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with Workspace() as w:
            one(shell)
            w.api.wait("heartbeat", 30)
            # As `kill -9 -1` of a job that is the wrapper's user.
            for _ in range(100):
                left = w.processes()
                if not left:
                    break
                for pid, _ in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            check(not left, left)
            with w.api.news:
                said = len(w.api.requests)
                check(not w.api.news.wait_for(lambda: len(w.api.requests) > said, 3), w.api.names())


def difficult_profile():
    """Another user's profile and login shell are not needed: they cost the job only their variables."""
    if os.getuid() != 0:
        return "skipped, not root"
    with Workspace() as w:
        home = w.dir / "home"
        home.mkdir()
        (home / ".profile").write_text("export FROM_PROFILE=yes\nexit 3\n")
        payload = "#!/bin/sh\necho from=${FROM_PROFILE-nothing} path=$PATH\nexit 5\n"
        files = kit_files(w.api.url, payload=payload)
        write_kit(w.dir / "kit", files)
        code, output = boot(w.dir / "kit", env=clean_env(HOME=str(home)))
        check(code == 0, output)
        check(w.api.wait("runner_finished", 40)["json"]["exit_code"] == 5, w.api.log())
        log = w.api.log().decode()
        check("from=nothing path=/" in log and "did not return its environment" in log, log)


def github_registration_token():
    def one(shell):
        with Workspace() as w:
            config = ('echo "config $# $ACTIONS_RUNNER_INPUT_URL $ACTIONS_RUNNER_INPUT_TOKEN $ACTIONS_RUNNER_INPUT_NAME '
                      '$ACTIONS_RUNNER_INPUT_LABELS $ACTIONS_RUNNER_INPUT_RUNNERGROUP $ACTIONS_RUNNER_INPUT_EPHEMERAL"')
            runner = runner_in(w.dir / "runner", config=config)
            (runner / "go").touch()
            lives(shell, github_files(w.api.url, runner, registration="token"), w)
            check(w.api.wait("runner_finished", 40)["json"]["exit_code"] == 0, "wrong exit code")
            lines = w.api.log().decode().split("\n")
            expected = "config 0 https://github.com/acme/app %s vm-1 self-hosted,macOS 15 Big Macs 1" % REGISTRATION
            check(expected in lines, lines)
            # The token is only for config.sh.
            check("jit= token= deprecated=1" in lines, lines)

    each_shell(one)


def github_wrong_runners():
    def one(shell):
        cases = (
            # The runner in the guest, the exit code, the text in the log.
            (dict(version="2.99.0"), {}, 7, "version 2.99.0, but at least 2.329.0 is required"),
            (dict(code=7), {}, 7, "is version 2.336.0"),
            (None, {}, 126, "there is no runner in this guest"),
            (dict(config="exit 1"), {"registration": "token"}, 125, "cannot register the runner"),
            (dict(version="'who knows'"), {}, 0, "does not report its version"),
        )
        for runner, more, code, said in cases:
            with Workspace() as w:
                directory = w.dir / "runner"
                if runner is not None:
                    runner_in(directory, **runner)
                    (directory / "go").touch()
                lives(shell, github_files(w.api.url, directory, **more), w)
                check(w.api.wait("runner_finished", 40)["json"]["exit_code"] == code, "%s: wrong exit code" % said)
                check(said in w.api.log().decode(), w.api.log())

    each_shell(one)


def github_runner_with_an_old_registration():
    def one(shell):
        for registration in ("token", "jit_config"):
            with Workspace() as w:
                runner = runner_in(w.dir / "runner", config="echo configured anew")
                (runner / "go").touch()
                old = (".runner", ".credentials", ".credentials_rsaparams", ".runner_migrated", ".credentials_migrated")
                for name in old:
                    (runner / name).write_text("of another runner")
                lives(shell, github_files(w.api.url, runner, registration=registration), w)
                check(w.api.wait("runner_finished", 40)["json"]["exit_code"] == 0, w.api.log())
                check((b"configured anew" in w.api.log()) == (registration == "token"), w.api.log())
                check(not any((runner / name).exists() for name in old), "the job can read the old credentials")

    each_shell(one)


def github_runner_from_the_host():
    with Workspace() as w:
        runner_in(w.dir / "made")
        (w.dir / "made" / "go").touch()
        archive = w.dir / "runner.tar.gz"
        subprocess.run(["tar", "-czf", str(archive), "-C", str(w.dir / "made"), "."], check=True, timeout=60)
        content = archive.read_bytes()
        checksum = hashlib.sha256(content).hexdigest()
        for given, code, said in ((checksum, 0, "is version 2.336.0"), ("0" * 64, 126, "does not have the checksum")):
            with Workspace() as v:
                v.api.bodies["/vms/%s/runner" % VM_ID] = content
                files = github_files(v.api.url, v.dir / "none", archive=("2.336.0", given))
                lives("sh", files, v)
                check(v.api.wait("runner_finished", 40)["json"]["exit_code"] == code, "wrong exit code: %s" % v.api.log())
                check(said in v.api.log().decode(), v.api.log())
                check(not v.api.leaks, "token in argv: %s" % v.api.leaks)


# As Gitea's: reads its registration once, calls the hooks of its settings in an environment that the job left, and fails the
# job if one of them fails. `@HOOKS@`: versions that have hooks list them among their settings.
GITEA_RUNNER = """#!/usr/bin/env python3
import json, os, pathlib, re, subprocess, sys, time
here = pathlib.Path(__file__).resolve().parent
if sys.argv[1:] == ["--version"]:
    print("@NAME@ version @VERSION@")
    sys.exit()
if sys.argv[1:] == ["generate-config"]:
    print("runner:\\n  #file: .runner")
    print("  #hooks:\\n  #  job_started: ''\\n  #  job_completed: ''" if @HOOKS@ else "")
    sys.exit()
assert sys.argv[1] == "--config" and sys.argv[3:] == ["daemon"], sys.argv
say = lambda text: print('time="2026-11-30T02:00:00Z" level=info msg="%s"' % text, flush=True)
settings = pathlib.Path(sys.argv[2]).read_text()
print("settings:\\n" + settings, flush=True)
value = lambda key: next((m[1].replace("''", "'") for m in re.finditer(r"(?m)^ *%s: '(.*)'$" % key, settings)), None)
file = pathlib.Path(value("file"))
print("mode %o" % (file.stat().st_mode & 0o7777), flush=True)
with open(file) as opened:
    registration = json.loads(opened.read())
print("registration " + json.dumps(registration, separators=(",", ":")).replace("token", "TOKEN"), flush=True)
print("umask %o" % os.umask(0o22), "labels", os.environ.get("GITEA_RUNNER_LABELS"), os.environ.get("GREETING"), flush=True)
if (here / "unreachable").exists():
    (here / "unreachable").unlink()
    print('time="2026-11-30T02:00:00Z" level=error msg="fail to invoke Declare" error="unavailable: connection refused"', flush=True)
    sys.exit(1)
if @CODE@ == 1:
    print('time="2026-11-30T02:00:00Z" level=error msg="fail to invoke Declare" error="unknown: rpc error: code = Unauthenticated desc = unregistered runner"', flush=True)
    sys.exit(1)
say("runner: %s, with version: @VERSION@, with labels: [linux], declare successfully" % registration["name"])
def wait(name):
    while not (here / name).exists():
        time.sleep(0.05)
def hook(key):
    if @HOOKS@ and value(key):
        # Not our PATH: the job may have changed it.
        subprocess.run([value(key)], check=True, env={"PATH": "/nonexistent"}, stdin=subprocess.DEVNULL)
wait("job")
say("task 12 repo is acme/app https://github.com https://git.example")
hook("job_started")
wait("go")
hook("job_completed")
say("the result is sent")
sys.exit(@CODE@)
"""


def gitea_runner_in(directory, code=0, version="v3.3.0", hooks=True, name="gitea-runner", unreachable=False):
    """A stand-in for Gitea's runner: it takes a job once the file `job` is there, and ends it with `go`. `unreachable`: its
    first start fails."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if unreachable:
        (directory / "unreachable").touch()
    text = GITEA_RUNNER
    for key, value in (("NAME", name), ("VERSION", version), ("HOOKS", hooks), ("CODE", code)):
        text = text.replace("@%s@" % key, str(value))
    write_program(directory / name, text)
    return directory


GITEA_ORDER = ["guest_ready", "guest_configured", "runner_started", "runner_online", "job_started", "DELETE", "runner_finished"]


def without_containers(files):
    """What is installed on this machine must not decide how the hooks are called: only DOCKER_HOST does."""
    mode, text = files["payload"]
    old = b"has_containers() {\n"
    check(old in text, "gitea-runner.sh no longer looks for containers")
    return {**files, "payload": (mode, text.replace(old, old + b'    [ -n "${DOCKER_HOST:-}" ]\n    return\n'))}


def gitea_runner():
    """With the runner's own hooks, and with a runner that has none or whose jobs may run in containers."""

    def one(shell):
        for case, version, hooks, name, containers in (
            ("own hooks", "v3.3.0", True, "gitea-runner", False),
            ("no hooks", "v0.2.12", False, "act_runner", False),
            ("containers", "v3.3.0", True, "gitea-runner", True),
        ):
            with Workspace() as w:
                runner = gitea_runner_in(w.dir / "it's a runner", version=version, hooks=hooks, name=name)
                env = {"GREETING": "hi", "GITEA_RUNNER_LABELS": "other:host"}
                if containers:
                    env["DOCKER_HOST"] = "unix:///nonexistent"
                files = without_containers(gitea_files(w.api.url, runner, env=env))
                kit = lives(shell, files, w, clean_env(RUNNER_TRACKING_ID="github_1"))
                w.api.wait("runner_online", 40)
                token = json.loads(GITEA_REGISTRATION)["token"]
                found = files_with([token], w.dir)
                check(not found, "%s: %s" % (case, found))
                check(not (kit / "run/job/gitea/.runner").exists(), "%s: the pipe is left" % case)
                check("job_started" not in w.api.names(), "%s: reported before the job" % case)
                (runner / "job").touch()
                w.api.wait("job_started", 40)
                (runner / "go").touch()
                check(w.api.wait("runner_finished", 40)["json"]["exit_code"] == 0, "wrong exit code")
                check(w.api.names() == GITEA_ORDER, "%s: %s" % (case, w.api.names()))
                log = w.api.log().decode()
                for line in ("registration " + GITEA_REGISTRATION.replace("token", "TOKEN"), "mode 600",
                             "umask 22 labels None hi", "  capacity: 1", "  shutdown_timeout: 720h", "  enabled: false"):
                    check(line in log.split("\n"), "%s: no %r in %s" % (case, line, log))
                check(("job_completed: " in log) == (case == "own hooks"), "%s: hooks in %s" % (case, log))
                check(not w.api.leaks, "token in argv: %s" % w.api.leaks)
                check(not any(token in text for _, text in w.processes()), w.processes())

    each_shell(one)


def gitea_registration_fetched():
    """A seed without the registration: it is fetched before the start."""
    with Workspace() as w:
        runner = gitea_runner_in(w.dir / "runner")
        where = "/vms/%s/registration" % VM_ID
        w.api.bodies[where] = GITEA_REGISTRATION.encode()
        files = without_containers(gitea_files(w.api.url, runner))
        del files["registration"]
        kit = lives("sh", files, w)
        w.api.wait("runner_online", 40)
        check(not (kit / "run/job/registration").exists(), "the pipe is left")
        (runner / "job").touch()
        (runner / "go").touch()
        check(w.api.wait("runner_finished", 40)["json"]["exit_code"] == 0, w.api.log())
        names = [n for n in w.api.names() if n != "GET " + where]
        check(names == GITEA_ORDER, names)


def gitea_wrong_runners():
    def one(shell):
        cases = (
            # The runner in the guest, the kit, the registration, the exit code, the text in the log.
            (dict(version="v0.2.11"), {}, None, 7, "is version 0.2.11, but at least 0.2.12 is required"),
            (dict(version="v3.3.0"), {"minimum": "3.10"}, None, 7, "is version 3.3.0, but at least 3.10 is required"),
            (None, {}, None, 126, "there is no gitea-runner and no act_runner in this guest"),
            (dict(), {}, b"s3cret", 125, "not the content of a file .runner"),
            (dict(code=1), {}, None, 1, "unregistered runner"),
            (dict(code=3), {}, None, 3, "the result is sent"),
            (dict(version="dev"), {}, None, 0, "does not report its version"),
            (dict(unreachable=True), {}, None, 0, "did not reach Gitea; it is started again"),
            (dict(version="v3.3.0+5-gabcdef"), {"minimum": "3.3"}, None, 0, "is version 3.3.0"),
        )
        for runner, more, registration, code, said in cases:
            with Workspace() as w:
                directory = w.dir / "runner"
                if runner is not None:
                    gitea_runner_in(directory, **runner)
                    (directory / "job").touch()
                    (directory / "go").touch()
                files = gitea_files(w.api.url, directory, **more)
                if registration is not None:
                    files["registration"] = (0o600, registration)
                lives(shell, without_containers(files), w)
                check(w.api.wait("runner_finished", 40)["json"]["exit_code"] == code, "%s: wrong exit code" % said)
                log = w.api.log().decode()
                check(said in log and "s3cret" not in log, log)
                # Neither the process that waits for the runner to read the pipe nor the one that watches the log is left.
                check(not [text for _, text in w.processes() if "gitea" in text], w.processes())

    each_shell(one)


# As Buildkite's: calls the hooks of its additional paths in an environment that the job left.
BUILDKITE_AGENT = """#!/usr/bin/env python3
import os, pathlib, subprocess, sys, time
here = pathlib.Path(__file__).resolve().parent
if sys.argv[1:] == ["--version"]:
    print("buildkite-agent version @VERSION@, build 9871")
    sys.exit()
assert sys.argv[1:] == ["start"], sys.argv
for key in ("ACQUIRE_JOB", "ENDPOINT", "NAME", "TAGS", "SPAWN", "SPAWN_PER_CPU", "REFLECT_EXIT_STATUS", "QUEUE"):
    print(key, os.environ.get("BUILDKITE_AGENT_" + key), flush=True)
print("token ends with", os.environ["BUILDKITE_AGENT_TOKEN"][-4:], os.environ.get("GREETING"), flush=True)
assert pathlib.Path(os.environ["BUILDKITE_BUILD_PATH"]).is_dir()
if @CODE@ == 27:
    sys.exit(27)
paths = os.environ["BUILDKITE_ADDITIONAL_HOOKS_PATHS"].split(",")
def wait(name):
    while not (here / name).exists():
        time.sleep(0.05)
def hook(name):
    subprocess.run(["/bin/sh", paths[-1] + "/" + name], check=True, env={"PATH": "/nonexistent"}, stdin=subprocess.DEVNULL)
wait("job")
hook("environment")
wait("go")
hook("pre-exit")
print("hooks of", len(paths), "paths", flush=True)
sys.exit(@CODE@)
"""


def buildkite_agent_in(directory, code=0, version="3.137.0"):
    """A stand-in for Buildkite's agent: it takes its job once the file `job` is there, and ends it with `go`."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = BUILDKITE_AGENT.replace("@VERSION@", version).replace("@CODE@", str(code))
    write_program(directory / "buildkite-agent", text)
    return directory


BUILDKITE_ORDER = ["guest_ready", "guest_configured", "runner_started", "job_started", "DELETE", "runner_finished"]


def buildkite_agent():
    def one(shell):
        with Workspace() as w:
            agent = buildkite_agent_in(w.dir / "it's an agent")
            # Settings of the template that do not fit one job: also in a configuration file, so they are overridden.
            env = {"GREETING": "hi", "BUILDKITE_AGENT_SPAWN": "4", "BUILDKITE_AGENT_QUEUE": "other",
                   "BUILDKITE_ADDITIONAL_HOOKS_PATHS": "/nonexistent"}
            kit = lives(shell, buildkite_files(w.api.url, agent, env=env), w)
            w.api.wait("runner_started", 40)
            (agent / "job").touch()
            w.api.wait("job_started", 40)
            found = files_with([BUILDKITE_TOKEN], w.dir, exclude="")
            check(not found, found)
            check(not (kit / "run/job/registration").exists(), "the registration is left")
            (agent / "go").touch()
            check(w.api.wait("runner_finished", 40)["json"]["exit_code"] == 0, w.api.log())
            check(w.api.names() == BUILDKITE_ORDER, w.api.names())
            log = w.api.log().decode().split("\n")
            for line in ("ACQUIRE_JOB " + BUILDKITE_JOB, "ENDPOINT https://agent.buildkite.com/v3", "NAME vm-1",
                         "TAGS queue=macs,os=it's a mac", "SPAWN 1", "SPAWN_PER_CPU 0", "REFLECT_EXIT_STATUS false",
                         "QUEUE ", "token ends with %s hi" % BUILDKITE_TOKEN[-4:],
                         "hooks of 2 paths"):
                check(line in log, "no %r in %s" % (line, log))
            check(not w.api.leaks, "token in argv: %s" % w.api.leaks)
            check(not any(BUILDKITE_TOKEN in text for _, text in w.processes()), w.processes())

    each_shell(one)


def buildkite_registration_fetched():
    """A seed without the registration: it is fetched before the start."""
    with Workspace() as w:
        agent = buildkite_agent_in(w.dir / "agent")
        (agent / "job").touch()
        (agent / "go").touch()
        where = "/vms/%s/registration" % VM_ID
        w.api.bodies[where] = ("%s %s" % (BUILDKITE_JOB, BUILDKITE_TOKEN)).encode()
        files = buildkite_files(w.api.url, agent)
        del files["registration"]
        lives("sh", files, w)
        check(w.api.wait("runner_finished", 40)["json"]["exit_code"] == 0, w.api.log())
        names = [n for n in w.api.names() if n != "GET " + where]
        check(names == BUILDKITE_ORDER, names)


def buildkite_wrong_agents():
    cases = (
        # The agent in the guest, the kit, the registration, the exit code, the text in the log.
        (dict(version="3.80.0"), {"minimum": "3.100"}, None, 7, "is version 3.80.0, but at least 3.100 is required"),
        (None, {}, None, 126, "there is no buildkite-agent in this guest"),
        (dict(), {}, b"s3cret", 125, "the registration is not a job and a token"),
        (dict(), {}, b"job s3cret more", 125, "the registration is not a job and a token"),
        (dict(code=27), {}, None, 27, "ACQUIRE_JOB " + BUILDKITE_JOB),
    )
    for agent, more, registration, code, said in cases:
        with Workspace() as w:
            directory = w.dir / "agent"
            if agent is not None:
                buildkite_agent_in(directory, **agent)
            files = buildkite_files(w.api.url, directory, **more)
            if registration is not None:
                files["registration"] = (0o600, registration)
            lives("sh", files, w)
            check(w.api.wait("runner_finished", 40)["json"]["exit_code"] == code, "%s: wrong exit code" % said)
            log = w.api.log().decode()
            check(said in log and "s3cret" not in log, log)


def shellcheck():
    if not shutil.which("shellcheck"):
        return "skipped, no shellcheck here"
    image = pathlib.Path(HOOKS).parent / "deploy" / "images" / "micro"
    scripts = sorted(HOOKS.glob("*.sh")) + [image / "build.sh", image / "init"]
    scripts += sorted((image / "rootfs" / "etc" / "init.d").iterdir())
    result = subprocess.run(["shellcheck", *map(str, scripts)], stdout=subprocess.PIPE, timeout=60)
    check(result.returncode == 0, result.stdout.decode())


print("shells: " + " ".join(SHELLS), flush=True)
main([
    hanging_and_dead, shellcheck, announces, refusals, after_the_hook, broken_kits, hostile_environment, cancelled_hook,
    wrapper_command, additional_certificates, wrapper_script_none_unknown, long_log, lost_calls, acknowledged_start, never_started,
    started_by_the_host, ready_checks, never_ready, not_twice, vm_is_gone, one_wrapper,
    violent_job, signals_ignored, no_base64, boot_says_no, github_runner, github_registration_fetched,
    github_registration_refused, as_another_user, job_that_cannot_start, heartbeats, difficult_profile, github_registration_token,
    github_wrong_runners, github_runner_with_an_old_registration, github_runner_from_the_host, gitea_runner,
    gitea_registration_fetched, gitea_wrong_runners, buildkite_agent, buildkite_registration_fetched, buildkite_wrong_agents,
], at_once=3)
