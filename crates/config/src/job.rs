//! From text, environment and flags to a [`Job`].

use crate::error::ConfigError;
use crate::sections::{
    Augment, Batch, Checkpoint, Data, Elastic, Evaluation, JobFile, Method, Model, Network, Objective,
    Optimizer, Shuffle, Train,
};
use crate::validate;
use mcl_types::{Digest, PortRange, Seed, SourceKind, StoreLocation};
use std::path::{Path, PathBuf};

/// Environment variables `MCL__SECTION__KEY=value` override the file.
pub const ENVIRONMENT_PREFIX: &str = "MCL";

/// One `section.key=value` from the command line; the last word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// `section.key`
    pub key: String,
    /// TOML value, or a bare string.
    pub value: String,
}

impl std::str::FromStr for Override {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            format!("`{text}` is no override: expected section.key=value, as in train.steps=20")
        })?;
        Ok(Self { key: key.trim().to_owned(), value: value.trim().to_owned() })
    }
}

/// A job that passed validation: what a run is.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    file: JobFile,
    store_ports: Option<PortRange>,
}

impl Job {
    /// Reads a job file, then `MCL__*` of the environment, then `overrides`; relative paths are taken from
    /// the file's folder.
    ///
    /// # Errors
    /// Whatever [`ConfigError`] names.
    pub fn load(path: &Path, overrides: &[Override]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        let origin = path.display().to_string();
        let mut file = strict(&text, &origin)?;
        anchor(&mut file, path.parent().unwrap_or(Path::new(".")));
        let mut layers = layered(file.clone(), overrides, true)?;
        if layers.method.objective != file.method.objective {
            // What decides the defaults was itself overridden.
            let mut file = filled(&text, layers.method.objective, &origin)?;
            anchor(&mut file, path.parent().unwrap_or(Path::new(".")));
            layers = layered(file, overrides, true)?;
        }
        Self::checked(layers, &text, &origin)
    }

    /// Reads a resolved job from text, without the environment.
    ///
    /// # Errors
    /// Whatever [`ConfigError`] names, with `origin` as the file.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        Self::checked(strict(text, origin)?, text, origin)
    }

    fn checked(mut file: JobFile, text: &str, origin: &str) -> Result<Self, ConfigError> {
        let invalid = |(key, message)| ConfigError::Invalid {
            origin: origin.to_owned(),
            line: line_of(text, key),
            key,
            message,
        };
        validate::check(&file).map_err(invalid)?;
        let store_ports = validate::store_ports(&file.network).map_err(invalid)?;
        if file.data.shuffle.is_none() {
            file.data.shuffle = Some(default_shuffle(&file.data.source, file.data.kind));
        }
        Ok(Self { file, store_ports })
    }

    /// The resolved job as TOML; [`Job::parse`] gives an equal job.
    ///
    /// # Errors
    /// When a path is not UTF-8 and so cannot stand in TOML.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(&self.file).map_err(|e| ConfigError::Override { message: e.to_string() })
    }

    /// Digest of everything that decides the trajectory: two runs with equal digests and data end with
    /// the same weights. Where pictures, checkpoints and machines are does not enter.
    ///
    /// # Errors
    /// As [`Job::to_toml`].
    pub fn digest(&self) -> Result<Digest, ConfigError> {
        let mut file = self.file.clone();
        file.data.source = PathBuf::new().into();
        file.data.kind = None;
        file.data.cache_dir = None;
        file.data.cache_gb = None;
        file.data.loader_threads = 1;
        file.data.queue = 1;
        file.network = Network::default();
        file.elastic = Elastic::default();
        file.checkpoint = Checkpoint::default();
        file.evaluation = Evaluation::default();
        file.train.epochs = None;
        file.train.steps = None;
        file.method.forget_what_is_not_used();
        Ok(Digest::of(Self { file, store_ports: None }.to_toml()?.as_bytes()))
    }

    /// `[data]`
    pub const fn data(&self) -> &Data {
        &self.file.data
    }
    /// `[augment]`
    pub const fn augment(&self) -> &Augment {
        &self.file.augment
    }
    /// `[model]`
    pub const fn model(&self) -> &Model {
        &self.file.model
    }
    /// `[method]`
    pub const fn method(&self) -> &Method {
        &self.file.method
    }
    /// `[batch]`
    pub const fn batch(&self) -> &Batch {
        &self.file.batch
    }
    /// `[train]`
    pub const fn train(&self) -> &Train {
        &self.file.train
    }
    /// `[optimizer]`
    pub const fn optimizer(&self) -> &Optimizer {
        &self.file.optimizer
    }
    /// `[elastic]`
    pub const fn elastic(&self) -> &Elastic {
        &self.file.elastic
    }
    /// `[network]`
    pub const fn network(&self) -> &Network {
        &self.file.network
    }
    /// Ports that the rendezvous store may listen at; none: any free one.
    pub const fn store_ports(&self) -> Option<PortRange> {
        self.store_ports
    }
    /// `[checkpoint]`
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.file.checkpoint
    }
    /// `[evaluation]`
    pub const fn evaluation(&self) -> &Evaluation {
        &self.file.evaluation
    }
    /// How an epoch is mixed.
    pub fn shuffle(&self) -> Shuffle {
        self.file.data.shuffle.unwrap_or(Shuffle::Global)
    }
    /// Seed of everything random.
    pub const fn seed(&self) -> Seed {
        Seed::new(self.file.train.seed)
    }
    /// K x N.
    pub const fn global_batch(&self) -> u64 {
        self.file.batch.lanes as u64 * self.file.batch.images_per_lane as u64
    }
    /// Steps of the whole run, given those of an epoch.
    pub fn total_steps(&self, steps_per_epoch: u64) -> u64 {
        let train = &self.file.train;
        train.steps.unwrap_or_else(|| train.epochs.unwrap_or(0).saturating_mul(steps_per_epoch))
    }
    /// Steps over which the schedules run.
    pub fn schedule_steps(&self, steps_per_epoch: u64) -> u64 {
        self.file.train.schedule_steps.unwrap_or_else(|| self.total_steps(steps_per_epoch))
    }
}

/// Windows for tar shards, however they are named.
fn default_shuffle(source: &StoreLocation, kind: Option<SourceKind>) -> Shuffle {
    match kind {
        Some(SourceKind::WebDataset | SourceKind::Tar) => return Shuffle::Windowed,
        Some(SourceKind::Folder | SourceKind::List) => return Shuffle::Global,
        Some(SourceKind::Parquet) | None => {}
    }
    let Some(source) = source.folder() else { return Shuffle::Windowed };
    let is_tar = |p: &Path| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar"));
    let holds_tars =
        || std::fs::read_dir(source).is_ok_and(|dir| dir.flatten().any(|entry| is_tar(&entry.path())));
    if is_tar(source) || holds_tars() { Shuffle::Windowed } else { Shuffle::Global }
}

fn anchor(file: &mut JobFile, folder: &Path) {
    let fix = |path: &mut PathBuf| {
        if path.is_relative() && !path.as_os_str().is_empty() {
            *path = folder.join(&*path);
        }
    };
    if let StoreLocation::Folder(source) = &mut file.data.source {
        fix(source);
    }
    if let Some(cache) = &mut file.data.cache_dir {
        fix(cache);
    }
    if let Some(StoreLocation::Folder(store)) = &mut file.checkpoint.store {
        fix(store);
    }
    let Evaluation { train, test, scenes, .. } = &mut file.evaluation;
    [train, test, scenes].into_iter().flatten().for_each(fix);
}

/// The file alone, with the defaults of its objective.
fn strict(text: &str, origin: &str) -> Result<JobFile, ConfigError> {
    let file = as_it_stands(text, origin)?;
    match file.method.objective {
        Objective::Mcl => Ok(file),
        objective => filled(text, objective, origin),
    }
}

/// What the file leaves open is `objective`'s default.
fn filled(text: &str, objective: Objective, origin: &str) -> Result<JobFile, ConfigError> {
    let wrong = |e: toml::de::Error| ConfigError::Syntax {
        origin: origin.to_owned(),
        line: 1,
        message: e.message().to_owned(),
    };
    let mut table: toml::Table = toml::from_str(text).map_err(wrong)?;
    crate::objective::fill(&mut table, objective).map_err(wrong)?;
    table.try_into().map_err(wrong)
}

/// The file with the sections' defaults, so that an error can name its line.
fn as_it_stands(text: &str, origin: &str) -> Result<JobFile, ConfigError> {
    toml::from_str(text).map_err(|e| {
        let at = e.span().map_or(0, |span| span.start).min(text.len());
        let line = text.get(..at).unwrap_or("").matches('\n').count() + 1;
        let message = e.message().to_owned();
        match message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next()) {
            Some(key) => ConfigError::UnknownKey {
                origin: origin.to_owned(),
                line,
                key: key.to_owned(),
                suggestion: nearest(key),
            },
            None => ConfigError::Syntax { origin: origin.to_owned(), line, message },
        }
    })
}

fn nearest(found: &str) -> Option<String> {
    let known = JobFile::known_keys();
    let last = |k: &str| k.rsplit('.').next().unwrap_or(k).to_owned();
    let sections = known.iter().filter_map(|k| k.split('.').next().map(str::to_owned));
    let candidates = known.iter().cloned().chain(sections);
    candidates
        .map(|k| {
            (strsim::damerau_levenshtein(found, &last(&k)).min(strsim::damerau_levenshtein(found, &k)), k)
        })
        .filter(|(distance, _)| *distance <= found.len().div_ceil(2))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, k)| k)
}

/// The file with the environment and the command line over it.
fn layered(file: JobFile, overrides: &[Override], environment: bool) -> Result<JobFile, ConfigError> {
    let wrong = |message: String| ConfigError::Override { message };
    let known = JobFile::known_keys();
    for o in overrides {
        if !known.contains(&o.key) {
            let hint = nearest(&o.key).map_or_else(String::new, |k| format!("; did you mean `{k}`?"));
            return Err(wrong(format!("unknown key `{}`{hint}", o.key)));
        }
    }
    let base = toml::to_string(&file).map_err(|e| wrong(e.to_string()))?;
    let mut builder =
        config::Config::builder().add_source(config::File::from_str(&base, config::FileFormat::Toml));
    if environment {
        builder = builder.add_source(
            config::Environment::with_prefix(ENVIRONMENT_PREFIX)
                .prefix_separator("__")
                .separator("__")
                .try_parsing(true),
        );
    }
    let mut layers = toml::Table::new();
    for o in overrides {
        insert(&mut layers, &o.key, value_of(&o.value));
    }
    let layers = toml::to_string(&layers).map_err(|e| wrong(e.to_string()))?;
    builder
        .add_source(config::File::from_str(&layers, config::FileFormat::Toml))
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(|e| wrong(e.to_string()))
}

fn value_of(text: &str) -> toml::Value {
    toml::from_str::<toml::Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

fn insert(table: &mut toml::Table, key: &str, value: toml::Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((section, rest)) => {
            let entry = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let toml::Value::Table(inner) = entry {
                insert(inner, rest, value);
            }
        }
    }
}

/// The line on which `section.key` is set in `text`.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let (section, name) = key.rsplit_once('.')?;
    let mut current = String::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[').and_then(|l| l.split(']').next()) {
            header.trim().clone_into(&mut current);
        } else if current == section && line.split('=').next().is_some_and(|k| k.trim() == name) {
            return Some(number + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "[data]\nsource = \"pictures\"\n\n[train]\nsteps = 20\n";

    #[test]
    fn resolved_job_reads_back_equal() {
        let job = Job::parse(SMALL, "small.toml").unwrap();
        let text = job.to_toml().unwrap();
        assert_eq!(Job::parse(&text, "resolved").unwrap(), job);
    }

    #[test]
    fn unknown_key_names_file_line_and_neighbour() {
        let text = SMALL.replace("steps = 20", "stepps = 20");
        let message = Job::parse(&text, "small.toml").unwrap_err().to_string();
        assert_eq!(message, "small.toml:5: unknown key `stepps`; did you mean `train.steps`?");
    }

    #[test]
    fn wrong_type_names_line() {
        let text = SMALL.replace("20", "\"many\"");
        let message = Job::parse(&text, "small.toml").unwrap_err().to_string();
        assert!(message.starts_with("small.toml:5: ") && message.contains("invalid type"), "{message}");
    }

    #[test]
    fn out_of_range_names_key_and_line() {
        let text = format!("{SMALL}[model]\ndepth = 19\n");
        let message = Job::parse(&text, "small.toml").unwrap_err().to_string();
        assert!(message.starts_with("small.toml:7: `model.depth`: "), "{message}");
    }

    #[test]
    fn overrides_win_and_unknown_ones_are_named() {
        let file = strict(SMALL, "x").unwrap();
        let set = |text: &str| layered(file.clone(), &[text.parse().unwrap()], false);
        assert_eq!(set("train.steps=7").unwrap().train.steps, Some(7));
        assert_eq!(set("optimizer.kind=adamw").unwrap().optimizer.kind, crate::OptimizerKind::AdamW);
        assert_eq!(set("method.levels=[1, 2]").unwrap().method.levels, [1, 2]);
        assert_eq!(set("augment.jitter.hue=0.5").unwrap().augment.jitter.hue, 0.5);
        let message = set("train.step=7").unwrap_err().to_string();
        assert!(message.contains("did you mean `train.steps`"), "{message}");
        assert!("train.steps".parse::<Override>().is_err());
    }

    #[test]
    fn an_objective_has_defaults_of_its_own_wherever_it_is_said() {
        let moco = Job::parse(&format!("{SMALL}[method]\nobjective = \"moco-v2\"\n"), "small.toml").unwrap();
        let method = moco.method();
        assert_eq!((method.temperature, method.base_momentum, method.queue), (0.2, 0.999, 65_536));
        assert_eq!((method.levels.as_slice(), moco.global_batch()), (&[1][..], 256));
        assert_eq!((moco.optimizer().kind, moco.optimizer().lr), (crate::OptimizerKind::Sgd, 0.03));
        assert_eq!((moco.augment().blur_p_q, moco.augment().jitter.saturation), (0.5, 0.4));
        assert_eq!(Job::parse(&moco.to_toml().unwrap(), "resolved").unwrap(), moco);

        // What the file says stands, in the section that a default would go to as well.
        let own = "[method]\nobjective = \"moco-v2\"\ntemperature = 0.07\n[augment.jitter]\nhue = 0.3\n";
        let own = Job::parse(&format!("{SMALL}{own}"), "small.toml").unwrap();
        assert_eq!((own.method().temperature, own.augment().jitter.hue), (0.07, 0.3));
        assert_eq!(own.augment().jitter.brightness, 0.4);

        // Said on the command line it is the same job; with labels the defaults are MCL's.
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("small.toml");
        std::fs::write(&file, SMALL).unwrap();
        let said = |o: &str| Job::load(&file, &[o.parse().unwrap()]).unwrap();
        let digest = |job: &Job| job.digest().unwrap();
        assert_eq!(digest(&said("method.objective=moco-v2")), digest(&moco));
        assert_eq!(said("method.objective=mcl-supervised").method().temperature, 1.0);
        let levels =
            format!("{SMALL}[method]\nobjective = \"moco-v2\"\nlevels = [1, 2]\nlevel_weights = [1, 1]\n");
        let message = Job::parse(&levels, "small.toml").unwrap_err().to_string();
        assert!(message.starts_with("small.toml:8: `method.levels`: "), "{message}");
    }

    /// Runs that older programs began are the same jobs: a key that came later and is not used does not change their digest.
    #[test]
    fn digests_of_older_jobs_stay() {
        let digest =
            |more: &str| Job::parse(&format!("{SMALL}{more}"), "small.toml").unwrap().digest().unwrap();
        assert_eq!(
            digest("").to_string(),
            "6b2a08965a07b716154bc1b454718802937e12834d09007937fa5c826f2a745d"
        );
        assert_eq!(digest("[method]\nqueue = 512\nclassifier_share = 0.5\n"), digest(""));
        let supervised = "[method]\nobjective = \"mcl-supervised\"\n";
        assert_ne!(digest(&format!("{supervised}classifier_share = 0.5\n")), digest(supervised));
    }

    #[test]
    fn ports_are_read_and_nonsense_names_file_line_and_key() {
        let network = |lines: &str| Job::parse(&format!("{SMALL}[network]\n{lines}\n"), "small.toml");
        let job =
            network("store_ports = \"29500-29509\"\ncoordinator_port = 7070\ncheckpoint_port = 0").unwrap();
        assert_eq!(job.store_ports().unwrap().to_string(), "29500-29509");
        assert_eq!(network("store_ports = \"29500\"").unwrap().store_ports().unwrap().iter().count(), 1);
        assert_eq!(network("coordinator_port = 0\ncheckpoint_port = 0").unwrap().store_ports(), None);
        for (lines, line, key, word) in [
            ("store_ports = \"29509-29500\"", 7, "store_ports", "29500-29509"),
            ("store_ports = \"0-10\"", 7, "store_ports", "1 to 65535"),
            ("store_ports = \"some\"", 7, "store_ports", "1 to 65535"),
            ("coordinator_port = 7070\ncheckpoint_port = 7070", 8, "checkpoint_port", "coordinator_port"),
            ("store_ports = \"7000-7100\"\ncoordinator_port = 7070", 8, "coordinator_port", "7000-7100"),
        ] {
            let message = network(lines).unwrap_err().to_string();
            assert!(message.starts_with(&format!("small.toml:{line}: `network.{key}`: ")), "{message}");
            assert!(message.contains(word), "{message}");
        }
        let message = network("store_ports = 29500").unwrap_err().to_string();
        assert!(message.starts_with("small.toml:7: "), "{message}");
    }

    #[test]
    fn how_a_source_is_read_may_be_said_and_decides_how_it_is_mixed() {
        let of = |source: &str, kind: &str| {
            let data = format!("source = \"{source}\"\n{kind}");
            Job::parse(&SMALL.replace("source = \"pictures\"", &data), "small.toml")
        };
        let tar = of("nowhere", "kind = \"tar\"").unwrap();
        assert_eq!((tar.data().kind, tar.shuffle()), (Some(SourceKind::Tar), Shuffle::Windowed));
        assert_eq!(Job::parse(&tar.to_toml().unwrap(), "resolved").unwrap(), tar);
        assert_eq!(of("list.csv", "").unwrap().shuffle(), Shuffle::Global);
        assert_eq!(of("shard-{0..9}.tar", "").unwrap().shuffle(), Shuffle::Windowed);
        assert_eq!(of("a.tar", "kind = \"list\"").unwrap().shuffle(), Shuffle::Global);
        let said = of("nowhere", "kind = \"zip\"").unwrap_err().to_string();
        assert!(said.contains("zip") && said.contains("webdataset"), "{said}");
        let global = |source, kind: &str| of(source, &format!("{kind}\nshuffle = \"global\"")).unwrap();
        let digest = |job: Job| job.digest().unwrap();
        assert_eq!(
            digest(global("a", "kind = \"tar\"")),
            digest(global("b", "")),
            "where pictures are decides nothing"
        );
    }

    #[test]
    fn pictures_may_lie_in_an_object_store() {
        let remote = SMALL.replace("pictures\"", "s3://bucket/a/\"\ncache_dir = \"cache\"\ncache_gb = 2.5");
        let job = Job::parse(&remote, "small.toml").unwrap();
        assert_eq!(job.data().source, StoreLocation::Object("s3://bucket/a".to_owned()));
        assert_eq!((job.shuffle(), job.data().cache_gb), (Shuffle::Windowed, Some(2.5)));
        assert_eq!(Job::parse(&job.to_toml().unwrap(), "resolved").unwrap(), job);
        let digest = |job: &str| {
            let job = job.replace("[data]", "[data]\nshuffle = \"global\"");
            Job::parse(&job, "x").unwrap().digest().unwrap()
        };
        assert_eq!(digest(&remote), digest(SMALL), "the place does not decide the trajectory");
        let mut file = strict(&remote, "x").unwrap();
        anchor(&mut file, Path::new("/jobs"));
        assert_eq!(file.data.source.to_string(), "s3://bucket/a");
        assert_eq!(file.data.cache_dir, Some("/jobs/cache".into()));
        for (from, to, line, word) in [
            ("s3://bucket/a/", "ftp://a", 2, "ftp://"),
            ("s3://bucket/a/", "s3://b//a", 2, "s3://bucket/prefix"),
            ("2.5", "0.01", 4, "0.05"),
            ("2.5", "nan", 4, "0.05"),
        ] {
            let message = Job::parse(&remote.replace(from, to), "small.toml").unwrap_err().to_string();
            assert!(message.starts_with(&format!("small.toml:{line}: ")), "{message}");
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn digest_ignores_places_and_length_but_not_the_method() {
        let job = |text: &str| Job::parse(text, "x").unwrap().digest().unwrap();
        assert_eq!(job(SMALL), job(&SMALL.replace("pictures", "elsewhere").replace("20", "40")));
        let network =
            "[network]\nadvertise = \"10.0.0.1\"\nstore_ports = \"29500-29509\"\ncoordinator_port = 7070\n";
        assert_eq!(job(SMALL), job(&format!("{SMALL}{network}")));
        assert_ne!(job(SMALL), job(&format!("{SMALL}[method]\ntemperature = 0.2\n")));
    }
}
