# One container, one machine: Ray, Serve and the embedded store under one supervisor, `nilm run`.
#
#   docker build -t nilm-serve .
#   docker run --env-file .env -p 127.0.0.1:8000:8000 -v nilm-data:/data --shm-size 512m --stop-timeout 75 nilm-serve
#
# It speaks plain HTTP: a proxy on this machine ends TLS and sets X-Forwarded-For, and TRUSTED_PROXIES names 127.0.0.1 and
# Docker's network, from where the proxy's requests come. The stop timeout leaves time to finish the requests in flight;
# Docker's own 10 s would cut them off.
#
# The image is smaller by gigabytes with PyTorch's CPU wheels: pass the address of their index (PyTorch's install page
# names it) as --build-arg TORCH_INDEX_URL=... Without it pip takes the default index, whose build carries CUDA.
FROM python:3.11-slim

# tini passes signals on to `nilm run` and reaps the processes that Ray leaves to process 1.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home nilm \
    && install --directory --owner nilm --group nilm /data

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app

# Slowest and rarest to change first: torch in its own layer, then the other dependencies, then the code.
ARG TORCH_INDEX_URL=""
RUN pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "torch==2.13.0"

COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print('\n'.join(p['dependencies'] + [one for extra in ('redis', 'backfill', 'otlp', 's3', 'gs', 'openvino') for one in p['optional-dependencies'][extra]]))" \
        > /tmp/requirements.txt \
    && pip install --requirement /tmp/requirements.txt \
    && rm /tmp/requirements.txt

COPY README.md serve_config.yaml ./
COPY configs ./configs
COPY models ./models
COPY deployments ./deployments
COPY serve_app ./serve_app
RUN pip install --no-deps --editable .

# Everything that must survive the container is under /data; mount a volume there. It is not declared with VOLUME,
# because an undeclared mount loses nothing and Railway refuses images that declare one.
ENV ENV=production \
    PORT=8000 \
    NILM_HOST=0.0.0.0 \
    NILM_DATA_DIR=/data

USER nilm
EXPOSE 8000

# Liveness only: a store that is down makes /ready false, and restarting this container would not bring it back.
HEALTHCHECK --interval=15s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/live', timeout=4)"]

STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--"]
CMD ["nilm", "run"]
