#!/bin/sh
# Installs Apple's command line tools and Homebrew, for the user of the jobs. As root:
#
#   RUNNER_USER=runner HOMEBREW_VERSION=4.6.0 HOMEBREW_SHA256=… BREW_PACKAGES='xcodes jq' sh homebrew.sh
#
# HOMEBREW_SHA256 is that of Homebrew-VERSION.pkg (HOMEBREW_URL, if it is not GitHub's). Without HOMEBREW_VERSION nothing is
# installed. May be repeated, also after it was killed.
set -eu
umask 022
user=${RUNNER_USER:-runner} version=${HOMEBREW_VERSION:-} sum=${HOMEBREW_SHA256:-} packages=${BREW_PACKAGES:-}
brew=/opt/homebrew/bin/brew

say() { echo "homebrew: $*" >&2; }
die() {
    say "$*"
    exit 1
}
if [ -z "$version" ]; then
    say "no HOMEBREW_VERSION is given, so none is installed"
    exit 0
fi
id -u "$user" >/dev/null 2>&1 || die "there is no user $user: run runner-user.sh first"
case $version in
*[!0-9.]* | .* | *. | *..*) die "HOMEBREW_VERSION must be a version such as 4.6.0" ;;
esac

# Homebrew needs git, which is one of the tools.
marker=/tmp/.com.apple.dt.CommandLineTools.installondemand.in-progress
if ! xcode-select -p >/dev/null 2>&1; then
    # softwareupdate lists them only while this file exists.
    touch "$marker"
    label=$(softwareupdate --list 2>&1 | sed -n 's/.*Label: \(Command Line Tools.*\)/\1/p' | tail -n 1)
    [ -n "$label" ] || die "softwareupdate offers no command line tools: is there a network?"
    softwareupdate --install "$label"
    xcode-select -p >/dev/null 2>&1 || die "the command line tools were not installed"
fi
rm -f "$marker"

package=/private/var/tmp/Homebrew-$version.pkg
if [ ! -x "$brew" ] || ! sudo -u "$user" -H "$brew" --version >/dev/null 2>&1; then
    case $sum in
    *[!0-9a-f]* | '') die "HOMEBREW_SHA256 must be the SHA-256 of Homebrew-$version.pkg in lower case" ;;
    esac
    url=${HOMEBREW_URL:-https://github.com/Homebrew/brew/releases/download/$version/Homebrew-$version.pkg}
    curl -fsSL --retry 3 -o "$package" "$url"
    found=$(shasum -a 256 "$package")
    found=${found%% *}
    [ "$found" = "$sum" ] || die "$url has the SHA-256 $found and not $sum"
    # The installer gives Homebrew's directory to this user.
    defaults write /private/var/tmp/.homebrew_pkg_user HOMEBREW_PKG_USER -string "$user"
    installer -pkg "$package" -target /
fi
rm -f "$package" /private/var/tmp/.homebrew_pkg_user.plist
# A killed installation may have left parts that belong to root.
chown -R "$user" /opt/homebrew
for name in $packages; do
    sudo -u "$user" -H "$brew" list "$name" >/dev/null 2>&1 ||
        sudo -u "$user" -H env HOMEBREW_NO_AUTO_UPDATE=1 HOMEBREW_NO_ANALYTICS=1 "$brew" install --quiet "$name"
done
