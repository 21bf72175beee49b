"""Shared parts of the guest tests: a stand-in for Mayfly's guest API, bundles, seeds and a VM.

Nothing here sleeps for a guessed time: tests wait for requests, QMP events and process
ends, each with a limit. Everything that is started is ended by its own handle.
"""

import base64
import concurrent.futures
import http.server
import io
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
HOOKS = ROOT / "hooks"
SCRIPTS = ["boot.sh", "watch.sh", "wrapper.sh", "ready.sh", "job.sh", "tell.sh", "power-off.sh", "job-started.sh", "job-completed.sh"]
TOKEN = "tok-3f1c0c6f-secret"  # the wrapper's
JOB_TOKEN = "job-77aa01b2-secret"
VM_ID = "vm-0001"


class Failed(Exception):
    pass


def check(condition, message):
    if not condition:
        raise Failed(message)


# --- the guest API's stand-in ---------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self):  # the peer of a Unix socket has no address
        return "guest"

    def log_message(self, *_):
        pass

    def answer(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.server.api.serve(self, body)

    do_GET = do_POST = do_DELETE = answer


class TcpServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    server_name, server_port = "guest-api", 0


class Api:
    """Records each request; answers 202, or according to `rules`.

    A rule is (predicate on request, status, how many times or None). Instead of a status:
    "hang" answers never, "close" ends the connection, "cut" in the middle of the answer,
    "reset" by force, and "lost" takes the request and ends the connection."""

    def __init__(self, unix_path=None):
        self.requests = []
        self.rules = []
        self.news = threading.Condition()
        self.closing = threading.Event()
        self.leaks = []
        # Answers to GET of these paths.
        self.bodies = {}
        if unix_path:
            self.server = UnixServer(str(unix_path), Handler)
            self.url = None
        else:
            self.server = TcpServer(("127.0.0.1", 0), Handler)
            self.url = "http://127.0.0.1:%d" % self.server.server_address[1]
        self.server.api = self
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        self.thread.start()

    def rule(self, predicate, status, times=None):
        self.rules.append([predicate, status, times])

    def serve(self, handler, body):
        request = {
            "method": handler.command,
            "path": handler.path,
            "auth": handler.headers.get("Authorization"),
            "length": len(body),
            "at": time.monotonic(),
        }
        try:
            request["json"] = json.loads(body) if body else None
        except ValueError:
            request["json"] = None
        request["name"] = name_of(request)
        if not handler.client_address:
            pass
        else:
            self.look_for_token_in_argv()
        status = 202
        with self.news:
            for rule in self.rules:
                if rule[2] != 0 and rule[0](request):
                    status = rule[1]
                    if rule[2] is not None:
                        rule[2] -= 1
                    break
            request["status"] = status
            self.requests.append(request)
            self.news.notify_all()
        if status == "hang":
            self.closing.wait(60)
            return
        if status in ("close", "cut", "reset", "lost"):
            if status == "cut":
                handler.wfile.write(b"HTTP/1.1 202 Acc")
            if status == "reset":
                handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                handler.connection.close()
            handler.close_connection = True
            return
        body = self.bodies.get(request["path"], b"") if request["method"] == "GET" else b""
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def look_for_token_in_argv(self):
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    argv = pathlib.Path("/proc", entry, "cmdline").read_bytes()
                except OSError:
                    continue
                if TOKEN.encode() in argv or JOB_TOKEN.encode() in argv:
                    self.leaks.append(argv)

    def names(self, logs=False):
        with self.news:
            return [r["name"] for r in self.requests
                    if r["name"] != "heartbeat" and (logs or not r["name"].startswith("log:"))]

    def wait(self, name, seconds, count=1):
        """Waits for the count-th accepted request of that name and returns it."""
        limit = time.monotonic() + seconds
        with self.news:
            while True:
                found = [r for r in self.requests if r["name"] == name and r["status"] == 202]
                if len(found) >= count:
                    return found[count - 1]
                left = limit - time.monotonic()
                if left <= 0:
                    seen = [r["name"] for r in self.requests]
                    raise Failed("no %s within %s s, only %s" % (name, seconds, seen))
                self.news.wait(left)

    def log(self, source="job"):
        with self.news:
            return b"".join(
                base64.b64decode(r["json"]["data_base64"])
                for r in self.requests
                if r["name"] == "log:" + source and r["status"] == 202
            )

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


def name_of(request):
    if request["method"] == "DELETE":
        return "DELETE"
    event = request["json"] if isinstance(request["json"], dict) else {}
    kind = event.get("type", request["method"] + " " + request["path"])
    return "log:" + event.get("source", "?") if kind == "log" else kind


# --- bundles and seeds ----------------------------------------------------------


def quoted(value):
    return "'" + value.replace("'", "'\\''") + "'"


def kit_files(url, kind="command", payload=None, user="", env=None, extra=None, here=True):
    """Name → (mode, bytes) of all files of a bundle. `here`: it runs on this machine, which must stay on."""
    settings = {
        "MAYFLY_VM_ID": VM_ID,
        "MAYFLY_URL": url,
        "MAYFLY_RUNNER_KIND": kind,
        "MAYFLY_RUNNER_USER": user,
        "MAYFLY_ATTEMPT": "1",
        "MAYFLY_START_SECONDS": "40",
        "MAYFLY_FINISH_SECONDS": "45",
        "MAYFLY_HEARTBEAT_EVERY": "30",
        # Not "seed": a guest that is this machine must stay on.
        "MAYFLY_HANDOVER": "ssh",
    }
    settings.update(extra or {})
    lines = lambda pairs, before="": "".join(
        "%s%s=%s\n" % (before, k, quoted(v)) for k, v in pairs.items()).encode()
    files = {name: (0o755, (HOOKS / name).read_bytes()) for name in SCRIPTS}
    if here:
        files["power-off.sh"] = (0o755, b"#!/bin/sh\n: >\"${0%/*}/run/powered-off\"\n")
    files["mayfly.env"] = (0o600, lines(settings))
    for name, token in (("wrapper.curlrc", TOKEN), ("curlrc", JOB_TOKEN)):
        files[name] = (0o600, ('header = "Authorization: Bearer %s"\n' % token).encode())
    files["runner.env"] = (0o600, lines(env or {}, "export "))
    if payload is not None:
        files["payload"] = (0o700, payload if isinstance(payload, bytes) else payload.encode())
    return files


# Secret of the runner's registration, which may only be in the runner's environment.
REGISTRATION = "eyJ-registration-secret"


def github_files(url, directory=None, registration="jit_config", minimum="2.329.0", archive=None, env=None):
    """The bundle of a GitHub runner; `archive`: (version, checksum) of the host's archive."""
    version, checksum = archive or ("", "")
    settings = {
        "MAYFLY_GITHUB_URL": "https://github.com/acme/app",
        "MAYFLY_GITHUB_NAME": "vm-1",
        "MAYFLY_GITHUB_LABELS": "self-hosted,macOS 15",
        "MAYFLY_GITHUB_GROUP": "Big Macs",
        "MAYFLY_GITHUB_REGISTRATION": registration,
        "MAYFLY_RUNNER_DIRECTORY": str(directory or ""),
        "MAYFLY_RUNNER_MINIMUM": minimum,
        "MAYFLY_RUNNER_VERSION": version,
        "MAYFLY_RUNNER_SHA256": checksum,
    }
    files = kit_files(url, kind="github", payload=(HOOKS / "github-runner.sh").read_bytes(), env=env)
    text = "".join("%s=%s\n" % (k, quoted(v)) for k, v in settings.items())
    files["github.env"] = (0o600, text.encode())
    files["registration"] = (0o600, REGISTRATION.encode())
    return files


# The content of the file .runner of Gitea's runner.
GITEA_REGISTRATION = ('{"WARNING":"","id":7,"uuid":"0c7f4d0c-6a0b-4d5e-8d55-4f9c4d0a7b11","name":"vm-1",'
                      '"token":"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b","address":"https://git.example",'
                      '"labels":["linux:host"],"ephemeral":true}')


def gitea_files(url, directory=None, minimum="", env=None):
    """The bundle of a Gitea runner."""
    settings = {"MAYFLY_RUNNER_DIRECTORY": str(directory or ""), "MAYFLY_RUNNER_MINIMUM": minimum}
    files = kit_files(url, kind="gitea", payload=(HOOKS / "gitea-runner.sh").read_bytes(), env=env)
    files["gitea.env"] = (0o600, "".join("%s=%s\n" % (k, quoted(v)) for k, v in settings.items()).encode())
    files["registration"] = (0o600, GITEA_REGISTRATION.encode())
    return files


# A job of Buildkite, and the token with which an agent takes it.
BUILDKITE_JOB = "0193a6d2-7c1e-4f6a-9b1d-3f5a7c9e1b2d"
BUILDKITE_TOKEN = "bkjat_2f5d1c9a7b"


def buildkite_files(url, directory=None, minimum="", env=None):
    """The bundle of Buildkite's agent."""
    settings = {
        "MAYFLY_BUILDKITE_ENDPOINT": "https://agent.buildkite.com/v3",
        "MAYFLY_BUILDKITE_NAME": "vm-1",
        "MAYFLY_BUILDKITE_TAGS": "queue=macs,os=it's a mac",
        "MAYFLY_RUNNER_DIRECTORY": str(directory or ""),
        "MAYFLY_RUNNER_MINIMUM": minimum,
    }
    files = kit_files(url, kind="buildkite", payload=(HOOKS / "buildkite-agent.sh").read_bytes(), env=env)
    files["buildkite.env"] = (0o600, "".join("%s=%s\n" % (k, quoted(v)) for k, v in settings.items()).encode())
    files["registration"] = (0o600, ("%s %s\n" % (BUILDKITE_JOB, BUILDKITE_TOKEN)).encode())
    return files


def ready_file(**settings):
    """The file ready.env of a bundle."""
    settings = {"interval": 1, "seconds": 2, **settings}
    lines = ["MAYFLY_READY%s=%s\n" % ("" if k == "check" else "_" + k.upper(), quoted(str(v))) for k, v in settings.items()]
    return {"ready.env": (0o600, "".join(lines).encode())}


def files_with(secrets, directory, user=None, exclude="job.log"):
    """The paths of files that contain a secret and that the user may read.

    The secrets go through standard input: tests that run at the same time look for them in the arguments of all
    processes."""
    command = ["grep", "-rlF", "--exclude=" + exclude, "--devices=skip", "-f", "-", str(directory)]
    if user:
        command = ["su", "-s", "/bin/sh", user, "-c", shlex.join(command)]
    result = subprocess.run(command, input="\n".join(secrets).encode(), env={**os.environ, "LC_ALL": "C"},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    # Files that were removed meanwhile, and those that the user may not read.
    expected = ("No such file or directory", "Permission denied")
    faults = [line for line in result.stderr.decode().splitlines() if not line.endswith(expected)]
    check(not faults and result.returncode in (0, 1, 2), "grep ended with %s: %s" % (result.returncode, faults))
    return result.stdout.decode().splitlines()


def write_program(path, content, mode=0o755):
    """A file that is about to be executed. Written by a separate process: a concurrent test that starts a program would
    inherit our open file, and the kernel does not execute a file that is open for writing."""
    content = content.encode() if isinstance(content, str) else content
    subprocess.run(["install", "-m", "%o" % mode, "/dev/stdin", str(path)], input=content, check=True, timeout=60)


def write_kit(directory, files):
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, (mode, content) in files.items():
        if mode & 0o100:
            write_program(directory / name, content, mode)
        else:
            (directory / name).write_bytes(content)
            (directory / name).chmod(mode)
    return directory


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, (mode, content) in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = mode, len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def user_data(files, directory="/opt/mayfly"):
    """A self-contained script: writes the bundle, then executes boot.sh.

    One archive, not one command per file, because processes are slow in an emulated guest."""
    return (
        "#!/bin/sh\numask 077\nmkdir -p %s && cd %s || exit 1\n"
        "base64 -d <<'END_OF_KIT' | tar -xf - || exit 1\n%sEND_OF_KIT\nexec /bin/sh %s/boot.sh\n"
        % (quoted(directory), quoted(directory), base64.encodebytes(tar_of(files)).decode(), quoted(directory))
    ).encode()


def vfat_image(files, label=b"CIDATA     ", sectors=2048):
    """A FAT12 volume with these files in its root, long names included."""
    sector, root_entries, fat_sectors = 512, 512, 6
    data_start = 1 + 2 * fat_sectors + root_entries * 32 // sector
    boot = bytearray(sector)
    boot[0:11] = b"\xeb\x3c\x90MSWIN4.1"
    struct.pack_into("<HBHBHHBHHHII", boot, 11, sector, 1, 1, 2, root_entries, sectors, 0xF8,
                     fat_sectors, 32, 64, 0, 0)
    boot[36:39] = b"\x80\x00\x29"
    struct.pack_into("<I", boot, 39, 0x12345678)
    boot[43:54], boot[54:62], boot[510:512] = label, b"FAT12   ", b"\x55\xaa"
    clusters, data, directory = [0xFF8, 0xFFF], b"", label + b"\x08" + bytes(20)
    for number, (name, content) in enumerate(files.items()):
        first = len(clusters) if content else 0
        count = -(-len(content) // sector)
        clusters += [len(clusters) + i + 1 for i in range(count - 1)] + ([0xFFF] if count else [])
        data += content + bytes(-len(content) % sector)
        short = ("FILE~%d" % (number + 1)).encode().ljust(11)
        total = 0
        for byte in short:
            total = (((total & 1) << 7) + (total >> 1) + byte) & 0xFF
        check(len(name) < 13, "name too long for one entry")
        wide = (name.encode("utf-16le") + b"\0\0").ljust(26, b"\xff")[:26]
        directory += bytes([0x41]) + wide[:10] + bytes([0x0F, 0, total]) + wide[10:22] + b"\0\0" + wide[22:26]
        directory += short + bytes([0x20]) + bytes(14) + struct.pack("<HI", first, len(content))
    fat = bytearray(fat_sectors * sector)
    for number, value in enumerate(clusters):
        at = number * 3 // 2
        pair = struct.unpack_from("<H", fat, at)[0]
        pair |= value << 4 if number % 2 else value
        struct.pack_into("<H", fat, at, pair)
    image = bytes(boot) + bytes(fat) * 2 + directory.ljust(root_entries * 32, b"\0") + data
    check(len(image) <= sectors * sector and data_start * sector + len(data) == len(image), "seed too large")
    return image.ljust(sectors * sector, b"\0")


# --- a VM -----------------------------------------------------------------------


class Vm:
    """One micro guest under plain QEMU, wired as the qemu driver wires it."""

    def __init__(self, image, api_socket, directory, seed_files, iso=False):
        self.image, self.dir = pathlib.Path(image), pathlib.Path(directory)
        self.template = json.loads((self.image / "template.json").read_text())
        self.process = None
        self.events = []
        self.stream = b""
        seed = self.dir / "seed.img"
        if iso:
            for name, content in seed_files.items():
                (self.dir / name).write_bytes(content)
            run(["genisoimage", "-quiet", "-output", seed, "-volid", "cidata", "-joliet", "-rock"]
                + [self.dir / name for name in seed_files])
        else:
            seed.write_bytes(vfat_image(seed_files))
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", self.image / self.template["disk"],
             "-F", self.template["disk_format"], self.dir / "disk.qcow2"])
        helper = "%s -I -S %s %s" % (sys.executable, HERE / "forward.py", api_socket)
        arm = self.template["arch"] == "aarch64"
        self.arguments = [
            "qemu-system-aarch64" if arm else "qemu-system-x86_64",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-M", "virt" if arm else "q35",
            "-accel", "tcg,thread=multi,tb-size=64", "-cpu", "max",
            "-smp", str(self.template["cpus"]), "-m", str(self.template["memory_mib"]), "-no-reboot",
            "-qmp", "unix:%s/qmp.sock,server=on,wait=off" % self.dir,
            "-serial", "file:%s/console.log" % self.dir,
            "-kernel", str(self.image / self.template["kernel"]),
            "-initrd", str(self.image / self.template["initramfs"]),
            "-append", self.template["cmdline"],
            "-drive", "if=none,id=root,file=%s/disk.qcow2,format=qcow2,cache=unsafe" % self.dir,
            "-device", "virtio-blk-pci,drive=root",
            "-drive", "if=none,id=seed,file=%s,format=raw,readonly=on" % seed,
            "-device", "virtio-blk-pci,drive=seed",
            "-netdev", "user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:0-:22,"
                       "guestfwd=tcp:10.0.2.100:80-cmd:" + helper,
            "-device", "virtio-net-pci,netdev=n0,romfile=",
            "-device", "virtio-rng-pci",
        ]

    def __enter__(self):
        self.started = time.monotonic()
        self.stderr = open(self.dir / "qemu.err", "wb")
        self.process = subprocess.Popen(self.arguments, stdin=subprocess.DEVNULL, stdout=self.stderr,
                                        stderr=self.stderr)
        self.qmp = socket.socket(socket.AF_UNIX)
        limit = time.monotonic() + 20
        while True:
            try:
                self.qmp.connect(str(self.dir / "qmp.sock"))
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > limit:
                    raise Failed("qemu: " + (self.dir / "qemu.err").read_text(errors="replace"))
                time.sleep(0.02)
        self.read_message(20)
        self.command("qmp_capabilities")
        listing = self.command("human-monitor-command", **{"command-line": "info usernet"})
        self.port = int(re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", listing).group(1))
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            console = self.dir / "console.log"
            if console.exists():
                print("--- console\n" + console.read_text(errors="replace")[-3000:], file=sys.stderr)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
        self.qmp.close()
        self.stderr.close()

    def read_message(self, seconds):
        limit = time.monotonic() + seconds
        while b"\n" not in self.stream:
            self.qmp.settimeout(max(0.01, limit - time.monotonic()))
            try:
                part = self.qmp.recv(65536)
            except OSError:
                raise Failed("no message from QMP within %s s" % seconds)
            if not part:
                return None
            self.stream += part
        line, self.stream = self.stream.split(b"\n", 1)
        message = json.loads(line)
        if "event" in message:
            self.events.append(message)
        return message

    def command(self, name, **arguments):
        self.qmp.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        while True:
            message = self.read_message(20)
            check(message is not None, "QMP ended during " + name)
            if "error" in message:
                raise Failed("%s: %s" % (name, message["error"]))
            if "return" in message:
                return message["return"]

    def wait_event(self, name, seconds):
        limit = time.monotonic() + seconds
        while True:
            for event in self.events:
                if event["event"] == name:
                    return event
            check(self.read_message(max(0.01, limit - time.monotonic())) is not None, "QMP ended before " + name)

    def wait_ssh(self, seconds=30):
        """Ready means the bytes SSH-, because the forwarded port accepts long before the guest does."""
        limit, pause = time.monotonic() + seconds, 0.1
        while time.monotonic() < limit:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 2) as connection:
                    connection.settimeout(2)
                    if connection.recv(4) == b"SSH-":
                        return
            except OSError:
                pass
            time.sleep(pause)
            pause = min(1, pause * 1.3)
        raise Failed("no SSH within %s s" % seconds)

    def ssh(self, command, stdin=b"", user=None, seconds=40):
        return subprocess.run(
            ["ssh", "-F", "/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
             "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20",
             "-i", str(self.image / self.template["ssh_key"]), "-p", str(self.port),
             "%s@127.0.0.1" % (user or self.template["ssh_user"]), command],
            input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds)


def run(arguments, **options):
    return subprocess.run([str(a) for a in arguments], check=True, timeout=60, **options)


# --- running tests --------------------------------------------------------------


class Workspace:
    """A temporary directory with an API; with a short path, for Unix sockets."""

    def __init__(self, unix=False):
        self.unix = unix

    def __enter__(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="mfg-"))
        self.dir.chmod(0o755)
        self.api = Api(self.dir / "api.sock" if self.unix else None)
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            print(self.scene(), file=sys.stderr, flush=True)
        # A wrapper that no one tells to start would wait on for hours.
        for pid, _ in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.api.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def scene(self):
        """The state for the report of a failed test: requests, output of the scripts, their processes."""
        begin = min((r["at"] for r in self.api.requests), default=0)
        lines = ["--- %s" % self.dir]
        lines += ["%6.2f s %s: %s" % (r["at"] - begin, r["name"], r["status"]) for r in self.api.requests]
        for path in sorted(self.dir.glob("*/run/*")):
            if path.is_file():
                lines.append("--- %s\n%s" % (path.relative_to(self.dir), path.read_text(errors="replace")[-3000:]))
        return "\n".join(lines + [text for _, text in self.processes()])

    def processes(self):
        """Processes with this directory in their arguments or variables: (pid, description)."""
        found = []
        for process in sorted(pathlib.Path("/proc").glob("[0-9]*"), key=lambda p: int(p.name)):
            try:
                environ, argv = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
                stat = (process / "stat").read_text().rpartition(")")[2].split()
                where = (process / "wchan").read_text()
            except OSError:
                continue
            if str(self.dir).encode() in environ + argv:
                argv = argv.replace(b"\0", b" ").decode(errors="replace")[:200]
                found.append((int(process.name), "pid %s, parent %s, state %s in %s: %s" % (
                    process.name, stat[1], stat[0], where, argv)))
        return found


def main(tests, at_once=1):
    """Runs the tests whose name contains an argument, or all, and ends the program."""
    wanted = sys.argv[1:]
    tests = [t for t in tests if not wanted or any(w in t.__name__ for w in wanted)]

    def one(test):
        begin = time.monotonic()
        try:
            note = test()
            print("ok   %s (%.1f s)%s" % (test.__name__, time.monotonic() - begin, ": " + note if note else ""),
                  flush=True)
            return True
        except Exception as error:  # one broken test must not hide the others
            print("FAIL %s: %s" % (test.__name__, error), flush=True)
            if not isinstance(error, Failed):
                traceback.print_exc()
            return False

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        results = list(pool.map(one, tests))
    print("%d passed, %d failed" % (sum(results), len(results) - sum(results)), flush=True)
    sys.exit(0 if all(results) else 1)
