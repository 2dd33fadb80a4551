//! An encoder of a state becomes the files of one export.
//!
//! Invariants: the same request and state give the same bytes; every tensor that the format has a place for is
//! there. Left out: writing to a disk, which is [`publish`](crate::publish)'s.

use crate::architecture::Architecture;
use crate::card::{self, Provenance};
use crate::error::ExportError;
use crate::fold::folded;
use crate::naming::{Encoder, Format};
use crate::torch_writer::Chosen;
use crate::{Tensors, detectron2, mmdet, numpy_pickle, torch_writer};
use mcl_checkpoint_core::write_slice;
use std::borrow::Cow;

/// Who wrote a Detectron2 model file; anything but `Caffe2`, whose names would be translated.
const AUTHOR: &str = "MCL";
/// Levels of the feature pyramid.
const LEVELS: usize = 4;

/// What is wished for.
#[derive(Debug, Clone, Copy)]
pub struct ExportRequest<'a> {
    /// What the file is to look like.
    pub format: Format,
    /// Which encoder.
    pub encoder: Encoder,
    /// Name of the file of weights, without a folder.
    pub file_name: &'a str,
    /// Where the state comes from, for the card.
    pub provenance: &'a Provenance,
}

/// One file of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedFile {
    /// Its name, without a folder.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Makes the files of an export from a state's tensors: the weights first, then a configuration for the tool where
/// the format has one, then the card as JSON and as text.
///
/// # Errors
/// When the state lacks the encoder, the file's name does not fit the format, or the format cannot hold a tensor.
pub fn export(request: &ExportRequest<'_>, state: &Tensors) -> Result<Vec<ExportedFile>, ExportError> {
    let container = container(request.format, request.file_name)?;
    let architecture = Architecture::of(state, request.encoder.prefix())?;
    let tensors = chosen(request.format, request.encoder, state)?;
    let bytes = match container {
        Container::Safetensors => {
            let all: Vec<_> = tensors
                .iter()
                .map(|(n, t)| (n.clone(), t.dtype, t.shape.clone(), t.bytes.as_slice()))
                .collect();
            write_slice(&all)?
        }
        Container::Torch => {
            let meta = (request.format == Format::Mmdet).then(|| request.provenance.summary());
            torch_writer::write(&tensors, meta.as_deref())?
        }
        Container::Numpy => numpy_pickle::write(&tensors, AUTHOR)?,
    };
    let stem = request.file_name.rsplit_once('.').map_or(request.file_name, |(stem, _)| stem);
    let file = |name: String, text: String| ExportedFile { name, bytes: text.into_bytes() };
    let config = match request.format {
        Format::Detectron2 => {
            Some(file(format!("{stem}.yaml"), detectron2::config(&architecture, request.file_name)))
        }
        Format::Mmdet => Some(file(format!("{stem}.py"), mmdet::config(&architecture, request.file_name))),
        _ => None,
    };
    let weights = ExportedFile { name: request.file_name.to_owned(), bytes };
    let facts =
        card::Facts { request, architecture: &architecture, weights: &weights, tensors: tensors.len() };
    let cards = [
        file(format!("{}.card.json", request.file_name), card::json(&facts)),
        file(format!("{}.card.md", request.file_name), card::markdown(&facts)),
    ];
    Ok([weights].into_iter().chain(config).chain(cards).collect())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Safetensors,
    Torch,
    Numpy,
}

/// The kind of file that a name's ending asks for.
fn container(format: Format, file_name: &str) -> Result<Container, ExportError> {
    let ending = file_name.rsplit_once('.').map_or("", |(_, ending)| ending);
    let (expected, container) = match (format, ending) {
        (Format::Safetensors, "pth" | "pt" | "pkl") => (".safetensors", None),
        (Format::Safetensors, _) => ("", Some(Container::Safetensors)),
        (Format::Detectron2, "pkl") => ("", Some(Container::Numpy)),
        (Format::Detectron2, _) => (".pkl", None),
        (_, "pth" | "pt") => ("", Some(Container::Torch)),
        (Format::Mmdet, _) => (".pth", None),
        (_, "safetensors") => ("", Some(Container::Safetensors)),
        (_, _) => (".pth or .safetensors", None),
    };
    container.ok_or_else(|| ExportError::Extension {
        found: file_name.to_owned(),
        expected,
        format: format.name(),
    })
}

/// The encoder's tensors that the format has a place for, under their names there.
fn chosen(format: Format, encoder: Encoder, state: &Tensors) -> Result<Chosen<'_>, ExportError> {
    let prefix = encoder.prefix();
    let own = state.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
    let mut chosen: Chosen<'_> =
        own.filter_map(|(name, tensor)| Some((format.name_of(name)?, Cow::Borrowed(tensor)))).collect();
    if format == Format::TorchvisionFpn {
        for level in 0..LEVELS {
            for (ours, theirs) in [("lateral_convs", "inner_blocks"), ("fpn_convs", "layer_blocks")] {
                let (weight, bias) = folded(state, &format!("{prefix}1.{ours}.{level}"))?;
                chosen.insert(format!("fpn.{theirs}.{level}.0.weight"), Cow::Owned(weight));
                chosen.insert(format!("fpn.{theirs}.{level}.0.bias"), Cow::Owned(bias));
            }
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_say_what_a_tool_will_open() {
        assert_eq!(container(Format::Timm, "a.safetensors").unwrap(), Container::Safetensors);
        assert_eq!(container(Format::Timm, "a.pth").unwrap(), Container::Torch);
        assert_eq!(container(Format::Detectron2, "a.pkl").unwrap(), Container::Numpy);
        assert_eq!(container(Format::Safetensors, "weights").unwrap(), Container::Safetensors);
        for (format, name, expected) in [
            (Format::Detectron2, "a.pth", ".pkl"),
            (Format::Mmdet, "a.safetensors", ".pth"),
            (Format::Torchvision, "a", ".pth or .safetensors"),
            (Format::Safetensors, "a.pth", ".safetensors"),
        ] {
            let error = container(format, name).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}` does not end in {expected}, ")), "{error}");
        }
    }
}
