//! An encoder of a state becomes the files of one export.
//!
//! Invariants: the same request and state give the same bytes; every tensor that the format has a place for is
//! there. Left out: writing to a disk, which is [`publish`](crate::publish)'s.

use crate::architecture::Architecture;
use crate::card::{self, Provenance};
use crate::error::ExportError;
use crate::fold::folded;
use crate::naming::{Encoder, Format};
use crate::network::LEVELS;
use crate::stock::obstacle;
use crate::torch_writer::Chosen;
use crate::unseen::{Unseen, seen_online};
use crate::{Tensors, detectron2, mmdet, numpy_pickle, torch_writer};
use mcl_checkpoint_core::write_slice;
use std::borrow::Cow;

/// Who wrote a Detectron2 model file; anything but `Caffe2`, whose names would be translated.
const AUTHOR: &str = "MCL";

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

/// What a file of an export is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Weights.
    Weights,
    /// A configuration for the tool, which its reader may edit.
    Config,
    /// A card.
    Card,
}

/// An export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Its files, the weights first.
    pub files: Vec<ExportedFile>,
    /// What whoever exports should know: what saw no data, what the tool cannot build.
    pub notices: Vec<String>,
}

/// One file of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportedFile {
    /// Its name, without a folder.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Makes the files of an export from a state's tensors: the weights first, then a configuration for the tool where
/// the format has one, then the card as JSON and as text.
///
/// # Errors
/// When the state lacks the encoder, the file's name does not fit the format, the format cannot hold a tensor, or a norm
/// would be folded that never saw data.
pub fn export(request: &ExportRequest<'_>, state: &Tensors) -> Result<Exported, ExportError> {
    let container = container(request.format, request.file_name)?;
    let architecture = Architecture::of(state, request.encoder.prefix())?;
    let wants = matches!(request.format, Format::TorchvisionFpn | Format::Detectron2 | Format::Mmdet);
    if wants && architecture.pyramid.is_none() {
        return Err(ExportError::NoPyramid { format: request.format.name() });
    }
    let unseen = Unseen::of(state, request.format, request.encoder);
    let tensors = chosen(request.format, request.encoder, state, &unseen)?;
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
    let obstacle = obstacle(request.format, &architecture);
    let mut notices = unseen.notices(state, request.encoder);
    notices.extend(obstacle.iter().map(|why| format!("no lines that load it are given: {why}")));
    let weights = ExportedFile { name: request.file_name.to_owned(), role: Role::Weights, bytes };
    let facts = card::Facts {
        request,
        architecture: &architecture,
        weights: &weights,
        tensors: tensors.len(),
        unseen: &unseen,
        obstacle: obstacle.as_deref(),
        notices: &notices,
        method: method(state),
    };
    let file = |name: String, role, text: String| ExportedFile { name, role, bytes: text.into_bytes() };
    let cards = [
        file(format!("{}.card.json", request.file_name), Role::Card, card::json(&facts)),
        file(format!("{}.card.md", request.file_name), Role::Card, card::markdown(&facts)),
    ];
    let config = config(request, &architecture, obstacle.as_deref())
        .map(|(name, text)| file(name, Role::Config, text));
    Ok(Exported { files: [weights].into_iter().chain(config).chain(cards).collect(), notices })
}

/// How a state was trained, read off what it holds.
fn method(state: &Tensors) -> &'static str {
    if state.contains_key("queue") {
        "MoCo v2 (arXiv 2003.04297), as a backbone without a pyramid; its head is not in this file"
    } else if state.contains_key("head.classifier.0.weight") {
        "MCL (arXiv 2304.02010) with labels"
    } else {
        "MCL (arXiv 2304.02010)"
    }
}

/// Name and text of the configuration for the tool, where it takes one.
fn config(request: &ExportRequest<'_>, a: &Architecture, obstacle: Option<&str>) -> Option<(String, String)> {
    let stem = request.file_name.rsplit_once('.').map_or(request.file_name, |(stem, _)| stem);
    let (ending, text) = match request.format {
        Format::Detectron2 => ("yaml", detectron2::config(a, request.file_name)),
        Format::Mmdet => ("py", mmdet::config(a, request.file_name)),
        _ => return None,
    };
    let warning = obstacle.map_or_else(String::new, |why| format!("# Does not work as it stands: {why}.\n"));
    Some((format!("{stem}.{ending}"), warning + &text))
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
fn chosen<'s>(
    format: Format,
    encoder: Encoder,
    state: &'s Tensors,
    unseen: &Unseen,
) -> Result<Chosen<'s>, ExportError> {
    let prefix = encoder.prefix();
    let own = state.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
    let mut chosen: Chosen<'s> =
        own.filter_map(|(name, tensor)| Some((format.name_of(name)?, Cow::Borrowed(tensor)))).collect();
    if format == Format::TorchvisionFpn {
        if let [norm, ..] = unseen.of_pyramid().as_slice() {
            let online = seen_online(state, encoder, &unseen.of_pyramid());
            return Err(ExportError::Unseen { norm: format!("{prefix}{norm}"), advice: advice(online) });
        }
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

/// What to do where a norm cannot be folded.
const fn advice(online: bool) -> &'static str {
    match online {
        true => "export with --encoder online, whose norms did",
        false => "its level was not trained; export as safetensors or torchvision, which fold nothing",
    }
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
