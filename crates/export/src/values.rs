//! What a pickle may hold here: plain values, and descriptions of tensors.
//!
//! Values lie in one list and refer to each other by number, so that a pickle that shares or nests values, or bends
//! them into a circle, costs no more than it is long, and nothing here recurses. Text and bytes stay where they are in
//! the file. Left out: classes; the whitelist is
//! [`Function::find`].

use mcl_checkpoint_core::Dtype;
use std::ops::Deref;
use std::sync::Arc;

/// A value's place in [`Values`].
pub(crate) type Id = usize;

/// The functions and classes that a pickle may name. None of them is called: what a call would make is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`.
    Tensor,
    /// `torch._utils._rebuild_parameter`, with or without a state of its own, which is of no use.
    Parameter,
    /// `torch.Size`.
    Size,
    /// A class of storages, by its element type.
    Storage(Dtype),
    /// `numpy.core.multiarray._reconstruct`.
    Reconstruct,
    /// `numpy.ndarray`.
    Ndarray,
    /// `numpy.dtype`.
    NumpyType,
    /// `numpy.core.numeric._frombuffer`.
    FromBuffer,
    /// `_codecs.encode`.
    Encode,
    /// `bytes`.
    Bytes,
    /// What notes beside weights hold: numpy's scalars, torch's devices.
    Unused,
}

impl Function {
    /// The whitelist.
    pub(crate) fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::Tensor,
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Self::Parameter,
            ("torch", "Size") => Self::Size,
            ("torch", "device") => Self::Unused,
            ("torch", _) => Self::Storage(storage(name)?),
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Self::Reconstruct,
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Self::Unused,
            ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Self::FromBuffer,
            ("numpy", "ndarray") => Self::Ndarray,
            ("numpy", "dtype") => Self::NumpyType,
            ("_codecs", "encode") => Self::Encode,
            ("__builtin__" | "builtins", "bytes") => Self::Bytes,
            _ => return None,
        })
    }
}

/// Whether a name is of one of torch's element types, which notes beside weights hold.
pub(crate) fn is_constant(module: &str, name: &str) -> bool {
    const TYPES: [&str; 16] = [
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
        "double", "float", "half", "long", "int", "short",
    ];
    module == "torch" && TYPES.contains(&name)
}

fn storage(name: &str) -> Option<Dtype> {
    Some(match name {
        "DoubleStorage" => Dtype::F64,
        "FloatStorage" => Dtype::F32,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "LongStorage" => Dtype::I64,
        "IntStorage" => Dtype::I32,
        "ShortStorage" => Dtype::I16,
        "CharStorage" => Dtype::I8,
        "ByteStorage" => Dtype::U8,
        "BoolStorage" => Dtype::BOOL,
        _ => return None,
    })
}

/// Numpy's type for a code such as `f4`.
pub(crate) fn numpy_type(code: &str) -> Option<Dtype> {
    Some(match code {
        "f8" => Dtype::F64,
        "f4" => Dtype::F32,
        "f2" => Dtype::F16,
        "i8" => Dtype::I64,
        "i4" => Dtype::I32,
        _ => return None,
    })
}

/// Bytes: where they lie in the file, or decoded from text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bytes<'a> {
    /// In the file.
    File(&'a [u8]),
    /// Decoded.
    Own(Arc<[u8]>),
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::File(bytes) => bytes,
            Self::Own(bytes) => bytes,
        }
    }
}

impl<'a> From<&'a [u8]> for Bytes<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::File(bytes)
    }
}

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value<'a> {
    /// `None`.
    None,
    /// True or false; which one is of no use here.
    Flag(bool),
    /// A whole number of at most 64 bits.
    Int(i64),
    /// A number.
    Float,
    /// Text.
    Text(&'a str),
    /// Raw bytes.
    Raw(Bytes<'a>),
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list.
    List(Vec<Id>),
    /// A dictionary, in the order of insertion.
    Dict(Vec<(Id, Id)>),
    /// A function or class of the whitelist.
    Function(Function),
    /// A storage of torch: where its bytes are.
    Storage {
        /// Its name in the file.
        key: &'a str,
        /// Type of its elements.
        dtype: Dtype,
        /// How many it has.
        elements: u64,
    },
    /// A tensor of torch.
    Tensor(Box<View>),
    /// An element type of numpy, little-endian unless told otherwise.
    NumpyType {
        /// The type.
        dtype: Dtype,
        /// Whether its bytes are in the order of this file's other numbers.
        little: bool,
    },
    /// An array of numpy; nothing before its state is given.
    Array(Option<Box<Array<'a>>>),
    /// Something that weights are not made of.
    Opaque,
}

/// A tensor of torch: a view of a storage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct View {
    /// Which storage.
    pub(crate) storage: Id,
    /// First element.
    pub(crate) offset: u64,
    /// Sizes.
    pub(crate) shape: Vec<u64>,
    /// Elements between neighbours along each axis.
    pub(crate) stride: Vec<u64>,
}

/// An array of numpy.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Array<'a> {
    /// Type of its elements.
    pub(crate) dtype: Dtype,
    /// Sizes.
    pub(crate) shape: Vec<u64>,
    /// Whether the first axis is the densest.
    pub(crate) fortran: bool,
    /// Its bytes.
    pub(crate) bytes: Bytes<'a>,
}

impl Value<'_> {
    /// What it is, for a message.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Flag(_) => "a truth value",
            Self::Int(_) => "a whole number",
            Self::Float => "a number",
            Self::Text(_) => "text",
            Self::Raw(_) => "bytes",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Function(_) => "a function",
            Self::Storage { .. } => "a storage",
            Self::Tensor(_) => "a tensor",
            Self::NumpyType { .. } => "an element type",
            Self::Array(_) => "an array",
            Self::Opaque => "a value that is no weight",
        }
    }
}

/// All values of a pickle.
#[derive(Debug, Clone, Default)]
pub(crate) struct Values<'a> {
    pub(crate) all: Vec<Value<'a>>,
    /// The pickled object.
    pub(crate) root: Id,
}

impl<'a> Values<'a> {
    /// The value at a place.
    pub(crate) fn get(&self, id: Id) -> &Value<'a> {
        self.all.get(id).unwrap_or(&Value::None)
    }

    /// What a dictionary has under a name; the last one counts, as in Python.
    pub(crate) fn entry(&self, dict: Id, name: &str) -> Option<Id> {
        let Value::Dict(entries) = self.get(dict) else { return None };
        entries.iter().rev().find(|(key, _)| *self.get(*key) == Value::Text(name)).map(|(_, value)| *value)
    }
}
