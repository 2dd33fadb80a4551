//! A file of weights of somebody else becomes weights that a run can begin with.
//!
//! Invariants: names of the official code stay, both encoders with them; others become an export's. What is left out
//! is listed with a reason. Every chosen tensor is copied once, checked, and together they take at most
//! [`MAX_GROWTH`] times the file's length. Left out: whether sizes fit a job's model, which ranks check.

use crate::Tensors;
use crate::container;
use crate::element::{long, single};
use crate::error::ImportError;
use crate::naming::{Fate, Naming};
use crate::strided::Strided;
use mcl_checkpoint_core::{Dtype, OwnedTensor, write_slice};
use std::collections::BTreeMap;

/// Half precision doubles, and two names may share one storage.
const MAX_GROWTH: u64 = 4;
/// What DistributedDataParallel puts before every name.
const WRAPPER: &str = "module.";

/// Tensors that were left out for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Why.
    pub why: &'static str,
    /// Their names, in order.
    pub names: Vec<String>,
}

/// What was read.
#[derive(Debug, Clone)]
pub struct Imported {
    /// How the file names its tensors.
    pub naming: Naming,
    /// The weights, by the names that a run can begin with.
    pub tensors: Tensors,
    /// How many of them were half precision, or short integers, and were widened (exactly).
    pub widened: usize,
    /// What was left out, by reason.
    pub left_out: Vec<LeftOut>,
}

impl Imported {
    /// The weights as one safetensors file, which `--from` takes.
    ///
    /// # Errors
    /// When a name is reserved in that format.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, ImportError> {
        let tensors: Vec<_> = self
            .tensors
            .iter()
            .map(|(n, t)| (n.clone(), t.dtype, t.shape.clone(), t.bytes.as_slice()))
            .collect();
        Ok(write_slice(&tensors)?)
    }
}

/// Reads a file: safetensors, a checkpoint of torch in either format, or a pickle of numpy arrays, with names of the
/// official code, of this program, torchvision, timm, MMDetection or Detectron2.
///
/// # Errors
/// When it is none of these or damaged. No byte of the file is run.
pub fn import(file: &[u8]) -> Result<Imported, ImportError> {
    let found = container::read(file)?;
    let tensors = unwrapped(found.tensors);
    let names = || tensors.keys().map(String::as_str);
    let naming = Naming::detect(names()).ok_or_else(|| ImportError::Names {
        count: tensors.len(),
        found: names().take(3).map(|n| format!("{n:.80}")).collect::<Vec<_>>().join(", "),
    })?;
    let mut left_out: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    if !found.others.is_empty() {
        left_out.insert("not a tensor", found.others);
    }
    let mut chosen: BTreeMap<String, (&str, &Strided<'_>)> = BTreeMap::new();
    for (name, tensor) in &tensors {
        match naming.fate(name) {
            Fate::Leave(why) => left_out.entry(why).or_default().push(name.clone()),
            Fate::Take(new) => {
                if let Some((first, _)) = chosen.insert(new.clone(), (name, tensor)) {
                    let (first, second) = (first.to_owned(), name.clone());
                    return Err(ImportError::Twice { first, second, name: new });
                }
            }
        }
    }
    within_growth(&chosen, file.len() as u64)?;
    let mut weights = Tensors::new();
    let mut widened = 0;
    for (new, (name, tensor)) in chosen {
        let copied = tensor.copied().map_err(|reason| damaged(name, reason))?;
        let dtype = copied.dtype;
        let weight = taken(name, copied)?;
        widened += usize::from(weight.dtype != dtype);
        weights.insert(new, weight);
    }
    let left_out = left_out.into_iter().map(|(why, names)| LeftOut { why, names }).collect();
    Ok(Imported { naming, tensors: weights, widened, left_out })
}

fn damaged(name: &str, reason: String) -> ImportError {
    ImportError::Tensor { name: name.to_owned(), reason }
}

/// Names without the wrapper, where all have it.
fn unwrapped(tensors: BTreeMap<String, Strided<'_>>) -> BTreeMap<String, Strided<'_>> {
    if !tensors.keys().all(|name| name.starts_with(WRAPPER)) {
        return tensors;
    }
    tensors.into_iter().map(|(name, t)| (name.trim_start_matches(WRAPPER).to_owned(), t)).collect()
}

fn within_growth(chosen: &BTreeMap<String, (&str, &Strided<'_>)>, file: u64) -> Result<(), ImportError> {
    let mut found = 0_u64;
    for (name, tensor) in chosen.values() {
        let length = tensor.check().map_err(|reason| damaged(name, reason))?;
        found = found.saturating_add(length as u64);
    }
    if found <= file.saturating_mul(MAX_GROWTH) {
        Ok(())
    } else {
        Err(ImportError::Amplified { found, file })
    }
}

/// A tensor in a type that a run takes.
fn taken(name: &str, tensor: OwnedTensor) -> Result<OwnedTensor, ImportError> {
    let found = tensor.dtype;
    match found {
        Dtype::F32 | Dtype::F64 | Dtype::BF16 | Dtype::I64 => Ok(tensor),
        Dtype::I32 => Ok(long(&tensor)),
        Dtype::F16 => single(&tensor).ok_or_else(|| ImportError::Type { name: name.to_owned(), found }),
        _ => Err(ImportError::Type { name: name.to_owned(), found }),
    }
}
