#!/bin/sh
# Switches off what disturbs jobs: sleep, screen saver, Spotlight, automatic updates; and allows the local network, through which
# a guest reaches Mayfly. As root:
#
#   RUNNER_USER=runner sh quiet.sh
#
# HOST_NETWORKS names other networks than 192.168.64.0/24, separated by spaces. May be repeated, also after it was killed.
set -eu
umask 022
user=${RUNNER_USER:-runner} networks=${HOST_NETWORKS:-192.168.64.0/24}

say() { echo "quiet: $*" >&2; }
id -u "$user" >/dev/null 2>&1 || {
    say "there is no user $user: run runner-user.sh first"
    exit 1
}

pmset -a sleep 0 displaysleep 0 disksleep 0
defaults write /Library/Preferences/com.apple.screensaver loginWindowIdleTime -int 0
# Each host has its own value of this one.
sudo -u "$user" defaults -currentHost write com.apple.screensaver idleTime -int 0
defaults write /Library/Preferences/.GlobalPreferences com.apple.autologout.AutoLogOutDelay -int 0

# Its index would be built anew in every vm.
mdutil -a -i off >/dev/null

domain=/Library/Preferences/com.apple.SoftwareUpdate
for key in AutomaticCheckEnabled AutomaticDownload AutomaticallyInstallMacOSUpdates ConfigDataInstall CriticalUpdateInstall; do
    defaults write "$domain" "$key" -bool false
done
defaults write /Library/Preferences/com.apple.commerce AutoUpdate -bool false

# Since macOS 15 a program of the session must be allowed to reach private addresses, Mayfly's among them. Root's preferences.
for key in AllowedEthernetLocalNetworkAddresses AllowedWiFiLocalNetworkAddresses; do
    # The whole list: adding to it would make it longer with each run.
    # shellcheck disable=SC2086
    defaults write com.apple.network.local-network "$key" -array $networks
done
say "done; the local network is allowed after the next start"
