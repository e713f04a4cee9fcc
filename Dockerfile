# docker build -t bilevel-rl . && docker run --rm -it -v "$PWD/runs:/project/runs" bilevel-rl run goal_placement --samples 100000
FROM python:3.11-slim AS base
RUN apt-get update && apt-get install -y --no-install-recommends git make chromium chromium-driver \
    && rm -rf /var/lib/apt/lists/*

FROM base
WORKDIR /project
COPY . .
# PyTorch for processors, of the version that constraints.txt pins; for a GPU leave the second index out (gigabytes of CUDA)
RUN pip install --no-cache-dir --constraint constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu '.[all]'
ENTRYPOINT ["bilevel-rl"]
CMD ["list"]
