# One image for MLflow, Dagster and the pipeline's stages. The checkout is mounted at /workspace: its code is what runs, as DVC's
# dependencies on it demand; the image holds the pinned packages.
#
#   TORCH_INDEX_URL   a wheel index with torch for your CUDA version; empty: pip's own
#   UID               of the account in the image; the mounted checkout should belong to it
FROM python:3.11.14-slim-bookworm AS packages
ARG TORCH_INDEX_URL=
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY constraints.txt constraints-dvc.txt pyproject.toml README.md LICENSE ./
COPY mlembed_core mlembed_core
COPY assets assets
COPY workflows workflows
RUN python -m venv /opt/mlembed \
 && /opt/mlembed/bin/pip install ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$(grep '^torch==' constraints.txt)" \
 && /opt/mlembed/bin/pip install --constraint constraints.txt '.[all,stack]'
# DVC in an environment of its own (docs/decisions/0002).
RUN python -m venv /opt/dvc \
 && /opt/dvc/bin/pip install --constraint constraints-dvc.txt dvc dvc-ssh ruamel.yaml.clib \
 && ln -s /opt/dvc/bin/dvc /opt/mlembed/bin/dvc

FROM python:3.11.14-slim-bookworm
ARG UID=1000
# git: DVC and the record of commits; libgomp: torch and scikit-learn; ssh: DVC remotes.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends git libgomp1 openssh-client \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid "$UID" --create-home mlembed \
 && install -d -o mlembed -g mlembed /workspace /var/lib/mlembed /var/lib/mlembed/artifacts /var/lib/mlembed/dagster
COPY --from=packages /opt /opt
ENV PATH=/opt/mlembed/bin:$PATH PYTHONPATH=/workspace PYTHONUNBUFFERED=1
USER mlembed
WORKDIR /workspace
# The checkout is mounted; its owner may be somebody else.
RUN git config --global --add safe.directory /workspace
CMD ["mlembed", "doctor"]
