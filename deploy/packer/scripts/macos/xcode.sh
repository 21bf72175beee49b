#!/bin/sh
# Installs Xcode from an archive that you downloaded from Apple. As root:
#
#   XCODE_XIP=/path/Xcode_27.xip XCODE_PLATFORMS='iOS' sh xcode.sh
#
# Without XCODE_XIP it does nothing. Needs about three times the size of the archive on the disk. May be repeated, also after it
# was killed.
set -eu
umask 022
xip=${XCODE_XIP:-} platforms=${XCODE_PLATFORMS:-}
app=/Applications/Xcode.app

say() { echo "xcode: $*" >&2; }
die() {
    say "$*"
    exit 1
}
if [ -z "$xip" ]; then
    say "no XCODE_XIP is given, so none is installed"
    exit 0
fi
work=/Applications/.xcode.new
if [ ! -d "$app" ]; then
    [ -f "$xip" ] || die "$xip does not exist"
    rm -rf "$work"
    mkdir "$work"
    # It unpacks into the current directory.
    (cd "$work" && xip --expand "$xip")
    found=''
    for found in "$work"/Xcode*.app; do break; done
    [ -d "$found" ] || die "$xip has no Xcode in it"
    mv "$found" "$app"
fi
rm -rf "$work"
xcode-select -s "$app/Contents/Developer"
xcodebuild -license accept
xcodebuild -runFirstLaunch
for platform in $platforms; do
    xcodebuild -downloadPlatform "$platform"
done
# The archive would take several gigabytes of the image.
rm -f "$xip"
say "$(xcodebuild -version | head -n 1) is installed"
