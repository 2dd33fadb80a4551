//! The model card beside every export: what it is, where it comes from, how to load it.
//!
//! Invariant: the same state and request give the same card (it has no time of its own). Left out: judgement; a card
//! says what is known, and nothing about quality.

use crate::architecture::Architecture;
use crate::exporting::{ExportRequest, ExportedFile};
use crate::naming::Format;
use crate::unseen::Unseen;
use mcl_types::Digest;
use serde_json::{Value, json};

/// Where a state comes from.
#[derive(Debug, Clone, Default)]
pub struct Provenance {
    /// Name of the run.
    pub run: String,
    /// Optimiser steps applied.
    pub steps: u64,
    /// Digest of the whole state.
    pub state_digest: String,
    /// Program that wrote the checkpoint.
    pub builder: String,
    /// Program that exports.
    pub exporter: String,
    /// Seconds since 1970 at which the checkpoint was made visible.
    pub created: u64,
    /// What the coordinator noted in the checkpoint.
    pub meta: Value,
    /// The resolved job as TOML, where a run directory is known.
    pub job: Option<String>,
    /// Loss of the last step before the checkpoint, where a run directory is known.
    pub last_loss: Option<f64>,
}

impl Provenance {
    fn noted(&self, key: &str) -> Value {
        self.meta.get(key).cloned().unwrap_or(Value::Null)
    }

    /// The few facts that go into a file of weights itself.
    pub(crate) fn summary(&self) -> Vec<(&'static str, String)> {
        vec![
            ("mcl_exporter", self.exporter.clone()),
            ("mcl_run", self.run.clone()),
            ("mcl_state_digest", self.state_digest.clone()),
            ("mcl_steps", self.steps.to_string()),
        ]
    }
}

/// A text in double quotes, with escapes that JSON, Python and YAML all have.
pub(crate) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// What a card is written from.
pub(crate) struct Facts<'a> {
    pub(crate) request: &'a ExportRequest<'a>,
    pub(crate) architecture: &'a Architecture,
    pub(crate) weights: &'a ExportedFile,
    pub(crate) tensors: usize,
    pub(crate) unseen: &'a Unseen,
    /// Why the tool cannot build the network, where it cannot.
    pub(crate) obstacle: Option<&'a str>,
    /// What a reader should know before anything else.
    pub(crate) notices: &'a [String],
    /// How the weights were trained.
    pub(crate) method: &'a str,
}

/// The card as JSON.
pub(crate) fn json(facts: &Facts<'_>) -> String {
    let (request, from) = (facts.request, facts.request.provenance);
    let a = facts.architecture;
    let config = from
        .job
        .as_ref()
        .map(|text| toml::from_str::<Value>(text).unwrap_or_else(|_| Value::String(text.clone())));
    let card = json!({
        "format": "mcl-card-1",
        "file": {
            "name": facts.weights.name,
            "bytes": facts.weights.bytes.len(),
            "blake3": Digest::of(&facts.weights.bytes).to_string(),
            "format": request.format.name(),
            "tensors": facts.tensors,
        },
        "encoder": request.encoder.name(),
        "method": facts.method,
        "architecture": {
            "depth": a.depth, "width": a.width, "stages": a.stages, "pyramid": a.pyramid,
            "projector_convs": a.projector_convs,
        },
        "run": {
            "name": from.run,
            "from": from.noted("from"),
            "steps": from.steps,
            "epoch": from.noted("epoch"),
            "seed": from.noted("seed"),
            "last_loss": from.last_loss,
            "state_digest": from.state_digest,
            "data_digest": from.noted("dataset_digest"),
            "checkpoint_created": from.created,
        },
        "programs": {
            "checkpoint": from.builder,
            "export": from.exporter,
        },
        "config": config,
        "unseen": { "norms": facts.unseen.norms, "levels": facts.unseen.levels },
        "obstacle": facts.obstacle,
        "load": facts.obstacle.is_none().then(|| load(facts)),
    });
    let mut text = serde_json::to_string_pretty(&card).unwrap_or_default();
    text.push('\n');
    text
}

/// The card as Markdown.
pub(crate) fn markdown(facts: &Facts<'_>) -> String {
    let (request, from) = (facts.request, facts.request.provenance);
    let or_unknown = |value: Value| match value {
        Value::Null => "not recorded".to_owned(),
        Value::String(text) => text,
        other => other.to_string(),
    };
    // On one line, whatever is in it, and no end of a cell or of code.
    let name = quoted(&facts.weights.name).trim_matches('"').replace(['|', '`'], "_");
    let loss = from.last_loss.map_or_else(|| "not recorded".to_owned(), |loss| loss.to_string());
    let rows = [
        ("file", format!("`{name}`, {} bytes, {} tensors", facts.weights.bytes.len(), facts.tensors)),
        ("BLAKE3 of the file", format!("`{}`", Digest::of(&facts.weights.bytes))),
        ("format", request.format.name().to_owned()),
        ("encoder", request.encoder.name().to_owned()),
        ("network", facts.architecture.describe()),
        ("run", format!("`{}`, seed {}", from.run, or_unknown(from.noted("seed")))),
        ("steps", from.steps.to_string()),
        ("last loss", loss),
        ("digest of the state", format!("`{}`", from.state_digest)),
        ("digest of the pictures", format!("`{}`", or_unknown(from.noted("dataset_digest")))),
        ("written by", format!("{} (checkpoint), {} (export)", from.builder, from.exporter)),
    ];
    let mut text = format!("# {name}\n\nPre-trained with {}.\n\n| | |\n|---|---|\n", facts.method);
    for (what, value) in rows {
        text.push_str(&format!("| {what} | {value} |\n"));
    }
    if !facts.notices.is_empty() {
        text.push_str("\n## To know\n\n");
        facts.notices.iter().for_each(|notice| text.push_str(&format!("- {notice}.\n")));
    }
    text.push_str(&format!("\n## Loading\n\n{}\n", note(request.format)));
    if facts.obstacle.is_none() {
        text.push_str(&format!("\n```python\n{}```\n", load(facts)));
    }
    text.push_str("\n## Settings\n\n");
    match &from.job {
        Some(job) => text.push_str(&format!("```toml\n{}\n```\n", job.trim_end())),
        None => text.push_str("Not recorded: the checkpoint was read without its run directory.\n"),
    }
    text
}

/// What to know before loading.
const fn note(format: Format) -> &'static str {
    match format {
        Format::Safetensors => {
            "Names: `backbone.*` (torchvision's ResNet), `neck.*` (feature pyramid, a batch norm after every convolution), \
             `projector.*`. Pictures are RGB in 0..1, normalised with ImageNet's mean and deviation."
        }
        Format::Torchvision | Format::Timm => {
            "The backbone, without a classifier. Pictures are RGB in 0..1, normalised with ImageNet's mean and deviation."
        }
        Format::TorchvisionFpn => {
            "Backbone and feature pyramid. The pyramid's norms are folded into its convolutions (running statistics, \
             epsilon 1e-5, computed in f64), so outputs are those of evaluation. Pictures are RGB in 0..1, normalised \
             with ImageNet's mean and deviation."
        }
        Format::Detectron2 => {
            "Backbone, pyramid and the four convolutions of the box head, as the official converter names them; \
             Detectron2 matches names by their endings. The configuration beside this file has the settings that \
             these weights need: RGB, mean and deviation, stride in the 3x3 convolution, SyncBN."
        }
        Format::Mmdet => {
            "Backbone, neck and the shared convolutions of the box head. The configuration beside this file is to be \
             put on top of a Mask R-CNN base configuration of MMDetection 3."
        }
    }
}

/// A few lines of Python that load the file.
fn load(facts: &Facts<'_>) -> String {
    let name = &facts.weights.name;
    let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
    let (file, yaml, python) = (quoted(name), quoted(&format!("{stem}.yaml")), quoted(&format!("{stem}.py")));
    let network =
        facts.architecture.depth.map_or_else(|| "resnet50".to_owned(), |depth| format!("resnet{depth}"));
    let state = if facts.request.format == Format::Safetensors || name.ends_with(".safetensors") {
        format!("from safetensors.torch import load_file\nstate = load_file({file})\n")
    } else {
        format!("state = torch.load({file}, weights_only=True)\n")
    };
    const STRICT: &str = "model.load_state_dict(state, strict=True)\n";
    match facts.request.format {
        Format::Safetensors => state,
        Format::Torchvision => format!(
            "import torch, torchvision\n{state}model = torchvision.models.{network}()\n\
             model.fc = torch.nn.Identity()\n{STRICT}",
        ),
        Format::TorchvisionFpn => format!(
            "import torch\nfrom torchvision.models.detection.backbone_utils import resnet_fpn_backbone\n{state}\
             model = resnet_fpn_backbone(backbone_name=\"{network}\", weights=None, trainable_layers=5)\n{STRICT}",
        ),
        Format::Timm => {
            format!(
                "import timm, torch\n{state}model = timm.create_model(\"{network}\", num_classes=0)\n{STRICT}"
            )
        }
        Format::Detectron2 => format!(
            "from detectron2.config import get_cfg\nfrom detectron2.checkpoint import DetectionCheckpointer\n\
             from detectron2.modeling import build_model\ncfg = get_cfg()\ncfg.merge_from_file({yaml})\n\
             model = build_model(cfg)\nDetectionCheckpointer(model).load({file})\n",
        ),
        Format::Mmdet => format!(
            "from mmengine.config import Config\nfrom mmdet.registry import MODELS\n\
             from mmdet.utils import register_all_modules\nregister_all_modules()\n\
             model = MODELS.build(Config.fromfile({python}).model)\nmodel.init_weights()\n",
        ),
    }
}
