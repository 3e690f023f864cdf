#!/usr/bin/env bash
# `dvc repro` of a git revision: clone, pull, repro, push, commit of dvc.lock. repro.sh FOLDER [TARGET...]
# REPOSITORY, REVISION: what to run. The commit goes to the branch RESULT_BRANCH, repro/REVISION by default.
set -euo pipefail
folder=$1
shift
"$(dirname "$0")/checkout.sh" "$folder"
cd "$folder"
python -m pipelines.repro "$@"
dvc push --quiet
if [ -n "$(git status --porcelain dvc.lock)" ]; then
    git add dvc.lock
    git -c user.name="${GIT_AUTHOR_NAME:-latent-foundry}" -c user.email="${GIT_AUTHOR_EMAIL:-latent-foundry@localhost}" \
        commit --quiet --message "dvc repro of $(git rev-parse --short HEAD)"
    git push --quiet --force origin "HEAD:refs/heads/${RESULT_BRANCH:-repro/$REVISION}"
fi
