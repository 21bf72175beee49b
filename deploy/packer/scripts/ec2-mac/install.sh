#!/bin/sh
# Installs Mayfly and Tart on an EC2 Mac from which an AMI is made, and what runs when an instance of it starts for the first
# time. As root, beside first-boot.sh and prepare.sh:
#
#   UPLOAD=/path/of/these/files TEMPLATE_IMAGE=… sh install.sh
#
# UPLOAD has mayfly.tar.gz (a release archive for Macs) and mayfly.toml (which may be empty), too. HOST_USER is the user that
# Mayfly runs as (ec2-user), TEMPLATE_NAME the template's name (macos), SMOKE the commands of its test. May be repeated, also
# after it was killed.
set -eu
umask 022
user=${HOST_USER:-ec2-user} upload=${UPLOAD:-} image=${TEMPLATE_IMAGE:-} name=${TEMPLATE_NAME:-macos}
smoke=${SMOKE:-/usr/bin/sw_vers} formula=${TART_FORMULA:-openai/tools/tart} brew=/opt/homebrew/bin/brew
here=/usr/local/libexec/mayfly

say() { echo "install: $*" >&2; }
die() {
    say "$*"
    exit 1
}
[ -f "$upload/mayfly.tar.gz" ] || die "UPLOAD must be a directory with mayfly.tar.gz; $upload has none"
case $image in
*/*:*) ;;
*) die "TEMPLATE_IMAGE must be an image with a tag or a digest, such as registry.example.com/macos:latest" ;;
esac
id -u "$user" >/dev/null 2>&1 || die "there is no user $user"
[ -x "$brew" ] || die "there is no $brew: Amazon's AMIs for Apple silicon have it"

put() { # source target mode
    cp "$1" "$2.new"
    chown 0:0 "$2.new"
    chmod "$3" "$2.new"
    mv -f "$2.new" "$2"
}

if [ ! -x /opt/homebrew/bin/tart ]; then
    sudo -u "$user" -H env HOMEBREW_NO_ANALYTICS=1 "$brew" install --quiet "$formula"
fi

rm -rf /opt/mayfly.new
mkdir -p /opt/mayfly.new
tar -xzf "$upload/mayfly.tar.gz" --strip-components 1 -C /opt/mayfly.new
if [ ! -x /opt/mayfly.new/bin/mayfly ] || [ ! -f /opt/mayfly.new/share/mayfly/macos/install.sh ]; then
    die "$upload/mayfly.tar.gz is no release archive for Macs"
fi
chown -R 0:0 /opt/mayfly.new
rm -rf /opt/mayfly
mv /opt/mayfly.new /opt/mayfly

mkdir -p "$here" /usr/local/etc/mayfly
put "$upload/first-boot.sh" "$here/first-boot.sh" 0755
put "$upload/prepare.sh" "$here/prepare.sh" 0755
if [ -s "$upload/mayfly.toml" ]; then
    put "$upload/mayfly.toml" /usr/local/etc/mayfly/mayfly.toml 0644
else
    rm -f /usr/local/etc/mayfly/mayfly.toml
fi
for value in user:"$user" image:"$image" name:"$name" smoke:"$smoke"; do
    printf '%s\n' "${value#*:}" >"$upload/value"
    put "$upload/value" "/usr/local/etc/mayfly/${value%%:*}" 0644
done

plist() { # path label script, and the rest of the dictionary on standard input
    {
        cat <<END
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key>
  <string>$2</string>
  <key>ProgramArguments</key>
  <array>
    <string>/bin/sh</string>
    <string>$3</string>
  </array>
  <key>RunAtLoad</key>
  <true/>
END
        cat
        printf '</dict>\n</plist>\n'
    } >"$upload/plist"
    plutil -lint "$upload/plist" >/dev/null || die "$1 is no property list"
    put "$upload/plist" "$1" 0644
}
plist /Library/LaunchDaemons/dev.mayfly.first-boot.plist dev.mayfly.first-boot "$here/first-boot.sh" <<'END'
  <key>StandardErrorPath</key>
  <string>/var/log/mayfly-first-boot.log</string>
END
# In the session at the screen. It is repeated until it succeeds: a registry may be out of reach for a while.
plist /Library/LaunchAgents/dev.mayfly.prepare.plist dev.mayfly.prepare "$here/prepare.sh" <<'END'
  <key>LimitLoadToSessionType</key>
  <string>Aqua</string>
  <key>KeepAlive</key>
  <dict>
    <key>SuccessfulExit</key>
    <false/>
  </dict>
  <key>ThrottleInterval</key>
  <integer>60</integer>
  <key>StandardErrorPath</key>
  <string>/tmp/mayfly-prepare.log</string>
END

# As docs/macos.md says: no sleep, short leases, and guests are reached without a question at the screen.
pmset -a sleep 0 disksleep 0 displaysleep 0 autorestart 1
defaults write /Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default.plist bootpd -dict DHCPLeaseTimeSecs -int 600
for key in AllowedEthernetLocalNetworkAddresses AllowedWiFiLocalNetworkAddresses; do
    defaults write com.apple.network.local-network "$key" -array 192.168.64.0/24
done
defaults write /Library/Preferences/com.apple.SoftwareUpdate AutomaticallyInstallMacOSUpdates -bool false

# The markers of this machine, if it was started from an earlier AMI.
rm -rf /usr/local/var/mayfly
say "done: make the AMI now"
