# The training install in a container, for driver 580 or newer:
#
#     docker build --tag retclip .
#     docker run --rm --gpus all --network none --shm-size 8g --volume "$PWD/data:/data" retclip \
#         deepspeed engine/train.py --config configs/retclip_vit_b16.yaml --data /data/shards/train \
#         --tokenizer /data/tokenizer.model --output /data/runs/mine
#
# The build needs a network, running does not. The host needs its driver and NVIDIA's container
# toolkit; CUDA itself comes with torch's wheels.

# Debian 12, with the headers of Python that Triton compiles against; `docker pull` prints the
# digest with which a site can pin it further (python@sha256:...)
FROM python:3.12.11-slim-bookworm

# Triton compiles a small launcher for each kernel when it first runs
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# whoever runs it is not root; the number should be that of the owner of the mounted data
ARG UID=1000
RUN useradd --uid "$UID" --create-home retclip

# the sources, by the paths that the commands name; *.md are what the package's metadata quotes
WORKDIR /srv/retclip
COPY pyproject.toml requirements.lock LICENSE *.md ./
COPY kernels kernels
COPY dataload dataload
COPY engine engine
COPY bench bench
COPY configs configs

# torch's CUDA 13 build, DALI, Triton and DeepSpeed, in the versions of the lock; some gigabytes
RUN pip install --no-cache-dir --constraint requirements.lock --editable '.[train]'

# from here on nothing can be written but the home (kernels' cache) and what is mounted
USER retclip

# says what is installed and whether torch opens the GPU
CMD ["retclip", "doctor"]
