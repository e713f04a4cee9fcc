# docker build -t bilevel-rl . && docker run --rm -it -v "$PWD/runs:/project/runs" bilevel-rl run goal_placement --samples 100000
FROM python:3.11-slim AS base
RUN apt-get update && apt-get install -y --no-install-recommends git make chromium chromium-driver \
    && rm -rf /var/lib/apt/lists/*

FROM base
WORKDIR /project
COPY . .
# constraints.txt pins PyTorch, whose open range pulls gigabytes of CUDA packages
RUN pip install --no-cache-dir --constraint constraints.txt '.[all]'
ENTRYPOINT ["bilevel-rl"]
CMD ["list"]
