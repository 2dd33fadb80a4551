//! Pictures made smaller on their way into a shard.

use super::PackError;
use crate::crop::shrink_to;
use crate::decode::{DecodeError, Decoder, Limits};
use crate::generate::{PictureFormat, encode};
use crate::picture::Picture;
use serde::{Deserialize, Serialize};

/// How pictures are shrunk. One whose shorter side is no longer than that already is packed as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shrink {
    /// The shorter side afterwards, in pixels; at least 1.
    pub short_side: u32,
    /// Quality of the JPEG that is stored, 1 to 100.
    pub quality: u8,
}

impl Shrink {
    pub(super) fn validate(self) -> Result<(), PackError> {
        let side = u64::from(self.short_side);
        if !(1..=u64::from(u16::MAX)).contains(&side) {
            return Err(PackError::Spec {
                what: "the shorter side",
                found: side,
                expected: "1 to 65535 pixels",
            });
        }
        if !(1..=100).contains(&self.quality) {
            let found = u64::from(self.quality);
            return Err(PackError::Spec { what: "the quality", found, expected: "1 to 100" });
        }
        Ok(())
    }
}

/// Decodes, shrinks and encodes; keeps its memory between pictures.
pub(super) struct Shrinker {
    how: Shrink,
    decoder: Decoder,
    picture: Picture,
}

impl Shrinker {
    pub(super) fn new(how: Shrink) -> Self {
        Self { how, decoder: Decoder::new(Limits::default()), picture: Picture::default() }
    }

    /// The smaller file; `None` where the picture is small enough or cannot be encoded.
    pub(super) fn shrink(&mut self, bytes: &[u8]) -> Result<Option<Vec<u8>>, DecodeError> {
        self.decoder.decode_into(bytes, &mut self.picture)?;
        let small = shrink_to(&self.picture, self.how.short_side);
        Ok(small.and_then(|small| encode(&small, PictureFormat::Jpeg(self.how.quality)).ok()))
    }
}
