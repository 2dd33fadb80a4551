//! What the calls in a pickle come to: descriptions of tensors and arrays, and values of no use.
//!
//! Invariant: nothing is called; each function of the whitelist has a line here that says what it would make of its
//! arguments. Left out: the instructions around a call, which are `unpickle.rs`'s.

use crate::unpickle::{Machine, Step};
use crate::values::{Array, Bytes, Function, Id, Value, View, numpy_type};

/// Most arguments of a call.
const MAX_ARGUMENTS: usize = 16;
/// Most axes of a tensor.
const MAX_AXES: usize = 16;

impl<'a> Machine<'a> {
    /// Notes what a function would make.
    pub(crate) fn call(&mut self) -> Step<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let arguments = match self.get(arguments) {
            Value::Tuple(items) if items.len() <= MAX_ARGUMENTS => items.clone(),
            other => {
                return Err(self.error(other.kind(), format!("a tuple of at most {MAX_ARGUMENTS} arguments")));
            }
        };
        let function = match self.get(function) {
            Value::Function(function) => *function,
            other => return Err(self.error(other.kind(), "a function to call")),
        };
        let value = match function {
            Function::OrderedDict if arguments.is_empty() => Value::Dict(Vec::new()),
            Function::Tensor => self.tensor(&arguments)?,
            Function::Reconstruct => Value::Array(None),
            Function::FromBuffer => self.buffered(&arguments)?,
            Function::NumpyType => self.numpy_type(self.argument(&arguments, 0))?,
            Function::Encode => self.encode(&arguments)?,
            Function::Bytes if arguments.is_empty() => Value::Raw(Bytes::File(&[])),
            Function::Unused => Value::Opaque,
            // These are what they are given.
            Function::Parameter | Function::Size if !arguments.is_empty() => {
                return arguments.first().map_or(Ok(()), |id| self.put(*id));
            }
            other => {
                let found = format!("a call of {other:?} with {} arguments", arguments.len());
                return Err(self.error(found, "a call that makes a tensor, a dictionary or an array"));
            }
        };
        self.push(value)
    }

    fn argument(&self, arguments: &[Id], at: usize) -> &Value<'a> {
        arguments.get(at).map_or(&Value::None, |id| self.get(*id))
    }

    /// An element type; one that no weights have is of no use, and neither is what is made of it.
    fn numpy_type(&self, code: &Value<'a>) -> Step<Value<'a>> {
        let Value::Text(code) = code else {
            return Err(self.error(code.kind(), "the name of an element type"));
        };
        Ok(numpy_type(code).map_or(Value::Opaque, |dtype| Value::NumpyType { dtype, little: true }))
    }

    /// `(text, 'latin1')`: how protocol 2 writes bytes. The texts of a pickle may be decoded once, all together.
    fn encode(&mut self, arguments: &[Id]) -> Step<Value<'a>> {
        let (Value::Text(text), Value::Text("latin1" | "latin-1")) =
            (self.argument(arguments, 0), self.argument(arguments, 1))
        else {
            return Err(self.error("a call of _codecs.encode", "text in latin1"));
        };
        let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
        let length = text.len();
        let bytes = bytes.ok_or_else(|| self.error("text that is not latin1", "latin1"))?;
        self.decoded += length;
        if self.decoded > self.input.len() {
            return Err(self.error("the same text decoded again and again", "a checkpoint of weights"));
        }
        Ok(Value::Raw(Bytes::Own(bytes.into())))
    }

    /// `(storage, offset, sizes, strides, requires_grad, hooks)`.
    fn tensor(&self, arguments: &[Id]) -> Step<Value<'a>> {
        let [storage, offset, shape, stride, ..] = arguments else {
            return Err(self.error(format!("a tensor of {} arguments", arguments.len()), "at least 4"));
        };
        if !matches!(self.get(*storage), Value::Storage { .. }) {
            return Err(self.error(self.get(*storage).kind(), "a storage"));
        }
        let (shape, stride) = (self.sizes(*shape)?, self.sizes(*stride)?);
        let offset = match self.get(*offset) {
            Value::Int(offset) => u64::try_from(*offset).ok(),
            _ => None,
        };
        match offset {
            Some(offset) if shape.len() == stride.len() => {
                Ok(Value::Tensor(Box::new(View { storage: *storage, offset, shape, stride })))
            }
            _ => {
                Err(self
                    .error(format!("sizes {shape:?}, strides {stride:?}"), "as many of both, and an offset"))
            }
        }
    }

    fn sizes(&self, id: Id) -> Step<Vec<u64>> {
        let items = match self.get(id) {
            Value::Tuple(items) | Value::List(items) if items.len() <= MAX_AXES => items,
            other => return Err(self.error(other.kind(), format!("a tuple of at most {MAX_AXES} sizes"))),
        };
        let size = |id: &Id| match self.get(*id) {
            Value::Int(size) => u64::try_from(*size).ok(),
            _ => None,
        };
        items
            .iter()
            .map(size)
            .collect::<Option<_>>()
            .ok_or_else(|| self.error("sizes that are none", "whole numbers"))
    }

    /// `(bytes, type, sizes, 'C' or 'F'[, None])`: numpy's arrays since protocol 5.
    fn buffered(&self, arguments: &[Id]) -> Step<Value<'a>> {
        let fortran = match (self.argument(arguments, 3), self.argument(arguments, 4)) {
            (Value::Text("C"), Value::None) => false,
            (Value::Text("F"), Value::None) => true,
            _ => return Err(self.error("an array in an order of its own", "C's or Fortran's")),
        };
        self.array(arguments.get(2), self.argument(arguments, 1), fortran, self.argument(arguments, 0))
    }

    fn array(&self, shape: Option<&Id>, of: &Value<'a>, fortran: bool, bytes: &Value<'a>) -> Step<Value<'a>> {
        match (of, bytes) {
            (Value::Opaque, _) => Ok(Value::Opaque),
            (Value::NumpyType { dtype, little: true }, Value::Raw(bytes)) => {
                let shape = shape.map_or_else(|| Ok(Vec::new()), |id| self.sizes(*id))?;
                let array = Array { dtype: *dtype, shape, fortran, bytes: bytes.clone() };
                Ok(Value::Array(Some(Box::new(array))))
            }
            (of, bytes) => {
                let found = format!("an array of {} with {}", of.kind(), bytes.kind());
                Err(self.error(found, "little-endian elements, and their bytes"))
            }
        }
    }

    /// Gives an object its state.
    pub(crate) fn build(&mut self) -> Step<()> {
        let (state, object) = (self.pop()?, self.top()?);
        let state = match self.get(state) {
            Value::Tuple(items) if items.len() <= MAX_ARGUMENTS => items.clone(),
            _ => Vec::new(),
        };
        let item = |at: usize| self.argument(&state, at);
        let built = match self.get(object) {
            // What torch notes of a state dict's versions.
            Value::Dict(_) | Value::Opaque => return Ok(()),
            Value::NumpyType { dtype, .. } => {
                Value::NumpyType { dtype: *dtype, little: matches!(item(1), Value::Text("<" | "|" | "=")) }
            }
            Value::Array(_) => match item(3) {
                Value::Flag(fortran) => self.array(state.get(1), item(2), *fortran, item(4))?,
                other => return Err(self.error(other.kind(), "whether the first axis is the densest")),
            },
            other => {
                return Err(self.error(other.kind(), "a dictionary, an array or an element type to build"));
            }
        };
        if let Some(object) = self.values.get_mut(object) {
            *object = built;
        }
        Ok(())
    }
}
