//! Reads a pickle of weights without running it.
//!
//! A pickle is a program for a stack machine. This one knows the instructions that torch, numpy and Python's plain
//! values need, and of functions only the whitelist's; everything else is an error that names it and its place.
//! Invariants: it takes one pass; it makes at most one value an instruction, and at most [`MAX_VALUES`]; stack, marks,
//! memo and collections are bounded too; lengths are checked against the bytes that are there before anything is made of
//! them; there is no recursion. What calls come to is `rebuild.rs`'s. Left out: classes, sets, big numbers, and whatever
//! else a checkpoint of weights does not need.

use crate::error::PickleError;
use crate::values::{Bytes, Function, Id, Value, Values, is_constant};
use std::collections::BTreeMap;

/// Most values in one pickle, some 40 bytes each and at most 400: ResNet-50 with its optimiser has 20 000.
const MAX_VALUES: usize = 1 << 18;
/// Most times that something is put on the stack, which bounds all collections together: what was memoised is put there
/// again at two bytes of the file.
const MAX_PUSHES: usize = 1 << 19;
/// Most entries of one dictionary: a state dict of ResNet-101 has 700.
const MAX_ENTRIES: usize = 1 << 16;
/// Deepest nesting of what is begun with a mark.
const MAX_MARKS: usize = 1 << 10;

/// The result of one pickle.
#[derive(Debug)]
pub(crate) struct Unpickled<'a> {
    /// Its values.
    pub(crate) values: Values<'a>,
    /// How many bytes it took.
    pub(crate) length: usize,
}

/// Reads the pickle that `input` begins with.
///
/// # Errors
/// When it is cut short, or holds an instruction or a function that is not known here.
pub(crate) fn unpickle(input: &[u8]) -> Result<Unpickled<'_>, PickleError> {
    let mut machine = Machine { input, ..Machine::default() };
    while !machine.instruction()? {}
    let root = machine.pop()?;
    Ok(Unpickled { values: Values { all: machine.values, root }, length: machine.at })
}

#[derive(Debug, Default)]
pub(crate) struct Machine<'a> {
    pub(crate) input: &'a [u8],
    /// Next byte.
    at: usize,
    /// Where the instruction that is being carried out began.
    began: usize,
    pub(crate) values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// How often something was put on the stack.
    pushed: usize,
    /// Bytes of text that were decoded into bytes.
    pub(crate) decoded: usize,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: BTreeMap<u32, Id>,
}

pub(crate) type Step<T> = Result<T, PickleError>;

impl<'a> Machine<'a> {
    pub(crate) fn error(&self, found: impl Into<String>, expected: impl Into<String>) -> PickleError {
        PickleError { at: self.began, found: found.into(), expected: expected.into() }
    }

    fn take(&mut self, length: usize) -> Step<&'a [u8]> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let Some(bytes) = rest.get(..length) else {
            return Err(
                self.error(format!("{} bytes more", rest.len()), format!("{length}: it is cut short"))
            );
        };
        self.at += length;
        Ok(bytes)
    }

    fn number<const N: usize>(&mut self) -> Step<[u8; N]> {
        let bytes = self.take(N)?;
        <[u8; N]>::try_from(bytes).map_err(|_| self.error("too few bytes", "a number"))
    }

    fn length<const N: usize>(&mut self) -> Step<usize> {
        let bytes = self.number::<N>()?;
        let mut wide = [0; 8];
        wide[..N].copy_from_slice(&bytes);
        let length = u64::from_le_bytes(wide);
        usize::try_from(length)
            .map_err(|_| self.error(format!("a length of {length}"), "one that fits memory"))
    }

    fn text(&mut self, length: usize) -> Step<&'a str> {
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).map_err(|_| self.error("text that is not UTF-8", "UTF-8"))
    }

    fn raw(&mut self, length: usize) -> Step<Value<'a>> {
        Ok(Value::Raw(Bytes::File(self.take(length)?)))
    }

    /// Up to the end of the line.
    fn line(&mut self) -> Step<&'a str> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let Some(end) = rest.iter().position(|b| *b == b'\n') else {
            return Err(self.error("no end of the line", "a name"));
        };
        let line = self.text(end)?;
        self.at += 1;
        Ok(line)
    }

    pub(crate) fn push(&mut self, value: Value<'a>) -> Step<()> {
        if self.values.len() >= MAX_VALUES {
            return Err(self.too_many(MAX_VALUES, "values"));
        }
        self.put(self.values.len())?;
        self.values.push(value);
        Ok(())
    }

    /// Puts a value on the stack that is there already.
    pub(crate) fn put(&mut self, id: Id) -> Step<()> {
        if self.pushed >= MAX_PUSHES {
            return Err(self.too_many(MAX_PUSHES, "values put on the stack"));
        }
        self.pushed += 1;
        self.stack.push(id);
        Ok(())
    }

    fn too_many(&self, most: usize, what: &str) -> PickleError {
        self.error(format!("more than {most} {what}"), "a checkpoint of weights")
    }

    /// The last value; those before a mark are out of reach.
    pub(crate) fn pop(&mut self) -> Step<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() > floor
            && let Some(id) = self.stack.pop()
        {
            return Ok(id);
        }
        Err(self.error("an empty stack", "a value"))
    }

    pub(crate) fn top(&mut self) -> Step<Id> {
        let id = self.pop()?;
        self.stack.push(id);
        Ok(id)
    }

    fn since_mark(&mut self) -> Step<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => Err(self.error("no mark", "a mark before")),
        }
    }

    pub(crate) fn get(&self, id: Id) -> &Value<'a> {
        self.values.get(id).unwrap_or(&Value::None)
    }

    /// Carries out one instruction; whether it was the last one.
    fn instruction(&mut self) -> Step<bool> {
        self.began = self.at;
        let [op] = self.number()?;
        match op {
            b'.' => return Ok(true),
            0x80 => self.protocol()?,
            // A frame is a hint for buffering.
            0x95 => drop(self.number::<8>()?),
            b'(' if self.marks.len() < MAX_MARKS => self.marks.push(self.stack.len()),
            b'(' => return Err(self.too_many(MAX_MARKS, "marks within each other")),
            b'0' => drop(self.pop()?),
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b']' => self.push(Value::List(Vec::new()))?,
            b')' => self.push(Value::Tuple(Vec::new()))?,
            b't' => {
                let items = self.since_mark()?;
                self.push(Value::Tuple(items))?;
            }
            0x85..=0x87 => self.small_tuple(op - 0x84)?,
            b'a' | b'e' => self.append(op == b'e')?,
            b's' | b'u' => self.set_items(op == b'u')?,
            b'q' | b'r' | 0x94 => self.memoise(op)?,
            b'h' | b'j' => self.recall(op)?,
            b'c' | 0x93 => self.global(op)?,
            b'Q' => self.persistent()?,
            b'R' => self.call()?,
            b'b' => self.build()?,
            _ => self.plain(op)?,
        }
        Ok(false)
    }

    fn protocol(&mut self) -> Step<()> {
        let [version] = self.number()?;
        if (2..=5).contains(&version) {
            return Ok(());
        }
        Err(self.error(format!("protocol {version}"), "protocol 2 to 5"))
    }

    /// Constants.
    fn plain(&mut self, op: u8) -> Step<()> {
        let value = match op {
            b'N' => Value::None,
            0x88 | 0x89 => Value::Flag(op == 0x88),
            b'K' => Value::Int(i64::from(self.number::<1>()?[0])),
            b'M' => Value::Int(i64::from(u16::from_le_bytes(self.number()?))),
            b'J' => Value::Int(i64::from(i32::from_le_bytes(self.number()?))),
            0x8a => self.long()?,
            b'G' => {
                self.number::<8>()?;
                Value::Float
            }
            0x8c => self.length::<1>().and_then(|n| self.text(n)).map(Value::Text)?,
            b'X' => self.length::<4>().and_then(|n| self.text(n)).map(Value::Text)?,
            0x8d => self.length::<8>().and_then(|n| self.text(n)).map(Value::Text)?,
            b'C' => self.length::<1>().and_then(|n| self.raw(n))?,
            b'B' => self.length::<4>().and_then(|n| self.raw(n))?,
            // Bytes, and since protocol 5 such as may be changed.
            0x8e | 0x96 => self.length::<8>().and_then(|n| self.raw(n))?,
            _ => {
                let found = format!("instruction {op:#04x}");
                return Err(self.error(found, "an instruction that plain values and tensors need"));
            }
        };
        self.push(value)
    }

    /// A whole number of any length; those that fit 64 bits are taken.
    fn long(&mut self) -> Step<Value<'a>> {
        let length = self.length::<1>()?;
        let bytes = self.take(length)?;
        if bytes.len() > 8 {
            return Err(self.error(format!("a whole number of {length} bytes"), "one of at most 8"));
        }
        let negative = bytes.last().is_some_and(|b| *b >= 0x80);
        let mut wide = if negative { [0xff; 8] } else { [0; 8] };
        wide[..bytes.len()].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    fn small_tuple(&mut self, items: u8) -> Step<()> {
        let mut tuple = Vec::with_capacity(3);
        for _ in 0..items {
            tuple.push(self.pop()?);
        }
        tuple.reverse();
        self.push(Value::Tuple(tuple))
    }

    fn append(&mut self, many: bool) -> Step<()> {
        let items = if many { self.since_mark()? } else { vec![self.pop()?] };
        let list = self.top()?;
        match self.values.get_mut(list) {
            Some(Value::List(list)) => list.extend(items),
            other => {
                let found = other.map_or("nothing", |v| v.kind());
                return Err(self.error(found, "a list to append to"));
            }
        }
        Ok(())
    }

    fn set_items(&mut self, many: bool) -> Step<()> {
        let items = if many {
            self.since_mark()?
        } else {
            let value = self.pop()?;
            vec![self.pop()?, value]
        };
        if items.len() % 2 == 1 {
            return Err(self.error("a key without a value", "pairs"));
        }
        let dict = self.top()?;
        match self.values.get_mut(dict) {
            Some(Value::Dict(entries)) if entries.len() + items.len() / 2 <= MAX_ENTRIES => {
                entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])))
            }
            Some(Value::Dict(_)) => return Err(self.too_many(MAX_ENTRIES, "entries in one dictionary")),
            other => {
                let found = other.map_or("nothing", |v| v.kind());
                return Err(self.error(found, "a dictionary to fill"));
            }
        }
        Ok(())
    }

    fn memoise(&mut self, op: u8) -> Step<()> {
        let slot = match op {
            b'q' => u32::from(self.number::<1>()?[0]),
            b'r' => u32::from_le_bytes(self.number()?),
            _ => u32::try_from(self.memo.len()).unwrap_or(u32::MAX),
        };
        let id = self.top()?;
        self.memo.insert(slot, id);
        if self.memo.len() > MAX_VALUES {
            return Err(self.too_many(MAX_VALUES, "memoised values"));
        }
        Ok(())
    }

    fn recall(&mut self, op: u8) -> Step<()> {
        let slot = match op {
            b'h' => u32::from(self.number::<1>()?[0]),
            _ => u32::from_le_bytes(self.number()?),
        };
        match self.memo.get(&slot) {
            Some(id) => self.put(*id),
            None => Err(self.error(format!("memo {slot}, which is empty"), "one that was filled before")),
        }
    }

    fn global(&mut self, op: u8) -> Step<()> {
        let (module, name) = if op == b'c' {
            (self.line()?, self.line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (self.get(module), self.get(name)) {
                (Value::Text(module), Value::Text(name)) => (*module, *name),
                _ => return Err(self.error("a name that is no text", "module and name")),
            }
        };
        match Function::find(module, name) {
            Some(function) => self.push(Value::Function(function)),
            None if is_constant(module, name) => self.push(Value::Opaque),
            None => {
                let found = format!("{module:.80}.{name:.80}");
                Err(self.error(found, "functions that make tensors, dictionaries and arrays, and no others"))
            }
        }
    }

    /// `('storage', class, key, location, elements[, view])`: how torch refers to bytes outside the pickle.
    fn persistent(&mut self) -> Step<()> {
        let id = self.pop()?;
        let (what, key, dtype, elements, view) = {
            let Value::Tuple(items) = self.get(id) else {
                return Err(self.error(self.get(id).kind(), "the tuple that torch names a storage with"));
            };
            let item = |at: usize| items.get(at).map_or(&Value::None, |id| self.get(*id));
            (item(0), item(2), item(1), item(4), item(5))
        };
        let storage = match (what, dtype, key, elements) {
            (
                Value::Text("storage"),
                Value::Function(Function::Storage(dtype)),
                Value::Text(key),
                Value::Int(elements),
            ) => u64::try_from(*elements).ok().map(|elements| (*key, *dtype, elements)),
            _ => None,
        };
        match (storage, view) {
            (Some((key, dtype, elements)), Value::None) => self.push(Value::Storage { key, dtype, elements }),
            (Some(_), _) => Err(self.error("a storage within another", "storages of their own")),
            _ => Err(self.error("another persistent id", "('storage', class, key, location, elements)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(bytes: &[u8]) -> PickleError {
        unpickle(bytes).unwrap_err()
    }

    /// pickle.dumps({"a": [1, (2.5, None)], "b": "x"}, protocol=4)
    #[test]
    fn plain_values_of_python_are_read() {
        let bytes = b"\x80\x04\x95\x1d\0\0\0\0\0\0\0}\x94(\x8c\x01a\x94]\x94(K\x01G@\x04\0\0\0\0\0\0N\x86\x94e\x8c\x01b\x94\x8c\x01x\x94u.";
        let read = unpickle(bytes).unwrap();
        assert_eq!(read.length, bytes.len());
        let values = read.values;
        let list = values.entry(values.root, "a").unwrap();
        let Value::List(items) = values.get(list) else { panic!() };
        assert_eq!(values.get(items[0]), &Value::Int(1));
        assert!(matches!(values.get(items[1]), Value::Tuple(t) if t.len() == 2));
        assert_eq!(values.get(values.entry(values.root, "b").unwrap()), &Value::Text("x"));
        assert_eq!(values.entry(values.root, "c"), None);
    }

    /// The classic: pickle.loads(b"cos\nsystem\n(S'...'\ntR.")
    #[test]
    fn functions_beyond_the_whitelist_are_named_with_their_place() {
        let e = error(b"\x80\x02cos\nsystem\n(X\x02\0\0\0lstR.");
        assert_eq!((e.at, e.found.as_str()), (2, "os.system"));
        let e = error(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.");
        assert_eq!(e.found, "builtins.eval");
        assert_eq!(error(b"\x80\x02ctorch\nload\n.").found, "torch.load");
        // NEWOBJ, OBJ, INST, REDUCE of something that is no function.
        assert!(error(b"\x80\x02ccollections\nOrderedDict\n)\x81.").found.contains("0x81"));
        assert!(error(b"\x80\x02(ios\nsystem\n.").found.contains("0x69"));
        assert!(error(b"\x80\x02K\x01)R.").expected.contains("function"));
    }

    #[test]
    fn numbers_of_any_length_up_to_64_bits() {
        for (bytes, expected) in [
            (&b"\x8a\x00."[..], 0),
            (b"\x8a\x01\xff.", -1),
            (b"\x8a\x02\x00\x80.", -32768),
            (b"J\xfe\xff\xff\xff.", -2),
        ] {
            let read = unpickle(bytes).unwrap();
            assert_eq!(read.values.get(read.values.root), &Value::Int(expected));
        }
        assert!(error(b"\x8a\x09123456789.").found.contains("9 bytes"));
    }

    #[test]
    fn what_is_cut_short_or_upside_down_is_an_error() {
        for bytes in [
            &b""[..],
            b"\x80",
            b"\x80\x02",
            b"X\xff\xff\xff\xffab",
            b"B\xff\xff\xff\x7f",
            b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff",
            b"t.",
            b"u.",
            b"(u.",
            b"(K\x01u.",
            b"}(K\x01u.",
            b"h\x05.",
            b".",
            b"K\x01(0.",
            b"ctorch",
            b"\x80\x01.",
            b"Q.",
            b"]K\x01Q.",
        ] {
            assert!(unpickle(bytes).is_err(), "{bytes:?}");
        }
    }

    /// A list that holds itself, and tuples that double at each level: 2^64 leaves, were they unfolded.
    #[test]
    fn circles_and_doubling_cost_what_they_are_long() {
        let circle = b"]q\x00h\x00a.";
        assert_eq!(unpickle(circle).unwrap().values.all.len(), 1);
        let mut doubling = b"K\x01".to_vec();
        for _ in 0..64 {
            doubling.extend_from_slice(b"q\x00h\x00\x86");
        }
        doubling.push(b'.');
        assert_eq!(unpickle(&doubling).unwrap().values.all.len(), 65);
        let bomb = [vec![b')'; MAX_VALUES + 1], b".".to_vec()].concat();
        assert!(error(&bomb).found.contains("values"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_values_are_bounded(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(read) = unpickle(&bytes) {
                prop_assert!(read.values.all.len() <= bytes.len());
                prop_assert!(read.length <= bytes.len());
            }
        }

        /// Instructions that are known, in any order, with small arguments.
        #[test]
        fn no_program_panics(ops in proptest::collection::vec(0_usize..26, 0..200)) {
            const PARTS: [&[u8]; 26] = [
                b"(", b"0", b"}", b"]", b")", b"t", b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u", b"q\x00", b"h\x00",
                b"\x94", b"N", b"\x88", b"K\x03", b"X\x07\0\0\0storage", b"ctorch\nFloatStorage\n",
                b"ctorch._utils\n_rebuild_tensor_v2\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"Q", b"R", b"b",
            ];
            let mut bytes: Vec<u8> = ops.iter().flat_map(|op| PARTS[*op]).copied().collect();
            bytes.push(b'.');
            if let Ok(read) = unpickle(&bytes) {
                prop_assert!(read.values.all.len() <= bytes.len());
            }
        }
    }
}
