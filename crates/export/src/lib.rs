//! Weights for other tools, and weights from them.
//!
//! Role: an encoder of a checkpoint becomes a file that torchvision, timm, Detectron2, MMDetection or any reader of
//! safetensors takes ([`export`]), with a model card beside it; a file of theirs, or of the official code, becomes
//! a file that a run can begin with ([`import`]).
//!
//! Invariants:
//! - the same state and the same wishes give the same bytes;
//! - files appear whole or not at all, the weights last ([`publish`]);
//! - weights are copied bit for bit; the exceptions are folded norms and half precision that becomes single, and
//!   both are said;
//! - no byte of a file can run code, cause a panic, or an allocation that the file's own size does not justify.
//!
//! Left out: devices, the network, and the values themselves (nothing is trained, rescaled or quantised).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod architecture;
mod card;
mod container;
mod detectron2;
mod element;
mod error;
mod exporting;
mod fold;
mod importing;
mod mmdet;
mod naming;
mod network;
mod numpy_pickle;
mod pickle_writer;
mod publish;
mod rebuild;
mod stock;
mod strided;
mod torch_legacy;
mod torch_writer;
mod torch_zip;
mod unpickle;
mod unseen;
mod values;

pub use architecture::Architecture;
pub use card::Provenance;
pub use error::{ExportError, ImportError, PickleError};
pub use exporting::{ExportRequest, Exported, ExportedFile, Role, export};
pub use importing::{Imported, LeftOut, import};
pub use naming::{Encoder, Format, Naming, PARTS};
pub use publish::{PublishError, publish};

use mcl_checkpoint_core::OwnedTensor;
use std::collections::BTreeMap;

/// Tensors in name order.
pub type Tensors = BTreeMap<String, OwnedTensor>;
