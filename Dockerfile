# The service on a CPU:        docker build -t adamix-serve .
# The service on a GPU:        docker build --build-arg TORCH_BUILD=cuda -t adamix-serve .
#
# pip finds torch's small CPU build if it is told PyTorch's own wheel index:
#     docker build --build-arg TORCH_INDEX_URL=<the one that pytorch.org/get-started shows for "CPU"> …
# Without it, and where pip's own settings know no CPU build either, TORCH_BUILD=cpu takes the default
# build: it runs on CPUs as well, but is some gigabytes larger.
#
# `make pin` puts the image's digest of today behind its tag.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
# pip works on the environment from outside: none is needed within.
ENV PIP_PYTHON=/opt/venv/bin/python PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/venv
WORKDIR /src

# The dependencies before the code: they are installed again when they change, not when the code does.
COPY locks/install.sh locks/torch.txt locks/torch-cpu.txt locks/service.txt locks/
ARG TORCH_BUILD=cpu
ARG TORCH_INDEX_URL=
RUN --mount=type=cache,target=/root/.cache/pip sh locks/install.sh service

# What only developers of these packages run: a fifth of it all.
RUN cd /opt/venv/lib/python3*/site-packages \
    && rm -rf torch/include torch/test torch/bin/protoc* torch/bin/test_* torch/bin/*Test \
    && find . -type d -name tests -prune -exec rm -r {} +

# It compiles the native kernels.
RUN apt-get update && apt-get install --yes --no-install-recommends g++

COPY pyproject.toml setup.py README.md LICENSE ./
COPY adapters adapters
COPY training training
COPY service service
# By the locked setuptools, not by one that is fetched for the moment.
RUN pip install --no-deps --no-build-isolation --no-index .

FROM ${PYTHON_IMAGE}
# Triton, which comes with torch's CUDA build, links its kernels' launchers with a C compiler at their
# first use.
ARG TORCH_BUILD=cpu
RUN [ "$TORCH_BUILD" = cpu ] || { apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*; }
RUN useradd --uid 10001 --home-dir /data adamix && install --directory --owner adamix --group adamix /data
# The base image has no bytecode of the standard library: each start and each health check would compile it anew.
RUN python -m compileall -q -x '/(site-packages|tests?)/' /usr/local/lib/python3*
COPY --from=build /opt/venv /opt/venv
# Owned by who reads it, whatever the umask of the checkout was.
COPY --chown=adamix:adamix store /app/store
# HOME: downloaded backbones and fingerprints are cached on the volume, too; the rest of the image may
# be read-only.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/data \
    ADAMIX_HOST=0.0.0.0 \
    ADAMIX_STORE=/data/store \
    ADAMIX_CACHE=/data/cache \
    ADAMIX_SEED=/app/store
WORKDIR /app
# A number, so that Kubernetes' runAsNonRoot can tell.
USER 10001
VOLUME /data
EXPOSE 8000
# int() takes white space off, as the settings do. A long start: a backbone from the Hugging Face hub is downloaded at the first one. A start that fails
# ends the process.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --start-interval=1s CMD ["python", "-c", "\
import os, sys; from http.client import HTTPConnection; \
server = HTTPConnection('127.0.0.1', int(os.environ.get('ADAMIX_PORT') or 8000), timeout=4); \
server.request('GET', '/ready'); sys.exit(server.getresponse().status != 200)"]
ENTRYPOINT ["python", "-m", "service"]
