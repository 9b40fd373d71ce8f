# The image of fastpath: one static binary, nothing else. docker build -t fastpath:0.1.0 .
FROM docker.io/library/rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
        ca-certificates clang-19 gcc libc6-dev libelf-dev m4 make pkg-config zlib1g-dev && \
    rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Static, so that the image needs no distribution under it.
ENV RUSTFLAGS="-C target-feature=+crt-static"
RUN cargo build --release --locked -p fastpath-control --bin fastpath \
        --target "$(rustc -vV | sed -n 's/^host: //p')" && \
    install -D -m 0755 target/*/release/fastpath /out/usr/bin/fastpath && \
    strip /out/usr/bin/fastpath && \
    ln -s fastpath /out/usr/bin/fastpath-cni && \
    install -d /out/run/fastpath /out/var/lib/fastpath /out/etc/fastpath

FROM scratch
COPY --from=build /out /
ENV PATH=/usr/bin
ENTRYPOINT ["/usr/bin/fastpath"]
CMD ["run", "--config", "/etc/fastpath/fastpath.toml"]
