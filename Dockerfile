# One image for the command line and the service; neither needs root, nor a root file system that can be written.
#
#   docker build -t expert-placement .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/data" expert-placement solve examples/traces --nodes 4
#
# docs/deploy.md tells how to run the service.
FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS build
# `service,s3,parquet` also reads recordings in Parquet, with 170 MB of pyarrow
ARG EXTRAS=service,s3
COPY pyproject.toml README.md LICENSE lock.txt /src/
COPY api /src/api
COPY placement /src/placement
# what installs is apart from what is installed, so that the image has no pip; nor has it tests of others, what describes
# stores other than S3, or bytecode of modules that the service does not load
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --disable-pip-version-check --constraint /src/lock.txt pip cyclonedx-bom \
    && python -m venv --without-pip /opt/placement \
    && PIP_PYTHON=/opt/placement/bin/python /opt/build/bin/pip install --no-cache-dir --no-compile \
        --disable-pip-version-check --constraint /src/lock.txt --build-constraint /src/lock.txt "/src[${EXTRAS}]" \
    && /opt/placement/bin/python -c "from importlib import import_module, util; \
        modules = 'placement.cli', 'placement_api.serve', 'placement_api.jobs.work', 's3fs', 'ortools.sat.python.cp_model'; \
        [import_module(name) for name in modules if util.find_spec(name.partition('.')[0])]" \
    && find /opt/placement/lib -type d -name tests -prune -exec rm -r {} + \
    && find /opt/placement/lib -path '*/botocore/data/*' -prune -type d \
        ! -name s3 ! -name sts ! -name 'sso*' ! -name signin -exec rm -r {} + \
    && /opt/build/bin/cyclonedx-py environment --output-reproducible --output-file /opt/placement/sbom.cdx.json \
        /opt/placement/bin/python

FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
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
