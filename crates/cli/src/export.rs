//! `mcl checkpoint export` and `mcl checkpoint import`: files in, files out.

use crate::arguments::{Encoder, ExportArguments, Format, ImportArguments};
use crate::checkpoint::newest;
use crate::exit::Usage;
use crate::progress::Work;
use crate::run_dir;
use anyhow::{Context, Result};
use mcl_checkpoint_core::{CheckpointDir, Manifest};
use mcl_export::{ExportError, ExportRequest, ExportedFile, Provenance, Role, publish};
use mcl_terminal::{has_json_log, say, tell};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What this program calls itself in a card.
const EXPORTER: &str = concat!("mcl ", env!("CARGO_PKG_VERSION"));

impl From<Format> for mcl_export::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::Safetensors => Self::Safetensors,
            Format::Torchvision => Self::Torchvision,
            Format::TorchvisionFpn => Self::TorchvisionFpn,
            Format::Detectron2 => Self::Detectron2,
            Format::Mmdet => Self::Mmdet,
            Format::Timm => Self::Timm,
        }
    }
}

impl From<Encoder> for mcl_export::Encoder {
    fn from(encoder: Encoder) -> Self {
        match encoder {
            Encoder::Momentum => Self::Momentum,
            Encoder::Online => Self::Online,
        }
    }
}

pub(crate) async fn export(a: &ExportArguments) -> Result<ExitCode> {
    let format = mcl_export::Format::from(a.format);
    let encoder = a.encoder.map_or(format.default_encoder(), Into::into);
    let file_name = name_of(&a.out)?;
    let dir = CheckpointDir::at(&a.path).await?;
    let work = async {
        let step = newest(&dir, &a.path).await?;
        Ok::<_, anyhow::Error>((step, dir.tensors(step).await?))
    };
    let (step, (manifest, tensors)) = Work::some_bytes("read").during(|| dir.bytes_read(), work).await?;
    let provenance = provenance(a.path.folder(), &manifest)?;
    let request = ExportRequest { format, encoder, file_name, provenance: &provenance };
    let exported = mcl_export::export(&request, &tensors).map_err(|error| match error {
        ExportError::Extension { .. } => anyhow::Error::new(Usage(format!("--out {error}"))),
        other => anyhow::Error::new(other).context(format!("exporting the checkpoint of {step}")),
    })?;
    let written = publish(a.out.parent().unwrap_or(Path::new(".")), &exported.files, a.force)?;
    for notice in &exported.notices {
        if has_json_log() {
            tracing::warn!("{notice}");
        } else {
            tell!("warning: {notice}");
        }
    }
    if a.json {
        let paths: Vec<String> = written.iter().map(|p| p.display().to_string()).collect();
        let answer = serde_json::json!({
            "format": format.name(), "encoder": encoder.name(), "steps": step.get(), "files": paths,
            "notices": exported.notices,
        });
        say!("{answer}")?;
    } else {
        for path in &written {
            say!("{}", path.display())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The last part of a path, as text.
fn name_of(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        Usage(format!("--out {}: expected the name of a file, in UTF-8", path.display())).into()
    })
}

/// What is known of a checkpoint; of the run directory around it, where there is one, also job and loss.
fn provenance(path: Option<&Path>, manifest: &Manifest) -> Result<Provenance> {
    let folder = path.map(run_dir::around).transpose()?.flatten();
    let steps = manifest.step.get();
    let (job, last_loss) = match folder {
        Some(folder) => {
            let metrics = run_dir::metrics(&folder).unwrap_or_default();
            let last = metrics.iter().rev().find(|m| Some(m.step) == steps.checked_sub(1));
            let job = folder.join(run_dir::JOB);
            let text = std::fs::read_to_string(&job).with_context(|| job.display().to_string())?;
            (Some(text), last.and_then(|m| m.loss))
        }
        None => (None, None),
    };
    Ok(Provenance {
        run: manifest.run_id.as_str().to_owned(),
        steps,
        state_digest: manifest.state_digest.to_string(),
        builder: manifest.builder.clone(),
        exporter: EXPORTER.to_owned(),
        created: manifest.created,
        meta: manifest.meta.clone(),
        job,
        last_loss,
    })
}

pub(crate) fn import(a: &ImportArguments) -> Result<ExitCode> {
    let work = Work::some_bytes("read");
    let bytes = std::fs::read(&a.file).with_context(|| format!("reading {}", a.file.display()))?;
    work.is_at(bytes.len() as u64);
    let imported = mcl_export::import(&bytes).with_context(|| a.file.display().to_string())?;
    drop(work);
    let out = destination(&a.file, &a.out)?;
    let (name, role) = (name_of(&out)?.to_owned(), Role::Weights);
    let file = ExportedFile { name, role, bytes: imported.to_safetensors()? };
    publish(out.parent().unwrap_or(Path::new(".")), &[file], false)?;
    if a.json {
        say!("{}", as_json(&out, &imported))?;
    } else {
        say!("{}", out.display())?;
        say!("{} tensors, named as {}", imported.tensors.len(), imported.naming.name())?;
        if imported.widened > 0 {
            say!("{} of them widened to f32 or i64, exactly", imported.widened)?;
        }
        if imported.counters > 0 {
            say!("{} norms had no count of batches: it begins at 0", imported.counters)?;
        }
        for left in &imported.left_out {
            let first = left.names.first().map_or("", String::as_str);
            say!("left out: {} tensors such as {first}: {}", left.names.len(), left.why)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The file that an import writes; never the one that it reads, nor one that nobody named.
fn destination(file: &Path, out: &Path) -> Result<PathBuf> {
    let in_folder = out.is_dir();
    let path = if in_folder {
        out.join(file.file_stem().unwrap_or_default()).with_added_extension("safetensors")
    } else {
        out.to_owned()
    };
    let Ok(there) = std::fs::metadata(&path) else { return Ok(path) };
    let read = std::fs::metadata(file).with_context(|| file.display().to_string())?;
    if (there.dev(), there.ino()) == (read.dev(), read.ino()) {
        return Err(Usage(format!(
            "--out {} would replace the file that is read: name another",
            path.display()
        ))
        .into());
    }
    if in_folder {
        return Err(Usage(format!(
            "--out {}: {} is there already: name a file",
            out.display(),
            path.display()
        ))
        .into());
    }
    Ok(path)
}

fn as_json(out: &Path, imported: &mcl_export::Imported) -> serde_json::Value {
    let left: Vec<_> =
        imported.left_out.iter().map(|l| serde_json::json!({ "why": l.why, "names": l.names })).collect();
    serde_json::json!({
        "file": out, "naming": imported.naming.name(), "tensors": imported.tensors.len(),
        "widened": imported.widened, "counters": imported.counters, "left_out": left,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use mcl_checkpoint_core::{CheckpointStore, CommitSpec, Dtype, Layout, SliceSpec, write_slice};
    use mcl_types::{RunId, Step};

    /// A run directory with one checkpoint, of 2 steps, of the smallest network.
    async fn run_directory(folder: &Path) -> Result<()> {
        std::fs::write(folder.join(run_dir::JOB), "[data]\nsource = \"x\"\n")?;
        let row = |step, loss| format!("{{\"step\":{step},\"loss\":{loss},\"images_per_s\":1.0}}\n");
        std::fs::write(folder.join("metrics.jsonl"), [row(0, 3.5), row(1, 2.5), row(2, 1.5)].concat())?;
        let mut tensors = Vec::new();
        for encoder in ["encoder_q", "encoder_k"] {
            let byte: &'static [u8] = if encoder == "encoder_q" { &[1; 12] } else { &[2; 12] };
            tensors.push((format!("{encoder}.0.conv1.weight"), Dtype::F32, vec![1, 3, 1, 1], byte));
            for level in 0..4 {
                let name = format!("{encoder}.1.lateral_convs.{level}.conv.weight");
                tensors.push((name, Dtype::F32, vec![1, 1, 1, 1], &byte[..4]));
            }
        }
        let slice = Bytes::from(write_slice(&tensors)?);
        let store = CheckpointStore::local(folder.join("checkpoints"), Layout::Flat)?;
        let (run, step, slices) = (RunId::new("demo")?, Step::new(2), 1);
        let size = slice.len() as u64;
        store.stage_slice(SliceSpec { run: run.clone(), step, slice: 0, slices, size }, slice).await?;
        let meta = serde_json::json!({ "dataset_digest": "pictures" });
        store.commit(&CommitSpec { run, step, slices, created: 7, meta }).await?;
        Ok(())
    }

    fn arguments(path: &Path, out: &Path, format: Format) -> ExportArguments {
        ExportArguments {
            path: path.into(),
            out: out.to_owned(),
            format,
            encoder: None,
            force: false,
            json: false,
        }
    }

    #[tokio::test]
    async fn an_export_knows_its_run_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        run_directory(folder.path()).await.unwrap();
        let out = folder.path().join("mcl.pkl");
        export(&arguments(folder.path(), &out, Format::Detectron2)).await.unwrap();
        let text = std::fs::read_to_string(folder.path().join("mcl.pkl.card.json")).unwrap();
        let card: serde_json::Value = serde_json::from_str(&text).unwrap();
        // Step 1 is the last one before the state after 2 steps.
        assert_eq!(card["run"]["last_loss"], 2.5);
        assert_eq!(card["run"]["data_digest"], "pictures");
        assert_eq!(card["config"]["data"]["source"], "x");
        assert_eq!(card["encoder"], "online");
        assert!(folder.path().join("mcl.yaml").is_file() && folder.path().join("mcl.pkl.card.md").is_file());

        let back = ImportArguments { file: out, out: folder.path().to_owned(), json: false };
        import(&back).unwrap();
        let bytes = std::fs::read(folder.path().join("mcl.safetensors")).unwrap();
        let view = mcl_checkpoint_core::SliceView::parse(&bytes).unwrap();
        assert_eq!(view.get("backbone.conv1.weight").unwrap().bytes, [1; 12]);
        assert_eq!(view.len(), 1, "a pyramid without norms is not this network's");

        // Neither what is read nor what lies there is replaced unasked.
        let read = folder.path().join("mcl.safetensors");
        for (file, out, expected) in [
            (&read, folder.path(), "would replace the file that is read"),
            (&read, read.as_path(), "would replace the file that is read"),
            (&back.file, folder.path(), "is there already: name a file"),
        ] {
            let again = ImportArguments { file: file.clone(), out: out.to_owned(), json: false };
            let error = import(&again).unwrap_err();
            assert!(error.is::<Usage>() && error.to_string().contains(expected), "{error}");
        }
        assert_eq!(std::fs::read(&read).unwrap(), bytes);
        let named = ImportArguments { file: back.file, out: read, json: false };
        import(&named).unwrap();
    }

    #[tokio::test]
    async fn an_edited_configuration_is_kept_unless_forced() {
        let folder = tempfile::tempdir().unwrap();
        run_directory(folder.path()).await.unwrap();
        let (out, config) = (folder.path().join("mcl.pth"), folder.path().join("mcl.py"));
        let mut arguments = arguments(folder.path(), &out, Format::Mmdet);
        export(&arguments).await.unwrap();
        std::fs::write(&config, "mine").unwrap();
        let error = format!("{:#}", export(&arguments).await.unwrap_err());
        assert!(error.contains("mcl.py") && error.contains("--force"), "{error}");
        assert_eq!(std::fs::read(&config).unwrap(), b"mine");
        arguments.force = true;
        export(&arguments).await.unwrap();
        assert_ne!(std::fs::read(&config).unwrap(), b"mine");
    }

    #[tokio::test]
    async fn without_a_run_directory_the_card_says_what_is_not_known() {
        let folder = tempfile::tempdir().unwrap();
        run_directory(folder.path()).await.unwrap();
        std::fs::remove_file(folder.path().join(run_dir::JOB)).unwrap();
        let out = folder.path().join("weights.safetensors");
        export(&arguments(&folder.path().join("checkpoints/step-0000000002"), &out, Format::Safetensors))
            .await
            .unwrap();
        let card = std::fs::read_to_string(folder.path().join("weights.safetensors.card.md")).unwrap();
        assert!(card.contains("| last loss | not recorded |"), "{card}");
        let bytes = std::fs::read(&out).unwrap();
        let view = mcl_checkpoint_core::SliceView::parse(&bytes).unwrap();
        assert_eq!(view.get("backbone.conv1.weight").unwrap().bytes, [2; 12], "the momentum encoder");
    }

    #[tokio::test]
    async fn a_name_that_does_not_fit_the_format_is_usage_and_writes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        run_directory(folder.path()).await.unwrap();
        let out = folder.path().join("mcl.bin");
        let error = export(&arguments(folder.path(), &out, Format::Mmdet)).await.unwrap_err();
        assert!(error.is::<Usage>(), "{error}");
        assert!(error.to_string().contains("--out `mcl.bin` does not end in .pth"), "{error}");
        assert!(!out.exists());
        let no_weights = ImportArguments {
            file: folder.path().join(run_dir::JOB),
            out: folder.path().join("x.safetensors"),
            json: false,
        };
        let error = format!("{:#}", import(&no_weights).unwrap_err());
        assert!(error.contains("job.toml") && error.contains("expected a safetensors file"), "{error}");
    }
}
