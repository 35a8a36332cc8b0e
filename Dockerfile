# The image of Keylatch: one program, no shell needed, a user of its own.
#
#   docker build -t keylatch .                                  # builds everything, in half an hour or more
#   docker build -t keylatch --build-arg PROGRAM=prebuilt .     # takes PREBUILT, made before on a Debian 12 or older
#
# With a prebuilt program, neither the sources nor BUILDER are needed.

ARG PROGRAM=compiled
ARG BUILDER=docker.io/library/rust:1.95-bookworm
ARG BASE=gcr.io/distroless/cc-debian12

FROM ${BUILDER} AS compiled
RUN command -v cmake >/dev/null || { apt-get update && apt-get install -y --no-install-recommends cmake && rm -rf /var/lib/apt/lists/*; }
WORKDIR /src
# Dependencies have a layer of their own, which is built again only when they change.
COPY Cargo.toml Cargo.lock ./
COPY filters/Cargo.toml filters/
COPY vendor vendor
COPY fuzz/Cargo.toml fuzz/
RUN mkdir -p src benches fuzz/fuzz_targets \
    && for target in $(sed -n 's/^path = "\(fuzz_targets.*\)"/\1/p' fuzz/Cargo.toml); do echo 'fn main() {}' >"fuzz/$target"; done \
    && for main in src/main.rs benches/bearer.rs; do echo 'fn main() {}' >"$main"; done \
    && touch src/lib.rs filters/lib.rs \
    && cargo build --profile dist --locked -p keylatch
COPY filters filters
COPY config config
COPY src src
RUN touch src/main.rs src/lib.rs filters/lib.rs && cargo build --profile dist --locked -p keylatch && strip -o /keylatch target/dist/keylatch

FROM scratch AS prebuilt
ARG PREBUILT=target/dist/keylatch
COPY ${PREBUILT} /keylatch

FROM ${PROGRAM} AS program

FROM ${BASE}
LABEL org.opencontainers.image.title="keylatch" \
      org.opencontainers.image.description="A programmable edge proxy for model APIs: who is it really, whose key is it, how often, and streams that stay open." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.documentation="/usr/share/doc/keylatch/README.md"
COPY --from=program /keylatch /usr/bin/keylatch
COPY config/container.yaml config/container-postgres.yaml config/keylatch.yaml /etc/keylatch/
COPY README.md LICENSE /usr/share/doc/keylatch/
# Keylatch writes only here: its database, and the sockets by which commands find the process.
COPY --chown=65532:65532 config/image/keylatch /var/lib/keylatch
COPY --chown=65532:65532 config/image/keylatch /run/keylatch
ENV KEYLATCH_CONFIG=/etc/keylatch/container.yaml KEYLATCH_RUNTIME_DIR=/run/keylatch
USER 65532:65532
WORKDIR /var/lib/keylatch
VOLUME /var/lib/keylatch
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["/usr/bin/keylatch", "health", "--live"]
ENTRYPOINT ["/usr/bin/keylatch"]
CMD ["run"]
