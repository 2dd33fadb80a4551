//! Printable, lossless names of samples.

use std::borrow::Cow;
use std::fmt::Write as _;

/// `bytes` as text: percent signs, control characters and bytes that are not UTF-8 become `%XX`.
pub fn escape(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.chars().any(needs_escape)
    {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(bytes.len() + 8);
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if needs_escape(c) {
                let mut buffer = [0; 4];
                c.encode_utf8(&mut buffer).bytes().for_each(|b| push_byte(&mut out, b));
            } else {
                out.push(c);
            }
        }
        chunk.invalid().iter().for_each(|b| push_byte(&mut out, *b));
    }
    Cow::Owned(out)
}

/// What [`escape`] was given.
pub fn unescape(id: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(id.len());
    let mut rest = id.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 16).ok()).filter(|_| first == b'%') {
            Some(byte) => {
                out.push(byte);
                rest = &tail[2..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

fn needs_escape(c: char) -> bool {
    c == '%' || c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

fn push_byte(out: &mut String, byte: u8) {
    // Writing to a String cannot fail.
    let _ = write!(out, "%{byte:02X}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_lossless_and_printable() {
        let names: [&[u8]; 7] = [
            b"plain/name.jpg",
            "ümlaut 空白.jpg".as_bytes(),
            b"bad_\xff\xfe_name.jpg",
            b"newline\nname.jpg",
            b"100%.jpg",
            b"%41.jpg",
            b"\xe2\x80\xa8cut\xe2\x80",
        ];
        for name in names {
            let id = escape(name);
            assert_eq!(unescape(&id), name, "{id}");
            assert!(!id.chars().any(char::is_control), "{id}");
        }
        assert_eq!(escape(b"100%.jpg"), "100%25.jpg");
        assert_eq!(escape(b"bad_\xff\xfe_name.jpg"), "bad_%FF%FE_name.jpg");
        assert!(matches!(escape("空白.jpg".as_bytes()), Cow::Borrowed(_)));
    }
}
