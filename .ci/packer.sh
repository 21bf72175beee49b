#!/usr/bin/env bash
# Checks the Packer templates in deploy/packer without any plugin and without the internet: their format and syntax, with the
# variables of each variables file; what Debian's Packer (1.6.6) has built in is checked completely. It refuses `required_plugins`,
# so these are in files of their own, which an HCL parser reads.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/hcl-venv
pin=python-hcl2==8.1.4
if [ "$(cat "$venv/pin" 2>/dev/null)" != "$pin" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "$pin"
    echo "$pin" >"$venv/pin"
fi
"$venv/bin/python3" -B tests/deploy/hcl_check.py

if ! command -v packer >/dev/null; then
    echo 'NOT CHECKED: format and syntax of the Packer templates (there is no packer)'
    exit 0
fi
export CHECKPOINT_DISABLE=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PACKER_CONFIG_DIR=$work/config PACKER_CACHE_DIR=$work/cache
cp -R deploy/packer/scripts "$work/scripts"
: >"$work/file"
ssh-keygen -q -t ed25519 -N '' -f "$work/key"
failed=0
for template in linux macos ec2-mac; do
    # The difference is printed.
    packer fmt -check -diff "deploy/packer/$template" || failed=1
    mkdir "$work/$template"
    cp "deploy/packer/$template"/*.pkr.hcl "$work/$template/"
    rm "$work/$template/plugins.pkr.hcl"
    packer validate -syntax-only "$work/$template" || failed=1
done
case $(packer version) in
'Packer v1.6.'*)
    packer validate -var "image=$work/file" -var "image_checksum=sha256:$(printf '%064d' 0)" -var "ssh_private_key_file=$work/key" -var "seed=$work" \
        -var "output=$work/out" "$work/linux" >"$work/log" || { cat "$work/log" && failed=1; }
    packer validate -var region=eu-central-1 -var "mayfly_archive=$work/file" -var template_image=registry.example.com/macos:1 \
        "$work/ec2-mac" >"$work/log" || { cat "$work/log" && failed=1; }
    ;;
*) echo 'NOT CHECKED: the settings of the builders (this packer needs plugins for that)' ;;
esac
exit "$failed"
