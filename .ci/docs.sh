#!/usr/bin/env bash
# Builds the documentation site (guides and the API reference) into the directory named by $1 (default: target/docs).
# MkDocs and its Swagger UI come from PyPI into a virtual environment in the cache; the site itself loads nothing from other
# servers.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-target/docs}
venv=${MAYFLY_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mayfly}/docs-venv
pins='mkdocs==1.6.1 mkdocs-swagger-ui-tag==0.8.1'
if [ "$(cat "$venv/pins" 2>/dev/null)" != "$pins" ]; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    # shellcheck disable=SC2086 # two words, on purpose
    "$venv/bin/pip" install --quiet --disable-pip-version-check $pins
    echo "$pins" >"$venv/pins"
fi
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
cp -R docs/. "$stage/docs"
cp openapi/mayfly.json "$stage/docs/"
cp ARCHITECTURE.md "$stage/docs/architecture.md"
cp CHANGELOG.md "$stage/docs/changelog.md"
mv "$stage/docs/mkdocs.yml" "$stage/mkdocs.yml"
"$venv/bin/mkdocs" --quiet build --strict --config-file "$stage/mkdocs.yml" --site-dir "$stage/site"
# A reader's browser must load nothing from other servers: the site is read in networks without internet access.
if grep -rhoE '(src|href)="(https?:)?//[^"]+\.(js|css|woff2?)[^"]*"' "$stage/site" --include='*.html' | sort -u | grep .; then
    echo "docs.sh: the pages above load resources from other servers" >&2
    exit 1
fi
rm -rf "$out"
mkdir -p "$(dirname "$out")"
mv "$stage/site" "$out"
echo "documentation site: $out/index.html"
