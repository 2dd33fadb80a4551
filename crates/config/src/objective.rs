//! Defaults that an objective has of its own: what its authors published, where that differs from MCL's.

use crate::sections::Objective;
use toml::{Table, Value};

/// Of one key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ObjectiveDefault {
    pub(crate) section: &'static str,
    pub(crate) key: &'static str,
    /// As in a job file.
    pub(crate) value: &'static str,
    /// Where the value is from.
    pub(crate) source: &'static str,
}

const fn of(
    section: &'static str,
    key: &'static str,
    value: &'static str,
    source: &'static str,
) -> ObjectiveDefault {
    ObjectiveDefault { section, key, value, source }
}

const PAPER: &str = "arXiv 2003.04297, section 3";
const CODE: &str = "the published code's defaults for v2";

/// MoCo v2: the paper, and the published code where that alone says it.
const MOCO: [ObjectiveDefault; 25] = [
    of("augment", "blur_p_q", "0.5", CODE),
    of("augment", "blur_p_k", "0.5", CODE),
    of("augment", "solarize_p_k", "0.0", CODE),
    of("augment.jitter", "brightness", "0.4", CODE),
    of("augment.jitter", "contrast", "0.4", CODE),
    of("augment.jitter", "saturation", "0.4", CODE),
    of("augment.jitter", "hue", "0.1", CODE),
    of("model", "projector_hidden", "2048", PAPER),
    of("model", "embedding", "128", CODE),
    of("method", "temperature", "0.2", PAPER),
    of("method", "levels", "[1]", "no pyramid"),
    of("method", "level_weights", "[1.0]", "no pyramid"),
    of("method", "base_momentum", "0.999", "arXiv 1911.05722, section 3.3"),
    of("method", "end_momentum", "0.999", "arXiv 1911.05722, section 3.3"),
    of("method", "norm", "\"lane\"", "arXiv 1911.05722, section 3.3: shuffled batch norm"),
    of("batch", "lanes", "8", "arXiv 1911.05722, section 3.3: 256 pictures on 8 GPUs"),
    of("batch", "images_per_lane", "32", "arXiv 1911.05722, section 3.3: 256 pictures on 8 GPUs"),
    of("optimizer", "kind", "\"sgd\"", CODE),
    of("optimizer", "lr", "0.03", CODE),
    of("optimizer", "min_lr", "0.0", PAPER),
    of("optimizer", "warmup_steps", "0", CODE),
    of("optimizer", "warmup_ratio", "1.0", CODE),
    of("optimizer", "weight_decay", "1e-4", CODE),
    of("optimizer", "momentum", "0.9", CODE),
    of("optimizer", "clip_norm", "0.0", CODE),
];

impl Objective {
    /// Defaults that differ from those of the sections; none where they are the objective's own.
    pub(crate) const fn defaults(self) -> &'static [ObjectiveDefault] {
        match self {
            Self::Mcl | Self::MclSupervised => &[],
            Self::MocoV2 => &MOCO,
        }
    }
}

/// Sets what `file` leaves open to the objective's defaults.
pub(crate) fn fill(file: &mut Table, objective: Objective) -> Result<(), toml::de::Error> {
    for default in objective.defaults() {
        let mut table = &mut *file;
        for part in default.section.split('.') {
            let entry = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            match entry {
                Value::Table(inner) => table = inner,
                // Of the wrong type: reading the file says so.
                _ => return Ok(()),
            }
        }
        if !table.contains_key(default.key) {
            let mut value: Table = toml::from_str(&format!("v = {}", default.value))?;
            if let Some(value) = value.remove("v") {
                table.insert(default.key.to_owned(), value);
            }
        }
    }
    Ok(())
}
