# The device agent as a container: docker build -f deploy/containers/agent.Dockerfile -t plimsoll-agent .
# Inference listens on loopback only, so run it with --network host (or in the network of your application).
FROM rust:1.91-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --profile dist -p plimsoll-agent

FROM debian:bookworm-slim
RUN useradd --system --uid 6780 --home-dir /var/lib/plimsoll-agent --shell /usr/sbin/nologin plimsoll \
    && install -d -o plimsoll -g plimsoll -m 0700 /var/lib/plimsoll-agent
COPY --from=build /src/target/dist/plimsoll-agent /usr/local/bin/
USER plimsoll
VOLUME /var/lib/plimsoll-agent
ENTRYPOINT ["plimsoll-agent"]
CMD ["run"]
