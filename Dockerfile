# untorn as an image: one static binary in an empty root, run by nobody in particular.
#
#   docker build -t untorn .
#   docker run --rm -it untorn demo
#   docker run -v ./untorn.toml:/etc/untorn/untorn.toml:ro -v untorn:/var/lib/untorn --read-only --cap-drop ALL untorn
#
# What the parts are for, and what was proved of them: src/docs/install.md.

ARG RUST=1.95

FROM docker.io/library/rust:${RUST}-slim-bookworm AS build
WORKDIR /build
# glibc linked in: the final image has no loader and no libraries. A target named by hand keeps the flag from build
# scripts and procedural macros, which must be dynamic.
ENV RUSTFLAGS="-C target-feature=+crt-static" \
    CARGO_BUILD_TARGET=x86_64-unknown-linux-gnu
# The dependencies, in a layer that only a change of theirs makes anew: an empty crate with our manifest.
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p proto src && \
    echo 'fn main() {}' >src/main.rs && cp src/main.rs src/lib.rs && cp src/main.rs proto/build.rs && \
    cargo build --release --locked --lib --bins && \
    rm -r proto src
COPY proto proto
COPY src src
# Copied files are older than the empty crate's, and cargo goes by age.
RUN touch proto/build.rs src/lib.rs src/main.rs && \
    cargo build --release --locked --bin untorn && \
    install -D "target/$CARGO_BUILD_TARGET/release/untorn" /root-of-image/untorn
# Names are looked up in /etc/hosts first, certificates where libpq's sslrootcert=system looks, and `untorn demo` wants a
# temporary folder.
RUN install -D -m 644 /etc/ssl/certs/ca-certificates.crt -t /root-of-image/etc/ssl/certs && \
    echo 'hosts: files dns' >/root-of-image/etc/nsswitch.conf && \
    mkdir -p /data /empty

# What the binary is made of, as CycloneDX: a stage of its own, because it needs the lock file and no code.
FROM docker.io/library/rust:${RUST}-slim-bookworm AS sbom
RUN cargo install --locked --version 0.5.9 cargo-cyclonedx
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
RUN mkdir -p proto src && \
    echo 'fn main() {}' >src/main.rs && cp src/main.rs src/lib.rs && cp src/main.rs proto/build.rs && \
    cargo cyclonedx --format json --spec-version 1.5 --target x86_64-unknown-linux-gnu \
        --override-filename untorn.cdx

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="untorn" \
      org.opencontainers.image.description="Cross-cluster replication applier: whole transactions on the replica, or none of them" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /root-of-image/ /
COPY --from=sbom /build/untorn.cdx.json /usr/share/sbom/untorn.cdx.json
COPY LICENSE /usr/share/licenses/untorn/LICENSE
COPY --from=build --chown=65532:65532 /data /var/lib/untorn
COPY --from=build --chown=65532:65532 /empty /tmp
USER 65532:65532
VOLUME /var/lib/untorn
# metrics with /livez and /readyz
EXPOSE 9464
# Exits 0 when the daemon answers on its admin address, which no port of the image needs to show.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD ["/untorn", "status"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/untorn"]
CMD ["run", "--config", "/etc/untorn/untorn.toml"]
