# The environment of scripts/test.sh and scripts/demo.sh, for NVIDIA GPUs and for machines without one.
#     docker build -t mora .
#     docker run --rm mora                                                      every test
#     docker run --rm -it --gpus all --shm-size 16g -v "$PWD/dataset:/mora/dataset" -v "$PWD/runs:/mora/runs" mora bash
# The wheel of torch brings the CUDA libraries; what must fit it is the driver of the host (CUDA 13).
ARG BASE=nvidia/cuda:13.0.2-runtime-ubuntu24.04
FROM ${BASE}

# Triton and torch.compile build kernels when they run, with a C++ compiler and Python's headers.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        build-essential ca-certificates git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /mora
ENV PIP_NO_CACHE_DIR=1 PATH=/mora/.venv/bin:$PATH

# Before the code, so that a changed line does not install everything again.
COPY requirements.txt requirements-dev.txt constraints.txt ./
COPY scripts/environment.sh scripts/
RUN bash scripts/environment.sh requirements.txt && bash scripts/environment.sh requirements-dev.txt

COPY . .
CMD ["bash", "scripts/test.sh"]
