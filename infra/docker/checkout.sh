#!/usr/bin/env bash
# A git revision and its data: checkout.sh FOLDER [OUTPUT...]
# REPOSITORY, REVISION: what to check out. Only the named outputs are pulled; none: all that the cache has.
set -euo pipefail
folder=$1
shift
: "${REPOSITORY:?a git address}" "${REVISION:?a branch, tag or commit}"
# a volume's root is another user's, which git would refuse
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0
GIT_CONFIG_VALUE_0=$(realpath --canonicalize-missing "$folder")
if [ ! -d "$folder/.git" ]; then # a repetition takes up what is there
    git clone --quiet "$REPOSITORY" "$folder"
fi
cd "$folder"
git fetch --quiet origin
git checkout --quiet --detach "$(git rev-parse --verify --quiet "origin/$REVISION" || echo "$REVISION")"
if [ -f dvc.lock ]; then
    dvc pull --quiet --allow-missing "$@"
fi
