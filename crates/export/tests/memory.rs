//! What reading a file allocates, measured. One test alone: others would be counted too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mcl_export::import;
use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Bytes allocated at most while a file is read.
fn peak(file: &[u8]) -> usize {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    drop(import(file));
    MEMORY.peak_usage().saturating_sub(before)
}

/// Claims of gigabytes in files of a few bytes, and instructions of one byte that each make a value.
#[test]
fn claims_cost_nothing_and_values_no_more_than_stated() {
    let header = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let claims: [Vec<u8>; 8] = [
        b"\x80\x02X\xff\xff\xff\xff".to_vec(),
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f".to_vec(),
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        b"\x80\x02B\xff\xff\xff\xff".to_vec(),
        [
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.}.}.]X\x01\0\0\x000a.".as_slice(),
            &[0xff; 8],
        ]
        .concat(),
        header("{\"w\":{\"dtype\":\"F32\",\"shape\":[1099511627776],\"data_offsets\":[0,4398046511104]}}"),
        [&(15_u64 << 20).to_le_bytes()[..], b"{\"w\":"].concat(),
        // A zip's end that claims 65 534 entries in a directory of 3 GB.
        b"PK\x03\x04PK\x05\x06\0\0\0\0\xfe\xff\xfe\xff\0\0\0\xc0\0\0\0\0\0\0".to_vec(),
    ];
    for claim in &claims {
        assert!(import(claim).is_err());
        let used = peak(claim);
        assert!(used < 256 << 10, "{used} bytes for {}", claim.escape_ascii());
    }
    // A mebibyte of each instruction that makes or stacks something.
    for op in [b')', b'}', b']', b'N', b'('] {
        let file = [b"\x80\x02".as_slice(), &vec![op; 1 << 20]].concat();
        let used = peak(&file);
        assert!(used < 200 << 20, "{used} bytes for {op:#x}");
        assert!(used > 1 << 20 || op == b'(', "{used}: nothing was measured");
    }
    // A key that is written once and recalled many times, as two bytes each; its values are none, or tensors.
    for (length, times) in [(1 << 20, 400_000), (1 << 20, 60_000), (1 << 10, 60_000), (1 << 10, 400_000)] {
        let key = vec![b'k'; length];
        let head = [b"\x80\x02}(X".as_slice(), &(length as u32).to_le_bytes(), &key, b"q\x00N"].concat();
        let file = [head, b"h\x00N".repeat(times), b"u.".to_vec()].concat();
        let used = peak(&file);
        assert!(used < 64 << 20, "{used} bytes for {times} keys of {length} bytes");
    }
    // Text that is decoded into bytes again and again.
    let text = vec![b'k'; 1 << 20];
    let head =
        [b"\x80\x02c_codecs\nencode\nX\0\0\x10\0".as_slice(), &text, b"X\x06\0\0\0latin1\x86q\x000q\x010"]
            .concat();
    let used = peak(&[head, b"h\x01h\x00R".repeat(10_000)].concat());
    assert!(used < 16 << 20, "{used}");
    // And ten times as many cost no more, since values are limited.
    let used = peak(&[b"\x80\x02".as_slice(), &vec![b')'; 10 << 20]].concat());
    assert!(used < 200 << 20, "{used}");
}
