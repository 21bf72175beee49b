"""The scripts of hooks/ as on a Mac, run on this machine.

Its shell (bash 3.2 in POSIX mode, or dash), its programs and no others, BSD options and
no GNU ones, and stand-ins for what only a Mac has: uname's word, launchd, defaults.
"""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

from support import (
    HOOKS, SCRIPTS, TOKEN, VM_ID, Failed, Workspace, check, kit_files, main, write_kit, write_program,
)

SYSTEM_PATH = "PATH=/usr/bin:/bin:/usr/sbin:/sbin"
SHELLS = {"bash": ["bash", "--posix"], "dash": ["dash"]}
ORDER = ["guest_ready", "guest_configured", "job_started", "DELETE", "job_result", "runner_finished"]

# Programs of a macOS without developer tools (sections 1 and 8 of its manual), by directory. Incomplete, but without any
# that it lacks: no setsid, timeout, flock, tac, nproc, getent, pidof, realpath (before 12.3), sha256sum, md5sum.
MACOS = {
    "/bin": "bash cat chmod cp csh dash date dd df echo ed expr hostname kill ksh launchctl link ln ls mkdir mv pax ps "
            "pwd rm rmdir sh sleep stty sync tcsh test unlink wait4path zsh",
    "/sbin": "dmesg ifconfig md5 mount ping reboot route shutdown umount",
    "/usr/bin": "awk base64 basename bzip2 caffeinate cmp codesign curl cut defaults diff dirname dscl env expand false "
                "file find fold getconf grep groups gzip head id install join killall last less logger logname mkfifo "
                "mktemp nc nice nohup od open openssl paste perl plutil pgrep pkill printenv printf renice script security "
                "sed seq sort split ssh stat strings su sudo sw_vers tail tar tee time touch tput tr true tty uname uniq "
                "uptime uuidgen wc which who whoami xargs xattr xcrun yes zip",
    "/usr/sbin": "chown diskutil ioreg lsof networksetup scutil sysctl systemsetup",
    "/usr/libexec": "path_helper",
}
PATHS = {directory + "/" + name for directory, names in MACOS.items() for name in names.split()}
NAMES = {path.rsplit("/", 1)[1] for path in PATHS}
# Linux only, each used only if `command -v` found it.
GUARDED = {"setsid", "timeout"}

# Options by their letters, from the BSD manual pages; for programs that GNU gave more.
OPTIONS = {
    "awk": "fFv", "base64": "bdDhio", "cat": "belnstuv", "chmod": "fhvRHLP", "chown": "fhnvxRHLP", "cmp": "lsz",
    "date": "fjnruvIR", "head": "cn", "id": "AFGMPgnru", "mkdir": "mpv", "mkfifo": "m", "mktemp": "dqtu", "rm": "dfiPRrvWx",
    "sed": "Eaelnu", "sleep": "", "stat": "FLflnqrstx", "tail": "bcfFnqr", "tee": "ai", "tr": "Ccdsu", "wc": "clmwL",
}

BSD = """#!/bin/sh
for argument in "$@"; do
    case $argument in
    --) break ;;
    --?*) bad=$argument ;;
    -[%(options)s]*) ;;
    -?*) bad=$argument ;;
    esac
    if [ -n "$bad" ]; then
        echo "%(name)s: illegal option -- $bad" >&2
        echo "%(name)s $*" >>%(state)s/refused
        exit 64
    fi
done
exec %(real)s "$@"
"""

UNAME = """#!/bin/sh
case ${1:--s} in
-s) echo Darwin ;;
-m) echo arm64 ;;
-r) echo 24.5.0 ;;
*) echo "uname: illegal option -- $1" >&2; exit 1 ;;
esac
"""

DEFAULTS = """#!/bin/sh
if [ "$*" = 'read /Library/Preferences/com.apple.loginwindow autoLoginUser' ] && [ -s %(state)s/auto ]; then
    exec cat %(state)s/auto
fi
echo "The domain/default pair of ($2, $3) does not exist" >&2
exit 1
"""

# Plays launchd for one agent of one user. Exit codes and texts as on macOS 14.
LAUNCHCTL = '''#!%(python)s
import json, os, pathlib, plistlib, re, stat, subprocess, sys, time

state = pathlib.Path(%(state)r)
domain_of_user = "gui/%%d" %% os.getuid()


def fail(code, text):
    print(text, file=sys.stderr)
    sys.exit(code)


def pid_of(label):
    try:
        return int((state / ("loaded." + label)).read_text())
    except OSError:
        return None


verb, target = sys.argv[1], sys.argv[2]
with open(state / "calls", "a") as calls:
    calls.write(" ".join(sys.argv[1:3]) + "\\n")
domain, _, label = re.match(r"((?:gui|user)/[0-9]+)(/(.+))?$", target).groups()
session = domain == domain_of_user and (state / "session").exists()
if verb == "print":
    if not session:
        fail(113, "Bad request.\\nCould not find domain for user gui: %%d" %% os.getuid())
    if label and pid_of(label) is None:
        fail(113, "Bad request.\\nCould not find service %%r in domain for user gui: %%d" %% (label, os.getuid()))
elif verb == "bootout":
    if not session or pid_of(label) is None:
        fail(3, "Boot-out failed: 3: No such process")
    try:
        os.kill(pid_of(label), 15)
    except ProcessLookupError:
        pass
    (state / ("loaded." + label)).unlink()
elif verb == "bootstrap":
    if not session:
        fail(125, "Bootstrap failed: 125: Domain does not support specified action")
    path = pathlib.Path(sys.argv[3])
    about = path.stat()
    if about.st_uid not in (0, os.getuid()) or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        fail(122, "Bootstrap failed: 122: Path had bad ownership/permissions")
    job = plistlib.loads(path.read_bytes())
    known = {"Label", "ProgramArguments", "EnvironmentVariables", "RunAtLoad", "KeepAlive", "AbandonProcessGroup",
             "ProcessType", "StandardOutPath", "StandardErrorPath"}
    if set(job) - known or pid_of(job["Label"]) is not None or (state / "refuses").exists():
        fail(5, "Bootstrap failed: 5: Input/output error")
    if not job.get("RunAtLoad"):
        sys.exit(0)
    pid = 999999999
    if not (state / "starts_nothing").exists():
        env = {"HOME": os.environ["HOME"], "USER": "tester", "LOGNAME": "tester", "SHELL": "/bin/bash",
               "PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "TMPDIR": "/tmp", "XPC_SERVICE_NAME": job["Label"]}
        env.update(job.get("EnvironmentVariables", {}))
        with open(job["StandardOutPath"], "ab") as out, open(job["StandardErrorPath"], "ab") as err:
            pid = subprocess.Popen(job["ProgramArguments"], env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=err, start_new_session=True).pid
    (state / ("loaded." + job["Label"])).write_text(str(pid))
else:
    fail(64, "Unrecognized subcommand: " + verb)
'''


class Mac:
    """A directory of programs, a home and launchd's state, and a bundle whose scripts use only these."""

    def __init__(self, w, shell, session=False, auto=None, impatient=False):
        self.w, self.shell, self.impatient = w, shell, impatient
        self.tools, self.state, self.home = w.dir / "tools", w.dir / "state", w.dir / "home"
        for directory in (self.tools, self.state, self.home, w.dir / "homebrew"):
            directory.mkdir()
        for name in sorted(NAMES):
            real = shutil.which(name)
            if real and name in OPTIONS:
                self.tool(name, BSD, name=name, options=OPTIONS[name] or "\n", real=real)
            elif real and name not in ("sh", "uname", "launchctl", "defaults", "bash"):
                (self.tools / name).symlink_to(real)
        self.tool("uname", UNAME)
        self.tool("defaults", DEFAULTS)
        self.tool("launchctl", LAUNCHCTL, python=sys.executable)
        argv = [shutil.which(SHELLS[shell][0])] + SHELLS[shell][1:]
        self.tool("sh", "#!/bin/sh\nexec %s \"$@\"\n" % " ".join(argv))
        self.tool("bash", "#!/bin/sh\nexec %s \"$@\"\n" % shutil.which("bash"))
        (self.home / ".bash_profile").write_text(
            "echo 'Welcome; false && exit 9'\nexport LANG=en_US.UTF-8 TOOLS_HOME=/opt/tools GREETING=profile kit=/nowhere\n"
            "export PATH=\"%s:$PATH\"\n" % (w.dir / "profile bin"))
        if session:
            self.log_in()
        if auto:
            (self.state / "auto").write_text(auto)

    def tool(self, called, text, **values):
        text = text % {"state": str(self.state), **values} if "%(" in text else text
        write_program(self.tools / called, text)

    def log_in(self):
        (self.state / "session").touch()

    def kit(self, name="a kit", **input):
        files = kit_files(self.w.api.url, **input)
        for script in SCRIPTS:
            check("\n%s\n" % SYSTEM_PATH in (HOOKS / script).read_text(), "%s no longer sets its PATH" % script)
            if script == "power-off.sh":
                # The bundle has a stand-in for it, which needs no tools.
                continue
            text = files[script][1].decode()
            text = text.replace(SYSTEM_PATH, "PATH='%s'" % self.tools)
            shebang, rest = text.split("\n", 1)
            rest = rest.replace("/bin/sh", str(self.tools / "sh")).replace("/opt/homebrew/bin", str(self.w.dir / "homebrew"))
            if self.impatient:  # shorter time limits
                rest = rest.replace('"$tries" -gt 300 ] && (set', '"$tries" -gt 10 ] && (set').replace("-- 20 ", "-- 2 ")
            files[script] = (0o755, (shebang + "\n" + rest).encode())
        return write_kit(self.w.dir / name, files)

    def boot(self, kit):
        """Runs it like a login without a terminal; ends the rest of its process group."""
        env = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin:%s" % (self.w.dir / "homebrew"), "HOME": str(self.home),
               "SHELL": "/bin/bash", "SSH_CONNECTION": "1"}
        process = subprocess.Popen([str(self.tools / "sh"), str(kit / "boot.sh")], env=env, cwd="/", start_new_session=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            output = process.communicate(timeout=60)[0].decode()
        finally:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        check(process.returncode == 0, "boot.sh ended with %s: %s" % (process.returncode, output))
        check(TOKEN not in output, output)
        return output

    def finished(self, code, order=ORDER):
        end = self.w.api.wait("runner_finished", 40)["json"]["exit_code"]
        log = self.w.api.log().decode()
        check(end == code, "ended with %s: %s" % (end, log))
        check(self.w.api.names() == order, self.w.api.names())
        check(not self.w.api.leaks, "token in argv: %s" % self.w.api.leaks)
        refused = self.state / "refused"
        check(not refused.exists(), "not for BSD: %s" % (refused.exists() and refused.read_text()))
        return log.splitlines()


def each_shell(test):
    with concurrent.futures.ThreadPoolExecutor(len(SHELLS)) as pool:
        futures = {name: pool.submit(test, name) for name in SHELLS}
        for name, future in futures.items():
            try:
                future.result()
            except Failed as error:
                raise Failed("%s: %s" % (name, error)) from error


REPORT = (
    "#!/bin/sh\n"
    "echo path=$PATH; echo lang=$LANG tools=$TOOLS_HOME greeting=$GREETING session=${XPC_SERVICE_NAME:-none}\n"
    "echo home=$MAYFLY_HOME; echo tracking=${RUNNER_TRACKING_ID-unset}; ps -o sid= -p $$; echo \"stdin=$(cat)\"\n"
)


def reported(lines, mac, kit, session):
    check("lang=en_US.UTF-8 tools=/opt/tools greeting=the job's session=%s" % session in lines, lines)
    path = next(line for line in lines if line.startswith("path="))[5:].split(":")
    check(path[0] == str(mac.w.dir / "profile bin"), path)
    check(str(mac.w.dir / "homebrew") in path and len(set(path)) == len(path), path)
    check(not any(line.startswith("perl:") for line in lines), lines)
    check("home=%s" % kit in lines and "tracking=unset" in lines and "stdin=" in lines, lines)


def background():
    """No user on the screen: the job runs beside the wrapper, and the boot log shows it."""

    def one(shell):
        with Workspace() as w:
            mac = Mac(w, shell)
            kit = mac.kit(payload=REPORT + "exit 42\n", env={"GREETING": "the job's"})
            output = mac.boot(kit)
            check("no login session" in output and "background session" in output, output)
            lines = mac.finished(42)
            reported(lines, mac, kit, "none")
            calls = (mac.state / "calls").read_text()
            check("bootstrap" not in calls, calls)

    each_shell(one)


def login_session():
    """With a user on the screen, the job runs in that session, and its end is reported as usual."""

    def one(shell):
        with Workspace() as w:
            mac = Mac(w, shell, session=True)
            kit = mac.kit(payload=REPORT + "exit 42\n", env={"GREETING": "the job's"})
            output = mac.boot(kit)
            check("runs in the login session" in output, output)
            reported(mac.finished(42), mac, kit, "mayfly.payload")
            # The wrapper runs the hooks of this kind, outside that session.
            check(mac.boot(kit).count("already started") == 1, "second boot")

    each_shell(one)


def login_session_comes_late():
    """Automatic login takes longer than the SSH server: the scripts wait for it."""
    with Workspace() as w:
        user = subprocess.run(["id", "-un"], stdout=subprocess.PIPE, check=True).stdout.decode().strip()
        mac = Mac(w, "bash", auto=user)
        kit = mac.kit(payload=REPORT)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            booting = pool.submit(mac.boot, kit)
            limit = time.monotonic() + 20
            while not (mac.state / "calls").exists():
                check(time.monotonic() < limit, "nobody asked for a session")
                time.sleep(0.05)
            check(not (kit / "run" / "wrapper.pid").exists(), "the wrapper did not wait")
            mac.log_in()
            check("runs in the login session" in booting.result(), "not seen")
        check("session=mayfly.payload" in " ".join(mac.finished(0)), w.api.log())


def launchd_declines():
    """A launchd that refuses, or accepts and starts nothing: the job runs once, in the background."""
    for fault in ("refuses", "starts_nothing"):
        with Workspace() as w:
            mac = Mac(w, "dash", session=True, impatient=True)
            (mac.state / fault).touch()
            mac.boot(mac.kit(payload=REPORT + "echo ran\n"))
            lines = mac.finished(0)
            check(lines.count("ran") == 1 and "session=none" in " ".join(lines), lines)
            check(any("background session" in line for line in lines), lines)


def stale_agent():
    """An agent of an earlier try is unloaded before the new one is loaded."""
    with Workspace() as w:
        mac = Mac(w, "bash", session=True)
        (mac.state / "loaded.mayfly.payload").write_text("999999999")
        mac.boot(mac.kit(payload=REPORT))
        check("session=mayfly.payload" in " ".join(mac.finished(0)), w.api.log())


def violence():
    """A job that signals its group ends only itself, and the end of a job whose parent is killed is still detected."""
    for session in (False, True):
        with Workspace() as w:
            mac = Mac(w, "bash", session=session)
            mac.boot(mac.kit(payload="echo before\nkill -9 0\n"))
            check("before" in mac.finished(137), w.api.log())
    with Workspace() as w:
        mac = Mac(w, "dash", session=True)
        mac.boot(mac.kit(payload='#!/bin/sh\necho before\nkill -9 "$(cat "$MAYFLY_HOME/run/job/payload.pid")"\n'))
        check("before" in mac.finished(137), w.api.log())


def difficult_profiles():
    """With a profile that hangs, exits or prints garbage, the job only lacks the profile's variables."""

    def one(shell):
        profiles = ("while :; do sleep 0.2; done\n", "exit 3\n", "kill -9 $$\n", "export GREETING\nif then\n")
        for profile in profiles:
            with Workspace() as w:
                mac = Mac(w, shell, impatient=True)
                (mac.home / ".bash_profile").write_text(profile)
                kit = mac.kit(payload=REPORT + "exit 5\n")
                mac.boot(kit)
                lines = mac.finished(5)
                path = next(line for line in lines if line.startswith("path="))
                check(str(w.dir / "homebrew") in path and "/usr/bin" in path, path)

    each_shell(one)


def zshenv():
    """~/.zshenv: Mayfly's block once, the rest unchanged, no secret in it; and it works."""
    with Workspace() as w:
        mac = Mac(w, "bash")
        dotfiles = w.dir / "dotfiles"
        dotfiles.write_text("export MINE='1'\n# >>> mayfly >>>\nexport MAYFLY_VM_ID='an-old-one' OLD=1\n# <<< mayfly <<<\n"
                            "alias x=y\n# >>> mayfly >>>\nexport CUT=short")
        dotfiles.chmod(0o640)
        (mac.home / ".zshenv").symlink_to(dotfiles)
        kit = mac.kit(kind="none", env={"SECRET": "it's s3cret $HOME"})
        mac.boot(kit)
        w.api.wait("guest_configured", 20)
        first = dotfiles.read_text()
        check(dotfiles.stat().st_mode & 0o777 == 0o640 and (mac.home / ".zshenv").is_symlink(), "mode or link")
        check(first.startswith("export MINE='1'\nalias x=y\n") and "CUT=short\n" in first, first)
        check("OLD" not in first and first.count(VM_ID) == 2, first)
        check(TOKEN not in first and "s3cret" not in first, first)

        shell = [shutil.which("zsh"), "-c"] if shutil.which("zsh") else [shutil.which("bash"), "--posix", "-c"]
        source = "" if shutil.which("zsh") else '. "$HOME/.zshenv"; '
        ask = lambda text, **env: subprocess.run(
            shell + [source + text], env={"HOME": str(mac.home), "PATH": "/usr/bin:/bin", **env}, timeout=20,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode().strip()
        got = ask('echo "$MINE|$CUT|$MAYFLY_VM_ID|$MAYFLY_HOME|$ACTIONS_RUNNER_HOOK_JOB_COMPLETED|$SECRET"; sh -c \'echo $SECRET\'')
        check(got == "1|short|%s|%s|%s/job-completed.sh|it's s3cret $HOME\nit's s3cret $HOME" % (VM_ID, kit, kit), got)
        check(str(w.dir / "profile bin") in ask("echo $PATH"), ask("echo $PATH"))
        # Descendants of the wrapper keep the job's changes of variables.
        got = ask('echo "$SECRET|$PATH"', MAYFLY_VM_ID=VM_ID, SECRET="changed")
        check(got == "changed|/usr/bin:/bin", got)

        # The real bundle in a warm guest: the block is replaced.
        wrapper = int((kit / "run" / "wrapper.pid").read_text())
        limit = time.monotonic() + 20
        while pathlib.Path("/proc/%d" % wrapper).exists():
            check(time.monotonic() < limit, "the wrapper goes on")
            time.sleep(0.05)
        kit = mac.kit(payload="exit 0\n", env={"SECRET": "other"})
        mac.boot(kit)
        w.api.wait("runner_finished", 40)
        check(dotfiles.read_text() == first, "%s is not %s" % (dotfiles.read_text(), first))
        refused = mac.state / "refused"
        check(not refused.exists(), "not for BSD: %s" % (refused.exists() and refused.read_text()))
        return "read by " + os.path.basename(shell[0])


def zshenv_new():
    """If it does not exist, it is created for its owner only. If it cannot be created, the job still runs."""
    with Workspace() as w:
        mac = Mac(w, "dash")
        mac.boot(mac.kit(payload="exit 0\n"))
        mac.finished(0)
        check((mac.home / ".zshenv").stat().st_mode & 0o777 == 0o600, "mode")
    with Workspace() as w:
        mac = Mac(w, "dash")
        (mac.home / ".zshenv").mkdir()
        mac.boot(mac.kit(payload="exit 0\n"))
        mac.finished(0)


def no_permission_for_the_local_network():
    """The wrapper has no access to the network, root has: its reports arrive. Without sudo they are repeated."""
    curl = ("#!/bin/sh\nif [ -z \"$AS_ROOT\" ]; then\n    echo 'curl: (7) Failed to connect: No route to host' >&2\n"
            "    exit 7\nfi\nexec /usr/bin/curl \"$@\"\n")
    sudo = "#!/bin/sh\n[ \"$1\" = -n ] && [ -e '%s' ] || exit 1\nshift\nAS_ROOT=1 exec \"$@\"\n"
    for late in (False, True):
        with Workspace() as w:
            mac = Mac(w, "bash")
            allowed = mac.state / "sudo"
            if not late:
                allowed.touch()
            (mac.tools / "curl").unlink()
            (mac.tools / "sudo").unlink(missing_ok=True)
            mac.tool("curl", curl)
            mac.tool("sudo", sudo % allowed)
            kit = mac.kit(payload="#!/bin/sh\necho worked\nexit 6\n")
            text = (kit / "wrapper.sh").read_text()
            (kit / "wrapper.sh").write_text(text.replace("/usr/bin/curl", str(mac.tools / "curl")))
            mac.boot(kit)
            if late:
                limit = time.monotonic() + 20
                while not (kit / "run" / "wrapper.exit").exists():
                    check(time.monotonic() < limit, "the job does not end")
                    time.sleep(0.05)
                allowed.touch()
                check(w.api.wait("runner_finished", 40)["json"]["exit_code"] == 6, "exit code")
            else:
                check("worked" in mac.finished(6), w.api.log())


def hooks_of_a_runner():
    """The hooks, called with Apple's bash in a job's environment."""
    with Workspace() as w:
        mac = Mac(w, "bash")
        kit = mac.kit()
        for name, call in (("job-started.sh", "job_started"), ("job-completed.sh", "DELETE")):
            result = subprocess.run([str(mac.tools / "bash"), "-e", str(kit / name)], cwd="/", timeout=60,
                                    env={"PATH": str(mac.tools)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            check(result.returncode == 0, result.stdout)
            w.api.wait(call, 1)


# --- static checks ----------------------------------------------------------------

KEYWORDS = set("if then elif else fi while until for in do done case esac { } !".split())
BUILTINS = set(". : [ break cd command echo eval exec exit export false kill printf pwd read return set shift sleep_ test trap "
               "true umask unset wait".split())
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


def words_of(text):
    """Every simple command of a script, as a list of its words. Quoted parts become \\0, the content of $( ) is a command, too."""
    commands, words, word, at = [], [], "", 0
    pending = []  # here-documents whose bodies follow this line
    inside = []  # the closing delimiter: `)` of a substitution, or a quote

    def end_word():
        nonlocal word
        if word:
            words.append(word)
        word = ""

    def end_command():
        nonlocal words
        end_word()
        if words:
            commands.append(words)
        words = []

    while at < len(text):
        c = text[at]
        if c == "\\":
            word += "" if text[at + 1] == "\n" else "\0"
            at += 2
        elif c == "'":
            at = text.index("'", at + 1) + 1
            word += "\0"
        elif c == '"':
            end = at + 1
            while text[end] != '"':
                if text[end] == "\\":
                    end += 2
                elif text.startswith("$((", end):
                    end = text.index("))", end) + 2
                elif text.startswith("$(", end):
                    close = matching(text, end + 2)
                    commands += words_of(text[end + 2:close])
                    end = close + 1
                else:
                    end += 1
            word += "\0"
            at = end + 1
        elif text.startswith("$((", at):
            at = text.index("))", at) + 2
            word += "\0"
        elif text.startswith("$(", at):
            close = matching(text, at + 2)
            commands += words_of(text[at + 2:close])
            word += "\0"
            at = close + 1
        elif text.startswith("${", at):
            at = text.index("}", at) + 1
            word += "\0"
        elif c == "#" and not word:
            at = text.find("\n", at) if "\n" in text[at:] else len(text)
        elif text.startswith("<<", at):
            tag = re.match(r"<<-?\s*'?(\w+)'?", text[at:])
            pending.append(tag.group(1))
            at += tag.end()
        elif c == "\n":
            end_command()
            at += 1
            for tag in pending:
                end = text.index("\n%s\n" % tag, at - 1)
                for found in re.finditer(r"\$\(", text[at:end]):
                    start = at + found.end()
                    commands += words_of(text[start:matching(text, start)])
                at = end + len(tag) + 2
            pending = []
        elif c in ";|&()":
            if c == "&" and (word.endswith(">") or text[at + 1:at + 2] == ">"):
                word += c
            else:
                end_command()
            at += 1
        elif c in " \t":
            end_word()
            at += 1
        else:
            word += c
            at += 1
    end_command()
    return commands


def matching(text, at):
    depth, quote = 1, None
    while depth:
        c = text[at]
        if c == "\\":
            at += 1
        elif quote:
            quote = None if c == quote else quote
        elif c in "'\"":
            quote = c
        elif c in "()":
            depth += 1 if c == "(" else -1
        at += 1
    return at - 1


def programs_of(text):
    """The names of the programs that a script calls, without its own functions, builtins and variables."""
    functions = set(re.findall(r"^(\w+)\(\) ?[({]", text, re.M))
    found, in_case = set(), 0
    for words in words_of(text):
        while words and (words[0] in KEYWORDS or ASSIGNMENT.match(words[0]) or re.match(r"[0-9]*[<>]", words[0])):
            if words[0] == "for":
                words = []
            elif words[0] == "case":
                words = words[3:]
            else:
                words = words[2:] if re.fullmatch(r"[0-9]*[<>]+", words[0]) else words[1:]
        while words and words[0] in ("exec", "command", "detached", "perl") and len(words) > 1:
            if words[0] == "perl":
                found.add("perl")
                words = []
            elif words[1] in ("-v", "-V"):
                words = []
            else:
                words = words[1:]
        if words and "\0" not in words[0] and "$" not in words[0] and words[0] not in functions | BUILTINS:
            found.add(words[0])
    # Patterns of `case` look like commands to this reader.
    patterns = set()
    for line in text.splitlines():
        line = re.match(r"\s*([^()\s][^()]*?)\)(\s|$)", line)
        if line:
            patterns |= set(re.split(r"[\s|]+", line.group(1)))
    return found - patterns


def only_what_a_mac_has():
    sample = "a=$(tac x | grep \"$(nproc)\") && case $a in\nfree | 'x y') ls ;;\nesac\nif ! timeout 5 foo; then\n  >out flock y &\nfi\n"
    check(programs_of(sample) == {"tac", "grep", "nproc", "ls", "timeout", "flock"}, programs_of(sample))
    seen = set()
    for script in SCRIPTS:
        text = (HOOKS / script).read_text()
        called = programs_of(text)
        strange = {p for p in called if p not in (PATHS if p.startswith("/") else NAMES | GUARDED)}
        check(not strange, "%s calls %s" % (script, sorted(strange)))
        for name in called & GUARDED:
            check("command -v %s >" % name in text, "%s calls %s without a look" % (script, name))
        absolute = set(re.findall(r"(?<![\w$}.\"/-])/(?:usr|bin|sbin)/[\w./-]*\w", text))
        absolute -= {d for d in absolute if d in MACOS} | {"/usr/local/bin", "/usr/local/sbin", "/usr/local/bin/curl"}
        check(absolute <= PATHS, "%s names %s" % (script, sorted(absolute - PATHS)))
        seen |= called
    check({"awk", "tail", "mkfifo", "launchctl", "tr"} <= seen, "the reader of scripts does not read: %s" % sorted(seen))


main([
    only_what_a_mac_has, difficult_profiles, background, login_session, login_session_comes_late, launchd_declines,
    stale_agent, violence, zshenv, zshenv_new,
    no_permission_for_the_local_network, hooks_of_a_runner,
], at_once=3)
