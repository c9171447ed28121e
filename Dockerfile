# The image `slicegate`: controller, agent and kubectl-slices. `make docker-build` uses this file; the local cluster lays the
# same content out with hack/image/build-root and needs no Docker.
FROM rust:1.95-bookworm AS build
WORKDIR /slicegate
COPY . .
RUN cargo build --release --locked --bins && hack/image/build-root /image target/release

FROM scratch
LABEL org.opencontainers.image.title="slicegate" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image /
# As whom it runs is said in config/: the controller as 65532, the agent as root with one capability.
ENTRYPOINT ["/usr/bin/slicegate"]
