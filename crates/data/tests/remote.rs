//! Shards in a real S3 server: the same dataset as in a folder, through a bounded cache, whatever the server does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![cfg(unix)]

use mcl_data::dataset::{index, index_source, side_file};
use mcl_data::generate::{GenerateSpec, PictureFormat, generate};
use mcl_data::pack::{PackReport, PackSpec, pack, pack_intake};
use mcl_data::{
    BatchRequest, Dataset, DatasetError, Intake, LaneBatch, Loader, LoaderError, LoaderSpec, ReadError,
    RemoteError, RemoteSpec,
};
use mcl_testkit::{Fault, S3Server};
use mcl_types::{Epoch, Lane, SampleIndex, Seed, Step, StoreLocation};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const BLOCK: u64 = 16 << 10;

/// A bucket with shards in `pictures/`, the same ones in a folder, and a cache.
struct World {
    server: S3Server,
    local: tempfile::TempDir,
    cache: tempfile::TempDir,
}

impl World {
    /// Three shards of some pictures each, with labels and side indexes.
    fn new() -> Self {
        let loose = tempfile::tempdir().unwrap();
        for (class, seed) in [("a", 1), ("b", 2)] {
            let mut spec = GenerateSpec::objects(18, Seed::new(seed));
            spec.size = (96, 96);
            spec.format = PictureFormat::Jpeg(95);
            generate(&loose.path().join(class), &spec, &mut |_, _| {}).unwrap();
        }
        let world = Self {
            server: S3Server::start(),
            local: tempfile::tempdir().unwrap(),
            cache: tempfile::tempdir().unwrap(),
        };
        let spec = PackSpec { samples_per_shard: 12, ..PackSpec::default() };
        pack(loose.path(), world.local.path(), spec).unwrap();
        // Only shards: the names of the classes are another object to look at.
        fs::remove_file(world.local.path().join("classes.txt")).unwrap();
        // A name that needs escaping, and one that sorts by bytes.
        let second = world.local.path().join("shard-000001.tar");
        let odd = world.local.path().join("Shard 100%.tar");
        fs::rename(side_file(&second), side_file(&odd)).unwrap();
        fs::rename(second, odd).unwrap();
        world.upload();
        world
    }

    fn upload(&self) {
        fs::create_dir_all(self.server.file("pictures")).unwrap();
        for file in fs::read_dir(self.local.path()).unwrap() {
            let file = file.unwrap();
            let name = file.file_name().into_string().unwrap();
            fs::copy(file.path(), self.server.file("pictures").join(name)).unwrap();
        }
    }

    /// An empty cache of this many bytes.
    fn spec(&self) -> RemoteSpec {
        RemoteSpec {
            cache_dir: self.cache.path().to_owned(),
            cache_bytes: 64 << 20,
            block_bytes: BLOCK,
            retry_for: Duration::from_secs(20),
            settings: self.server.environment().into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        }
    }

    fn place(&self, prefix: &str) -> StoreLocation {
        self.server.url(prefix).parse().unwrap()
    }

    fn open_with(&self, spec: &RemoteSpec) -> Dataset {
        Dataset::open_at(&self.place("pictures"), spec).unwrap()
    }

    fn open(&self) -> Dataset {
        self.open_with(&self.spec())
    }

    fn here(&self) -> Dataset {
        Dataset::open(self.local.path()).unwrap()
    }

    /// Bytes of all blocks that the shards have.
    fn blocks(&self) -> u64 {
        let tars = fs::read_dir(self.local.path()).unwrap().map(|f| f.unwrap().path());
        let tars = tars.filter(|p| p.extension().unwrap() == "tar");
        tars.map(|p| fs::metadata(p).unwrap().len().div_ceil(BLOCK)).sum()
    }
}

fn samples(d: &Dataset) -> impl Iterator<Item = SampleIndex> + use<> {
    (0..d.len()).map(SampleIndex::new)
}

fn kept_in(folder: &Path) -> u64 {
    let files = walkdir::WalkDir::new(folder).min_depth(2).into_iter().flatten();
    files.filter_map(|f| f.metadata().ok()).filter(fs::Metadata::is_file).map(|m| m.len()).sum()
}

/// Everything that a reader can see.
fn assert_same(a: &Dataset, b: &Dataset) {
    assert_eq!((a.len(), a.digest(), a.shards()), (b.len(), b.digest(), b.shards()));
    for i in samples(a) {
        assert_eq!((a.id(i), a.label(i), a.byte_len(i)), (b.id(i), b.label(i), b.byte_len(i)));
        assert_eq!(a.read(i).unwrap()[..], b.read(i).unwrap()[..], "{:?}", a.id(i));
    }
}

#[test]
fn shards_in_a_bucket_are_the_dataset_that_they_are_in_a_folder() {
    let world = World::new();
    let (here, away) = (world.here(), world.open());
    assert_eq!(here.len(), 36);
    assert!(here.shards()[0].name == "Shard 100%25.tar" && here.label(SampleIndex::new(3)).is_some());
    assert_same(&here, &away);
    samples(&here).for_each(|i| assert_eq!(here.recorded_hash(i), away.recorded_hash(i)));
    // Without side indexes; and each shard by itself.
    for file in fs::read_dir(world.local.path()).unwrap() {
        let path = file.unwrap().path();
        if path.extension().unwrap() == "json" {
            fs::remove_file(world.server.file("pictures").join(path.file_name().unwrap())).unwrap();
        }
    }
    assert_same(&here, &world.open());
    let one = Dataset::open_at(&world.place("pictures/shard-000002.tar"), &world.spec()).unwrap();
    assert_same(&Dataset::open(&world.local.path().join("shard-000002.tar")).unwrap(), &one);
    // Whatever the size of the blocks.
    for block_bytes in [1000, 512, 1 << 20] {
        assert_same(&here, &world.open_with(&RemoteSpec { block_bytes, ..world.spec() }));
    }
}

#[test]
fn a_second_opening_lists_and_reads_nothing_again() {
    for with_indexes in [true, false] {
        let world = World::new();
        if !with_indexes {
            for shard in ["Shard 100%", "shard-000000", "shard-000002"] {
                fs::remove_file(world.server.file(&format!("pictures/{shard}.tar.index.json"))).unwrap();
            }
        }
        let first = world.open();
        samples(&first).for_each(|i| drop(first.read(i).unwrap()));
        let traffic = first.traffic().unwrap();
        assert_eq!(traffic.gets, world.blocks(), "every block once: {traffic:?}");
        drop(first);
        let before = world.server.requests();
        let second = world.open();
        assert_same(&world.here(), &second);
        assert_eq!(second.traffic().unwrap().gets, 0);
        // The list, and as this server's lists have no tags, a look at each object.
        let objects = if with_indexes { 6 } else { 3 };
        assert_eq!(world.server.requests() - before, 1 + objects);
    }
}

#[test]
fn any_request_may_be_slow_refused_or_dropped() {
    for fault in
        [Fault::Slow(Duration::from_millis(100)), Fault::Refuse, Fault::DropRequest, Fault::DropAnswer]
    {
        let world = World::new();
        world.server.meet([fault, Fault::None, fault, fault]);
        let dataset = world.open();
        world.server.meet([fault, Fault::None, fault]);
        assert_same(&world.here(), &dataset);
        assert_eq!(world.server.met(), 5, "{fault:?}");
    }
}

#[test]
fn a_store_that_stays_away_is_a_failure_and_no_bad_picture() {
    let world = World::new();
    let dataset =
        Arc::new(world.open_with(&RemoteSpec { retry_for: Duration::from_millis(50), ..world.spec() }));
    world.server.meet(std::iter::repeat_n(Fault::Refuse, 1000));
    let error = dataset.read(SampleIndex::new(0)).unwrap_err();
    assert!(!error.is_undecodable() && error.may_pass(), "{error}");
    let said = error.to_string();
    assert!(said.contains("Shard 100%25.tar/") && said.contains("tried 3 times"), "{said}");
    // The loader fails, and puts no other picture in its place.
    let request = request(0, (0..4).map(SampleIndex::new).collect());
    let never = Arc::new(|_, _, _, _, _| panic!("a replacement was asked for"));
    let mut loader = Loader::start(Arc::clone(&dataset), LoaderSpec::default(), [request], never).unwrap();
    let error = loader.next().unwrap_err();
    assert!(matches!(error, LoaderError::Read { .. }) && error.may_pass(), "{error}");
    drop((loader, dataset));
    let error = Dataset::open_at(
        &world.place("pictures"),
        &RemoteSpec { retry_for: Duration::from_millis(50), ..world.spec() },
    );
    let error = error.unwrap_err();
    assert!(error.may_pass() && error.to_string().contains("listing s3://bucket/pictures"), "{error}");
}

#[test]
fn the_cache_stays_within_its_bound_and_small_ones_only_cost_time() {
    let world = World::new();
    let here = world.here();
    // Next to nothing, less than one block, some blocks: each on the same folder.
    for cache_bytes in [1000, BLOCK / 2, 6 * BLOCK] {
        let away = world.open_with(&RemoteSpec { cache_bytes, ..world.spec() });
        for i in samples(&here).chain(samples(&here)) {
            assert_eq!(here.read(i).unwrap()[..], away.read(i).unwrap()[..]);
            let kept = kept_in(world.cache.path());
            assert!(kept <= cache_bytes, "{kept} bytes are kept, of {cache_bytes}");
        }
        assert!(away.traffic().unwrap().gets > world.blocks());
    }
}

#[test]
fn damaged_blocks_are_fetched_again() {
    let world = World::new();
    let first = world.open();
    samples(&first).for_each(|i| drop(first.read(i).unwrap()));
    let files = || walkdir::WalkDir::new(world.cache.path()).min_depth(2).into_iter().flatten();
    let blocks: Vec<_> = files().map(walkdir::DirEntry::into_path).filter(|p| p.is_file()).collect();
    for (number, path) in blocks.iter().enumerate() {
        let mut bytes = fs::read(path).unwrap();
        match number % 3 {
            0 => bytes.truncate(bytes.len() / 2),
            1 => bytes.iter_mut().step_by(1000).for_each(|b| *b ^= 0x55),
            _ => bytes.clear(),
        }
        fs::write(path, bytes).unwrap();
    }
    assert_same(&world.here(), &first);
    assert_same(&world.here(), &world.open());
    assert_eq!(first.traffic().unwrap().gets, 2 * world.blocks());
}

#[test]
fn a_shard_that_changes_under_the_dataset_is_refused_and_what_is_cached_stays_true() {
    let world = World::new();
    let (here, away) = (world.here(), world.open());
    let (first, last) = (SampleIndex::new(0), SampleIndex::new(11));
    assert_eq!(here.read(first).unwrap()[..], away.read(first).unwrap()[..]);
    let path = world.server.file("pictures/Shard 100%.tar");
    let old = fs::read(&path).unwrap();
    for new in [Some(vec![7; old.len()]), Some(old[..old.len() / 2].to_vec()), None] {
        match new {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let error = away.read(last).unwrap_err();
        assert!(!error.is_undecodable() && !error.may_pass(), "{error}");
        let is_changed = matches!(error, ReadError::Remote { source: RemoteError::Changed { .. }, .. });
        assert!(is_changed, "{error}");
        assert_eq!(
            here.read(first).unwrap()[..],
            away.read(first).unwrap()[..],
            "of the version that was opened"
        );
    }
    fs::write(&path, &old).unwrap();
    assert_same(&here, &away);
}

#[test]
fn many_readers_share_blocks_and_datasets_share_the_cache() {
    let world = World::new();
    let here = world.here();
    let (one, other) = (world.open(), world.open());
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let (here, away) = (&here, if thread % 4 == 0 { &other } else { &one });
            scope.spawn(move || {
                for i in (0..36).map(|i| SampleIndex::new((i * 7 + thread * 5) % 36)) {
                    assert_eq!(here.read(i).unwrap()[..], away.read(i).unwrap()[..]);
                }
            });
        }
    });
    let (one, other) = (one.traffic().unwrap(), other.traffic().unwrap());
    assert!(one.gets <= world.blocks() && one.gets + other.gets < 2 * world.blocks(), "{one:?} {other:?}");
}

fn request(step: u64, samples: Vec<SampleIndex>) -> BatchRequest {
    BatchRequest { epoch: Epoch::new(0), step: Step::new(step), lane: Lane::new(0), samples }
}

/// Batches in the order of the shards, as a windowed plan has them at large; `between` runs after the first.
fn batches(dataset: &Arc<Dataset>, between: impl FnOnce()) -> Vec<LaneBatch> {
    let samples = |step: u64| (4 * step..4 * step + 4).map(SampleIndex::new).collect();
    let requests: Vec<_> = (0..9).map(|step| request(step, samples(step))).collect();
    let spec = LoaderSpec { image_size: 32, levels: vec![1], queue: 1, ..LoaderSpec::default() };
    let never = Arc::new(|_, _, _, _, _| panic!("a replacement was asked for"));
    let mut loader = Loader::start(Arc::clone(dataset), spec, requests, never).unwrap();
    let mut out = vec![loader.next().unwrap().unwrap()];
    between();
    while let Some(batch) = loader.next().unwrap() {
        out.push(batch);
    }
    out
}

#[test]
fn the_loader_is_read_ahead_for_and_feeds_the_same_batches() {
    let world = World::new();
    let (here, away) = (Arc::new(world.here()), Arc::new(world.open()));
    world.server.meet(std::iter::repeat_n(Fault::Slow(Duration::from_millis(40)), 10_000));
    let mut waits = 0;
    let blocks_kept = || {
        let files = walkdir::WalkDir::new(world.cache.path()).min_depth(2).into_iter().flatten();
        let names = files.filter_map(|f| f.file_name().to_str().map(str::to_owned));
        names.filter(|n| n.starts_with(&format!("{BLOCK}-")) && !n.ends_with("partial")).count() as u64
    };
    // The loader makes one batch at a time, and this "step" takes as long as it takes: all that is to come is fetched in it.
    let fed = batches(&away, || {
        let begun = Instant::now();
        while blocks_kept() < world.blocks() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{} blocks came", blocks_kept());
            std::thread::sleep(Duration::from_millis(5));
        }
        waits = away.traffic().unwrap().waits;
    });
    assert_eq!(fed, batches(&here, || ()));
    let traffic = away.traffic().unwrap();
    assert_eq!(traffic.gets, world.blocks(), "every block once: {traffic:?}");
    // One picture may have been asked for while its last block was being written.
    assert!(traffic.waits <= waits + 1, "{waits} waits in the first step, then {traffic:?}");
}

#[test]
fn a_panic_of_the_plan_and_a_plan_that_blocks_reach_the_loader() {
    let world = World::new();
    let dataset = Arc::new(world.open());
    let spec = LoaderSpec { image_size: 32, levels: vec![1], ..LoaderSpec::default() };
    let never = || Arc::new(|_, _, _, _, _| SampleIndex::new(0));
    let plan = (0..3).map(|step| match step {
        2 => panic!("no plan"),
        step => request(step, vec![SampleIndex::new(step)]),
    });
    let mut loader = Loader::start(Arc::clone(&dataset), spec.clone(), plan, never()).unwrap();
    assert!(loader.next().unwrap().is_some() && loader.next().unwrap().is_some());
    let said = loader.next().unwrap_err().to_string();
    assert!(said.contains("the plan") && said.contains("no plan"), "{said}");
    // A request is worked on although the next one does not come.
    let (ask, requests) = std::sync::mpsc::channel();
    let mut loader = Loader::start(dataset, spec, requests, never()).unwrap();
    for step in 0..3 {
        ask.send(request(step, vec![SampleIndex::new(step)])).unwrap();
        assert_eq!(loader.next().unwrap().unwrap().step.get(), step);
    }
}

#[test]
fn what_is_no_place_with_shards_is_said() {
    let world = World::new();
    let said = |prefix: &str| {
        let error = Dataset::open_at(&world.place(prefix), &world.spec()).unwrap_err();
        assert!(!error.may_pass(), "{error}");
        error.to_string()
    };
    let put = |key: &str| {
        let path = world.server.file(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    };
    put("loose/cats/a.jpg");
    put("mixed/b.png");
    put("mixed/a.tar");
    put("deep/er/a.tar");
    put("bad/a.tar");
    for (prefix, words) in [
        ("loose", ["mcl data pack", "cats/a.jpg"]),
        ("mixed", ["as folder (it holds b.png)", "as webdataset (it holds a.tar)"]),
        ("deep", ["s3://bucket/deep/er/a.tar", "prefix"]),
        ("empty", ["nothing is there", "s3://bucket/empty"]),
        ("pictures/shard-9.tar", ["nothing is there", "shard-9"]),
        ("bad", ["s3://bucket/bad/a.tar", "not a readable tar"]),
    ] {
        let said = said(prefix);
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    let mut spec = world.spec();
    spec.settings.retain(|(key, _)| key != "AWS_SECRET_ACCESS_KEY");
    spec.settings.push(("AWS_SECRET_ACCESS_KEY".to_owned(), "not-the-secret".to_owned()));
    let error = Dataset::open_at(&world.place("pictures"), &spec).unwrap_err().to_string();
    assert!(error.contains("AWS_*") && !error.contains("not-the-secret"), "{error}");
}

#[test]
fn side_indexes_are_believed_as_far_as_they_fit_and_are_written_beside_remote_shards() {
    let world = World::new();
    let side = |shard: &str| world.server.file(&format!("pictures/{shard}.tar.index.json"));
    let good = fs::read(side("shard-000000")).unwrap();
    // Of a tar of another length: found on opening.
    fs::write(side("shard-000000"), fs::read(side("shard-000002")).unwrap()).unwrap();
    let error = Dataset::open_at(&world.place("pictures"), &world.spec()).unwrap_err();
    assert!(matches!(error, DatasetError::IndexMismatch { .. }), "{error}");
    // Of the right length, and with an entry in the wrong place: found when it is read.
    let text = String::from_utf8(good.clone()).unwrap();
    let mut parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
    parsed["samples"][0]["offset"] = (parsed["samples"][0]["offset"].as_u64().unwrap() + 512).into();
    fs::write(side("shard-000000"), parsed.to_string()).unwrap();
    let dataset = world.open();
    let error = dataset.read(SampleIndex::new(12)).unwrap_err();
    assert!(matches!(error, ReadError::Misplaced { .. }) && !error.is_undecodable(), "{error}");
    assert!(dataset.read(SampleIndex::new(13)).is_ok());
    // Written anew, they are those that a local tar gets.
    let written = index_source(&world.place("pictures"), None, &world.spec(), &|_, _| ()).unwrap();
    assert_eq!(written.iter().map(|(_, pictures)| pictures).sum::<u64>(), 36);
    index(&world.local.path().join("shard-000000.tar")).unwrap();
    assert_eq!(fs::read(side("shard-000000")).unwrap(), good);
    assert_same(&world.here(), &world.open());
}

#[test]
fn opening_reading_and_closing_work_inside_another_runtime() {
    let world = World::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let away = world.open();
        assert_same(&world.here(), &away);
        drop(away);
        assert!(Dataset::open_at(&world.place("empty"), &world.spec()).is_err());
        // An address that no store opens.
        let nowhere = StoreLocation::try_from("az://container/pictures".to_owned()).unwrap();
        let unset = RemoteSpec { settings: Vec::new(), ..world.spec() };
        let error = Dataset::open_at(&nowhere, &unset).unwrap_err();
        assert!(error.to_string().contains("az://container/pictures cannot be opened"), "{error}");
    });
}

#[test]
fn secrets_are_not_shown() {
    let settings = vec![("AWS_SECRET_ACCESS_KEY".to_owned(), "hush".to_owned())];
    let shown = format!("{:?}", RemoteSpec { settings, ..RemoteSpec::default() });
    assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("hush"), "{shown}");
}

#[test]
fn without_a_folder_for_the_cache_only_time_is_lost() {
    let world = World::new();
    // A file stands where the folder would be.
    let taken = world.cache.path().join("taken");
    fs::write(&taken, "no folder").unwrap();
    let dataset = world.open_with(&RemoteSpec { cache_dir: taken.join("pictures"), ..world.spec() });
    assert_same(&world.here(), &dataset);
}

fn pack_into(source: &StoreLocation, out: &StoreLocation, spec: &RemoteSpec) -> Result<PackReport, String> {
    let intake = Intake::open(source, None, None, spec).map_err(|e| e.to_string())?;
    let pack = PackSpec { samples_per_shard: 5, shrink: None, threads: 2 };
    pack_intake(&intake, out, pack, spec, &|_| ()).map_err(|e| e.to_string())
}

/// The bucket's and a folder's files of one pack.
fn same_files(world: &World, prefix: &str, folder: &Path) -> bool {
    let list = |folder: &Path| {
        let files = fs::read_dir(folder).unwrap().map(|f| f.unwrap().path());
        let mut files: Vec<_> = files
            // What is noted of the pack has the store's own word for each shard.
            .filter(|p| p.is_file() && !p.ends_with("pack.json"))
            .map(|p| (p.file_name().unwrap().to_owned(), fs::read(&p).unwrap()))
            .collect();
        files.sort();
        files
    };
    let (there, here) = (list(&world.server.file(prefix)), list(folder));
    let names = |files: &[(std::ffi::OsString, Vec<u8>)]| {
        files.iter().map(|(name, bytes)| (name.clone(), bytes.len())).collect::<Vec<_>>()
    };
    assert_eq!(names(&there), names(&here));
    there == here
}

#[test]
fn loose_pictures_lists_and_shards_in_a_bucket_are_packed_to_the_bytes_of_a_folder() {
    let world = World::new();
    let loose = tempfile::tempdir().unwrap();
    for path in ["cats/a.jpg", "cats/deep/b.jpg", "dogs/c 100%.jpg", "dogs/empty.jpg"] {
        for root in [loose.path().to_owned(), world.server.file("loose")] {
            let file = root.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, if path.contains("empty") { "" } else { path }).unwrap();
        }
    }
    let list = "dogs/c 100%.jpg\tdog\ngone.jpg\tdog\n./cats/a.jpg\tcat\n";
    for root in [loose.path().to_owned(), world.server.file("loose")] {
        fs::write(root.join("list.tsv"), list).unwrap();
    }
    for (source, skipped) in [("", 1), ("list.tsv", 1)] {
        let here = loose.path().join(source);
        let there = world.place(format!("loose/{source}").trim_end_matches('/'));
        let (out, name) = (tempfile::tempdir().unwrap(), format!("out-{}", source.len()));
        let report = pack_into(&here.as_path().into(), &out.path().into(), &world.spec()).unwrap();
        let away = pack_into(&there, &world.place(&name), &world.spec()).unwrap();
        assert_eq!((report.samples, report.skipped_count), (away.samples, away.skipped_count));
        assert_eq!(report.skipped_count, skipped, "{:?}", report.skipped);
        assert!(same_files(&world, &name, out.path()), "{source}");
        // The server leaves the folder of what was removed.
        let progress = fs::read_dir(world.server.file(&name).join("pack-in-progress"));
        assert_eq!(progress.map_or(0, Iterator::count), 0);
        // It is a data set there as here; the source is none there, and says what to type.
        let there_packed = Dataset::open_at(&world.place(&name), &world.spec()).unwrap();
        assert_same(&Dataset::open(out.path()).unwrap(), &there_packed);
        assert_eq!(there_packed.classes().len(), 2);
        let said = Dataset::open_at(&there, &world.spec()).unwrap_err().to_string();
        assert!(said.contains(&format!("mcl data pack {there}")), "{said}");
    }
    // Shards, also named in braces.
    let out = tempfile::tempdir().unwrap();
    pack_into(&world.local.path().into(), &out.path().into(), &world.spec()).unwrap();
    pack_into(&world.place("pictures"), &world.place("again"), &world.spec()).unwrap();
    assert!(same_files(&world, "again", out.path()));
    let braces = Dataset::open_at(&world.place("pictures/shard-{000000,000002}.tar"), &world.spec()).unwrap();
    assert_eq!(braces.len(), 24);
    let said = Dataset::open_at(&world.place("pictures/shard-{000000..000003}.tar"), &world.spec());
    let said = said.unwrap_err().to_string();
    assert!(said.contains("4 names, and 2 of them are not there, such as shard-000001.tar"), "{said}");
}

#[test]
fn parquet_in_a_bucket_is_packed_to_the_bytes_of_a_folder() {
    let world = World::new();
    fs::create_dir_all(world.server.file("hf/data")).unwrap();
    for part in ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign").join(part);
        fs::copy(from, world.server.file("hf/data").join(part)).unwrap();
    }
    let out = tempfile::tempdir().unwrap();
    let folder = world.server.file("hf");
    pack_into(&folder.as_path().into(), &out.path().into(), &world.spec()).unwrap();
    // Blocks that are smaller than headers and pictures, and larger.
    for (block_bytes, name) in [(100, "small"), (1 << 20, "large")] {
        let spec = RemoteSpec { block_bytes, ..world.spec() };
        pack_into(&world.place("hf"), &world.place(name), &spec).unwrap();
        assert!(same_files(&world, name, out.path()), "{name}");
    }
    let said = Dataset::open_at(&world.place("hf"), &world.spec()).unwrap_err().to_string();
    assert!(said.contains("mcl data pack s3://bucket/hf"), "{said}");
}

#[test]
fn a_pack_into_a_bucket_goes_on_where_it_stopped_whatever_the_server_does() {
    let world = World::new();
    let whole = tempfile::tempdir().unwrap();
    pack_into(&world.local.path().into(), &whole.path().into(), &world.spec()).unwrap();
    let brief = RemoteSpec { retry_for: Duration::from_millis(50), ..world.spec() };
    let (here, there) = (world.local.path().into(), world.place("out"));
    // It is away for good after some requests.
    world.server.meet(std::iter::repeat_n(Fault::None, 25));
    world.server.meet(std::iter::repeat_n(Fault::Refuse, 10_000));
    let said = pack_into(&here, &there, &brief).unwrap_err();
    assert!(said.contains("the same command goes on"), "{said}");
    world.server.forget();
    for file in fs::read_dir(world.server.file("out")).unwrap().map(|f| f.unwrap().path()) {
        if file.extension().is_some_and(|e| e == "tar") {
            assert_eq!(
                fs::read(&file).unwrap(),
                fs::read(whole.path().join(file.file_name().unwrap())).unwrap()
            );
        }
    }
    let error = Dataset::open_at(&there, &world.spec()).unwrap_err();
    assert!(matches!(error, DatasetError::Unfinished { .. }), "{error}");
    // One that was done is another by now.
    let done = world.server.file("out/shard-000000.tar");
    assert!(done.is_file(), "nothing was done at all");
    // By its length: this server keeps the tag of what was put whatever becomes of the file.
    let bytes = fs::read(&done).unwrap();
    fs::write(&done, &bytes[..bytes.len() - 1]).unwrap();
    let slow = Fault::Slow(Duration::from_millis(20));
    world.server.meet([Fault::Refuse, slow, Fault::DropRequest, Fault::None, Fault::DropAnswer, slow]);
    let report = pack_into(&here, &there, &world.spec()).unwrap();
    assert!(report.kept >= 1 && report.kept < 7, "{}", report.kept);
    assert!(same_files(&world, "out", whole.path()));
    assert_eq!(pack_into(&here, &there, &world.spec()).unwrap().kept, 8, "there is nothing to do");
    fs::write(world.server.file("out/shard-000003.tar"), "x").unwrap();
    assert_eq!(pack_into(&here, &there, &world.spec()).unwrap().kept, 7);
    assert!(same_files(&world, "out", whole.path()));
}

#[test]
fn large_shards_go_up_in_parts_and_given_up_ones_are_ended() {
    let world = World::new();
    let loose = tempfile::tempdir().unwrap();
    for picture in 0..5_u8 {
        fs::write(loose.path().join(format!("{picture}.jpg")), vec![picture; 7 << 20]).unwrap();
    }
    let whole = tempfile::tempdir().unwrap();
    pack_into(&loose.path().into(), &whole.path().into(), &world.spec()).unwrap();
    let there = world.place("parts");
    let brief = RemoteSpec { retry_for: Duration::from_millis(50), ..world.spec() };
    // A part is refused: an earlier plan and its end are looked for, the place is listed, the plan is
    // written, the upload begun.
    world.server.meet(std::iter::repeat_n(Fault::None, 5));
    world.server.meet(std::iter::repeat_n(Fault::Refuse, 3));
    assert!(pack_into(&loose.path().into(), &there, &brief).is_err());
    world.server.forget();
    assert!(!world.server.file("parts/shard-000000.tar").exists());
    pack_into(&loose.path().into(), &there, &world.spec()).unwrap();
    assert!(same_files(&world, "parts", whole.path()));
    assert_eq!(world.server.left_of_uploads(), Vec::<String>::new());
}
