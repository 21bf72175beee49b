#!/usr/bin/env python3
"""The scripts that make a golden image on a Mac, and a host of an EC2 Mac, simulated on Linux.

Each script runs unchanged, in two shells, in a root directory that looks like a Mac's: with namespaces of Linux, so that absolute
paths are those of the Mac. It finds nothing but stand-ins: Apple's programs, which keep their state in files, and the common tools,
which refuse options that macOS's lack. Each script is run to its end, again, and killed before each of its commands.
"""

import hashlib
import os
import plistlib
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from macos_test import BSD, TOOL

SCRIPTS = Path(__file__).resolve().parents[2] / "deploy/packer/scripts"
IMAGE = ["macos/runner-user.sh", "macos/remote-login.sh", "macos/auto-login.sh", "macos/quiet.sh", "macos/shell-environment.sh",
         "macos/homebrew.sh", "macos/guest-agent.sh", "github-runner.sh", "macos/xcode.sh", "macos/seal.sh"]
PASSWORD = "corr3ct horse"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHhvbGQgb24gdG8geW91ciBoYXRzIGFuZCBjb2F0 mayfly"
CIPHER = (0x7D, 0x89, 0x52, 0x23, 0xD2, 0xBC, 0xDD, 0xEA, 0xA3, 0xB9, 0x1F)
ALSO_BSD = {"touch": "AacdfhmrtA", "tar": "cxzfCv", "tr": "CcdsuC", "od": "aBbcDdeFfHhIiLlOosvXxAjNtn", "sync": "", "sleep": "", "mktemp": "dqtup"}

# Comes first in every stand-in: counts, and kills all processes of the script at the given number.
COUNT = """#!/bin/dash
if [ -n "${KILL_AT:-}" ]; then
    read -r n </state/count
    echo $((n + 1)) >/state/count
    if [ $((n + 1)) = "$KILL_AT" ]; then kill -9 "-$GROUP"; kill -9 $$; fi
fi
"""

APPLE = {
    "uname": 'case $1 in -s) echo Darwin ;; -m) echo arm64 ;; *) exit 64 ;; esac',
    "id": """
case "$*" in
-u) if [ "${WHO:-root}" = root ]; then echo 0; else echo 501; fi ;;
-un) echo "${WHO:-root}" ;;
'-u '*) [ -e "/state/users/$2" ] || { echo "id: $2: no such user" >&2; exit 1; }
    echo 501 ;;
'-Gn '*) if [ -e "/state/admins/$2" ]; then echo staff everyone admin; else echo staff everyone; fi ;;
*) exit 64 ;;
esac""",
    # Reads the password at a terminal, as readpassphrase does. Reports errors with status 0, as the real one does.
    "sysadminctl": """
case $1 in
-addUser) [ "$3 $5 $7 $8" = '-fullName -shell -password -' ] || exit 64 ;;
-resetPasswordFor) [ "$3 $4" = '-newPassword -' ] || exit 64 ;;
*) exit 64 ;;
esac
printf 'New password for %s:' "$2" >/dev/tty
stty -echo </dev/tty
IFS= read -r password </dev/tty
stty echo </dev/tty
if [ "${#password}" -lt 4 ]; then echo 'Operation is not permitted: password policy' >&2; exit 0; fi
case $1 in
-addUser) [ ! -e "/state/users/$2" ] || exit 0
    printf '%s' "$password" >"/state/passwords/$2"
    echo "$2:501" >"/state/users/$2.new"; mv "/state/users/$2.new" "/state/users/$2" ;;
*) [ -e "/state/users/$2" ] || exit 0
    printf '%s' "$password" >"/state/passwords/$2" ;;
esac""",
    "dscl": """
[ "$1 $2" = '/Local/Default -authonly' ] || exit 64
printf 'Password:' >/dev/tty
IFS= read -r password </dev/tty
[ "$password" = "$(cat "/state/passwords/$3")" ] || { echo 'authentication failed' >&2; exit 80; }""",
    "createhomedir": '[ "$1 $2" = "-c -u" ] && mkdir -p "/Users/$3" && echo "creating home directories"',
    "dseditgroup": """
case "$*" in
'-o read com.apple.access_ssh') [ -e /state/groups/com.apple.access_ssh ] || exit 1 ;;
'-o edit -a '*' -t user com.apple.access_ssh') : >"/state/groups/com.apple.access_ssh.$4" ;;
*) exit 64 ;;
esac""",
    "launchctl": """
case $1 in
enable) : >"/state/launchd/enabled.${2##*/}" ;;
print) [ -e "/state/launchd/loaded.${2##*/}" ] || { echo 'Could not find service' >&2; exit 113; } ;;
bootstrap) [ "$2" = system ] || exit 125
    label=com.openssh.sshd
    [ -e "/state/launchd/enabled.$label" ] || { echo 'Bootstrap failed: 5: Input/output error' >&2; exit 5; }
    [ ! -e "/state/launchd/loaded.$label" ] || { echo 'Bootstrap failed: 5: Input/output error' >&2; exit 5; }
    : >"/state/launchd/loaded.$label" ;;
kickstart) echo "$*" >>/state/kickstarts ;;
*) exit 64 ;;
esac""",
    # Writes the value whole, as one file for each key.
    "defaults": """
host=''
if [ "$1" = -currentHost ]; then host=.host; shift; fi
verb=$1 dir=/state/defaults/$(printf '%s' "$2$host" | tr / _) key=$3
case $verb in
write) shift 3; mkdir -p "$dir"
    case $1 in
    -array-add) shift; printf '%s\\n' "$@" >>"$dir/$key" ;;
    -bool | -int | -string | -array | -dict) shift; printf '%s\\n' "$@" >"$dir/$key" ;;
    *) exit 64 ;;
    esac
    case $key in HOMEBREW_PKG_USER) : >/private/var/tmp/.homebrew_pkg_user.plist ;; esac ;;
read) cat "$dir/$key" 2>/dev/null || { echo 'The domain/default pair does not exist' >&2; exit 1; } ;;
*) exit 64 ;;
esac""",
    "pmset": '[ "$1" = -a ] && shift && printf "%s\\n" "$*" >/state/pmset',
    "mdutil": '[ "$*" = "-a -i off" ] && echo off >/state/spotlight',
    "fdesetup": '[ "$1" = status ] && cat /state/filevault',
    "visudo": '[ "$1" = -cf ] && grep -q "^[a-z_-]* ALL=(root) NOPASSWD: /" "$2"',
    "sudo": """
[ "$1" = -u ] || exit 64
HOME=/Users/$2 WHO=$2; export HOME WHO
shift 2
if [ "$1" = -H ]; then shift; fi
exec "$@" """,
    "stat": '[ "$*" = "-f %Su /dev/console" ] && cat /state/console',
    "shasum": '[ "$1 $2" = "-a 256" ] && exec /usr/bin/sha256sum "$3"',
    "chown": """
[ "$1" != -R ] || shift
owner=$1; shift
for path; do [ -e "$path" ] || exit 1; echo "$owner" >"/state/owners/$(printf '%s' "$path" | tr / _)"; done""",
    # Downloads what the test prepared, and answers as the metadata service of an instance.
    "curl": """
out='' url='' header=''
while [ $# -gt 0 ]; do
    case $1 in
    -o) out=$2; shift ;;
    -K) header=$(cat); shift ;;
    -m | -X | -H | --retry) shift ;;
    -fsSL | -fsS) ;;
    -*) exit 64 ;;
    *) url=$1 ;;
    esac
    shift
done
case $url in
http://169.254.169.254/latest/api/token) echo TOKEN ;;
http://169.254.169.254/latest/meta-data/iam/security-credentials/)
    case $header in *TOKEN*) cat /state/role ;; *) exit 22 ;; esac ;;
*) [ -e "/state/web/${url##*/}" ] || { echo "curl: (22) 404: $url" >&2; exit 22; }
    cp "/state/web/${url##*/}" "$out" ;;
esac""",
    "softwareupdate": """
marker=/private/tmp/.com.apple.dt.CommandLineTools.installondemand.in-progress
case $1 in
--list) if [ -e "$marker" ]; then echo '* Label: Command Line Tools for Xcode-27.0'; fi; echo '* Label: macOS 27.1' ;;
--install) [ "$2" = 'Command Line Tools for Xcode-27.0' ] && : >/state/clt ;;
*) exit 64 ;;
esac""",
    "xcode-select": """
case $1 in
-p) if [ -e /state/xcode ]; then cat /state/xcode; elif [ -e /state/clt ]; then echo /Library/Developer/CommandLineTools; else exit 2; fi ;;
-s) [ -d "$2" ] && echo "$2" >/state/xcode ;;
*) exit 64 ;;
esac""",
    "xcodebuild": """
[ -e /state/xcode ] || exit 1
case "$*" in
'-license accept') : >/state/licence ;;
-runFirstLaunch) [ -e /state/licence ] || exit 69; : >/state/first-launch ;;
'-downloadPlatform '*) : >"/state/platform.$2" ;;
-version) printf 'Xcode 27.0\\nBuild version 18A1\\n' ;;
*) exit 64 ;;
esac""",
    # Unpacks slowly, into a name of its own.
    "xip": '[ "$1" = --expand ] && [ -f "$2" ] && mkdir -p Xcode-beta.app/Contents/Developer && echo 27 >Xcode-beta.app/Contents/version',
    "installer": """
[ "$1 $3 $4" = '-pkg -target /' ] || exit 64
mkdir -p /opt/homebrew/bin
cat >/opt/homebrew/bin/brew.part <<'END'
#!/bin/dash
[ "$WHO" != root ] || { echo 'Error: Running Homebrew as root is extremely dangerous' >&2; exit 1; }
case $1 in
--version) echo 'Homebrew 4.6.0' ;;
list) [ -e "/opt/homebrew/Cellar/$2" ] ;;
install) shift; [ "$1" != --quiet ] || shift
    mkdir -p "/opt/homebrew/Cellar/${1##*/}"
    case $1 in */tart-guest-agent) echo agent >/opt/homebrew/bin/tart-guest-agent; chmod 755 /opt/homebrew/bin/tart-guest-agent ;;
    */tart) echo tart >/opt/homebrew/bin/tart; chmod 755 /opt/homebrew/bin/tart ;; esac ;;
*) exit 64 ;;
esac
END
chmod 755 /opt/homebrew/bin/brew.part
mv /opt/homebrew/bin/brew.part /opt/homebrew/bin/brew""",
    "ec2-macos-utils": '[ "$*" = "grow --id root" ] && echo grown >/state/grown',
    "shutdown": 'echo "$*" >>/state/shutdowns',
}

MAYFLY = """#!/bin/dash
verb="$1 $2"
case $verb in
'template show') [ -e "/state/templates/$3" ] ;;
'template pull') [ ! -e /state/no-registry ] || { echo 'mayfly: the registry does not answer' >&2; exit 1; }
    grep -q . "$7" && echo "$3" >"/state/templates/$5" ;;
'serve --check') ! grep -q wrong "$4/mayfly.toml" ;;
*) exit 64 ;;
esac
"""

# What the release archive's installer does, as far as it matters here.
INSTALLER = """
[ "$1 $3" = '--binary --data-dir' ] || exit 64
mkdir -p "$HOME/.local/bin"
cp "$2" "$HOME/.local/bin/mayfly.new" && mv "$HOME/.local/bin/mayfly.new" "$HOME/.local/bin/mayfly"
: >/state/service
"""

ENTER = r"""
set -e
root=$1; shift
/bin/mount --bind /usr "$root/usr"
/bin/mount --bind "$root/.local" "$root/usr/local"
/bin/mount --rbind /dev "$root/dev"
/bin/mount --bind /proc "$root/proc"
GROUP=$$; export GROUP
exec /usr/sbin/chroot "$root" "$@"
"""


def unshare():
    command = [shutil.which("unshare"), "--mount"]
    return command if os.geteuid() == 0 else [*command, "--user", "--map-root-user"]


class Mac:
    """A root directory like that of a Mac."""

    def __init__(self, shell):
        self.shell = shell
        self.root = Path(tempfile.mkdtemp(prefix="mayfly-golden-"))
        for name in ["usr", ".local", "dev", "proc", "Users", "Library/LaunchAgents", "Library/LaunchDaemons", "Applications",
                     "opt", "private/etc/ssh", "private/tmp", "private/var/tmp", "private/var/root", "private/var/log",
                     "private/var/db/dhcpclient/leases", "stand-ins", "scripts"]:
            (self.root / name).mkdir(parents=True)
        for name in ["etc", "tmp", "var"]:
            (self.root / name).symlink_to("private/" + name)
        for name in ["bin", "sbin", "lib", "lib64"]:
            if Path("/" + name).exists():
                (self.root / name).symlink_to("usr/" + name)
        for name in ["users", "admins", "passwords", "groups", "launchd", "defaults", "owners", "web", "templates"]:
            (self.root / "state" / name).mkdir(parents=True)
        self.write("state/filevault", "FileVault is Off.\n")
        self.write("state/console", "root\n")
        self.write("state/role", "mayfly-host\n")
        for name, allowed in (BSD | ALSO_BSD).items():
            self.stand_in(name, TOOL.format(name=name, real=shutil.which(name), allowed=allowed).split("\n", 1)[1])
        for name in ["expect", "perl", "env", "stty"]:
            self.stand_in(name, 'exec /usr/bin/%s "$@"\n' % name)
        self.stand_in("sh", 'exec %s "$@"\n' % " ".join(shell))
        self.stand_in("plutil", 'exec /usr/bin/python3 -IS -c \'import plistlib, sys; plistlib.load(open(sys.argv[2], "rb"))\' "$@"\n')
        for name, text in APPLE.items():
            self.stand_in(name, text + "\n")
        shutil.copytree(SCRIPTS, self.root / "scripts", dirs_exist_ok=True)

    def stand_in(self, name, text):
        self.program("stand-ins/" + name, COUNT + text)

    def program(self, name, text):
        self.write(name, text)
        (self.root / name).chmod(0o755)

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, bytes):
            path.write_bytes(text)
        else:
            path.write_text(text)

    def read(self, name):
        return (self.root / name).read_text()

    def archive(self, name, files):
        """A tar archive for download, and its checksum."""
        with tempfile.TemporaryDirectory() as directory:
            for path, text in files.items():
                target = Path(directory) / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
                target.chmod(0o755)
            archive = self.root / "state/web" / name
            subprocess.run(["tar", "-czf", archive, "-C", directory, "--sort=name", "."], check=True)
        return hashlib.sha256(archive.read_bytes()).hexdigest()

    def run(self, script, environment, kill_at=None):
        self.write("state/count", "0\n")
        variables = {"PATH": "/stand-ins", "HOME": "/Users/admin", "LC_ALL": "C", "TERM": "dumb",
                     "KILL_AT": str(kill_at or 1_000_000), **environment}
        arguments = [*unshare(), "/bin/dash", "-c", ENTER, "enter", str(self.root), *self.shell, "/scripts/" + script]
        return subprocess.run(arguments, env=variables, capture_output=True, text=True, timeout=120, start_new_session=True)

    def commands(self):
        return int(self.read("state/count"))

    def tree(self):
        """Everything that a script may change: mode and content."""
        found = {}
        for top in ["Users", "Library", "Applications", "opt", "private", ".local", "state"]:
            for path in sorted((self.root / top).rglob("*")):
                name = str(path.relative_to(self.root))
                if name in ("state/count",) or name.startswith("state/web"):
                    continue
                mode = stat.S_IMODE(path.lstat().st_mode)
                found[name] = (mode, path.read_bytes() if path.is_file() else None)
        return found

    def save(self):
        copy = Path(tempfile.mkdtemp(prefix="mayfly-golden-saved-"))
        for top in ["Users", "Library", "Applications", "opt", "private", ".local", "state"]:
            subprocess.run(["cp", "-a", self.root / top, copy / top], check=True)
        return copy

    def restore(self, copy):
        for top in ["Users", "Library", "Applications", "opt", "private", ".local", "state"]:
            shutil.rmtree(self.root / top)
            subprocess.run(["cp", "-a", copy / top, self.root / top], check=True)

    def close(self):
        shutil.rmtree(self.root)


def decoded(cipher):
    return bytes(byte ^ CIPHER[n % len(CIPHER)] for n, byte in enumerate(cipher)).rstrip(b"\0").decode()


def left(mac):
    """Files that a script writes before it moves them into place."""
    return [str(p) for top in ["Users", "Library", "Applications", "opt", "private", ".local"] for p in (mac.root / top).rglob("*.new*")]


class Cases:
    shell: list
    # Each command is one too many for the second shell: it runs the same programs in the same order.
    every = 1

    def setUp(self):
        self.mac = Mac(self.shell)
        self.addCleanup(self.mac.close)
        runner = self.mac.archive("actions-runner-osx-arm64-2.336.0.tar.gz", {"run.sh": "#!/bin/sh\n", "bin/Runner.Listener": "2.336.0"})
        self.mac.write("state/web/Homebrew-4.6.0.pkg", "a package")
        self.environment = {
            "BUILD_USER": "admin", "RUNNER_USER": "runner", "RUNNER_PASSWORD": PASSWORD, "SSH_AUTHORIZED_KEY": KEY,
            "SHELL_EXPORTS": "export LANG=en_US.UTF-8", "HOMEBREW_VERSION": "4.6.0",
            "HOMEBREW_SHA256": hashlib.sha256(b"a package").hexdigest(), "BREW_PACKAGES": "jq", "RUNNER_VERSION": "2.336.0",
            "RUNNER_SHA256": runner, "XCODE_XIP": "/private/var/tmp/x.xip", "XCODE_PLATFORMS": "iOS",
        }
        self.mac.write("private/var/tmp/x.xip", "xip")
        self.mac.write("private/etc/sudoers.d/admin-nopasswd", "admin ALL=(ALL) NOPASSWD: ALL\n")
        self.mac.write("private/etc/ssh/ssh_host_rsa_key", "a key of the build")
        self.mac.write("state/groups/com.apple.access_ssh", "")
        self.mac.write("Users/admin/.zsh_history", "echo secret\n")

    def ok(self, ran):
        self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)
        return ran

    def refused(self, script, text, **changes):
        ran = self.mac.run(script, self.environment | changes)
        self.assertEqual(ran.returncode, 1, ran.stdout + ran.stderr)
        self.assertIn(text, ran.stderr)

    def killed_everywhere(self, scripts, environment, ignore=()):
        """Each script, from the state that the one before it left: killed before its nth command, and run again."""
        kills = 0
        for script in scripts:
            before = self.mac.save()
            self.addCleanup(shutil.rmtree, before)
            self.ok(self.mac.run(script, environment))
            commands = self.mac.commands()
            self.assertEqual(left(self.mac), [], script)
            expected = {k: v for k, v in self.mac.tree().items() if k not in ignore}
            after = self.mac.save()
            self.addCleanup(shutil.rmtree, after)
            for number in range(1, commands + 1, self.every):
                self.mac.restore(before)
                killed = self.mac.run(script, environment, kill_at=number)
                if killed.returncode == 0:
                    # Commands of a pipeline are not always counted in the same order.
                    continue
                self.assertEqual(killed.returncode, -signal.SIGKILL, "%s at %d: %s" % (script, number, killed.stderr))
                kills += 1
                self.ok(self.mac.run(script, environment))
                found = {k: v for k, v in self.mac.tree().items() if k not in ignore}
                self.assertEqual(found, expected, "%s, killed at %d" % (script, number))
            self.mac.restore(after)
        return kills

    def test_an_image_from_the_first_script_to_the_last_one_and_again(self):
        mac = self.mac
        for script in IMAGE:
            self.ok(mac.run(script, self.environment))
        self.assertEqual(left(mac), [])
        self.assertEqual(mac.read("state/passwords/runner"), PASSWORD)
        self.assertEqual(decoded((mac.root / "private/etc/kcpassword").read_bytes()), PASSWORD)
        self.assertEqual(len((mac.root / "private/etc/kcpassword").read_bytes()) % 12, 0)
        self.assertEqual(stat.S_IMODE((mac.root / "private/etc/kcpassword").stat().st_mode), 0o600)
        self.assertEqual(mac.read("state/defaults/_Library_Preferences_com.apple.loginwindow/autoLoginUser"), "runner\n")
        self.assertEqual(mac.read("private/etc/sudoers.d/mayfly-power-off"), "runner ALL=(root) NOPASSWD: /sbin/shutdown -h now\n")
        self.assertTrue((mac.root / "state/launchd/loaded.com.openssh.sshd").exists())
        self.assertTrue((mac.root / "state/groups/com.apple.access_ssh.runner").exists())
        self.assertEqual(mac.read("Users/runner/.ssh/authorized_keys"), KEY + "\n")
        self.assertIn("/opt/homebrew/bin", mac.read("Users/runner/.zshenv"))
        self.assertIn("export LANG=en_US.UTF-8", mac.read("Users/runner/.zshenv"))
        self.assertFalse((mac.root / "Users/runner/.zprofile").exists())
        self.assertEqual(mac.read("state/defaults/com.apple.network.local-network/AllowedWiFiLocalNetworkAddresses"), "192.168.64.0/24\n")
        self.assertEqual(mac.read("Users/runner/actions-runner/.version"), "2.336.0\n")
        agent = plistlib.loads((mac.root / "Library/LaunchAgents/org.cirruslabs.tart-guest-agent.plist").read_bytes())
        self.assertEqual(agent["ProgramArguments"], ["/usr/local/libexec/tart-guest-agent", "--run-agent"])
        self.assertTrue((mac.root / ".local/libexec/tart-guest-agent").exists())
        self.assertTrue((mac.root / "opt/homebrew/Cellar/jq").exists())
        self.assertEqual(mac.read("state/xcode"), "/Applications/Xcode.app/Contents/Developer\n")
        self.assertTrue((mac.root / "state/platform.iOS").exists())
        for gone in ["private/var/tmp/x.xip", "private/etc/sudoers.d/admin-nopasswd", "private/etc/ssh/ssh_host_rsa_key",
                     "Users/admin/.zsh_history", "private/var/tmp/Homebrew-4.6.0.pkg"]:
            self.assertFalse((mac.root / gone).exists(), gone)
        before = mac.tree()
        for script in IMAGE:
            self.ok(mac.run(script, self.environment))
        self.assertEqual(mac.tree(), before)

    def test_every_script_of_an_image_killed_before_each_command(self):
        kills = self.killed_everywhere(IMAGE, self.environment)
        self.assertGreater(kills, 120 // self.every)

    def test_what_is_missing_is_said(self):
        mac = self.mac
        self.refused("macos/runner-user.sh", "RUNNER_PASSWORD is missing", RUNNER_PASSWORD="")
        self.refused("macos/runner-user.sh", "RUNNER_USER must be a user's name", RUNNER_USER="../x")
        self.refused("macos/runner-user.sh", "does the password fulfil the password policy", RUNNER_PASSWORD="abc")
        self.refused("macos/remote-login.sh", "run runner-user.sh first")
        self.refused("macos/auto-login.sh", "run runner-user.sh first")
        self.ok(mac.run("macos/runner-user.sh", self.environment))
        mac.write("state/filevault", "FileVault is On.\n")
        self.refused("macos/auto-login.sh", "FileVault is on")
        self.refused("macos/remote-login.sh", "must be a public key", SSH_AUTHORIZED_KEY="-----BEGIN OPENSSH PRIVATE KEY-----")
        self.refused("macos/homebrew.sh", "and not " + "0" * 64, HOMEBREW_SHA256="0" * 64)
        self.refused("macos/guest-agent.sh", "run homebrew.sh first")
        self.refused("github-runner.sh", "and not " + "0" * 64, RUNNER_SHA256="0" * 64)
        self.refused("github-runner.sh", "must be the archive's SHA-256", RUNNER_SHA256="")
        self.assertFalse((mac.root / "Users/runner/actions-runner").exists())
        self.refused("macos/xcode.sh", "does not exist", XCODE_XIP="/nowhere.xip")
        mac.write("state/admins/runner", "")
        self.refused("macos/runner-user.sh", "is an administrator")

    def test_options_are_options(self):
        for script in ["macos/homebrew.sh", "github-runner.sh", "macos/xcode.sh"]:
            before = self.mac.tree()
            ran = self.ok(self.mac.run(script, {"RUNNER_USER": "runner"}))
            self.assertIn("so none is installed", ran.stderr)
            self.assertEqual(self.mac.tree(), before)

    def test_the_start_files_of_the_user_are_kept(self):
        self.ok(self.mac.run("macos/runner-user.sh", self.environment))
        self.mac.write("Users/runner/.zshenv", "setopt extended_glob\n")
        self.mac.write("Users/runner/.zprofile", "export JAVA_HOME=/x\n")
        for exports in ["export A=1", "export B=2"]:
            ran = self.ok(self.mac.run("macos/shell-environment.sh", self.environment | {"SHELL_EXPORTS": exports}))
        self.assertIn("move them to", ran.stderr)
        text = self.mac.read("Users/runner/.zshenv")
        self.assertEqual((text.count("setopt"), text.count("golden image"), text.count("A=1"), text.count("B=2")), (1, 2, 0, 1))

    # ---- An EC2 Mac ----

    def ec2(self):
        mac = self.mac
        mac.write("state/users/ec2-user", "ec2-user:501\n")
        (mac.root / "Users/ec2-user/Library/Keychains").mkdir(parents=True)
        mac.write("Users/ec2-user/Library/Keychains/login.keychain-db", "of another password")
        mac.run("macos/homebrew.sh", self.environment | {"RUNNER_USER": "ec2-user", "BREW_PACKAGES": ""})
        upload = mac.root / "private/var/tmp/mayfly-upload"
        shutil.copytree(SCRIPTS / "ec2-mac", upload)
        archive = {"mayfly-1.0/bin/mayfly": MAYFLY, "mayfly-1.0/share/mayfly/macos/install.sh": INSTALLER}
        mac.archive("mayfly.tar.gz", archive)
        shutil.copy(mac.root / "state/web/mayfly.tar.gz", upload / "mayfly.tar.gz")
        (upload / "mayfly.toml").write_text("[pools.first]\n")
        # --strip-components counts the leading `./`.
        subprocess.run(["sh", "-c", "mkdir x && tar -xzf mayfly.tar.gz -C x && tar -czf mayfly.tar.gz -C x mayfly-1.0 && rm -r x"],
                       cwd=upload, check=True)
        return {"UPLOAD": "/private/var/tmp/mayfly-upload", "SMOKE": "sw_vers",
                "TEMPLATE_IMAGE": "123456789012.dkr.ecr.eu-central-1.amazonaws.com/macos:latest"}

    def test_an_ec2_mac_becomes_a_host(self):
        mac, environment = self.mac, self.ec2()
        self.ok(mac.run("ec2-mac/install.sh", environment))
        before = mac.tree()
        self.ok(mac.run("ec2-mac/install.sh", environment))
        self.assertEqual(mac.tree(), before)
        for name in ["Library/LaunchDaemons/dev.mayfly.first-boot.plist", "Library/LaunchAgents/dev.mayfly.prepare.plist"]:
            self.assertTrue(plistlib.loads((mac.root / name).read_bytes())["RunAtLoad"], name)
        shutil.copytree(mac.root / ".local/libexec/mayfly", mac.root / "scripts/installed")
        boot = {"FIRST_BOOT_PATH": "/stand-ins"}
        self.ok(mac.run("installed/first-boot.sh", boot))
        password = mac.read("state/passwords/ec2-user")
        self.assertRegex(password, "^[0-9a-f]{32}$")
        self.assertEqual(decoded((mac.root / "private/etc/kcpassword").read_bytes()), password)
        self.assertEqual((mac.read("state/grown"), mac.read("state/shutdowns")), ("grown\n", "-r now\n"))
        self.assertFalse((mac.root / "Users/ec2-user/Library/Keychains").exists())
        # The restart did not log the user in: it is not repeated for ever.
        ran = self.ok(mac.run("installed/first-boot.sh", boot))
        self.assertIn("is not logged in at the screen", ran.stderr)
        mac.write("state/console", "ec2-user\n")
        self.ok(mac.run("installed/first-boot.sh", boot))
        self.assertEqual((mac.read("state/shutdowns"), mac.read("state/passwords/ec2-user")), ("-r now\n", password))

        session = {"WHO": "ec2-user", "HOME": "/Users/ec2-user", "PREPARE_PATH": "/stand-ins"}
        # Other sessions have the agent, too.
        self.ok(mac.run("installed/prepare.sh", session | {"WHO": "guest"}))
        self.assertFalse((mac.root / "state/service").exists())
        mac.write("state/role", "")
        ran = mac.run("installed/prepare.sh", session)
        self.assertEqual((ran.returncode, "the instance has no role" in ran.stderr), (1, True), ran.stderr)
        mac.write("state/role", "mayfly-host\n")
        mac.write("state/no-registry", "")
        ran = mac.run("installed/prepare.sh", session)
        self.assertEqual((ran.returncode, "does not answer" in ran.stderr), (1, True), ran.stderr)
        # Jobs must not come before the template has passed its test.
        self.assertFalse((mac.root / "Users/ec2-user/.mayfly/mayfly.toml").exists())
        (mac.root / "state/no-registry").unlink()
        self.ok(mac.run("installed/prepare.sh", session))
        self.assertEqual(mac.read("state/templates/macos"), environment["TEMPLATE_IMAGE"] + "\n")
        self.assertEqual(mac.read("Users/ec2-user/.mayfly/mayfly.toml"), "[pools.first]\n")
        self.assertEqual(mac.read("state/kickstarts").count("dev.mayfly.agent"), 1)
        before = mac.tree()
        self.ok(mac.run("installed/prepare.sh", session))
        self.assertEqual(mac.tree(), before)
        mac.write(".local/etc/mayfly/mayfly.toml", "wrong\n")
        ran = mac.run("installed/prepare.sh", session)
        self.assertEqual((ran.returncode, "is refused" in ran.stderr), (1, True), ran.stderr)
        self.assertEqual(mac.read("Users/ec2-user/.mayfly/mayfly.toml"), "[pools.first]\n")

    def test_the_scripts_of_an_ec2_mac_killed_before_each_command(self):
        mac, environment = self.mac, self.ec2()
        # Temporary files in the directory that the build removes.
        upload = {"private/var/tmp/mayfly-upload/" + name for name in ["value", "plist"]}
        self.killed_everywhere(["ec2-mac/install.sh"], environment, upload)
        # The password is another one each time, and the same in both places.
        secret = {"private/etc/kcpassword", "state/passwords/ec2-user", "state/shutdowns"}
        before = mac.save()
        self.addCleanup(shutil.rmtree, before)
        self.ok(mac.run("ec2-mac/first-boot.sh", {"FIRST_BOOT_PATH": "/stand-ins"}))
        for number in range(1, mac.commands() + 1, self.every):
            mac.restore(before)
            mac.run("ec2-mac/first-boot.sh", {"FIRST_BOOT_PATH": "/stand-ins"}, kill_at=number)
            self.ok(mac.run("ec2-mac/first-boot.sh", {"FIRST_BOOT_PATH": "/stand-ins"}))
            self.assertEqual(decoded((mac.root / "private/etc/kcpassword").read_bytes()), mac.read("state/passwords/ec2-user"), number)
        mac.write("state/console", "ec2-user\n")
        session = {"WHO": "ec2-user", "HOME": "/Users/ec2-user", "PREPARE_PATH": "/stand-ins"}
        self.killed_everywhere(["ec2-mac/first-boot.sh"], {"FIRST_BOOT_PATH": "/stand-ins"}, secret)
        # A service may be restarted once more than necessary.
        self.killed_everywhere(["ec2-mac/prepare.sh"], session, {"state/kickstarts"})


class Dash(Cases, unittest.TestCase):
    shell = ["/usr/bin/dash"]


class Bash(Cases, unittest.TestCase):
    shell = ["/usr/bin/bash", "--posix"]
    every = 5


if __name__ == "__main__":
    if subprocess.run([*unshare(), "true"], capture_output=True).returncode != 0:
        print("NOT CHECKED: the scripts for golden images on a Mac (namespaces are not allowed here)")
        sys.exit(0)
    unittest.main()
