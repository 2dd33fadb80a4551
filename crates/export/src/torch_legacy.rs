//! Reads what torch before 1.6 saved, and later ones with the old format asked for.
//!
//! Five pickles and then the storages: a magic number, the format's version, the machine, the object, the storages'
//! names; then each storage as its number of elements and its bytes. Invariant: storages stay where they are in the
//! file. Left out: the tar format before torch 0.1.10, and machines of the other byte order.

use crate::container::{Entries, entries};
use crate::element::size_of;
use crate::error::ImportError;
use crate::unpickle::{Unpickled, unpickle};
use crate::values::Value;
use std::collections::BTreeMap;

/// The pickles of the magic number and of version 1001, as any torch wrote them.
pub(crate) const BEGINNING: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";

/// Every tensor of the file, by name.
pub(crate) fn read(file: &[u8]) -> Result<Entries<'_>, ImportError> {
    let mut rest = file.get(BEGINNING.len()..).unwrap_or_default();
    let machine = next(&mut rest)?;
    if let Some(order) = machine.values.entry(machine.values.root, "little_endian")
        && *machine.values.get(order) != Value::Flag(true)
    {
        return Err(legacy("it was written on a machine of the other byte order"));
    }
    let object = next(&mut rest)?;
    let names = next(&mut rest)?;
    let Value::List(order) = names.values.get(names.values.root) else {
        return Err(legacy("its list of storages is none"));
    };
    let mut types = BTreeMap::new();
    for value in &object.values.all {
        if let Value::Storage { key, dtype, .. } = value {
            types.insert(*key, *dtype);
        }
    }
    let mut storages = BTreeMap::new();
    for name in order {
        let Value::Text(key) = names.values.get(*name) else {
            return Err(legacy("a storage has no name"));
        };
        let size = types.get(key).and_then(|dtype| size_of(*dtype));
        let size = size.ok_or_else(|| legacy(&format!("storage `{key:.40}` belongs to no tensor")))?;
        let bytes = storage(&mut rest, size).ok_or_else(|| legacy("it is cut short among its storages"))?;
        storages.insert(*key, bytes);
    }
    entries(&object.values, |key| storages.get(key).copied())
}

fn legacy(reason: &str) -> ImportError {
    ImportError::Legacy { reason: reason.to_owned() }
}

fn next<'a>(rest: &mut &'a [u8]) -> Result<Unpickled<'a>, ImportError> {
    let read = unpickle(rest)?;
    *rest = rest.get(read.length..).unwrap_or_default();
    Ok(read)
}

fn storage<'a>(rest: &mut &'a [u8], size: usize) -> Option<&'a [u8]> {
    let (count, after) = rest.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*count)).ok()?.checked_mul(size)?;
    let (bytes, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}
