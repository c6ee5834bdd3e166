#!/usr/bin/env bash
# Makes stand-ins for the images that docker-compose.yml and deploy/Dockerfile name, out of Debian's packages, for
# machines that reach Debian's mirrors and no image registry. Read README.md beside tests/stack/run.sh for what that
# proves and what it does not. Needs root, docker, debootstrap and a Rust toolchain; leaves the images, nothing else.
set -euo pipefail
cd "$(dirname "$0")"
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The plain builder: no BuildKit needed.
export DOCKER_BUILDKIT=0

for suite in bookworm trixie; do
    docker image inspect "debian:$suite-slim" > /dev/null 2>&1 && continue
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$work/$suite" "$mirror"
    rm -rf "$work/$suite"/var/cache/apt/archives/*.deb "$work/$suite"/var/lib/apt/lists/* \
        "$work/$suite"/usr/share/{doc,locale,man}/*
    tar -C "$work/$suite" -c . | docker import - "debian:$suite-slim"
done

docker build -t rabbitmq:4.0 rabbitmq
docker build -t redis:8.0 redis
docker build -t prom/prometheus:v2.53.3 prometheus

sysroot=$(rustc --print sysroot)
mkdir -p "$work/rust/toolchain"
cp rust/Dockerfile "$work/rust/"
cp -L /etc/ssl/certs/ca-certificates.crt "$work/rust/"
cp -r "$sysroot/bin" "$sysroot/lib" "$work/rust/toolchain/"
docker build -t rust:1-bookworm "$work/rust"
