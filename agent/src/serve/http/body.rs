//! Bodies: read within time and size, unpacked within size, packed when the caller asks.

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode};
use tokio::sync::SemaphorePermit;

use super::{BODY_UNIT, Endpoint, Refusal, busy, refuse};

/// A body in memory, and its share of the budget for all of them. Keep it until the answer is written: the tensors
/// that are read out of it are as large.
pub struct Body<'a> {
    /// Unpacked.
    pub bytes: Bytes,
    _room: SemaphorePermit<'a>,
}

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// `gzip`
    Gzip,
    /// `deflate`, which is zlib (RFC 9110).
    Deflate,
}

impl Packing {
    /// The name in headers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }
}

/// Reads and unpacks the body of a request.
pub async fn read(endpoint: &Endpoint, request: Request<Incoming>) -> Result<Body<'_>, Refusal> {
    let (max, patience) = (endpoint.bounds.max_body, endpoint.bounds.slow_caller);
    let headers = request.headers();
    let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let length = length.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
    if length.is_some_and(|length| length > max) {
        return too_large("body", max);
    }
    let packing = match headers.get(CONTENT_ENCODING).map(HeaderValue::as_bytes) {
        None | Some(b"identity") => None,
        Some(b"gzip" | b"x-gzip") => Some(Packing::Gzip),
        Some(b"deflate") => Some(Packing::Deflate),
        Some(_) => {
            let why = "Content-Encoding may be gzip, deflate or identity";
            return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, why);
        }
    };
    // A body that does not tell its size may become the largest.
    let expected = if packing.is_some() { max } else { length.unwrap_or(max) };
    let room = reserve(endpoint, expected)?;
    let body = tokio::time::timeout(patience, Limited::new(request.into_body(), max).collect()).await;
    let bytes = match body {
        Err(_) => {
            let why = format!("the body did not arrive within {} s", patience.as_secs_f32());
            return refuse(StatusCode::REQUEST_TIMEOUT, why);
        }
        Ok(Err(error)) if error.is::<LengthLimitError>() => return too_large("body", max),
        Ok(Err(error)) => {
            return refuse(StatusCode::BAD_REQUEST, format!("the body could not be read: {error}"));
        }
        Ok(Ok(body)) => body.to_bytes(),
    };
    let bytes = match packing {
        None => bytes,
        Some(packing) => unpack(&bytes, packing, max)?,
    };
    Ok(Body { bytes, _room: room })
}

fn too_large<T>(what: &str, max: usize) -> Result<T, Refusal> {
    refuse(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("the {what} is larger than {max} bytes, the limit of this endpoint (max_body_bytes)"),
    )
}

fn reserve(endpoint: &Endpoint, bytes: usize) -> Result<SemaphorePermit<'_>, Refusal> {
    let units = u32::try_from(bytes.div_ceil(BODY_UNIT).max(1)).unwrap_or(u32::MAX);
    endpoint
        .bodies
        .try_acquire_many(units)
        .map_err(|_| busy("the requests in work fill the memory for bodies already; try again".into()))
}

fn unpack(bytes: &[u8], packing: Packing, max: usize) -> Result<Bytes, Refusal> {
    let unpacked = match packing {
        Packing::Gzip => inflate(flate2::read::MultiGzDecoder::new(bytes), max),
        Packing::Deflate => inflate(flate2::read::ZlibDecoder::new(bytes), max),
    };
    match unpacked {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => too_large("unpacked body", max),
        Err(error) => {
            let name = if packing == Packing::Gzip { "gzip" } else { "zlib" };
            refuse(StatusCode::BAD_REQUEST, format!("the body is not valid {name}: {error}"))
        }
    }
}

/// All of a packed body, or `None` when it unpacks to more than `max` bytes.
fn inflate(reader: impl Read, max: usize) -> std::io::Result<Option<Bytes>> {
    let mut bytes = Vec::new();
    reader.take(max as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= max).then(|| Bytes::from(bytes)))
}

/// Packs an answer, as fast as can be: the way is short.
pub fn pack(bytes: &[u8], packing: Packing) -> std::io::Result<Vec<u8>> {
    let room = Vec::with_capacity(bytes.len() / 2);
    match packing {
        Packing::Gzip => {
            let mut writer = flate2::write::GzEncoder::new(room, Compression::fast());
            writer.write_all(bytes)?;
            writer.finish()
        }
        Packing::Deflate => {
            let mut writer = flate2::write::ZlibEncoder::new(room, Compression::fast());
            writer.write_all(bytes)?;
            writer.finish()
        }
    }
}

/// How a caller wants its answer packed.
///
/// On one machine packing costs more than it saves, and many HTTP libraries list every packing they know without being
/// asked to. So a list is answered plain, which is always acceptable; a caller that names one packing alone (Triton's
/// client does when its user asks) gets it, and so does one that refuses the plain form.
pub fn wanted_packing(headers: &HeaderMap) -> Option<Packing> {
    let text = headers.get(ACCEPT_ENCODING)?.to_str().ok()?;
    let mut offered = Vec::new();
    let mut plain_refused = false;
    for item in text.split(',') {
        let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
        let name = name.trim().to_ascii_lowercase();
        let weight = parameters.trim().strip_prefix("q=").and_then(|q| q.trim().parse::<f32>().ok());
        let refused = weight == Some(0.0);
        match name.as_str() {
            "" => {}
            "identity" | "*" if refused => plain_refused = true,
            _ if refused => {}
            _ => offered.push(name),
        }
    }
    let known = |name: &String| match name.as_str() {
        "gzip" | "x-gzip" => Some(Packing::Gzip),
        "deflate" => Some(Packing::Deflate),
        _ => None,
    };
    if offered.len() == 1 || plain_refused { offered.iter().find_map(known) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_caller_that_names_one_packing_gets_it() {
        for (accept, expect) in [
            ("gzip", Some(Packing::Gzip)),
            ("deflate", Some(Packing::Deflate)),
            (" GZIP ; q=0.5", Some(Packing::Gzip)),
            ("gzip, deflate, br, zstd", None),
            ("br", None),
            ("identity", None),
            ("gzip;q=0", None),
            ("br, deflate, identity;q=0", Some(Packing::Deflate)),
            ("gzip, *;q=0", Some(Packing::Gzip)),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(accept))]);
            assert_eq!(wanted_packing(&headers), expect, "{accept:?}");
        }
        assert_eq!(wanted_packing(&HeaderMap::new()), None);
    }

    #[test]
    fn what_is_packed_unpacks() {
        let text = b"the same again and again, the same again and again".repeat(20);
        for packing in [Packing::Gzip, Packing::Deflate] {
            let packed = pack(&text, packing).unwrap();
            assert!(packed.len() < text.len() / 4);
            let Ok(back) = unpack(&packed, packing, text.len()) else { panic!("it unpacks") };
            assert_eq!(back, text);
            assert!(unpack(&packed, packing, text.len() - 1).is_err_and(|r| r.status == 413));
        }
    }
}
