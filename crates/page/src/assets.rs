//! The files of the page, in the program.

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;

/// A file and its type.
struct Asset {
    name: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

macro_rules! asset {
    ($name:literal, $kind:literal) => {
        Asset { name: $name, kind: $kind, bytes: include_bytes!(concat!("../assets/", $name)) }
    };
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

static ASSETS: [Asset; 9] = [
    asset!("index.html", "text/html; charset=utf-8"),
    asset!("page.css", "text/css; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
    Asset { name: "page.js", kind: SCRIPT, bytes: include_bytes!("../assets/page.js") },
    Asset { name: "live.js", kind: SCRIPT, bytes: include_bytes!("../assets/live.js") },
    Asset { name: "charts.js", kind: SCRIPT, bytes: include_bytes!("../assets/charts.js") },
    Asset { name: "tables.js", kind: SCRIPT, bytes: include_bytes!("../assets/tables.js") },
    Asset { name: "actions.js", kind: SCRIPT, bytes: include_bytes!("../assets/actions.js") },
    Asset { name: "format.js", kind: SCRIPT, bytes: include_bytes!("../assets/format.js") },
];

/// A file; one that the browser has already is not sent again.
pub(crate) fn answer(name: &str, asked: &HeaderMap) -> Option<Response> {
    let asset = ASSETS.iter().find(|a| a.name == name)?;
    let tag = format!("\"{}\"", &blake3::hash(asset.bytes).to_hex()[..16]);
    let known = asked.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes());
    let (status, body) = if known {
        (StatusCode::NOT_MODIFIED, Body::empty())
    } else {
        (StatusCode::OK, Body::from(asset.bytes))
    };
    let response = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, asset.kind)
        .header(header::CACHE_CONTROL, "no-cache")
        .header(header::ETAG, tag);
    response.body(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_folder_is_served_and_fetches_nothing_from_elsewhere() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/assets");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let mut served: Vec<&str> = ASSETS.iter().map(|a| a.name).collect();
        served.sort_unstable();
        assert_eq!(names, served);
        for asset in &ASSETS {
            let text = std::str::from_utf8(asset.bytes).unwrap();
            let outside = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!outside.contains("http://") && !outside.contains("https://"), "{}", asset.name);
            // What the content security policy would refuse.
            for banned in [" style=", " onclick=", "<script>", "innerHTML", "eval("] {
                assert!(!text.contains(banned), "{} has {banned}", asset.name);
            }
        }
    }

    #[test]
    fn a_file_that_is_known_is_not_sent_again() {
        let fresh = answer("page.js", &HeaderMap::new()).unwrap();
        let tag = fresh.headers()[header::ETAG].clone();
        let asked = HeaderMap::from_iter([(header::IF_NONE_MATCH, tag)]);
        assert_eq!(answer("page.js", &asked).unwrap().status(), StatusCode::NOT_MODIFIED);
        assert!(answer("../Cargo.toml", &asked).is_none());
    }
}
