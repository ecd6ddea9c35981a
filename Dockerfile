# One image for the command line and the service; neither needs root, nor a root file system that can be written.
#
#   docker build -t expert-placement .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/data" expert-placement solve examples/traces --nodes 4
#
# docs/deploy.md tells how to run the service.
FROM python:3.11.14-slim-bookworm AS build
COPY pyproject.toml README.md LICENSE lock.txt /src/
COPY api /src/api
COPY placement /src/placement
RUN python -m venv /opt/placement \
    && /opt/placement/bin/pip install --no-cache-dir --disable-pip-version-check --constraint /src/lock.txt pip \
    && /opt/placement/bin/pip install --no-cache-dir --disable-pip-version-check \
        --constraint /src/lock.txt --build-constraint /src/lock.txt "/src[service,s3,parquet]"

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/placement /opt/placement
# compiled code is cached outside of the package, where any user may write; what is there fits processors like this one's
ENV PATH=/opt/placement/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/var/cache/placement
RUN install --directory --mode 1777 /var/cache/placement \
    && placement warm-up \
    && chmod -R a+rwX /var/cache/placement/* \
    && install --directory --owner 10001 --group 10001 /data
USER 10001:10001
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
ENTRYPOINT ["placement"]
CMD ["--help"]
