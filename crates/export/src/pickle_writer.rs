//! Writes the few instructions of Python's pickle that files of weights are made of.
//!
//! An own writer of a page, since crates that write pickles write neither persistent ids, by which torch refers to a
//! tensor's bytes, nor calls of a named global. Invariants: the same calls give the same bytes; only named functions
//! that the caller passes are in it. Left out: memoising values (Python shares equal strings, which is optional).

/// A pickle in the making.
#[derive(Debug)]
pub(crate) struct PickleWriter {
    bytes: Vec<u8>,
}

impl PickleWriter {
    /// Begins a pickle of a protocol: 2 for what any Python reads, 3 where it holds raw bytes.
    pub(crate) fn new(protocol: u8) -> Self {
        Self { bytes: vec![0x80, protocol] }
    }

    /// The whole pickle.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.push(b'.');
        self.bytes
    }

    /// A function or class by its name.
    pub(crate) fn global(&mut self, module: &str, name: &str) -> &mut Self {
        self.bytes.push(b'c');
        self.bytes.extend_from_slice(format!("{module}\n{name}\n").as_bytes());
        self
    }

    /// Text.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes.push(b'X');
        self.counted(text.as_bytes())
    }

    /// Raw bytes; of protocol 3. The caller keeps them below 4 GiB.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        if let Ok(short) = u8::try_from(bytes.len()) {
            self.bytes.extend_from_slice(&[b'C', short]);
            self.bytes.extend_from_slice(bytes);
            return self;
        }
        self.bytes.push(b'B');
        self.counted(bytes)
    }

    #[expect(clippy::cast_possible_truncation, reason = "limited by the caller")]
    fn counted(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A whole number.
    pub(crate) fn int(&mut self, value: i64) -> &mut Self {
        if let Ok(byte) = u8::try_from(value) {
            self.bytes.extend_from_slice(&[b'K', byte]);
        } else if let Ok(short) = u16::try_from(value) {
            self.bytes.push(b'M');
            self.bytes.extend_from_slice(&short.to_le_bytes());
        } else if let Ok(word) = i32::try_from(value) {
            self.bytes.push(b'J');
            self.bytes.extend_from_slice(&word.to_le_bytes());
        } else {
            self.bytes.extend_from_slice(&[0x8a, 8]);
            self.bytes.extend_from_slice(&value.to_le_bytes());
        }
        self
    }

    /// A whole number of an index or a size.
    pub(crate) fn size(&mut self, value: usize) -> &mut Self {
        self.int(i64::try_from(value).unwrap_or(i64::MAX))
    }

    /// True or false.
    pub(crate) fn flag(&mut self, value: bool) -> &mut Self {
        self.op(if value { 0x88 } else { 0x89 })
    }

    /// None.
    pub(crate) fn none(&mut self) -> &mut Self {
        self.op(b'N')
    }

    /// Begins a tuple, or the entries of a dictionary.
    pub(crate) fn mark(&mut self) -> &mut Self {
        self.op(b'(')
    }

    /// What came since the mark becomes a tuple.
    pub(crate) fn tuple(&mut self) -> &mut Self {
        self.op(b't')
    }

    /// A tuple of sizes.
    pub(crate) fn sizes(&mut self, sizes: &[usize]) -> &mut Self {
        self.mark();
        for size in sizes {
            self.size(*size);
        }
        self.tuple()
    }

    /// An empty dictionary.
    pub(crate) fn dict(&mut self) -> &mut Self {
        self.op(b'}')
    }

    /// Keys and values since the mark go into the dictionary before it.
    pub(crate) fn set_items(&mut self) -> &mut Self {
        self.op(b'u')
    }

    /// Calls the function before last with the last tuple.
    pub(crate) fn call(&mut self) -> &mut Self {
        self.op(b'R')
    }

    /// Gives the object before last its state, the last value.
    pub(crate) fn build(&mut self) -> &mut Self {
        self.op(b'b')
    }

    /// The last value is a persistent id.
    pub(crate) fn persistent(&mut self) -> &mut Self {
        self.op(b'Q')
    }

    /// An empty `collections.OrderedDict`.
    pub(crate) fn ordered_dict(&mut self) -> &mut Self {
        self.global("collections", "OrderedDict").op(b')').call()
    }

    fn op(&mut self, op: u8) -> &mut Self {
        self.bytes.push(op);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Python's own disassembler reads these as the values in the comments.
    #[test]
    fn bytes_are_those_of_the_protocol() {
        let mut p = PickleWriter::new(2);
        // {"a": 1, "b": (300, -1, 2**40)}
        p.dict().mark().text("a").int(1).text("b").mark().int(300).int(-1).int(1 << 40).tuple().set_items();
        let expected = [
            &b"\x80\x02}(X\x01\0\0\0aK\x01X\x01\0\0\0b("[..],
            b"M\x2c\x01J\xff\xff\xff\xff\x8a\x08\0\0\0\0\0\x01\0\0tu.",
        ];
        assert_eq!(p.finish(), expected.concat());
        let mut p = PickleWriter::new(3);
        p.raw(&[7; 300]);
        let bytes = p.finish();
        assert_eq!((&bytes[..7], bytes.len()), (&b"\x80\x03B\x2c\x01\0\0"[..], 7 + 300 + 1));
    }
}
