//! One slice as a safetensors file: planning it, writing it, and reading it without trusting a byte.
//!
//! Invariants: the same tensors give the same bytes; parsing never panics and allocates in proportion
//! to the header only, which is limited to [`MAX_HEADER_BYTES`]. Left out: hashing and I/O.

use crate::slicing::TensorInfo;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use std::collections::{BTreeMap, BTreeSet};

/// Header of one slice: about 100 bytes a tensor, so room for 100 000 tensors.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// The header's own length comes first, as a little-endian u64.
const PREFIX: usize = 8;
/// The format keeps this name for itself.
const RESERVED: &str = "__metadata__";

/// A slice that cannot be written, or bytes that are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SliceError {
    /// Too short for a length, or for the header that the length promises.
    #[error(
        "holds {found} bytes, expected at least {expected}: the file is cut short or no safetensors file"
    )]
    Short {
        /// Bytes there are.
        found: u64,
        /// Bytes the format needs.
        expected: u64,
    },
    /// A header beyond the limit.
    #[error(
        "header claims {found} bytes, expected at most {MAX_HEADER_BYTES}: the file is damaged or no safetensors file"
    )]
    HeaderTooLong {
        /// The length the file claims.
        found: u64,
    },
    /// A header that does not parse or contradicts itself.
    #[error("header does not parse: {reason}; the file is damaged or no safetensors file")]
    Header {
        /// What the parser said.
        reason: String,
    },
    /// The header describes more or fewer bytes than there are.
    #[error(
        "holds {found} bytes of tensors, its header describes {expected}: the file is cut short or damaged"
    )]
    Length {
        /// Bytes after the header.
        found: u64,
        /// Bytes the header describes.
        expected: u64,
    },
    /// Bytes that do not fit dtype and shape.
    #[error("tensor `{name}`: {found} bytes do not fit {dtype} {shape:?}; pass its contiguous bytes")]
    Tensor {
        /// Its name.
        name: String,
        /// Its element type.
        dtype: Dtype,
        /// Its sizes.
        shape: Vec<usize>,
        /// Length of its bytes.
        found: u64,
    },
    /// A name that cannot be stored.
    #[error("tensor name `{name}` is {why}: names are unique, not empty and not `{RESERVED}`")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// One tensor of a parsed slice, borrowed from its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRef<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Contiguous little-endian bytes.
    pub bytes: &'a [u8],
}

/// A parsed slice.
#[derive(Debug, Clone)]
pub struct SliceView<'a> {
    tensors: BTreeMap<String, TensorRef<'a>>,
}

impl<'a> SliceView<'a> {
    /// Reads the header and checks that it describes exactly these bytes.
    ///
    /// # Errors
    /// When the bytes are not one whole safetensors file.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, SliceError> {
        let found = bytes.len() as u64;
        let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() else {
            return Err(SliceError::Short { found, expected: PREFIX as u64 });
        };
        let claimed = u64::from_le_bytes(*prefix);
        if claimed > MAX_HEADER_BYTES {
            return Err(SliceError::HeaderTooLong { found: claimed });
        }
        let Some((header, data)) = rest.split_at_checked(claimed as usize) else {
            return Err(SliceError::Short { found, expected: claimed + PREFIX as u64 });
        };
        // Not `SafeTensors::deserialize`: its sum of offset and header may overflow on crafted headers.
        let metadata: Metadata =
            serde_json::from_slice(header).map_err(|e| SliceError::Header { reason: e.to_string() })?;
        if metadata.data_len() != data.len() {
            let (found, expected) = (data.len() as u64, metadata.data_len() as u64);
            return Err(SliceError::Length { found, expected });
        }
        let mut tensors = BTreeMap::new();
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let bytes = data.get(start..end).ok_or_else(|| SliceError::Header {
                reason: format!("tensor `{name}` lies at {start}..{end} of {} bytes", data.len()),
            })?;
            tensors.insert(name, TensorRef { dtype: info.dtype, shape: info.shape.clone(), bytes });
        }
        Ok(Self { tensors })
    }

    /// The tensors in name order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &TensorRef<'a>)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// One tensor.
    pub fn get(&self, name: &str) -> Option<&TensorRef<'a>> {
        self.tensors.get(name)
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }
}

/// Bytes that `dtype` and `shape` need, where that is a whole number that fits.
fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let elements = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// Where the tensors of a slice lie in its file: made once, filled again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePlan {
    /// Everything before the first tensor.
    header: Vec<u8>,
    /// Index into the tensors given, and the bytes of the file that are its.
    places: Vec<(usize, usize)>,
    len: usize,
}

impl SlicePlan {
    /// Plans a file of these tensors. It depends on the set of tensors, not on their order (inside, the widest
    /// dtypes come first, then names).
    ///
    /// # Errors
    /// When a length does not fit a shape, or a name is empty, reserved or there twice.
    pub fn new(tensors: &[TensorInfo]) -> Result<Self, SliceError> {
        let mut names = BTreeSet::new();
        for t in tensors {
            check_info(t)?;
            if !names.insert(t.name.as_str()) {
                return Err(SliceError::Name { name: t.name.clone(), why: "there twice" });
            }
        }
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by(|&a, &b| {
            let (a, b) = (&tensors[a], &tensors[b]);
            b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name))
        });
        let (mut at, mut infos, mut places) = (0_usize, Vec::new(), Vec::new());
        for index in order {
            let TensorInfo { name, dtype, shape, bytes } = &tensors[index];
            let too_long = || SliceError::Header { reason: format!("more than 2^63 bytes at `{name}`") };
            let end = usize::try_from(*bytes).ok().and_then(|n| at.checked_add(n)).ok_or_else(too_long)?;
            let info = safetensors::tensor::TensorInfo {
                dtype: *dtype,
                shape: shape.clone(),
                data_offsets: (at, end),
            };
            infos.push((name.clone(), info));
            places.push((index, end - at));
            at = end;
        }
        let reason = |e: &dyn std::fmt::Display| SliceError::Header { reason: e.to_string() };
        let metadata = Metadata::new(None, infos).map_err(|e| reason(&e))?;
        let mut json = serde_json::to_vec(&metadata).map_err(|e| reason(&e))?;
        json.resize(json.len().next_multiple_of(PREFIX), b' ');
        if json.len() as u64 > MAX_HEADER_BYTES {
            return Err(SliceError::HeaderTooLong { found: json.len() as u64 });
        }
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.append(&mut json);
        let start = header.len();
        Ok(Self { header, places, len: start + at })
    }

    /// Length of the file in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there is not even a header: never.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes the header into `file`, and gives every tensor's index and its place, which is to be filled whole, in the
    /// order of the file. Places are disjoint, so that several threads may fill them.
    ///
    /// # Errors
    /// When `file` has another length.
    pub fn lay_out<'a>(&self, file: &'a mut [u8]) -> Result<Vec<(usize, &'a mut [u8])>, SliceError> {
        let found = file.len() as u64;
        let wrong = || SliceError::Length { found, expected: self.len as u64 };
        if file.len() != self.len {
            return Err(wrong());
        }
        let (header, mut rest) = file.split_at_mut_checked(self.header.len()).ok_or_else(wrong)?;
        header.copy_from_slice(&self.header);
        let mut places = Vec::with_capacity(self.places.len());
        for (index, len) in &self.places {
            let (place, after) = rest.split_at_mut_checked(*len).ok_or_else(wrong)?;
            places.push((*index, place));
            rest = after;
        }
        Ok(places)
    }
}

fn check_info(t: &TensorInfo) -> Result<(), SliceError> {
    let named = |why| Err(SliceError::Name { name: t.name.clone(), why });
    match t.name.as_str() {
        "" => return named("empty"),
        RESERVED => return named("reserved"),
        _ => {}
    }
    // Checked here: the library multiplies without looking.
    if byte_len(t.dtype, &t.shape).map(|n| n as u64) == Some(t.bytes) {
        return Ok(());
    }
    Err(SliceError::Tensor { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone(), found: t.bytes })
}

/// Writes tensors as one safetensors file; the same set of tensors gives the same bytes.
///
/// # Errors
/// As [`SlicePlan::new`].
pub fn write_slice(tensors: &[(String, Dtype, Vec<usize>, &[u8])]) -> Result<Vec<u8>, SliceError> {
    let info = |(name, dtype, shape, bytes): &(String, Dtype, Vec<usize>, &[u8])| TensorInfo {
        name: name.clone(),
        dtype: *dtype,
        shape: shape.clone(),
        bytes: bytes.len() as u64,
    };
    let infos: Vec<TensorInfo> = tensors.iter().map(info).collect();
    let plan = SlicePlan::new(&infos)?;
    let mut file = vec![0; plan.len()];
    for (index, place) in plan.lay_out(&mut file)? {
        // Both lengths are the tensor's.
        if let Some((_, _, _, bytes)) = tensors.get(index) {
            place.copy_from_slice(bytes);
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(data);
        bytes
    }

    #[test]
    fn what_is_written_is_read_in_name_order() {
        let weights: Vec<u8> = (0..24).collect();
        let written = write_slice(&[
            ("b".into(), Dtype::F32, vec![2, 3], &weights),
            ("a".into(), Dtype::I64, vec![], &weights[..8]),
            ("c".into(), Dtype::U8, vec![0], &[]),
        ])
        .unwrap();
        let view = SliceView::parse(&written).unwrap();
        assert_eq!(view.tensors().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(view.get("b").unwrap().bytes, weights);
        assert_eq!(view.get("b").unwrap().shape, [2, 3]);
        assert_eq!(view.len(), 3);
    }

    #[test]
    fn the_file_is_the_librarys_own() {
        let bytes: Vec<u8> = (0..96).collect();
        let tensors = [
            ("half".to_owned(), Dtype::F16, vec![3, 2], &bytes[..12]),
            ("z.long".to_owned(), Dtype::I64, vec![], &bytes[..8]),
            ("b".to_owned(), Dtype::F32, vec![2, 3], &bytes[..24]),
            ("a".to_owned(), Dtype::F32, vec![24], &bytes[..]),
            ("none".to_owned(), Dtype::U8, vec![0, 4], &[][..]),
        ];
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        assert_eq!(write_slice(&tensors).unwrap(), safetensors::serialize(views, None).unwrap());
    }

    #[test]
    fn a_plan_fills_only_a_file_of_its_length() {
        let info = TensorInfo { name: "w".into(), dtype: Dtype::U8, shape: vec![4], bytes: 4 };
        let plan = SlicePlan::new(&[info]).unwrap();
        let mut file = vec![1; plan.len()];
        let fill = |file: &mut [u8]| {
            plan.lay_out(file).map(|places| places.into_iter().for_each(|(_, p)| p.fill(7)))
        };
        fill(&mut file).unwrap();
        assert_eq!(SliceView::parse(&file).unwrap().get("w").unwrap().bytes, [7; 4]);
        file.push(0);
        assert!(matches!(fill(&mut file), Err(SliceError::Length { .. })));
    }

    #[test]
    fn an_empty_slice_is_a_slice() {
        assert!(SliceView::parse(&write_slice(&[]).unwrap()).unwrap().is_empty());
    }

    #[test]
    fn tensors_that_lie_are_refused() {
        let huge = vec![usize::MAX, 2];
        for (shape, bytes) in [(vec![3], 8_usize), (huge, 8), (vec![2], 7)] {
            let error = write_slice(&[("w".into(), Dtype::F32, shape, &vec![0; bytes])]).unwrap_err();
            assert!(matches!(error, SliceError::Tensor { .. }), "{error}");
        }
        for name in ["", "__metadata__"] {
            let error = write_slice(&[(name.into(), Dtype::U8, vec![1], &[0])]).unwrap_err();
            assert!(matches!(error, SliceError::Name { .. }), "{error}");
        }
        let twice = [("w".into(), Dtype::U8, vec![1], &[0_u8][..]), ("w".into(), Dtype::U8, vec![1], &[1])];
        assert!(matches!(write_slice(&twice), Err(SliceError::Name { why: "there twice", .. })));
    }

    #[test]
    fn crafted_headers_are_errors_not_panics() {
        let top = usize::MAX / 8;
        let mut tensors = String::new();
        let mut at = 0_u128;
        for i in 0..8 {
            let end = at + top as u128;
            tensors +=
                &format!("\"t{i}\":{{\"dtype\":\"U8\",\"shape\":[{top}],\"data_offsets\":[{at},{end}]}},");
            at = end;
        }
        let huge = format!("{{{}}}", tensors.trim_end_matches(','));
        let deep = "[".repeat(100_000);
        for header in [
            huge.as_str(),
            &deep,
            "",
            "{",
            "{\"a\":1}",
            "[]",
            "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
        ] {
            assert!(SliceView::parse(&with_header(header, &[0; 3])).is_err(), "{header:.40}");
        }
        for length in [u64::MAX, MAX_HEADER_BYTES + 1, MAX_HEADER_BYTES, 9] {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend_from_slice(b"{}      ");
            assert!(SliceView::parse(&bytes).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = SliceView::parse(&bytes);
            let _ = SliceView::parse(&with_header(&String::from_utf8_lossy(&bytes), &bytes));
        }

        #[test]
        fn one_changed_byte_never_panics(at in 0_usize..400, to in any::<u8>(), cut in 0_usize..400) {
            let data = [7; 64];
            let tensors = [("a.weight".into(), Dtype::F32, vec![4, 2], &data[..32]),
                ("b.bias".into(), Dtype::F64, vec![8], &data[..])];
            let mut bytes = write_slice(&tensors).unwrap();
            let len = bytes.len();
            bytes[at % len] = to;
            let _ = SliceView::parse(&bytes);
            bytes.truncate(cut % (len + 1));
            let _ = SliceView::parse(&bytes);
        }
    }
}
