"""The bootstrap bundle in a real guest: boots the micro image with QEMU, as the qemu driver does."""

import os
import shutil
import time

from support import VM_ID, Vm, Workspace, check, kit_files, main, tar_of, user_data

IMAGE = os.environ["MAYFLY_MICRO_IMAGE"]
URL = "http://10.0.2.100"
META = b"instance-id: vm-0001\nlocal-hostname: vm-0001\n"
BOOT_LIMIT = 60  # seconds; an emulated guest on a busy machine


def power_off(vm):
    begin = time.monotonic()
    vm.command("system_powerdown")
    event = vm.wait_event("SHUTDOWN", 30)
    check(event["data"] == {"guest": True, "reason": "guest-shutdown"}, "ended by %s" % event["data"])
    vm.process.wait(20)
    return "power button to SHUTDOWN %.1f s" % (time.monotonic() - begin)


def seed_command():
    """Kind command by seed: order of calls, whole log, work after DELETE; then dead servers."""
    payload = (
        "#!/bin/bash\n"
        "echo user=$(id -un) host=$(hostname) vm=$MAYFLY_VM_ID greeting=$GREETING\n"
        "env | grep -c tok- ; ls -ld $MAYFLY_HOME $MAYFLY_HOME/curlrc $MAYFLY_HOME/wrapper.curlrc $MAYFLY_HOME/job-completed.sh\n"
        "i=0; while [ $i -lt 1500 ]; do i=$((i+1)); echo line $i of a log that takes more than one call; done\n"
        "echo the end; exit 7\n"
    )
    files = kit_files(URL, payload=payload, user="runner", env={"GREETING": "it's me"}, here=False)
    with Workspace(unix=True) as w:
        with Vm(IMAGE, w.dir / "api.sock", w.dir, {"user-data": user_data(files), "meta-data": META}) as vm:
            first = w.api.wait("guest_ready", BOOT_LIMIT)["at"] - vm.started
            finished = w.api.wait("runner_finished", BOOT_LIMIT)
            check(finished["json"] == {"type": "runner_finished", "exit_code": 7}, finished["json"])
            expected = ["guest_ready", "guest_configured", "job_started", "DELETE", "job_result", "runner_finished"]
            check(w.api.names() == expected, w.api.names())
            check(all(r["path"].startswith("/vms/" + VM_ID) for r in w.api.requests), "a wrong path")
            check(w.api.wait("job_result", 1)["json"]["exit_code"] == 7, "wrong result")
            log = w.api.log().decode()
            lines = log.splitlines()
            check("user=runner host=vm-0001 vm=vm-0001 greeting=it's me" in lines, log[:500])
            check(lines[lines.index("the end") - 1].startswith("line 1500 "), "log not complete")
            check(sum(line.startswith("line ") for line in lines) == 1500, "lines lost or doubled")
            check("0" in lines, "the token is in the job's environment")
            owners = [line.split() for line in lines if line.endswith(("/opt/mayfly", "curlrc", "/job-completed.sh"))]
            check([(o[0], o[2]) for o in owners] == [("drwxr-xr-x", "root"), ("-rw-------", "runner"),
                                                    ("-rwxr-xr-x", "root"), ("-rw-------", "root")], owners)
            check(max(r["length"] for r in w.api.requests) < 65536, "a body over the limit")
            after_delete = w.api.names(logs=True)
            check("log:job" in after_delete[after_delete.index("DELETE"):], "no log after DELETE")
            w.api.wait("log:boot", 10)

            # With a failing service, the hook ends successfully and in time, whatever the answers are.
            vm.wait_ssh()
            hook = "t=$(cut -d. -f1 /proc/uptime); bash -e /opt/mayfly/job-completed.sh; echo code=$? took=$(( $(cut -d. -f1 /proc/uptime) - t ))"
            for status in (500, "hang"):
                w.api.rules.clear()
                w.api.rule(lambda r: r["name"] == "DELETE", status)
                result = vm.ssh(hook).stdout.decode()
                check("code=0 " in result, "%s: %s" % (status, result))
                took = int(result.rsplit("took=", 1)[1])
                check(took < 25, "hook took %s s when answered %s" % (took, status))
            note = power_off(vm)
            return "first event after %.1f s, %s" % (first, note)


def seed_dead_server():
    """No server behind the forward: the job is not started, and the guest powers off."""
    files = kit_files(URL, payload="echo worked >/dev/console\n", user="runner", extra={"MAYFLY_START_SECONDS": "3"},
                      here=False)
    with Workspace(unix=True) as w:
        with Vm(IMAGE, w.dir / "nobody.sock", w.dir, {"user-data": user_data(files), "meta-data": META}) as vm:
            vm.wait_event("SHUTDOWN", BOOT_LIMIT + 30)
            console = (w.dir / "console.log").read_text(errors="replace")
            check("the job was not started" in console and "worked" not in console, console[-2000:])


def ssh_handover():
    """Delivers the bundle over SSH into the runner's home and logs out; the wrapper continues."""
    payload = (
        "#!/bin/sh\n"
        'until curl -sf -K "$MAYFLY_HOME/curlrc" -o /dev/null "$MAYFLY_URL/release"; do sleep 1; done\n'
        "echo released in $MAYFLY_HOME\n"
    )
    iso = shutil.which("genisoimage") is not None
    with Workspace(unix=True) as w:
        w.api.rule(lambda r: r["path"] == "/release", 404)
        with Vm(IMAGE, w.dir / "api.sock", w.dir, {"user-data": b"", "meta-data": META}, iso=iso) as vm:
            vm.wait_ssh(BOOT_LIMIT)
            banner = time.monotonic() - vm.started
            upload = vm.ssh("umask 077 && mkdir -p ~/.mayfly && tar -xf - -C ~/.mayfly && hostname",
                            tar_of(kit_files(URL, payload=payload, here=False)))
            check(upload.returncode == 0 and upload.stdout == b"vm-0001\n", upload.stdout)
            boot = vm.ssh("sh ~/.mayfly/boot.sh")
            check(boot.returncode == 0, boot.stdout)
            # Repeated, like a service that lost the answer: starts nothing.
            again = vm.ssh("sh ~/.mayfly/boot.sh")
            check(again.returncode == 0 and b"already started" in again.stdout, again.stdout)
            check("runner_finished" not in w.api.names(), "the job did not wait")
            w.api.rules.clear()
            w.api.wait("runner_finished", 30)
            check(w.api.log().decode().splitlines()[0] == "released in /home/runner/.mayfly", w.api.log())
            names = [n for n in w.api.names() if not n.startswith("GET")]
            check(names.count("job_started") == names.count("DELETE") == names.count("runner_finished") == 1, names)
            root = vm.ssh("id -u; cat /proc/sys/kernel/hostname", user="root")
            check(root.stdout == b"0\nvm-0001\n", root.stdout)
            return "SSH after %.1f s, seed as %s, %s" % (banner, "iso9660" if iso else "vfat", power_off(vm))


def power_button_alone():
    """Without a valid seed and without a bundle, the guest still obeys the power button."""
    with Workspace(unix=True) as w:
        with Vm(IMAGE, w.dir / "api.sock", w.dir, {"user-data": b"#cloud-config\n", "meta-data": b""}) as vm:
            vm.wait_ssh(BOOT_LIMIT)
            # SSH answers before the guest handles the button, so this asks the guest.
            ready = vm.ssh("until pidof acpid >/dev/null; do sleep 1; done", user="root")
            check(ready.returncode == 0, ready.stdout)
            return power_off(vm)


main([seed_command, seed_dead_server, ssh_handover, power_button_alone])
