# The server in a container, on a processor or on NVIDIA GPUs (docs/server.md):
#   docker build --target cpu -t gpa:cpu .
#   docker build --target cuda -t gpa:cuda .
#   docker run --rm --read-only --tmpfs /tmp --stop-timeout 45 -p 127.0.0.1:8000:8000 -v voices:/voices gpa:cpu
# What comes after the image's name are options of `gpa serve`. Volumes: /models caches what comes from the
# Hugging Face hub (the shipped models are in the image), /voices keeps the voices that are registered.
ARG BASE=python:3.12-slim-bookworm
ARG TORCH=2.13.0

FROM ${BASE} AS wheel
COPY . /src
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /dist /src

FROM ${BASE} AS packages
ENV PATH=/opt/gpa/bin:$PATH
RUN python3 -m venv /opt/gpa

FROM packages AS cpu-packages
ARG TORCH
RUN pip install --no-cache-dir --no-deps --index-url https://download.pytorch.org/whl/cpu "torch==${TORCH}"
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir "$(echo /dist/*.whl)[cpu,serve]"

FROM packages AS cuda-packages
ARG TORCH
RUN pip install --no-cache-dir "torch==${TORCH}"
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir "$(echo /dist/*.whl)[serve]"

# ffmpeg reads what browsers and telephones record, and writes AAC. Its version is the base image's matter.
FROM ${BASE} AS server
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ffmpeg \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /tmp gpa \
    && install --directory --owner gpa /models /voices
ENV PATH=/opt/gpa/bin:$PATH PYTHONUNBUFFERED=1 HF_HOME=/models
USER 10001
WORKDIR /tmp
VOLUME ["/models", "/voices"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=120s --interval=10s --timeout=5s --retries=3 CMD \
    ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["gpa", "serve", "--host", "0.0.0.0", "--port", "8000", "--voices", "/voices"]

FROM server AS cuda
COPY --from=cuda-packages /opt/gpa /opt/gpa

FROM server AS cpu
COPY --from=cpu-packages /opt/gpa /opt/gpa
