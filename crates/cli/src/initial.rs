//! `--from`: the state that a new run begins with.
//!
//! It is read here, and stored as the run's checkpoint of step 0, so that ranks need no path of this machine and
//! get verified bytes. It holds weights and their running statistics; optimiser, schedule and step begin anew.

use crate::exit::Usage;
use crate::run_dir;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use mcl_checkpoint::{CheckpointClient, ClientError, Draft};
use mcl_checkpoint_core::{CheckpointDir, Dtype, OwnedTensor, SliceView, digest_state, write_slice};
use mcl_config::Job;
use mcl_export::PARTS;
use mcl_transport::Identity;
use mcl_types::{Digest, FencingToken, Retention, RunId, Step, StoreLocation, Tier};
use std::collections::BTreeMap;
use std::path::Path;

/// Tensors by their name in a state.
type Weights = BTreeMap<String, OwnedTensor>;

/// What a state holds besides weights.
const NO_WEIGHTS: [&str; 2] = ["optimizer.", "trainer."];

/// Stores what is at `from` as the first checkpoint of a run; its digest. A run that has begun already keeps what it
/// has, and this must be what it began with.
pub(crate) async fn store(
    from: &StoreLocation,
    run_id: &RunId,
    job: &Job,
    checkpoint_url: &str,
    identity: Option<&Identity>,
) -> Result<Digest> {
    let weights = read(from, job).await?;
    let tensors: Vec<_> =
        weights.iter().map(|(n, t)| (n.clone(), t.dtype, t.shape.clone(), t.bytes.as_slice())).collect();
    let slice = Bytes::from(write_slice(&tensors).with_context(|| from.to_string())?);
    let digest = digest_state(&[SliceView::parse(&slice)?])?;
    let client = CheckpointClient::lazy(checkpoint_url, identity)?;
    // No coordinator speaks for the run yet; once one does, this token is refused.
    let (token, first) = (FencingToken::default(), Step::new(0));
    let meta = serde_json::json!({ "run_id": run_id.as_str(), "step": 0, "from": from }).to_string();
    let draft = Draft { token, run: run_id, step: first, slices: 1, tier: Tier::Durable };
    let stored = match client.put_slice(draft, 0, slice).await {
        Ok(()) => client.commit(draft, &meta, Retention::ALL).await.map(drop),
        Err(error) => Err(error),
    };
    match stored {
        Ok(()) => Ok(digest),
        Err(ClientError::Fenced { .. }) => {
            tracing::info!(run = %run_id, "the run has begun already");
            began_with(&client, run_id, digest).await.map(|()| digest)
        }
        Err(ClientError::Conflict { .. }) => Err(other_state(run_id, None)),
        Err(error) => Err(error.into()),
    }
}

/// That a run which has begun did so with the state `ours`. A coordinator with a fresh journal has nothing to compare
/// it with: it would take what lies at step 0.
async fn began_with(client: &CheckpointClient, run_id: &RunId, ours: Digest) -> Result<()> {
    match client.manifest(run_id, Step::new(0)).await {
        Ok(manifest) if manifest.state_digest == ours => Ok(()),
        Ok(manifest) => Err(other_state(run_id, Some(manifest.state_digest))),
        Err(ClientError::NotFound { .. }) => {
            // Retention takes step 0 only where a later one is kept. Then the journal says what the run began with,
            // and without a journal nothing covers the later ones: the coordinator ends such a run.
            let list = client.list(run_id).await?;
            if list.visible.iter().any(|c| c.tier == Tier::Durable) || !list.damaged.is_empty() {
                return Ok(());
            }
            bail!(
                "run `{run_id}` has begun without --from: submit without it to continue the run, or under another \
                 name to begin anew"
            )
        }
        Err(error) => Err(error).context(format!(
            "what run `{run_id}` began with cannot be compared with --from: submit without it to continue the run"
        )),
    }
}

fn other_state(run_id: &RunId, found: Option<Digest>) -> anyhow::Error {
    let found = found.map_or_else(|| "another state".to_owned(), |d| format!("the state {}", d.short()));
    anyhow::anyhow!(
        "run `{run_id}` began with {found}, not with that of --from: submit without --from to continue it, or under \
         another name to begin anew"
    )
}

async fn read(from: &StoreLocation, job: &Job) -> Result<Weights> {
    if let Some(file) = from.folder().filter(|f| f.is_file()) {
        return exported(file);
    }
    let dir = CheckpointDir::at(from).await.map_err(|e| {
        Usage(format!(
            "--from {e}, or a safetensors file that `mcl checkpoint export` or `mcl checkpoint import` wrote"
        ))
    })?;
    if let Some(folder) = from.folder() {
        same_model(folder, job)?;
    }
    let Some(step) = dir.newest().await? else {
        bail!(Usage(format!("--from {from}: no good checkpoint is there")));
    };
    let (_, mut tensors) = dir.tensors(step).await?;
    tensors.retain(|name, _| !NO_WEIGHTS.iter().any(|p| name.starts_with(p)));
    Ok(tensors)
}

/// Names of both encoders and the predictors, as a state has them.
const WHOLE: [&str; 3] = ["encoder_q.", "encoder_k.", "head."];

/// What a tensor of a file is called in a state. An exported encoder is where both encoders begin; a file of both, and
/// of predictors, is a state already.
fn names_in_state(name: &str) -> Option<Vec<String>> {
    if WHOLE.iter().any(|p| name.starts_with(p)) {
        return Some(vec![name.to_owned()]);
    }
    let own = PARTS.iter().find_map(|(part, own)| Some(format!("{own}{}", name.strip_prefix(part)?)))?;
    Some(["encoder_q", "encoder_k"].map(|encoder| format!("{encoder}.{own}")).to_vec())
}

/// A file that `mcl checkpoint export` or `mcl checkpoint import` wrote.
fn exported(from: &Path) -> Result<Weights> {
    let usage = |text: String| Usage(format!("--from {}: {text}", from.display()));
    let bytes = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    let view = SliceView::parse(&bytes).map_err(|e| {
        usage(format!(
            "{e}; expected a safetensors file (`mcl checkpoint import` makes one of a .pth or .pkl)"
        ))
    })?;
    let mut weights = Weights::new();
    for (name, tensor) in view.tensors() {
        let Some(names) = names_in_state(name) else {
            bail!(usage(format!(
                "tensor `{name}`: expected names that begin with backbone., neck. or projector., or with encoder_q., encoder_k. or head.; `mcl checkpoint import` renames those of other tools"
            )));
        };
        if !matches!(tensor.dtype, Dtype::F32 | Dtype::F64 | Dtype::BF16 | Dtype::I64) {
            bail!(usage(format!(
                "tensor `{name}` has type {}: expected f32, f64, bf16 or i64",
                tensor.dtype
            )));
        }
        for own in names {
            let (shape, bytes) = (tensor.shape.clone(), tensor.bytes.to_vec());
            if weights.insert(own, OwnedTensor { dtype: tensor.dtype, shape, bytes }).is_some() {
                bail!(usage(format!(
                    "tensor `{name}` is given twice: expected either backbone., neck., projector. or encoder_q., encoder_k."
                )));
            }
        }
    }
    if weights.is_empty() {
        bail!(usage("the file holds no tensor".to_owned()));
    }
    Ok(weights)
}

/// Where the other run's job lies beside its checkpoints, models can be compared before anything is started.
fn same_model(from: &Path, job: &Job) -> Result<()> {
    let Some(folder) = run_dir::around(from)? else { return Ok(()) };
    let theirs = run_dir::job_of(&folder)?;
    if theirs.model() != job.model() {
        bail!(Usage(format!(
            "--from {}: that run has another model: {:?}, this job has {:?}; make the [model] sections equal",
            from.display(),
            theirs.model(),
            job.model()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_checkpoint::{Layout, ServeConfig, serve};
    use mcl_types::Term;

    /// A checkpoint service of one test, and files to begin with.
    struct Service {
        folder: tempfile::TempDir,
        url: String,
        run: RunId,
    }

    impl Service {
        async fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let config = ServeConfig::new(folder.path().join("checkpoints"), Layout::Flat);
            tokio::spawn(serve(listener, config, std::future::pending()));
            Self { folder, url, run: RunId::new("demo").unwrap() }
        }

        /// What `--from` says to a file of one tensor of these bytes.
        async fn from(&self, byte: u8) -> Result<Digest> {
            let path = self.folder.path().join(format!("{byte}.safetensors"));
            let tensor = ("backbone.conv1.weight".to_owned(), Dtype::F32, vec![1], &[byte; 4][..]);
            std::fs::write(&path, write_slice(&[tensor])?)?;
            let job = Job::parse("[data]\nsource = \"x\"\n[train]\nsteps = 1\n", "job.toml")?;
            store(&path.into(), &self.run, &job, &self.url, None).await
        }

        async fn refuses(&self, byte: u8) -> String {
            self.from(byte).await.unwrap_err().to_string()
        }

        /// From here on only a coordinator may write.
        async fn begin(&self) -> CheckpointClient {
            let client = CheckpointClient::lazy(&self.url, None).unwrap();
            client.announce_term(&self.run, Term::new(1), 0).await.unwrap();
            client
        }

        /// The run's checkpoint after `step` steps, the only one to stay.
        async fn save(&self, client: &CheckpointClient, step: u64) {
            let token = FencingToken { term: Term::new(1), ..FencingToken::default() };
            let draft =
                Draft { token, run: &self.run, step: Step::new(step), slices: 1, tier: Tier::Durable };
            let slice = write_slice(&[("w".to_owned(), Dtype::F32, vec![1], &[9; 4][..])]).unwrap();
            client.put_slice(draft, 0, slice.into()).await.unwrap();
            client.commit(draft, "{}", Retention::newest(1)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_run_that_has_begun_is_compared_with_its_first_checkpoint() {
        let service = Service::start().await;
        let first = service.from(1).await.unwrap();
        assert!(service.refuses(2).await.contains("`demo` began with another state"));
        let client = service.begin().await;
        assert_eq!(service.from(1).await.unwrap(), first);
        let other = service.refuses(2).await;
        assert!(
            other.contains("`demo` began with the state") && other.contains("under another name"),
            "{other}"
        );
        // Once it is pruned, the coordinator's journal alone knows.
        service.save(&client, 5).await;
        assert!(matches!(
            client.manifest(&service.run, Step::new(0)).await,
            Err(ClientError::NotFound { .. })
        ));
        assert_eq!(service.from(1).await.unwrap(), first);
    }

    #[tokio::test]
    async fn a_run_that_has_begun_with_its_seed_is_told_so() {
        let service = Service::start().await;
        service.begin().await;
        let error = service.refuses(1).await;
        assert!(error.contains("`demo` has begun without --from"), "{error}");
    }

    fn read(tensors: &[&str]) -> Result<Weights> {
        let one = |name: &&str| ((*name).to_owned(), Dtype::F32, vec![1], &[7_u8; 4][..]);
        let tensors: Vec<_> = tensors.iter().map(one).collect();
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("weights.safetensors");
        std::fs::write(&path, write_slice(&tensors)?)?;
        exported(&path)
    }

    fn names(weights: &Weights) -> Vec<&str> {
        weights.keys().map(String::as_str).collect()
    }

    #[test]
    fn an_encoder_is_where_both_begin_and_a_state_is_a_state() {
        let encoder = read(&["backbone.conv1.weight", "projector.mlp.0.bias"]).unwrap();
        assert_eq!(
            names(&encoder),
            [
                "encoder_k.0.conv1.weight",
                "encoder_k.2.mlp.0.bias",
                "encoder_q.0.conv1.weight",
                "encoder_q.2.mlp.0.bias"
            ]
        );
        let own = ["encoder_k.0.conv1.weight", "encoder_q.0.conv1.weight", "head.predictor.0.mlp.0.bias"];
        assert_eq!(names(&read(&own).unwrap()), own);
    }

    #[test]
    fn other_names_and_both_at_once_are_refused() {
        let foreign = read(&["conv1.weight"]).unwrap_err().to_string();
        assert!(foreign.contains("`conv1.weight`") && foreign.contains("checkpoint import"), "{foreign}");
        let twice = read(&["backbone.conv1.weight", "encoder_q.0.conv1.weight"]).unwrap_err().to_string();
        assert!(twice.contains("twice"), "{twice}");
    }
}
