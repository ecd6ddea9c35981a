# docker build -t expert-placement .
# docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/data" expert-placement solve examples/traces --nodes 4
FROM python:3.11-slim AS build
RUN python -m venv /opt/placement
COPY pyproject.toml README.md LICENSE /src/
COPY api /src/api
COPY placement /src/placement
RUN /opt/placement/bin/pip install --no-cache-dir --disable-pip-version-check /src

FROM python:3.11-slim
COPY --from=build /opt/placement /opt/placement
# compiled code is cached outside of the package, where any user may write; keep it on a volume to compile only once
ENV PATH=/opt/placement/bin:$PATH \
    NUMBA_CACHE_DIR=/var/cache/placement
RUN install --directory --mode 1777 /var/cache/placement \
    && install --directory --owner 10001 --group 10001 /data
USER 10001:10001
WORKDIR /data
ENTRYPOINT ["placement"]
CMD ["--help"]
