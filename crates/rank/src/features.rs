//! The feature maps of one picture, as a file: for a look at them, and to compare with another program's.

use crate::frozen::{self, FrozenArguments, Which};
use crate::pictures;
use anyhow::{Context, Result};
use clap::Args;
use mcl_data::{Limits, decode};
use mcl_model::{FrozenBatchNorm, Model, Pass};
use mcl_terminal::{say, tell};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tch::{Tensor, no_grad};

#[derive(Debug, Args)]
pub(crate) struct FeaturesArguments {
    #[command(flatten)]
    weights: FrozenArguments,
    /// The picture; its sides are rounded up to whole cells of the coarsest map (32 pixels).
    #[arg(long)]
    picture: PathBuf,
    /// The safetensors file to write: `picture` as the network saw it, `c2` .. `c5`, and `p2` .. `p5` where there is a
    /// pyramid.
    #[arg(long)]
    out: PathBuf,
    /// Answer as one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(a: &FeaturesArguments) -> Result<()> {
    let (_, model) = frozen::load(&a.weights)?;
    if let Some(warning) = warning(&model, a.weights.encoder)? {
        tell!("warning: {warning}");
    }
    let maps = no_grad(|| maps(&model, a.weights.encoder, input(&a.picture)?))?;
    write(&maps, &a.out)?;
    if a.json {
        let shapes: serde_json::Map<_, _> =
            maps.iter().map(|(name, map)| (name.clone(), map.size().into())).collect();
        say!("{}", serde_json::json!({ "file": a.out, "maps": shapes }))?;
        return Ok(());
    }
    for (name, map) in &maps {
        say!("{name:<8} {:?}", map.size())?;
    }
    Ok(())
}

/// What is wrong with maps that went through norms which never saw data.
fn warning(model: &Model, which: Which) -> Result<Option<String>> {
    let unseen = frozen::unseen(model, which)?;
    Ok(unseen.first().map(|first| {
        format!(
            "{} norms such as {first} never saw data, so maps behind them are not normalised{}",
            unseen.len(),
            which.whole_pyramid()
        )
    }))
}

/// A picture file as the network sees it: [1, 3, H, W].
fn input(file: &Path) -> Result<Tensor> {
    let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let picture = decode(&bytes, Limits::default()).with_context(|| file.display().to_string())?;
    Ok(pictures::network_input(&picture, None)?.0)
}

/// The input and every map, by name: C2..C5 [1, C, H/4, W/4] .. [1, 8C, H/32, W/32], P2..P5 [1, F, H/4, W/4] ..
fn maps(model: &Model, which: Which, picture: Tensor) -> Result<Vec<(String, Tensor)>> {
    let encoder = which.of(model);
    let pass = Pass::new(&FrozenBatchNorm, model.buffers());
    let input = [picture];
    let stages = encoder.backbone().forward(&input, &pass)?;
    let outputs = match encoder.fpn() {
        Ok(fpn) => fpn.forward(&stages, 0, &pass)?,
        // A backbone without a pyramid has none.
        Err(_) => [None, None, None, None],
    };
    let stages = stages.into_iter().zip(2..).map(|([map], n)| (format!("c{n}"), map));
    let mut maps: Vec<(String, Tensor)> = stages.collect();
    let outputs = outputs.into_iter().zip(2..).filter_map(|(map, n)| Some((map?, n)));
    maps.extend(outputs.map(|([map], n)| (format!("p{n}"), map)));
    let [picture] = input;
    maps.push(("picture".to_owned(), picture));
    Ok(maps)
}

/// Whole or not at all.
fn write(maps: &[(String, Tensor)], file: &Path) -> Result<()> {
    let folder = file.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let draft = tempfile::Builder::new()
        .suffix(".safetensors")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .with_context(|| format!("making a file in {}", folder.display()))?;
    let contiguous: Vec<(&str, Tensor)> =
        maps.iter().map(|(n, t)| Ok((n.as_str(), t.f_contiguous()?))).collect::<Result<_>>()?;
    Tensor::write_safetensors(&contiguous, draft.path())?;
    draft.persist(file).with_context(|| format!("writing {}", file.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_model::{ModelConfig, ModelSpec};
    use tch::{Device, Kind};

    #[test]
    fn norms_that_never_saw_data_are_said() {
        let config =
            ModelConfig { depth: 18, width: 8, fpn_channels: 8, image_size: 64, ..ModelConfig::default() };
        let spec = ModelSpec::new(config).unwrap();
        let model = Model::new(spec, Kind::Float, Device::Cpu).unwrap();
        let said = warning(&model, Which::Momentum).unwrap().unwrap();
        assert!(said.contains("encoder_k.") && said.contains("--encoder online"), "{said}");
        for (name, tensor) in model.state() {
            if name.ends_with("num_batches_tracked")
                && name != "encoder_q.1.fpn_convs.0.bn.num_batches_tracked"
            {
                let _ = tensor.shallow_clone().fill_(1);
            }
        }
        assert_eq!(warning(&model, Which::Momentum).unwrap(), None);
        let said = warning(&model, Which::Online).unwrap().unwrap();
        assert!(said.starts_with("1 norms such as encoder_q.1.fpn_convs.0.bn never"), "{said}");
    }

    #[test]
    fn maps_have_their_strides_and_come_back_from_the_file() {
        let config =
            ModelConfig { depth: 18, width: 8, fpn_channels: 8, image_size: 64, ..ModelConfig::default() };
        let spec = ModelSpec::new(config).unwrap();
        let mut model = Model::new(spec, Kind::Float, Device::Cpu).unwrap();
        model.initialize(mcl_types::Seed::new(1)).unwrap();
        let picture = Tensor::rand([1, 3, 64, 96], (Kind::Float, Device::Cpu));
        let maps = no_grad(|| maps(&model, Which::Momentum, picture.shallow_clone())).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("maps.safetensors");
        write(&maps, &file).unwrap();
        let read = Tensor::read_safetensors(&file).unwrap();
        assert_eq!(read.len(), 9);
        for (name, map) in read {
            let [_, _, height, width] = map.size()[..] else { panic!("{name} is no map") };
            let stride = name[1..].parse().map_or(1, |n: u32| 2_i64.pow(n));
            assert_eq!((height * stride, width * stride), (64, 96), "{name}");
            let (_, own) = maps.iter().find(|(n, _)| *n == name).unwrap();
            assert!(own.equal(&map), "{name}");
        }
    }
}
