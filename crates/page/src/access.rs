//! Who may ask, and who may act. Pure but for the token's file.
//!
//! Invariants: without a token nobody acts; a token is compared as a hash, in a time that does not depend on it, and
//! is neither kept nor logged; a request of another site's page is refused, and a page on loopback answers to
//! loopback names alone, so that a name of elsewhere that was made to point here reaches nothing.

use axum::http::{HeaderMap, Method, header};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Shorter ones can be guessed.
const SHORTEST: usize = 16;
/// Longer ones are no token.
const LONGEST: usize = 1024;

/// Why a request is refused; each is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refused {
    /// There is no token: nobody acts.
    ReadOnly,
    /// The token is not the one.
    Token,
    /// Another site's page asks.
    Origin,
    /// It came under a name that is not ours.
    Host,
    /// Too many requests from there.
    Rate,
    /// All places for viewers are taken.
    Viewers,
    /// All connections are taken.
    Connections,
    /// It is too large, or not what was expected.
    Request,
    /// It took too long.
    Slow,
}

impl Refused {
    /// Every one.
    pub const ALL: [Self; 9] = [
        Self::ReadOnly,
        Self::Token,
        Self::Origin,
        Self::Host,
        Self::Rate,
        Self::Viewers,
        Self::Connections,
        Self::Request,
        Self::Slow,
    ];

    /// As metrics have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadOnly => "read_only",
            Self::Token => "token",
            Self::Origin => "origin",
            Self::Host => "host",
            Self::Rate => "rate",
            Self::Viewers => "viewers",
            Self::Connections => "connections",
            Self::Request => "request",
            Self::Slow => "slow",
        }
    }
}

/// A token's file that is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("the page's token file {}: {source}; expected a file with a secret of {SHORTEST} characters or more", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// What is in it is no token.
    #[error("the page's token file {} holds {found} characters, expected {SHORTEST} to {LONGEST} without blanks: `openssl rand -hex 32` makes one", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Characters in it.
        found: usize,
    },
}

/// A secret, as its hash.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(blake3::Hash);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// Reads it.
    ///
    /// # Errors
    /// When the file cannot be read or holds no token.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TokenError::Read { path: path.to_owned(), source })?;
        let token = text.trim();
        let length = token.len();
        if !(SHORTEST..=LONGEST).contains(&length) || token.contains(char::is_whitespace) {
            return Err(TokenError::Unfit { path: path.to_owned(), found: length });
        }
        Ok(Self::of(token))
    }

    fn of(token: &str) -> Self {
        Self(blake3::hash(token.as_bytes()))
    }

    /// Whether the request carries it.
    pub fn is_shown(&self, headers: &HeaderMap) -> bool {
        let value = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let shown = value.and_then(|v| v.split_once(' ')).filter(|(s, _)| s.eq_ignore_ascii_case("bearer"));
        // Hashes are compared in constant time (blake3).
        shown.is_some_and(|(_, token)| Self::of(token.trim()) == *self)
    }
}

/// Whether a request may be answered at all. `loopback`: the page listens on a loopback address.
///
/// # Errors
/// Why not.
pub fn may_ask(method: &Method, headers: &HeaderMap, loopback: bool) -> Result<(), Refused> {
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).ok_or(Refused::Host)?;
    if loopback && !is_loopback(host) {
        return Err(Refused::Host);
    }
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    let text = |name: &str| headers.get(name).map(|v| v.to_str().unwrap_or("?"));
    if text("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
        return Err(Refused::Origin);
    }
    // Programs send none; browsers do with every POST.
    let own = |origin: &str| origin.split_once("://").is_some_and(|(_, at)| at.eq_ignore_ascii_case(host));
    if text("origin").is_some_and(|origin| !own(origin)) {
        return Err(Refused::Origin);
    }
    Ok(())
}

/// Whether `host` or `host:port` means this machine to whoever wrote it.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (header::HeaderName::from_static(k), v.parse().unwrap())).collect()
    }

    #[test]
    fn only_the_right_token_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "0123456789abcdef-secret\n").unwrap();
        let token = Token::read(&path).unwrap();
        assert!(token.is_shown(&headers(&[("authorization", "Bearer 0123456789abcdef-secret")])));
        assert!(token.is_shown(&headers(&[("authorization", "bearer 0123456789abcdef-secret")])));
        for wrong in
            ["Bearer 0123456789abcdef-secre", "Bearer ", "Bearer", "Basic 0123456789abcdef-secret", ""]
        {
            assert!(!token.is_shown(&headers(&[("authorization", wrong)])), "{wrong}");
        }
        assert!(!token.is_shown(&headers(&[])));
        assert!(!format!("{token:?}").contains("secret"));
    }

    #[test]
    fn files_without_a_token_are_refused_without_telling_what_is_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        for unfit in ["", "short-secret", "two words of sixteen or more", &"x".repeat(2000)] {
            std::fs::write(&path, unfit).unwrap();
            let said = Token::read(&path).unwrap_err().to_string();
            assert!(said.contains("expected 16") && (unfit.is_empty() || !said.contains(unfit)), "{said}");
        }
        let said = Token::read(&dir.path().join("none")).unwrap_err().to_string();
        assert!(said.contains("none") && said.contains("expected"), "{said}");
    }

    #[test]
    fn other_sites_pages_cannot_act() {
        let ask = |method: Method, pairs: &[(&'static str, &str)]| may_ask(&method, &headers(pairs), true);
        let host = ("host", "127.0.0.1:8080");
        assert_eq!(ask(Method::POST, &[host]), Ok(()), "a program");
        let own = ("origin", "http://127.0.0.1:8080");
        assert_eq!(ask(Method::POST, &[host, own, ("sec-fetch-site", "same-origin")]), Ok(()));
        for (name, value) in [
            ("origin", "http://127.0.0.1:9999"),
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert_eq!(ask(Method::POST, &[host, (name, value)]), Err(Refused::Origin), "{name} {value}");
        }
        assert_eq!(
            ask(Method::GET, &[host, ("sec-fetch-site", "cross-site")]),
            Ok(()),
            "a link may lead here"
        );
    }

    #[test]
    fn on_loopback_only_loopback_names_are_answered() {
        let ask = |host: &str, loopback| may_ask(&Method::GET, &headers(&[("host", host)]), loopback);
        for own in ["127.0.0.1", "127.0.0.1:1", "localhost:5000", "LOCALHOST", "[::1]:80", "[::1]"] {
            assert_eq!(ask(own, true), Ok(()), "{own}");
        }
        for other in
            ["evil.example", "evil.example:80", "10.0.0.1:80", "localhost.evil.example", "[::2]:80", ""]
        {
            assert_eq!(ask(other, true), Err(Refused::Host), "{other}");
            assert_eq!(ask(other, false), Ok(()), "{other}");
        }
        assert_eq!(may_ask(&Method::GET, &HeaderMap::new(), false), Err(Refused::Host));
    }
}
