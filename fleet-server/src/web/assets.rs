//! Files that the page loads: all from this server, all small.

/// For every page and asset. Nothing may be loaded from elsewhere, framed, or run inline: a device's name that found
/// a way past the escaping would still be text.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; \
     connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file under `/static/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asset {
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Contents.
    pub body: &'static str,
}

/// The asset of this name.
pub fn asset(name: &str) -> Option<Asset> {
    let (content_type, body) = match name {
        "app.css" => ("text/css; charset=utf-8", include_str!("app.css")),
        "app.js" => ("text/javascript; charset=utf-8", include_str!("app.js")),
        "icon.svg" => ("image/svg+xml", include_str!("icon.svg")),
        _ => return None,
    };
    Some(Asset { content_type, body })
}
