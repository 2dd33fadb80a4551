//! A file of weights of somebody else becomes weights that a run can begin with.
//!
//! Invariants: names of the official code stay, both encoders with them; others become an export's. Only tensors that
//! this method's network has are taken, and a pyramid, a projector's half or predictors only whole, since a run takes them
//! so. What is left out is listed with a reason. Every chosen tensor is copied once, checked, and together they take at most
//! [`MAX_GROWTH`] times the file's length. Left out: whether sizes fit a job's model, which ranks check.

use crate::Tensors;
use crate::container;
use crate::element::{long, single};
use crate::error::ImportError;
use crate::naming::{Fate, Naming};
use crate::network::{COUNTER, Part, place};
use crate::strided::Strided;
use mcl_checkpoint_core::{Dtype, OwnedTensor, write_slice};
use std::collections::{BTreeMap, BTreeSet};

/// Half precision doubles, and two names may share one storage.
const MAX_GROWTH: u64 = 4;
/// What DistributedDataParallel puts before every name.
const WRAPPER: &str = "module.";

/// Why a tensor that is not this network's is left out.
const FOREIGN: &str = "no part of this method's network";
/// Why a part is.
const PARTIAL: &str = "not the whole of a part of this method's network, which has a batch norm after every convolution and \
                       all four levels; a run begins with a part whole, or with the seed's";

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
    /// How many norms had no count of the batches they saw; they got one, of nought.
    pub counters: usize,
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
        left_out.insert("not a tensor", found.others.into_iter().map(str::to_owned).collect());
    }
    let chosen = chosen(naming, &tensors, &mut left_out)?;
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
    let counters = with_counters(&mut weights);
    let left_out = left_out.into_iter().map(|(why, names)| LeftOut { why, names }).collect();
    Ok(Imported { naming, tensors: weights, widened, counters, left_out })
}

/// Tensors by the names that they get, each with the name that it has.
type Chosen<'t, 'a> = BTreeMap<String, (&'t str, &'t Strided<'a>)>;

/// The tensors of this method's network, without parts that are not whole.
fn chosen<'t, 'a>(
    naming: Naming,
    tensors: &'t BTreeMap<String, Strided<'a>>,
    left_out: &mut BTreeMap<&'static str, Vec<String>>,
) -> Result<Chosen<'t, 'a>, ImportError> {
    let mut chosen = Chosen::new();
    let mut foreign = BTreeSet::new();
    for (name, tensor) in tensors {
        match naming.fate(name) {
            Fate::Leave(why) => left_out.entry(why).or_default().push(name.clone()),
            Fate::Foreign(part) => {
                foreign.extend(part);
                left_out.entry(FOREIGN).or_default().push(name.clone());
            }
            Fate::Take(new) => {
                if let Some((first, _)) = chosen.insert(new.clone(), (name, tensor)) {
                    let (first, second) = (first.to_owned(), name.clone());
                    return Err(ImportError::Twice { first, second, name: new });
                }
            }
        }
    }
    let mut parts: BTreeMap<&'static str, (Part, BTreeSet<&str>)> = BTreeMap::new();
    for (prefix, part, inner) in chosen.keys().filter_map(|name| place(name)) {
        parts.entry(prefix).or_insert_with(|| (part, BTreeSet::new())).1.insert(inner);
    }
    let partial = |(prefix, (part, names)): (&'static str, (Part, BTreeSet<&str>))| {
        let other = part != Part::Backbone && (foreign.contains(prefix) || !part.is_whole(&names));
        other.then_some(prefix)
    };
    let partial: Vec<&str> = parts.into_iter().filter_map(partial).collect();
    chosen.retain(|new, (name, _)| {
        let leave = partial.iter().any(|prefix| new.starts_with(prefix));
        if leave {
            left_out.entry(PARTIAL).or_default().push((*name).to_owned());
        }
        !leave
    });
    Ok(chosen)
}

/// Gives norms that keep no count one, of nought; how many.
fn with_counters(weights: &mut Tensors) -> usize {
    let norms = weights.keys().filter_map(|name| name.strip_suffix("running_var"));
    let lacking: Vec<String> = norms
        .map(|norm| format!("{norm}{COUNTER}"))
        .filter(|counter| !weights.contains_key(counter))
        .collect();
    let nought = || OwnedTensor { dtype: Dtype::I64, shape: Vec::new(), bytes: vec![0; 8] };
    let count = lacking.len();
    weights.extend(lacking.into_iter().map(|counter| (counter, nought())));
    count
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

fn within_growth(chosen: &Chosen<'_, '_>, file: u64) -> Result<(), ImportError> {
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
        Dtype::F32 | Dtype::F64 | Dtype::I64 => Ok(tensor),
        Dtype::I32 => Ok(long(&tensor)),
        Dtype::F16 | Dtype::BF16 => {
            single(&tensor).ok_or_else(|| ImportError::Type { name: name.to_owned(), found })
        }
        _ => Err(ImportError::Type { name: name.to_owned(), found }),
    }
}
