# The fleet server, and the operator's command for `docker exec`:
# docker build -f deploy/containers/server.Dockerfile -t plimsoll-server .
FROM rust:1.91-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --profile dist -p plimsoll-server -p plimsoll-ctl

FROM debian:bookworm-slim
RUN useradd --system --uid 6781 --home-dir /var/lib/plimsoll-server --shell /usr/sbin/nologin plimsoll \
    && install -d -o plimsoll -g plimsoll -m 0700 /var/lib/plimsoll-server
COPY --from=build /src/target/dist/plimsoll-server /src/target/dist/plimsoll /usr/local/bin/
USER plimsoll
VOLUME /var/lib/plimsoll-server
EXPOSE 8443 8883
ENTRYPOINT ["plimsoll-server"]
CMD ["serve"]
