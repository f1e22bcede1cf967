# Daemon and api in a small image: docker build --tag fleetwatt . ; docs/docker.md shows it with broker and database.
FROM python:3.11-slim AS packages
COPY requirements.lock .
# Wheels only: no compiler is needed, and no package's own code runs while it is installed.
RUN python -m venv --without-pip /opt/fleetwatt/venv \
    && python -m pip --python /opt/fleetwatt/venv/bin/python install \
        --no-cache-dir --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.lock

FROM python:3.11-slim
# A volume that is mounted for the spool takes owner and mode from the folder that is there.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /opt/fleetwatt --shell /usr/sbin/nologin fleetwatt \
    && install --directory --mode=700 --owner=fleetwatt --group=fleetwatt /var/lib/fleetwatt
WORKDIR /opt/fleetwatt
COPY --from=packages /opt/fleetwatt/venv venv
COPY api api
COPY daemon daemon
COPY sql sql
# The running container cannot write them, so the compiled files are made here.
RUN venv/bin/python -m compileall -q api daemon sql
USER fleetwatt
ENV PYTHONUNBUFFERED=1
# Arguments are a room and its command: `docker run fleetwatt daemon migrate`, `docker run fleetwatt api`. SIGTERM,
# docker's own, ends either in good order.
ENTRYPOINT ["/opt/fleetwatt/venv/bin/python", "-m"]
CMD ["daemon"]
