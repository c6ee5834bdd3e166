#!/bin/sh
# As the official image: steps down from root, and takes long host names where the host has one.
set -eu
if [ "$(id -u)" = 0 ]; then
    chown -R rabbitmq /var/lib/rabbitmq
    exec setpriv --reuid=rabbitmq --regid=rabbitmq --clear-groups -- "$0" "$@"
fi
if [ "$(hostname)" != "$(hostname -s)" ]; then
    export RABBITMQ_USE_LONGNAME="${RABBITMQ_USE_LONGNAME:-true}"
fi
exec "$@"
