//! `[data] source` as text: any place, or nothing yet, which only validation refuses.

use mcl_types::StoreLocation;
use serde::{Deserialize as _, Deserializer, Serializer, de, ser};
use std::path::PathBuf;

pub(crate) fn serialize<S: Serializer>(source: &StoreLocation, to: S) -> Result<S::Ok, S::Error> {
    match source {
        StoreLocation::Folder(path) => {
            let text = path.to_str();
            to.serialize_str(
                text.ok_or_else(|| ser::Error::custom("path contains invalid UTF-8 characters"))?,
            )
        }
        StoreLocation::Object(address) => to.serialize_str(address),
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<StoreLocation, D::Error> {
    let text = String::deserialize(from)?;
    if text.is_empty() {
        return Ok(StoreLocation::Folder(PathBuf::new()));
    }
    text.parse().map_err(de::Error::custom)
}
