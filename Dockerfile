# Two images. `control`: code server, webserver, daemon, SuperLink; has no torch. `site`: a site, and the worker that makes
# and evaluates models. The command chooses the role; `curtail deploy compose` writes which there are.
#   docker build --target control -t curtail_pipeline:control . && docker build --target site -t curtail_pipeline:site .
FROM python:3.11-slim-bookworm AS build-control
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
# Dependencies first, so that a change of code does not install them again.
RUN python -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))" > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

FROM build-control AS build-site
RUN python -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['site']))" > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

FROM python:3.11-slim-bookworm AS runtime
RUN apt-get update && apt-get install --yes --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 curtail \
    && mkdir -p /data /dagster && chown curtail:curtail /data /dagster
WORKDIR /app
COPY pyproject.toml README.md ./
COPY curtail_pipeline curtail_pipeline
COPY assets assets
COPY sensors sensors
# No update checks, telemetry or run-time installation from inside a container.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 CURTAIL_HOME=/data DAGSTER_HOME=/dagster \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
VOLUME /data
# Flower leaves finished app processes to be reaped by init.
ENTRYPOINT ["tini", "-g", "--"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["curtail", "health"]

FROM runtime AS site
# For `training.compile`, whose kernels are made where they run.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY --from=build-site /opt/venv /opt/venv
RUN pip install --no-deps --editable . && pip uninstall --yes pip setuptools && python -m compileall -q .
USER curtail
CMD ["curtail", "worker", "--host", "0.0.0.0"]

FROM runtime AS control
COPY --from=build-control /opt/venv /opt/venv
RUN pip install --no-deps --editable . && pip uninstall --yes pip setuptools && python -m compileall -q .
USER curtail
CMD ["dagster", "api", "grpc", "--module-name", "curtail_pipeline.definitions", "--host", "0.0.0.0", "--port", "4000"]
