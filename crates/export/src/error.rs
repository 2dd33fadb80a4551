//! What can go wrong, said so that it can be put right.

use mcl_checkpoint_core::{Dtype, SliceError};

/// A state that cannot be written in a format.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The state holds no such encoder.
    #[error(
        "the state has no tensor `{name}`: expected a checkpoint of a run, which holds `encoder_q.*` and `encoder_k.*`"
    )]
    Missing {
        /// The tensor that was looked for.
        name: String,
    },
    /// Sizes that are no layer of this network.
    #[error("tensor `{name}` has shape {found:?}, expected {expected}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its sizes.
        found: Vec<usize>,
        /// What was expected, in words.
        expected: String,
    },
    /// An element type that the format has no word for.
    #[error("tensor `{name}` has type {found}, expected {expected}; export it as safetensors")]
    Type {
        /// The tensor.
        name: String,
        /// Its element type.
        found: Dtype,
        /// What the format takes.
        expected: &'static str,
    },
    /// A format of detectors, of an encoder that has no pyramid.
    #[error(
        "the encoder has no feature pyramid, which {format} wants; export its backbone with --format torchvision, timm or \
         safetensors"
    )]
    NoPyramid {
        /// The format.
        format: &'static str,
    },
    /// A norm whose statistics are nobody's.
    #[error("norm `{norm}` never saw data, so it cannot be folded into its convolution: {advice}")]
    Unseen {
        /// The norm.
        norm: String,
        /// What to do.
        advice: &'static str,
    },
    /// A file name that the tool would not open as this format.
    #[error("`{found}` does not end in {expected}, by which tools know the format {format}; name it so")]
    Extension {
        /// The name.
        found: String,
        /// The endings that are taken.
        expected: &'static str,
        /// The format.
        format: &'static str,
    },
    /// A tensor, or the whole, too large for the format.
    #[error("{what} takes {found} bytes, the format holds at most {most}; export it as safetensors")]
    TooLarge {
        /// Of what.
        what: String,
        /// Its length.
        found: usize,
        /// The limit.
        most: u64,
    },
    /// Tensors that make no safetensors file.
    #[error(transparent)]
    Slice(#[from] SliceError),
    /// The container could not be written.
    #[error("writing the zip container: {reason}")]
    Zip {
        /// What the writer said.
        reason: String,
    },
}

/// A pickle that is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {at} of the pickle: found {found}, expected {expected}")]
pub struct PickleError {
    /// Offset of the instruction, from the pickle's beginning.
    pub at: usize,
    /// What is there.
    pub found: String,
    /// What could be there.
    pub expected: String,
}

/// A file that is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// None of the containers that are known.
    #[error(
        "the file begins with {found}: expected a safetensors file, a checkpoint that torch.save wrote, or a pickle of numpy arrays"
    )]
    Container {
        /// Its first bytes.
        found: String,
    },
    /// A tar file, as torch before 0.1.10 wrote: `resnet50-19c8e357.pth` is one.
    #[error(
        "the file is a tar file, as torch before 0.1.10 saved; in Python: torch.save(torch.load(FILE, weights_only=False), NEW_FILE), and import the new file"
    )]
    Tar,
    /// A name that no network has.
    #[error(
        "the name of a tensor has {length} bytes, expected at most {most}; the file is damaged or made to fill memory"
    )]
    LongName {
        /// Its length.
        length: usize,
        /// The limit.
        most: usize,
    },
    /// A damaged or unusual zip container.
    #[error(
        "the zip container: {reason}; expected a file that torch.save wrote, uncompressed; load it in torch and save it again"
    )]
    Zip {
        /// What is wrong.
        reason: String,
    },
    /// A damaged or unusual file of torch before 1.6.
    #[error(
        "the file is in torch's format before 1.6, and {reason}; load it in torch 1.6 or later and save it again"
    )]
    Legacy {
        /// What is wrong.
        reason: String,
    },
    /// A pickle that is damaged, or holds what is not read here.
    #[error(
        "{0}. Only weights are read, and no code is run: in Python, save {{\"state_dict\": dict of tensors}} alone and import that file"
    )]
    Pickle(#[from] PickleError),
    /// A safetensors file that is damaged.
    #[error(transparent)]
    Slice(#[from] SliceError),
    /// No dictionary of tensors.
    #[error(
        "the file holds {found}: expected a dictionary of tensors, bare or under `state_dict` or `model`"
    )]
    NoState {
        /// What is there.
        found: String,
    },
    /// A tensor that does not lie in its storage, or more than once.
    #[error("tensor `{name}`: {reason}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// An element type that no run takes.
    #[error("tensor `{name}` has type {found}, expected f16, bf16, f32, f64, i32 or i64")]
    Type {
        /// The tensor.
        name: String,
        /// Its element type.
        found: Dtype,
    },
    /// Many tensors over few bytes.
    #[error(
        "the tensors take {found} bytes, the file has {file}: expected at most four times as many; it is damaged or made to fill memory"
    )]
    Amplified {
        /// Bytes that the chosen tensors would take.
        found: u64,
        /// Length of the file.
        file: u64,
    },
    /// Names of another network.
    #[error(
        "none of {count} tensors has a name that is known (found {found}): expected encoder_q.0.conv1.weight (official), backbone.conv1.weight (mcl, MMDetection), conv1.weight (torchvision, timm), body.conv1.weight (torchvision's feature pyramid) or stem.conv1.weight (Detectron2)"
    )]
    Names {
        /// How many there are.
        count: usize,
        /// The first few.
        found: String,
    },
    /// Two tensors that become one.
    #[error("`{first}` and `{second}` would both become `{name}`; keep one of them")]
    Twice {
        /// One.
        first: String,
        /// The other.
        second: String,
        /// The name that both get.
        name: String,
    },
}
