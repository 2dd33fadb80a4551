//! The file that makes a checkpoint visible.
//!
//! JSON that a person can read, whose last field is the BLAKE3 of every byte before it: a changed byte
//! anywhere, white space included, is found. Invariants of a parsed manifest: sizes and counts are within
//! limits, slice names are the generated ones, in order. Left out: whether the slices are really there.

use crate::layout::slice_file;
use mcl_types::{Digest, RunId, Step};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// First field of every manifest; another value is another format.
pub const MANIFEST_FORMAT: &str = "mcl-checkpoint-1";
/// Longest manifest read: thousands of slices and a megabyte of meta fit.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Most slices a checkpoint may have: one a rank.
pub(crate) const MAX_SLICES: u32 = 4096;

const SEAL_BEFORE: &str = ",\n  \"manifest_hash\": \"";
const SEAL_AFTER: &str = "\"\n}\n";
const HEX_DIGITS: usize = 64;
/// How pretty-printed JSON ends, without the seal.
const CLOSING: &str = "\n}";

/// One slice of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SliceEntry {
    /// Name inside the step's folder.
    pub file: String,
    /// Length in bytes.
    pub size: u64,
    /// BLAKE3 of the file.
    pub hash: Digest,
}

/// What a visible checkpoint consists of.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`].
    pub format: String,
    /// Whose state this is.
    pub run_id: RunId,
    /// Optimiser steps applied.
    pub step: Step,
    /// Unix seconds of the commit.
    pub created: u64,
    /// Program that wrote it.
    pub builder: String,
    /// The slices, in order.
    pub slices: Vec<SliceEntry>,
    /// Digest of the whole state, whatever the slicing.
    pub state_digest: Digest,
    /// How many tensors there are.
    pub tensors: u64,
    /// How many bytes they hold.
    pub tensor_bytes: u64,
    /// Cursor, digests, counters: stored for the coordinator, not read here.
    pub meta: Value,
}

/// As it lies in the file, with its seal.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    format: String,
    run_id: RunId,
    step: Step,
    created: u64,
    builder: String,
    slices: Vec<SliceEntry>,
    state_digest: Digest,
    tensors: u64,
    tensor_bytes: u64,
    meta: Value,
    #[serde(rename = "manifest_hash")]
    _seal: Digest,
}

/// Bytes that are no manifest to be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Longer than any manifest.
    #[error("manifest of {found} bytes, expected at most {MAX_MANIFEST_BYTES}")]
    TooLong {
        /// Its length.
        found: u64,
    },
    /// It does not end in the hash of itself.
    #[error("manifest is cut short or damaged: it does not end in its own hash")]
    NoSeal,
    /// It ends in another hash than its own.
    #[error("manifest is damaged: its bytes hash to {found}, its last field says {expected}")]
    Seal {
        /// What the bytes hash to.
        found: Digest,
        /// What the last field says.
        expected: String,
    },
    /// Sealed, and yet not what we write.
    #[error("manifest does not parse: {reason}; expected format `{MANIFEST_FORMAT}`")]
    Parse {
        /// What the parser said.
        reason: String,
    },
    /// Another format.
    #[error(
        "manifest has format `{found}`, expected `{MANIFEST_FORMAT}`: read it with the version that wrote it"
    )]
    Format {
        /// Its first field.
        found: String,
    },
    /// Numbers or names out of bounds.
    #[error("manifest is not consistent: {reason}")]
    Content {
        /// What is wrong.
        reason: String,
    },
}

impl Manifest {
    /// The file's bytes.
    ///
    /// # Errors
    /// When the manifest breaks a limit, most likely by the size of its meta.
    pub fn render(&self) -> Result<String, ManifestError> {
        self.check()?;
        let text =
            serde_json::to_string_pretty(self).map_err(|e| ManifestError::Parse { reason: e.to_string() })?;
        let body = text.strip_suffix(CLOSING).unwrap_or(&text);
        let sealed = Self::seal(body);
        let found = sealed.len() as u64;
        if found > MAX_MANIFEST_BYTES { Err(ManifestError::TooLong { found }) } else { Ok(sealed) }
    }

    /// A JSON object without its closing brace, closed by the hash of itself, whatever it says.
    pub fn seal(body: &str) -> String {
        let seal = Digest::of(body.as_bytes());
        format!("{body}{SEAL_BEFORE}{seal}{SEAL_AFTER}")
    }

    /// Checks the seal, parses, checks every number and name.
    ///
    /// # Errors
    /// When a byte was changed or the content could not have been written by us.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let found = bytes.len() as u64;
        if found > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLong { found });
        }
        check_seal(bytes)?;
        let sealed: Sealed =
            serde_json::from_slice(bytes).map_err(|e| ManifestError::Parse { reason: e.to_string() })?;
        let manifest = Self {
            format: sealed.format,
            run_id: sealed.run_id,
            step: sealed.step,
            created: sealed.created,
            builder: sealed.builder,
            slices: sealed.slices,
            state_digest: sealed.state_digest,
            tensors: sealed.tensors,
            tensor_bytes: sealed.tensor_bytes,
            meta: sealed.meta,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// How many slices there are.
    pub fn slice_count(&self) -> u32 {
        u32::try_from(self.slices.len()).unwrap_or(u32::MAX)
    }

    /// Bytes of all slice files.
    pub fn file_bytes(&self) -> u64 {
        self.slices.iter().fold(0, |sum, s| sum.saturating_add(s.size))
    }

    fn check(&self) -> Result<(), ManifestError> {
        let content = |reason: String| Err(ManifestError::Content { reason });
        if self.format != MANIFEST_FORMAT {
            return Err(ManifestError::Format { found: self.format.clone() });
        }
        let count = self.slice_count();
        if count == 0 || count > MAX_SLICES {
            return content(format!("{count} slices, expected 1 to {MAX_SLICES}"));
        }
        for (index, slice) in (0..count).zip(&self.slices) {
            let expected = slice_file(index, count);
            if slice.file != expected {
                return content(format!("slice {index} is named `{}`, expected `{expected}`", slice.file));
            }
        }
        let total = self.slices.iter().try_fold(0_u64, |sum, s| sum.checked_add(s.size));
        match total {
            Some(total) if self.tensor_bytes <= total => Ok(()),
            Some(total) => {
                content(format!("{} bytes of tensors in {total} bytes of slices", self.tensor_bytes))
            }
            None => content("slice sizes add up to more than 2^64 bytes".to_owned()),
        }
    }
}

/// The last field is the hash of every byte before it.
fn check_seal(bytes: &[u8]) -> Result<(), ManifestError> {
    let unsealed = bytes.strip_suffix(SEAL_AFTER.as_bytes()).ok_or(ManifestError::NoSeal)?;
    let at = unsealed.len().checked_sub(HEX_DIGITS).ok_or(ManifestError::NoSeal)?;
    let (body, seal) = unsealed.split_at(at);
    let body = body.strip_suffix(SEAL_BEFORE.as_bytes()).ok_or(ManifestError::NoSeal)?;
    let found = Digest::of(body);
    if found.to_string().as_bytes() == seal {
        Ok(())
    } else {
        Err(ManifestError::Seal { found, expected: String::from_utf8_lossy(seal).into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Manifest {
        let slice = |i| SliceEntry { file: slice_file(i, 2), size: 100, hash: Digest::of(&[i as u8]) };
        Manifest {
            format: MANIFEST_FORMAT.to_owned(),
            run_id: RunId::new("demo").unwrap(),
            step: Step::new(10),
            created: 1_700_000_000,
            builder: "test".to_owned(),
            slices: vec![slice(0), slice(1)],
            state_digest: Digest::of(b"state"),
            tensors: 3,
            tensor_bytes: 150,
            meta: serde_json::json!({"cursor": {"epoch": 1, "step": 10}, "loss": 0.1}),
        }
    }

    #[test]
    fn what_is_rendered_is_parsed_and_is_json() {
        let text = sample().render().unwrap();
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), sample());
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["format"], MANIFEST_FORMAT);
        assert_eq!(value["meta"]["cursor"]["epoch"], 1);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let text = sample().render().unwrap().into_bytes();
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone();
                bytes[at] ^= 1 << bit;
                assert!(Manifest::parse(&bytes).is_err(), "bit {bit} of byte {at}");
            }
            assert!(Manifest::parse(&text[..at]).is_err(), "cut at {at}");
        }
        let longer = [text.as_slice(), b"\n"].concat();
        assert!(Manifest::parse(&longer).is_err());
    }

    #[test]
    fn a_sealed_manifest_is_still_checked() {
        let escape = |file: &str| {
            let mut manifest = sample();
            manifest.slices[1].file = file.to_owned();
            manifest.render()
        };
        for file in ["../../etc/passwd", "/etc/passwd", "slice-000-of-002.safetensors", ""] {
            assert!(matches!(escape(file), Err(ManifestError::Content { .. })), "{file}");
        }
        // The same by hand, as somebody who can compute the seal would.
        let text = sample().render().unwrap();
        let body = text.split(SEAL_BEFORE).next().unwrap().replace("slice-001-of-002", "../slice-001");
        let forged = format!("{body}{SEAL_BEFORE}{}{SEAL_AFTER}", Digest::of(body.as_bytes()));
        assert!(matches!(Manifest::parse(forged.as_bytes()), Err(ManifestError::Content { .. })));
        let none = Manifest { slices: vec![], tensor_bytes: 0, ..sample() };
        assert!(none.render().is_err());
        let later = Manifest { format: "mcl-checkpoint-2".into(), ..sample() };
        assert!(matches!(later.render(), Err(ManifestError::Format { .. })));
        let heavy = Manifest { meta: Value::String("x".repeat(5 << 20)), ..sample() };
        assert!(matches!(heavy.render(), Err(ManifestError::TooLong { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::parse(&bytes);
        }
    }
}
