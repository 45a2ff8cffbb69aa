# One image for every role: code server, webserver, daemon, SuperLink, site agent. The command chooses.
#   docker build -t curtail_pipeline .
FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
# Dependencies first, so that a change of code does not install them again.
RUN python -c "import tomllib; print('\n'.join(tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies']))" > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt
COPY curtail_pipeline curtail_pipeline
COPY assets assets
COPY sensors sensors
COPY deploy deploy
COPY workspace.yaml ./
RUN pip install --constraint constraints.txt --no-deps --editable . && pip uninstall --yes pip setuptools

FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install --yes --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 curtail \
    && mkdir -p /data /app && chown curtail:curtail /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build --chown=root:root /app /app
WORKDIR /app
# No update checks, telemetry or run-time installation from inside a container.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 CURTAIL_HOME=/data \
    FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
USER curtail
VOLUME /data
# Flower leaves finished app processes to be reaped by init.
ENTRYPOINT ["tini", "-g", "--"]
CMD ["dagster", "api", "grpc", "--module-name", "curtail_pipeline.definitions", "--host", "0.0.0.0", "--port", "4000"]
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["curtail", "health"]
