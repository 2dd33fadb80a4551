//! How a record lies in a file: length (8 bytes), its checksum (4), bytes, their checksum (4), all little-endian.

/// Bytes before a record's own.
pub(crate) const HEAD: usize = 12;
/// Bytes behind them.
pub(crate) const TAIL: usize = 4;

/// CRC-32C, turned and shifted as the format wants it, so that checksums of checksums stay useful.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Puts a record behind what is there.
pub(crate) fn push(bytes: &[u8], onto: &mut Vec<u8>) {
    let length = (bytes.len() as u64).to_le_bytes();
    onto.extend(length);
    onto.extend(checksum(&length).to_le_bytes());
    onto.extend_from_slice(bytes);
    onto.extend(checksum(bytes).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_turned_and_shifted() {
        // CRC-32C of 32 zero bytes is 8a9136aa (RFC 3720, B.4); turned by 15 bits and shifted, by hand.
        assert_eq!(checksum(&[0; 32]), 0x0fd7_fffa);
        let mut written = Vec::new();
        push(b"mcl", &mut written);
        assert_eq!(written.len(), HEAD + 3 + TAIL);
        assert_eq!(written[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(written[8..12], checksum(&[3, 0, 0, 0, 0, 0, 0, 0]).to_le_bytes());
        assert_eq!((&written[12..15], &written[15..]), (&b"mcl"[..], &checksum(b"mcl").to_le_bytes()[..]));
    }
}
