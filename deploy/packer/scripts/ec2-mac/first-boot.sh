#!/bin/sh
# Runs as root whenever an instance of the AMI starts (dev.mayfly.first-boot), and does what is not done yet:
#
#   1. grows the file system to the size of the volume
#   2. gives the user a random password, and logs the user in at the screen: guests need the login keychain of a session
#   3. restarts once, so that the login happens
#
# Then prepare.sh goes on in the session. May be killed at any point: the next start continues.
set -eu
umask 077
PATH=${FIRST_BOOT_PATH:-/usr/bin:/bin:/usr/sbin:/sbin:/usr/local/bin:/opt/homebrew/bin}
export PATH
state=/usr/local/var/mayfly

say() { echo "first-boot: $*" >&2; }
die() {
    say "$*"
    exit 1
}
user=$(cat /usr/local/etc/mayfly/user)
id -u "$user" >/dev/null 2>&1 || die "there is no user $user"
mkdir -p "$state"
chmod 0755 "$state"

# Each start, because a volume may be made larger later. A volume that is used up already is no error.
if command -v ec2-macos-utils >/dev/null; then
    ec2-macos-utils grow --id root || say "the file system was not grown"
else
    disk=$(diskutil list physical external | sed -n '1s/^\([^ ]*\).*/\1/p')
    container=$(diskutil list physical external | sed -n 's/.*Apple_APFS .* \(disk[0-9]*s[0-9]*\)$/\1/p' | head -n 1)
    if [ -n "$disk" ] && [ -n "$container" ]; then
        # repairDisk asks before it writes the new size into the partition table.
        if ! echo y | diskutil repairDisk "$disk" >/dev/null || ! diskutil apfs resizeContainer "$container" 0 >/dev/null; then
            say "the file system was not grown"
        fi
    else
        say "there is no external disk with an APFS container: the file system was not grown"
    fi
fi

if [ ! -e "$state/login" ]; then
    # A new one each time: if this was killed before, nobody knows which of the two counts.
    password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    [ "${#password}" = 32 ] || die "no random password was made"
    # A keychain of an earlier login has another password, and would stay locked.
    rm -rf "/Users/$user/Library/Keychains"
    # Asked for at a terminal, so that the password is in no list of processes.
    LOGIN_USER=$user LOGIN_PASSWORD=$password expect -f - <<'END'
set timeout 60
log_user 0
spawn -noecho sysadminctl -resetPasswordFor $env(LOGIN_USER) -newPassword -
expect {
    -nocase -re {password[^\n]*:} { send -- "$env(LOGIN_PASSWORD)\r"; exp_continue }
    timeout { puts stderr "sysadminctl does not end"; exit 1 }
    eof
}
exit [lindex [wait] 3]
END
    # sysadminctl may succeed without having changed anything.
    LOGIN_USER=$user LOGIN_PASSWORD=$password expect -f - <<'END' || die "the new password of $user does not work"
set timeout 60
log_user 0
spawn -noecho dscl /Local/Default -authonly $env(LOGIN_USER)
expect {
    -nocase -re {password[^\n]*:} { send -- "$env(LOGIN_PASSWORD)\r"; exp_continue }
    timeout { exit 1 }
    eof
}
exit [lindex [wait] 3]
END
    # As deploy/packer/scripts/macos/auto-login.sh explains.
    LOGIN_PASSWORD=$password perl -e '
        my @key = (0x7d, 0x89, 0x52, 0x23, 0xd2, 0xbc, 0xdd, 0xea, 0xa3, 0xb9, 0x1f);
        my $text = $ENV{LOGIN_PASSWORD};
        $text .= "\0" x (12 - length($text) % 12);
        my @bytes = unpack("C*", $text);
        print pack("C*", map { $bytes[$_] ^ $key[$_ % @key] } 0 .. $#bytes);
    ' >/private/etc/kcpassword.new
    chmod 0600 /private/etc/kcpassword.new
    mv -f /private/etc/kcpassword.new /private/etc/kcpassword
    defaults write /Library/Preferences/com.apple.loginwindow autoLoginUser -string "$user"
    : >"$state/login"
fi

if [ "$(stat -f %Su /dev/console)" = "$user" ]; then
    say "$user is logged in at the screen"
    : >"$state/restarted"
elif [ ! -e "$state/restarted" ]; then
    # Once: a Mac that does not log the user in must not restart for ever.
    : >"$state/restarted"
    say "restarting, so that $user is logged in"
    shutdown -r now
else
    say "$user is not logged in at the screen, although automatic login is set: look at it with Screen Sharing"
fi
