# CLForge for CPUs: one image, from which the engine and the tokenizer service both start. k8s/README.md tells how it is run.
# The bases are arguments, so that a mirror can take their place.
ARG PYTHON_IMAGE=docker.io/library/python:3.11.14-slim-bookworm
ARG GO_IMAGE=docker.io/library/golang:1.26.8

FROM ${GO_IMAGE} AS probe
# For exec probes: the kubelet's own gRPC probes cannot reach a Unix socket.
RUN CGO_ENABLED=0 GOBIN=/out go install -trimpath -ldflags=-s github.com/grpc-ecosystem/grpc-health-probe@v0.4.61

FROM ${PYTHON_IMAGE} AS build
COPY . /src
WORKDIR /src
# The lock holds more than what is installed here, and exact versions of all of it.
RUN python3 -m venv /opt/clforge \
 && /opt/clforge/bin/pip install --no-cache-dir --disable-pip-version-check --constraint requirements-test.lock '.[cpu]' \
 && /opt/clforge/bin/python -m compileall -q /opt/clforge/lib

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="CLForge" \
      org.opencontainers.image.description="GGUF language models over gRPC on OpenCL" \
      org.opencontainers.image.licenses="Apache-2.0"
# PoCL links each kernel at its first launch: with ld, libgcc and the C library's development files.
RUN apt-get update \
 && apt-get install -y --no-install-recommends binutils libc6-dev libgcc-12-dev \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 clforge \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin clforge \
 && install -d -o 10001 -g 10001 -m 0700 /var/cache/clforge
COPY --from=probe /out/grpc-health-probe /usr/local/bin/grpc-health-probe
COPY --from=build /opt/clforge /opt/clforge
# Compiled kernels are the only thing that is written, to /var/cache/clforge: the root file system may be read-only.
ENV PATH=/opt/clforge/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/var/cache
USER 10001:10001
ENTRYPOINT ["clforge"]
CMD ["--help"]
