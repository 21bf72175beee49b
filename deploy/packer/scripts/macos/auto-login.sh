#!/bin/sh
# Logs the user of the jobs in at the screen when the guest starts. The login keychain, simulators and code signing belong to
# that session. As root:
#
#   RUNNER_USER=runner RUNNER_PASSWORD=… sh auto-login.sh
#
# It takes effect at the next start. May be repeated, also after it was killed.
set -eu
umask 077
user=${RUNNER_USER:-runner}

say() { echo "auto-login: $*" >&2; }
die() {
    say "$*"
    exit 1
}
[ -n "${RUNNER_PASSWORD:-}" ] || die "RUNNER_PASSWORD is missing"
id -u "$user" >/dev/null 2>&1 || die "there is no user $user: run runner-user.sh first"
case $(fdesetup status) in
*'FileVault is Off'*) ;;
*) die "FileVault is on, so no user can be logged in without its password: fdesetup disable" ;;
esac

# macOS reads the password from here. It is hidden by a fixed key, and not encrypted.
RUNNER_PASSWORD=$RUNNER_PASSWORD perl -e '
    my @key = (0x7d, 0x89, 0x52, 0x23, 0xd2, 0xbc, 0xdd, 0xea, 0xa3, 0xb9, 0x1f);
    my $text = $ENV{RUNNER_PASSWORD};
    # At least one zero byte ends it, and the file is a multiple of twelve bytes long.
    $text .= "\0" x (12 - length($text) % 12);
    my @bytes = unpack("C*", $text);
    print pack("C*", map { $bytes[$_] ^ $key[$_ % @key] } 0 .. $#bytes);
' >/private/etc/kcpassword.new
chown 0:0 /private/etc/kcpassword.new
chmod 0600 /private/etc/kcpassword.new
mv -f /private/etc/kcpassword.new /private/etc/kcpassword
# Last: without the password, the login window would wait for one.
defaults write /Library/Preferences/com.apple.loginwindow autoLoginUser -string "$user"
found=$(defaults read /Library/Preferences/com.apple.loginwindow autoLoginUser)
[ "$found" = "$user" ] || die "expected the user of automatic login to be $user, found: $found"
say "$user is logged in when the guest starts"
