#!/bin/sh
# Installs the model servers that tests/model_servers.rs asks, each in an environment of its own, in a folder outside the repository:
#
#     worker/tests/model_servers/install.sh /opt/model-servers
#     TASKYARD_TEST_MODEL_SERVERS=/opt/model-servers cargo test -p taskyard-worker --test model_servers
#
# PYTHON names the Python to make them with (3.10 or later).
set -eu

folder=${1:?a folder outside the repository}
install() {
    name=$1
    shift
    "${PYTHON:-python3}" -m venv "$folder/$name"
    "$folder/$name/bin/pip" install --quiet "$@"
}

mkdir -p "$folder"
install llama xllamacpp==2026.10.11549 gguf==0.19.0
install litserve litserve==0.2.19
install mlserver mlserver==1.7.1 mlserver-sklearn==1.7.1
