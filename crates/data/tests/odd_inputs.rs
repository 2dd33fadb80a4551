//! Every odd picture of the manifest through the loader's own reading and decoding.
//!
//! The six entries that survive neither git nor tar (raw bytes and a newline in the name, links, a
//! folder named like a picture, a file without permissions) are made here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![cfg(unix)]

use mcl_data::decode::Soundness;
use mcl_data::{Dataset, Decoder, Limits, Picture};
use mcl_types::SampleIndex;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Manifest {
    files: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    file: String,
    expect: String,
    size: Option<[u32; 2]>,
    pillow: Pillow,
}

#[derive(Deserialize)]
struct Pillow {
    ok: bool,
    mean: Option<[f64; 3]>,
}

#[derive(Deserialize)]
struct Decoded {
    files: BTreeMap<String, Stored>,
}

#[derive(Deserialize)]
struct Stored {
    fnv1a: Option<String>,
}

fn tests() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn manifest() -> Manifest {
    serde_json::from_slice(&fs::read(tests().join("odd-inputs/manifest.json")).unwrap()).unwrap()
}

const RAW_NAME: &[u8] = b"bad_\xff\xfe_name.jpg";

/// A folder with all entries of the manifest.
fn build(folder: &Path) {
    let from = tests().join("odd-inputs");
    for entry in fs::read_dir(&from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "manifest.json" {
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
    }
    let plain = from.join("ok_baseline.jpg");
    for name in ["ümlaut 空白 image.jpg".as_bytes(), RAW_NAME, b"newline\nname.jpg", b"no_permission.jpg"]
    {
        fs::copy(&plain, folder.join(OsStr::from_bytes(name))).unwrap();
    }
    fs::set_permissions(folder.join("no_permission.jpg"), fs::Permissions::from_mode(0o000)).unwrap();
    symlink(folder.join("nothing here"), folder.join("dangling_symlink.jpg")).unwrap();
    symlink(folder, folder.join("loop_dir")).unwrap();
    fs::create_dir(folder.join("directory.jpg")).unwrap();
}

/// What the loader would make of a sample: a picture, or the reason for a replacement.
fn feed(dataset: &Dataset, sample: SampleIndex) -> Result<(Picture, Soundness), String> {
    let bytes = match dataset.read(sample) {
        Ok(bytes) => bytes,
        Err(e) if e.is_undecodable() => return Err(e.to_string()),
        Err(e) => panic!("{e}"),
    };
    let mut picture = Picture::default();
    let soundness =
        Decoder::new(Limits::default()).decode_into(&bytes, &mut picture).map_err(|e| e.to_string())?;
    Ok((picture, soundness))
}

fn fnv1a(bytes: &[u8]) -> String {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    format!("{hash:016x}")
}

fn mean(picture: &Picture) -> [f64; 3] {
    let mut sum = [0_u64; 3];
    for p in picture.pixels().chunks(3) {
        (0..3).for_each(|c| sum[c] += u64::from(p[c]));
    }
    sum.map(|s| s as f64 * 3.0 / picture.pixels().len() as f64)
}

#[test]
fn every_entry_does_what_the_manifest_expects() {
    let folder = tempfile::tempdir().unwrap();
    build(folder.path());
    let dataset = Dataset::open(folder.path()).unwrap();
    let ids: BTreeMap<String, SampleIndex> =
        (0..dataset.len()).map(SampleIndex::new).map(|i| (dataset.id(i).unwrap().to_string(), i)).collect();
    let exact: Decoded =
        serde_json::from_slice(&fs::read(tests().join("pil/decoded.json")).unwrap()).unwrap();
    let (mut decoded, mut skipped, mut bit_equal) = (0, 0, 0);
    for entry in manifest().files {
        let id = match entry.file.as_str() {
            name if name.contains('\u{fffd}') => "bad_%FF%FE_name.jpg",
            "newline\nname.jpg" => "newline%0Aname.jpg",
            name => name,
        };
        let Some(sample) = ids.get(id) else {
            assert_eq!(entry.expect, "policy", "{id} is not listed");
            continue;
        };
        match feed(&dataset, *sample) {
            Ok((picture, soundness)) => {
                decoded += 1;
                assert_ne!(entry.expect, "skip", "{id} must be refused");
                let size = entry.size.unwrap_or([120, 80]);
                assert_eq!([picture.width(), picture.height()], size, "{id}");
                let stored = exact.files.get(&entry.file).and_then(|s| s.fnv1a.as_ref());
                let equal = stored.is_some_and(|f| *f == fnv1a(picture.pixels()));
                bit_equal += u32::from(equal);
                // Coefficients out of range come out otherwise without the library's vector code.
                let sound = soundness == Soundness::Sound;
                let loose = !sound || ["gray16.png", "webp_named.jpg", "animated.webp"].contains(&id);
                assert!(equal || loose || stored.is_none(), "{id} differs from Pillow");
                if let Some(wanted) = entry.pillow.mean.filter(|_| sound && id != "gray16.png") {
                    for (found, wanted) in mean(&picture).iter().zip(wanted) {
                        assert!((found - wanted).abs() < 0.6, "{id}: mean {found}, Pillow {wanted}");
                    }
                }
            }
            Err(reason) => {
                skipped += 1;
                assert_ne!(entry.expect, "decode", "{id} must decode, but: {reason}");
                assert!(reason.len() > 10, "{id}: {reason}");
                assert!(!entry.pillow.ok || entry.expect != "decode", "{id}: {reason}");
                println!("{id}: {reason}");
            }
        }
    }
    println!("{decoded} decoded, {bit_equal} of them bit-equal to Pillow, {skipped} skipped");
    assert!(bit_equal >= 35 && decoded >= 41, "{decoded} decoded, {bit_equal} bit-equal");
}

#[test]
fn sixteen_bit_grey_keeps_its_high_byte() {
    let bytes = fs::read(tests().join("odd-inputs/gray16.png")).unwrap();
    let picture = mcl_data::decode(&bytes, Limits::default()).unwrap();
    let distinct: std::collections::BTreeSet<u8> = picture.pixels().iter().copied().collect();
    assert!(distinct.len() > 30, "saturated: only {} values", distinct.len());
}

#[test]
fn damage_that_pillow_overlooks_is_reported() {
    let bytes = fs::read(tests().join("odd-inputs/corrupt_huffman.jpg")).unwrap();
    let mut picture = Picture::default();
    let said = Decoder::default().decode_into(&bytes, &mut picture).unwrap();
    assert!(matches!(said, Soundness::Damaged(_)), "{said:?}");
}

#[test]
fn the_pixel_limit_is_the_callers() {
    let bytes = fs::read(tests().join("odd-inputs/ok_baseline.jpg")).unwrap();
    let error = mcl_data::decode(&bytes, Limits { max_pixels: 120 * 80 - 1 }).unwrap_err();
    assert!(error.to_string().contains("120x80 pixels are over the limit of 9599"), "{error}");
}
