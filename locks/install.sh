#!/bin/sh
# Install what the locks name, each file checked against its sha256:
#
#     PIP=.venv/bin/pip sh locks/install.sh service [development]
#
# torch comes first. TORCH_BUILD=cpu (the default) takes its small CPU build where pip finds one, which
# it does where TORCH_INDEX_URL names PyTorch's index of CPU builds; elsewhere the default build, which
# runs on CPUs as well, but is some gigabytes larger. TORCH_BUILD=cuda takes the default build.
set -eu
locks=$(dirname "$0")

install() {
  "${PIP:-pip}" install --quiet --require-hashes --no-deps --only-binary :all: \
    ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} --requirement "$locks/$1.txt"
}

case ${TORCH_BUILD:=cpu} in
  cuda) install torch ;;
  cpu)
    if ! said=$(install torch-cpu 2>&1); then
      # An index that was named must have the build that was asked for.
      [ -z "${TORCH_INDEX_URL:-}" ] || { echo "$said" >&2; exit 1; }
      echo "no CPU build of torch that locks/torch-cpu.txt knows was found: taking the default build;" \
        "TORCH_INDEX_URL names an index that has one" >&2
      install torch
    fi ;;
  *) echo "TORCH_BUILD is '$TORCH_BUILD'; expected cpu or cuda" >&2; exit 2 ;;
esac
for lock; do install "$lock"; done
