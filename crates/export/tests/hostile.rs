//! Files that are damaged, or made to harm: errors, never panics.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use mcl_checkpoint_core::{Dtype, OwnedTensor};
use mcl_export::{Encoder, Format, ImportError, Tensors, import};
use proptest::prelude::*;
use std::io::{Cursor, Write};
use std::sync::OnceLock;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// The smallest network that an export takes, so that every byte of a file is tried in little time.
fn small() -> Tensors {
    let tensor = |shape: &[usize]| OwnedTensor {
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        bytes: vec![0x3f; shape.iter().product::<usize>() * 4],
    };
    let mut state: Tensors = [("encoder_q.0.conv1.weight".to_owned(), tensor(&[1, 3, 1, 1]))].into();
    let mut norm = |at: &str| {
        for name in ["weight", "bias", "running_mean", "running_var"] {
            state.insert(format!("{at}.bn.{name}"), tensor(&[1]));
        }
        state.insert(format!("{at}.conv.weight"), tensor(&[1, 1, 1, 1]));
    };
    norm("encoder_q.2.cls_convs.0");
    for level in 0..4 {
        norm(&format!("encoder_q.1.lateral_convs.{level}"));
        norm(&format!("encoder_q.1.fpn_convs.{level}"));
    }
    state
}

/// One small file of each kind, and files that torch and numpy wrote.
fn files() -> &'static [Vec<u8>] {
    static FILES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    FILES.get_or_init(|| {
        let state = small();
        let mut files: Vec<Vec<u8>> = Format::ALL
            .iter()
            .map(|format| support::exported(&state, *format, Encoder::Online).swap_remove(0).bytes)
            .collect();
        let folder = format!("{}/tests/data/torch", env!("CARGO_MANIFEST_DIR"));
        let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        files.extend(paths.iter().map(|p| std::fs::read(p).unwrap()));
        files
    })
}

#[test]
fn the_small_files_are_good_before_they_are_damaged() {
    let good = files().iter().filter(|file| import(file).is_ok()).count();
    assert!(good >= Format::ALL.len() + 4, "{good} of {}", files().len());
}

/// Cut anywhere: never a panic, and never taken for a whole file while bytes of a tensor are missing.
#[test]
fn files_cut_anywhere_are_refused() {
    for file in files() {
        let Ok(whole) = import(file) else { continue };
        for length in 0..file.len() {
            if let Ok(cut) = import(&file[..length]) {
                assert_eq!(cut.tensors, whole.tensors, "{length} of {}", file.len());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0_usize..5) {
        let begin: &[u8] = [&b""[..], b"PK\x03\x04", b"\x80\x02", b"\x20\0\0\0\0\0\0\0{", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."][kind];
        prop_assert!(import(&[begin, &bytes].concat()).is_err());
    }

    #[test]
    fn flipped_bits_never_panic_and_never_grow(
        which in any::<prop::sample::Index>(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 1..6),
    ) {
        let mut bytes = which.get(files()).clone();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        if let Ok(read) = import(&bytes) {
            let held: usize = read.tensors.values().map(|t| t.bytes.len()).sum();
            prop_assert!(held <= 8 * bytes.len());
        }
    }
}

/// A `.pth` with this pickle and these other entries.
fn pth(pickle: &[u8], entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, bytes) in [("a/data.pkl", pickle)].iter().chain(entries) {
        zip.start_file(*name, stored).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// `{"conv1.weight": a view of storage 0}`.
fn one_tensor(elements: &[u8], view: &[u8]) -> Vec<u8> {
    [
        b"\x80\x02}X\x0c\0\0\0conv1.weightctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu",
        elements,
        b"tQ",
        view,
        b"\x89}tRs.",
    ]
    .concat()
}

#[test]
fn tensors_that_are_not_in_their_storage_are_named() {
    let error = |pickle: &[u8], storage: &[u8]| {
        import(&pth(pickle, &[("a/data/0", storage)])).unwrap_err().to_string()
    };
    assert!(import(&pth(&one_tensor(b"K\x02", b"K\0K\x02\x85K\x01\x85"), &[("a/data/0", &[0; 8])])).is_ok());
    // More elements than the storage has; by offset, size, stride, and repeated ones.
    for view in [
        &b"K\x01K\x02\x85K\x01\x85"[..],
        b"K\0K\x03\x85K\x01\x85",
        b"K\0K\x02\x85K\x02\x85",
        b"K\0J\xff\xff\xff\x7f\x85K\0\x85",
    ] {
        let said = error(&one_tensor(b"K\x02", view), &[0; 8]);
        assert!(said.contains("`conv1.weight`") && said.contains("storage of 2 elements"), "{said}");
    }
    let said =
        error(&one_tensor(b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"K\0K\x02\x85K\x01\x85"), &[0; 8]);
    assert!(said.contains("has 8 bytes, expected 9223372036854775807 elements"), "{said}");
    let said = error(&one_tensor(b"K\x02", b"K\0J\xff\xff\xff\xff\x85K\x01\x85"), &[0; 8]);
    assert!(said.contains("sizes that are none"), "{said}");
    let missing = import(&pth(&one_tensor(b"K\x02", b"K\0K\x02\x85K\x01\x85"), &[])).unwrap_err().to_string();
    assert!(missing.contains("storage `0` is not in the file"), "{missing}");
}

/// A thousand names for one storage: a kilobyte each of pickle, a megabyte each of memory, were it taken.
#[test]
fn many_names_of_one_storage_are_refused() {
    let mut pickle = b"\x80\x02}(".to_vec();
    for layer in 0..1000 {
        let name =
            if layer == 0 { "conv1.weight".to_owned() } else { format!("layer1.{layer}.conv1.weight") };
        pickle.extend_from_slice(
            &[b"X".as_slice(), &(name.len() as u32).to_le_bytes(), name.as_bytes()].concat(),
        );
        pickle.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuJ\0\0\x04\0tQK\0J\0\0\x04\0\x85K\x01\x85\x89}tR");
    }
    pickle.extend_from_slice(b"u.");
    let file = pth(&pickle, &[("a/data/0", &vec![0; 4 << 18])]);
    assert!(matches!(import(&file), Err(ImportError::Amplified { .. })));
}

/// 112 bytes whose sizes, multiplied in the wrong order, are more than 64 bits hold.
#[test]
fn huge_sizes_beside_a_zero_are_refused() {
    for shape in ["[0,1099511627776,1099511627776]", "[1099511627776,1099511627776,0]"] {
        let header =
            format!("{{\"conv1.weight\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[0,0]}}}}");
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        assert!(import(&file).is_err());
    }
}

#[test]
fn containers_that_are_none_of_torchs_say_what_they_are() {
    let said = |file: &[u8]| import(file).unwrap_err().to_string();
    let good = one_tensor(b"K\x02", b"K\0K\x02\x85K\x01\x85");
    let script = pth(&good, &[("a/constants.pkl", b""), ("a/data/0", &[0; 8])]);
    assert!(said(&script).contains("TorchScript"));
    let big = pth(&good, &[("a/byteorder", b"big"), ("a/data/0", &[0; 8])]);
    assert!(said(&big).contains("byte order `big`"));
    let two = pth(&good, &[("b/data.pkl", &good), ("a/data/0", &[0; 8])]);
    assert!(said(&two).contains("2 entries named data.pkl"));
    assert!(said(b"not weights at all").contains("`not weights "));
    assert!(said(b"").contains("expected a safetensors file"));
    assert!(said(b"\x80\x02cposix\nsystem\nX\x02\0\0\0ls\x85R.").contains("posix.system"));
    assert!(said(b"\x80\x02]K\x01a.").contains("a list"));
    let mut tar = vec![0; 512];
    tar[..8].copy_from_slice(b"sys_info");
    tar[257..265].copy_from_slice(b"ustar  \0");
    assert!(said(&tar).contains("torch before 0.1.10") && said(&tar).contains("torch.save(torch.load("));
    assert!(said(b"\x80\x02}X\x01\0\0\0aK\x01s.").contains("without a tensor"));
}
