#!/usr/bin/env bash
# MLflow's server: records in Postgres, artifacts in a bucket and handed through, users by password.
#   MLFLOW_DATABASE                 postgresql+psycopg://user:password@host:5432/mlflow; users stand in its schema, too
#   MLFLOW_ARTIFACTS                s3://bucket/prefix; the keys to it stay on this server
#   MLFLOW_ALLOWED_HOSTS            names and ports that requests may be addressed to, separated by commas
#   MLFLOW_AUTH_ADMIN_PASSWORD      of the user admin, made at the first start
#   MLFLOW_FLASK_SERVER_SECRET_KEY  against forged forms; the same in every process
set -euo pipefail
: "${MLFLOW_DATABASE:?}" "${MLFLOW_ARTIFACTS:?}" "${MLFLOW_ALLOWED_HOSTS:?}"
: "${MLFLOW_AUTH_ADMIN_PASSWORD:?}" "${MLFLOW_FLASK_SERVER_SECRET_KEY:?}"
host=${MLFLOW_HOST:-127.0.0.1} port=${MLFLOW_PORT:-5000}
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # its extra processes serve what is not used here
umask 077
folder=$(mktemp --directory)
trap 'rm -rf "$folder"' EXIT
export MLFLOW_AUTH_CONFIG_PATH=$folder/auth.ini
cat > "$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = READ
database_uri = ${MLFLOW_DATABASE//%/%%}
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
grant_default_workspace_access = false
auth_cache_ttl_seconds = 60
INI
mlflow server --app-name basic-auth --host "$host" --port "$port" --workers "${MLFLOW_WORKERS:-4}" \
    --backend-store-uri "$MLFLOW_DATABASE" --artifacts-destination "$MLFLOW_ARTIFACTS" --serve-artifacts \
    --allowed-hosts "$MLFLOW_ALLOWED_HOSTS" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server"; rm -rf "$folder"' EXIT
trap 'exit 143' TERM INT
wait "$server"
