# bigmodel in a container. The base decides between CPU and GPU, TORCH_INDEX which build of torch is installed:
#   docker build -t bigmodel .
#   docker build -t bigmodel-gpu --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 .
#   docker run --rm -v "$PWD:/work" bigmodel train resnet18 --data digits
ARG BASE=python:3.12-slim
FROM ${BASE}

# A CUDA base has no Python of its own. The base decides its version.
# hadolint ignore=DL3008
RUN if ! command -v python3 >/dev/null || ! python3 -c 'import venv, ensurepip' 2>/dev/null; then \
      apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; \
    fi

# Which extras: onnx and serve run every command of the README.
ARG EXTRAS=onnx,serve,plots
# An index with CPU builds of torch makes the CPU image several GB smaller; empty: pip's own configuration.
ARG TORCH_INDEX=
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY bigmodel_cli bigmodel_cli
COPY bigmodel bigmodel
COPY recipes recipes
RUN python3 -m venv /opt/bigmodel \
    && /opt/bigmodel/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} ".[${EXTRAS}]"

ENV PATH=/opt/bigmodel/bin:$PATH
RUN useradd --create-home --uid 10001 bigmodel
USER 10001
WORKDIR /work
ENTRYPOINT ["bigmodel"]
CMD ["--help"]
