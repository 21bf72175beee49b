"""A fresh machine for one reader: a home directory, a network and processes of its own.

Namespaces of Linux make it: the pages name the port 8470 and the directory `~`, and the commands run as they are written. All
processes of the machine end with it, the hypervisors included.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROBLEM = re.compile(r'"type"\s*:\s*"/problems/([a-z_.]+)"')
# A block with a guest: emulated, on a busy machine.
BLOCK_SECONDS = 240


class BlockFailed(Exception):
    pass


def enter(work, arguments):
    """The command that runs `arguments` in a machine, or None where namespaces are not allowed. Only below `work` files can be
    changed there: a page may contain `sudo rm`, and the test may run as root."""
    unshare = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        unshare[1:1] = ["--user", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        return None
    script = 'ip link set lo up && mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'
    return [*unshare, "sh", "-c", script, str(work), *arguments]


def prepare(home, binary, image):
    """What the pages expect on the reader's machine: the clone, `sudo`, and what `make build` and `make image` made."""
    clone = home / "mayfly"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, files.split("\0")):
        target = clone / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, target)
    (clone / "target/release").mkdir(parents=True)
    (clone / "target/release/mayfly").symlink_to(binary)
    shutil.copytree(image, home / ".cache/mayfly/images/micro")
    tools = home / ".tools"
    tools.mkdir()
    (home / ".tmp").mkdir()
    (tools / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (tools / "sudo").chmod(0o755)


def environment(home):
    """Nothing of the environment in which the test runs."""
    installed = home / "usr/local"
    return {
        "HOME": str(home), "TMPDIR": str(home / ".tmp"), "USER": "root", "LANG": "C.UTF-8", "TERM": "dumb",
        "PATH": "%s/bin:%s/.tools:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" % (installed, home),
        # `make install` takes the prefix from here, so that nothing of this machine is replaced.
        "PREFIX": str(installed),
        "MAYFLY_DRIVERS__QEMU__ACCELERATOR": "tcg",
    }


class Output:
    """What a block prints, as it comes, through a named pipe. The shell appends the block's result between two zero bytes."""

    def __init__(self, fifo):
        os.mkfifo(fifo)
        self.data, self.ended, self.news = b"", False, threading.Condition()
        threading.Thread(target=self.read, args=(fifo,), daemon=True).start()

    def read(self, fifo):
        with open(fifo, "rb", buffering=0) as pipe:
            while part := pipe.read(65536):
                with self.news:
                    self.data += part
                    self.news.notify_all()
        with self.news:
            self.ended = True
            self.news.notify_all()

    def wait(self, condition, seconds):
        with self.news:
            return self.news.wait_for(lambda: condition(self), seconds)

    @property
    def text(self):
        return self.data.partition(b"\0")[0].decode(errors="replace")

    @property
    def result(self):
        """(last status, failed commands), once the block has ended."""
        parts = self.data.split(b"\0")
        if len(parts) < 3:
            return None
        last, _, failed = parts[1].decode(errors="replace").partition("\n")
        return last, failed


def hear_ctrl_c():
    """A test that a shell runs in its background ignores SIGINT, and so would everything that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """One shell, into which blocks are pasted one after the other. Variables and functions last."""

    PRELUDE = r"""
set -E -o pipefail
docs_block() { # FILE: runs a block here, and reports its last status and each command that failed
    docs_failed=
    trap 'docs_status=$?; docs_failed="$docs_failed  status $docs_status: $BASH_COMMAND
"' ERR
    . "$1" </dev/null
    docs_last=$?
    trap - ERR
    printf '\0%s\n%s\0' "$docs_last" "$docs_failed"
}
"""

    def __init__(self, directory, cwd, env):
        self.directory, self.count, self.served = directory, 0, []
        directory.mkdir()
        self.shell = subprocess.Popen(["bash", "--norc", "--noprofile"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.DEVNULL, cwd=cwd, env=env, start_new_session=True, text=True,
                                      preexec_fn=hear_ctrl_c)
        self.type(self.PRELUDE)

    def type(self, text):
        self.shell.stdin.write(text)
        self.shell.stdin.flush()

    def paste(self, block):
        """Runs a block to its end, or to what its marker says. Returns what it printed."""
        self.check_served()
        self.count += 1
        file = self.directory / ("block-%d" % self.count)
        file.write_text(block.text)
        fifo = "%s.out" % file
        output = Output(fifo)
        if block.kind in ("serves", "ctrl-c"):
            self.leave(block, file, fifo, output)
        else:
            self.type("docs_block %s >%s 2>&1\n" % (file, fifo))
            if not output.wait(lambda o: o.result or o.ended, BLOCK_SECONDS):
                raise BlockFailed("it does not end within %d s; a block that goes on needs the marker `serves` or `ctrl-c`\n%s"
                                  % (BLOCK_SECONDS, output.text))
            if not output.result:
                raise BlockFailed("it ended the shell\n%s" % output.text)
            last, failed = output.result
            if block.kind == "exits":
                if last != block.value:
                    raise BlockFailed("status %s, and %s is expected\n%s" % (last, block.value, output.text))
            elif block.kind != "problem" and (failed or last != "0"):
                raise BlockFailed("status %s\n%s%s" % (last, failed, output.text))
        refuse_problem(block, output.text)
        return output.text

    def leave(self, block, file, fifo, output):
        """A block that a reader leaves running, or ends with Ctrl-C."""
        # Job control gives it a process group, which Ctrl-C at a terminal reaches.
        pid = self.directory / "pid"
        self.type("set -m; ( docs_block %s >%s 2>&1 ) & echo $! >%s; set +m\n" % (file, fifo, pid))
        output.wait(lambda o: re.search(block.value, o.text) or o.result or o.ended, BLOCK_SECONDS)
        if not re.search(block.value, output.text):
            raise BlockFailed("its output does not match %s\n%s" % (block.value, output.text))
        if block.kind == "serves":
            return self.served.append((block, output))
        os.killpg(int(pid.read_text()), signal.SIGINT)
        # The pipe ends with the last process that writes into it. What Ctrl-C ended has no status to judge.
        if not output.wait(lambda o: o.ended, 20):
            raise BlockFailed("Ctrl-C does not end it\n%s" % output.text)

    def check_served(self):
        for block, output in self.served:
            if output.result or output.ended:
                raise BlockFailed("%s should go on, and has ended\n%s" % (block, output.text))

    def close(self):
        self.check_served()
        self.shell.stdin.close()
        self.shell.wait(20)


def check_jobs(expected):
    """The jobs of all vms, when they have ended: an example is not good because it was accepted."""
    def mayfly(*arguments):
        return subprocess.run(["mayfly", *arguments], capture_output=True, text=True, timeout=BLOCK_SECONDS)

    def listed():
        return json.loads(mayfly("--json", "vm", "list", "--all").stdout)["items"]

    for vm in listed():
        mayfly("vm", "wait", vm["id"])
    failed = [vm for vm in listed()
              if vm["outcome"]["result"] not in ("completed", "cancelled") or (vm["job"] or {}).get("exit_code")]
    if len(failed) != expected:
        lines = ["%s: %s, job %s" % (vm["name"], vm["outcome"], vm["job"]) for vm in failed]
        raise BlockFailed("%d jobs failed, and %d may\n%s" % (len(failed), expected, "\n".join(lines)))


def refuse_problem(block, text):
    expected = block.value if block.kind == "problem" else None
    found = PROBLEM.findall(text)
    if [code for code in found if code != expected] or expected and not found:
        raise BlockFailed("the service answers %s, and %s is expected\n%s" % (found or "no error", expected or "no error", text))
