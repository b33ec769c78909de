# mmguard with the GPU build of PyTorch: torch and torchvision come with the image, as a pair, and are not installed anew.
#
#   docker build -t mmguard .
#   docker run --rm --gpus all -v "$PWD:/data" mmguard protect my-photos -o my-photos-release
#
# Models of the hub are kept between runs with: -v "$HOME/.cache/huggingface:/cache"
FROM pytorch/pytorch:2.9.1-cuda12.8-cudnn9-runtime
# Newer images have the system's Python, which wants this to be said.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 HF_HOME=/cache
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install '.[cloud,gguf,purify,qlora,ray]'
WORKDIR /data
ENTRYPOINT ["mmguard"]
