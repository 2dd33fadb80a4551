//! What a pickle may hold here: plain values, and descriptions of tensors.
//!
//! Values lie in one list and refer to each other by number, so that a pickle that shares or nests values, or bends
//! them into a circle, costs no more than it is long, and nothing here recurses. Text and bytes stay where they are in
//! the file. Left out: classes; the whitelist is [`Function::find`].

use mcl_checkpoint_core::Dtype;

/// A value's place in [`Values`].
pub(crate) type Id = usize;

/// The functions and classes that a pickle may name. None of them is called: what a call would make is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    /// `collections.OrderedDict`.
    OrderedDict,
    /// `torch._utils._rebuild_tensor_v2`.
    Tensor,
    /// `torch._utils._rebuild_parameter`.
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
}

impl Function {
    /// The whitelist.
    pub(crate) fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::Tensor,
            ("torch._utils", "_rebuild_parameter") => Self::Parameter,
            ("torch", "Size") => Self::Size,
            ("torch", _) => Self::Storage(storage(name)?),
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Self::Reconstruct,
            ("numpy", "ndarray") => Self::Ndarray,
            ("numpy", "dtype") => Self::NumpyType,
            _ => return None,
        })
    }
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
    Raw(&'a [u8]),
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
    pub(crate) bytes: &'a [u8],
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
