# The book in a container: what requirements.lock pins, on Debian, as a user without rights.
#
#     docker build -t msg-cam .
#     docker run --name book msg-cam && docker cp book:/book/_build/html html    # make book, and its pages
#     docker run --rm msg-cam make test
#
# The image that is not "slim" brings make and git, so nothing is installed but Python packages. They are as large as
# torch for CUDA is; --gpus all gives the container a GPU.
FROM python:3.12-bookworm

# Absolute, since the library is installed where it lies.
RUN useradd --uid 1000 --create-home --home-dir /book reader
USER 1000
WORKDIR /book
COPY --chown=1000:1000 . .
RUN PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 make .venv/.installed

CMD ["make", "book"]
