#!/bin/sh
# Installs Tart's guest agent, through which Mayfly provisions guests without a network. As root, after homebrew.sh:
#
#   RUNNER_USER=runner sh guest-agent.sh
#
# AGENT_FORMULA is its formula (openai/tools/tart-guest-agent). It runs in the session of the user who is logged in, so jobs run
# as that user. A daemon of root grows the disk of a clone. May be repeated, also after it was killed.
set -eu
umask 022
user=${RUNNER_USER:-runner} formula=${AGENT_FORMULA:-openai/tools/tart-guest-agent}
brew=/opt/homebrew/bin/brew agent=/opt/homebrew/bin/tart-guest-agent

say() { echo "guest-agent: $*" >&2; }
die() {
    say "$*"
    exit 1
}
if [ ! -x "$agent" ]; then
    [ -x "$brew" ] || die "there is no Homebrew: run homebrew.sh first"
    sudo -u "$user" -H env HOMEBREW_NO_AUTO_UPDATE=1 HOMEBREW_NO_ANALYTICS=1 "$brew" install --quiet "$formula"
fi
[ -x "$agent" ] || die "$formula has no $agent"

# A daemon of root must not run a program that the user of the jobs can replace.
mkdir -p /usr/local/libexec
cp "$agent" /usr/local/libexec/tart-guest-agent.new
chown 0:0 /usr/local/libexec/tart-guest-agent.new
chmod 0755 /usr/local/libexec/tart-guest-agent.new
mv -f /usr/local/libexec/tart-guest-agent.new /usr/local/libexec/tart-guest-agent

# launchd ignores a file that others may write.
plist() { # path label argument
    cat >"$1.new" <<END
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key>
  <string>$2</string>
  <key>ProgramArguments</key>
  <array>
    <string>/usr/local/libexec/tart-guest-agent</string>
    <string>$3</string>
  </array>
  <key>EnvironmentVariables</key>
  <dict>
    <key>PATH</key>
    <string>/opt/homebrew/bin:/opt/homebrew/sbin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin</string>
  </dict>
  <key>RunAtLoad</key>
  <true/>
  <key>KeepAlive</key>
  <true/>
</dict>
</plist>
END
    plutil -lint "$1.new" >/dev/null || die "$1 is no property list"
    chown 0:0 "$1.new"
    chmod 0644 "$1.new"
    mv -f "$1.new" "$1"
}
plist /Library/LaunchAgents/org.cirruslabs.tart-guest-agent.plist org.cirruslabs.tart-guest-agent --run-agent
plist /Library/LaunchDaemons/org.cirruslabs.tart-guest-daemon.plist org.cirruslabs.tart-guest-daemon --run-daemon
say "the agent runs after the next start"
