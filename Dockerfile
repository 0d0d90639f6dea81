# An environment to run and develop in. Not built by this project's tests, which have no Docker.
#   docker build -t trajectory-transformer . && docker run --rm -it -v "$PWD/logs:/project/logs" trajectory-transformer
# For GPUs: docker run --gpus all …; PyPI's torch brings its own CUDA libraries.
FROM python:3.11-slim-bookworm

# A C compiler for the planning and training kernels; EGL for videos; make and git for `make` and for commits in results.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev make git libegl1 libgl1 libgomp1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /project
COPY requirements.lock ./
RUN pip install --no-cache-dir -r requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps -e .
ENV MUJOCO_GL=egl
CMD ["python", "train.py"]
