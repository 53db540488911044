//! The gateway in this process, real sockets and TLS, real clients (rumqttc, mosquitto) and a hand-made one for
//! what no well-behaved client does.

mod abuse;
mod clients;
mod dashboards;
mod devices;
mod harness;
mod raw;
