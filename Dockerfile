# The image of podlift's node agent: the locked versions, our own wheel, and nothing that builds.
#
# The first stage compiles the chunking kernel into a wheel. The second installs what is locked in
# .ci/constraints-image.txt, every file checked by its hash, and then that wheel without asking an
# index again. Nothing in the image is writable but /tmp and what the pod mounts; the agent runs as
# root because a node's volumes belong to anybody, and the DaemonSet takes the rest of root away.
#
# tests/support/image.py runs the last stage's steps as they stand here, off the network.
#
# PYTHON_IMAGE may name the same image in a mirror, or pin it by digest.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY .ci/constraints-build.txt .ci/
RUN pip install --no-cache-dir --require-hashes -r .ci/constraints-build.txt
COPY pyproject.toml README.md LICENSE ./
COPY chunker/ chunker/
COPY agent/ agent/
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${PYTHON_IMAGE}
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
COPY .ci/constraints-image.txt /tmp/constraints.txt
COPY --from=build /wheels/ /tmp/wheels/
# Only wheels are taken: there is no compiler here, and nothing of a dependency runs at build time.
RUN pip install --no-cache-dir --compile --only-binary :all: --require-hashes -r /tmp/constraints.txt \
    && pip install --no-cache-dir --compile --no-index --no-deps /tmp/wheels/*.whl \
    && python -c 'import chunker._scan, agent.volume._create, agent.volume._look, agent.repository._blobs, agent.repository._table, agent.repository._romix, agent.storage._crc' \
    && pip check \
    && rm -rf /tmp/constraints.txt /tmp/wheels \
    && chmod -R a-w /usr/local/lib/python3.11 /usr/local/bin

LABEL org.opencontainers.image.title="podlift" \
      org.opencontainers.image.description="A node agent for Kubernetes that moves Velero pod volumes into restic repositories on S3" \
      org.opencontainers.image.licenses="Apache-2.0"

USER 0:0
EXPOSE 8085
# SIGTERM must reach the agent itself: it then has its grace period to leave the repository tidy.
ENTRYPOINT ["podlift"]
CMD ["agent"]
