//! A client that sends exactly what a test says.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::harness::{Fixture, PATIENCE, TOKEN};
use crate::gateway::link::Duplex;

pub const CONNACK: u8 = 0x20;
pub const PUBLISH: u8 = 0x30;
pub const PUBACK: u8 = 0x40;
pub const SUBACK: u8 = 0x90;
pub const PINGRESP: u8 = 0xd0;
pub const DISCONNECT: u8 = 0xe0;
pub const GOODBYE: &[u8] = &[0xe0, 0];
pub const PING: &[u8] = &[0xc0, 0];

/// Protocol level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum V {
    Three = 4,
    Five = 5,
}

pub struct Raw {
    pub stream: Box<dyn Duplex>,
    v: V,
}

/// What CONNECT says.
pub struct Hello<'a> {
    pub client_id: &'a str,
    pub password: Option<&'a str>,
    pub keep_alive_s: u16,
    pub will: Option<(&'a str, &'a str)>,
}

impl<'a> Hello<'a> {
    pub fn new(client_id: &'a str) -> Self {
        Self { client_id, password: None, keep_alive_s: 60, will: None }
    }
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u16).to_be_bytes()[..], s.as_bytes()].concat()
}

pub fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (vec![kind], body.len());
    loop {
        let more = if rest >= 128 { 0x80 } else { 0 };
        out.push((rest % 128) as u8 | more);
        rest /= 128;
        if rest == 0 {
            return [out.as_slice(), body].concat();
        }
    }
}

impl Raw {
    /// Over a device's TLS connection.
    pub async fn device(on: &Fixture, name: &str, v: V) -> std::io::Result<Self> {
        let tcp = TcpStream::connect(on.gateway.devices_address()).await?;
        let tls = TlsConnector::from(on.client_tls(Some(name)));
        Ok(Self { stream: Box::new(tls.connect("localhost".try_into().unwrap(), tcp).await?), v })
    }

    /// Over a dashboard's plain connection.
    pub async fn dashboard(on: &Fixture, v: V) -> Self {
        let tcp = TcpStream::connect(on.gateway.dashboards_address()).await.unwrap();
        Self { stream: Box::new(tcp), v }
    }

    /// A device that said CONNECT and was accepted.
    pub async fn connected(on: &Fixture, name: &str, v: V) -> Self {
        let mut raw = Self::device(on, name, v).await.unwrap();
        assert_eq!(raw.connect(&Hello::new(name)).await, 0);
        raw
    }

    /// A dashboard that said CONNECT and was accepted.
    pub async fn watching(on: &Fixture, v: V, filter: &str) -> Self {
        let mut raw = Self::dashboard(on, v).await;
        assert_eq!(raw.connect(&Hello { password: Some(TOKEN), ..Hello::new("grafana") }).await, 0);
        assert_eq!(raw.subscribe(&[filter]).await, [0]);
        raw
    }

    pub fn over(stream: impl Duplex + 'static, v: V) -> Self {
        Self { stream: Box::new(stream), v }
    }

    /// Says CONNECT; returns the code of the CONNACK.
    pub async fn connect(&mut self, hello: &Hello<'_>) -> u8 {
        self.try_connect(hello).await.expect("a CONNACK")
    }

    /// The same; `None` when the server closed the connection instead.
    pub async fn try_connect(&mut self, hello: &Hello<'_>) -> Option<u8> {
        let flags =
            2 | if hello.password.is_some() { 0xc0 } else { 0 } | if hello.will.is_some() { 0x2c } else { 0 };
        let mut body =
            [&text("MQTT")[..], &[self.v as u8, flags], &hello.keep_alive_s.to_be_bytes()].concat();
        let empty_properties: &[u8] = if self.v == V::Five { &[0] } else { &[] };
        body.extend(empty_properties);
        body.extend(text(hello.client_id));
        if let Some((topic, payload)) = hello.will {
            body.extend(empty_properties);
            body.extend([text(topic), text(payload)].concat());
        }
        if let Some(password) = hello.password {
            body.extend([text("anyone"), text(password)].concat());
        }
        self.stream.write_all(&packet(0x10, &body)).await.ok()?;
        self.stream.flush().await.ok()?;
        let (kind, body) = self.read().await?;
        assert_eq!(kind, CONNACK);
        Some(body[1])
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub fn publish_bytes(&self, topic: &str, payload: &[u8], id: Option<u16>) -> Vec<u8> {
        let mut body = text(topic);
        body.extend(id.map(u16::to_be_bytes).into_iter().flatten());
        if self.v == V::Five {
            body.push(0);
        }
        body.extend(payload);
        packet(if id.is_some() { 0x32 } else { 0x30 }, &body)
    }

    pub async fn publish(&mut self, topic: &str, payload: &str, id: Option<u16>) {
        self.send(&self.publish_bytes(topic, payload.as_bytes(), id)).await;
    }

    /// The same, retained.
    pub async fn publish_retained(&mut self, topic: &str, payload: &str, id: u16) {
        let mut bytes = self.publish_bytes(topic, payload.as_bytes(), Some(id));
        bytes[0] |= 1;
        self.send(&bytes).await;
        assert_eq!(self.read().await.expect("a PUBACK").0, PUBACK);
    }

    /// Subscribes with QoS 1; returns the codes of the SUBACK, which must be next.
    pub async fn subscribe(&mut self, filters: &[&str]) -> Vec<u8> {
        let mut body = vec![0, 9];
        if self.v == V::Five {
            body.push(0);
        }
        filters.iter().for_each(|f| body.extend([&text(f)[..], &[1]].concat()));
        self.send(&packet(0x82, &body)).await;
        let (kind, body) = self.read().await.expect("a SUBACK");
        assert_eq!(kind, SUBACK);
        body[if self.v == V::Five { 3 } else { 2 }..].to_vec()
    }

    /// The next packet; `None` when the server closed the connection.
    pub async fn read(&mut self) -> Option<(u8, Vec<u8>)> {
        timeout(PATIENCE, self.read_some()).await.expect("the server neither answered nor closed")
    }

    async fn read_some(&mut self) -> Option<(u8, Vec<u8>)> {
        let kind = self.stream.read_u8().await.ok()?;
        let (mut len, mut shift) = (0usize, 0);
        loop {
            let byte = self.stream.read_u8().await.ok()?;
            len |= ((byte & 0x7f) as usize) << shift;
            shift += 7;
            if byte < 0x80 {
                break;
            }
        }
        let mut body = vec![0; len];
        self.stream.read_exact(&mut body).await.ok()?;
        Some((kind, body))
    }

    /// The next message: topic, payload, first byte. PUBACKs what wants it.
    pub async fn message(&mut self) -> (String, String, u8) {
        let (kind, body) = self.read().await.expect("a message");
        assert_eq!(kind & 0xf0, PUBLISH, "{kind:#x} {body:?}");
        let end = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
        let topic = String::from_utf8(body[2..end].to_vec()).unwrap();
        let mut rest = &body[end..];
        if kind & 0x06 != 0 {
            self.send(&packet(PUBACK, &rest[..2])).await;
            rest = &rest[2..];
        }
        if self.v == V::Five {
            rest = &rest[1 + usize::from(rest[0])..];
        }
        (topic, String::from_utf8(rest.to_vec()).unwrap(), kind)
    }

    /// Everything up to the end of the connection.
    pub async fn until_closed(&mut self) -> Vec<(u8, Vec<u8>)> {
        let mut all = Vec::new();
        while let Some(packet) = self.read().await {
            all.push(packet);
        }
        all
    }
}
