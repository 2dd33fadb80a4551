//! `mcl data pack` as a library: the same bytes whoever packs, and what is left where it stops.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![cfg(unix)]

use mcl_data::dataset::{index, side_file};
use mcl_data::generate::{GenerateSpec, PictureFormat, generate};
use mcl_data::pack::{PackError, PackProgress, PackReport, PackSpec, Shrink, pack, pack_intake};
use mcl_data::{Dataset, DatasetError, Intake, RemoteSpec};
use mcl_types::{SampleIndex, Seed};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const PICTURES: u64 = 37;

/// Two classes of small pictures; one file that is none, one that is empty.
fn pictures() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (class, count, seed) in [("a", 20, 1), ("b", 15, 2)] {
        let spec =
            GenerateSpec { format: PictureFormat::Png, ..GenerateSpec::objects(count, Seed::new(seed)) };
        generate(&dir.path().join(class), &spec, &mut |_, _| ()).unwrap();
        fs::remove_file(dir.path().join(class).join("annotations.json")).unwrap();
    }
    fs::write(dir.path().join("b/none.jpg"), "no picture").unwrap();
    fs::write(dir.path().join("a/empty.jpg"), "").unwrap();
    dir
}

fn spec(threads: usize) -> PackSpec {
    PackSpec { samples_per_shard: 5, shrink: Some(Shrink { short_side: 24, quality: 80 }), threads }
}

/// Every file below a folder.
fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files =
        walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap).filter(|f| f.file_type().is_file());
    files.map(|f| (f.path().strip_prefix(folder).unwrap().to_owned(), fs::read(f.path()).unwrap())).collect()
}

fn without_places(mut report: PackReport) -> PackReport {
    report.shards.clear();
    report.kept = 0;
    report
}

/// Packs, and panics in place of going on after so many pictures; what a killed process leaves, as far as files go.
fn pack_until(source: &Path, out: &Path, spec: PackSpec, stop: u64) -> Result<PackReport, String> {
    let intake = Intake::open(&source.into(), None, None, &RemoteSpec::default()).unwrap();
    let seen = AtomicU64::new(0);
    let heard = |_| {
        assert!(seen.fetch_add(1, Ordering::SeqCst) < stop, "stopped here");
    };
    let work = std::panic::AssertUnwindSafe(|| {
        pack_intake(&intake, &out.into(), spec, &RemoteSpec::default(), &heard).unwrap()
    });
    std::panic::catch_unwind(work).map_err(|_| "stopped".to_owned())
}

#[test]
fn the_bytes_are_the_same_whatever_the_number_of_threads() {
    let dir = pictures();
    let packed = [1, 2, 3, 16].map(|threads| {
        let out = tempfile::tempdir().unwrap();
        let report = pack(dir.path(), out.path(), spec(threads)).unwrap();
        (content(out.path()), without_places(report))
    });
    let (files, report) = &packed[0];
    assert_eq!(files.len(), 2 * 8 + 2, "{:?}", files.keys());
    assert_eq!(files[Path::new("classes.txt")], b"a\nb\n");
    assert_eq!(
        (report.samples, report.shrunk, report.skipped_count, report.ill_formed_count),
        (36, 35, 1, 1)
    );
    assert!(report.skipped[0].0.contains("a/empty.jpg") && report.ill_formed[0].0.contains("b/none.jpg"));
    for (other, said) in &packed[1..] {
        assert!(other == files && said == report);
    }
}

#[test]
fn what_is_packed_is_a_data_set_with_indexes_labels_and_classes() {
    let dir = pictures();
    let out = tempfile::tempdir().unwrap();
    let report = pack(dir.path(), out.path(), PackSpec { shrink: None, ..spec(2) }).unwrap();
    let (loose, packed) = (Dataset::open(dir.path()).unwrap(), Dataset::open(out.path()).unwrap());
    assert_eq!(packed.classes(), ["a", "b"]);
    assert_eq!(report.shards.len(), 8);
    let kept = (0..loose.len()).map(SampleIndex::new).filter(|i| loose.byte_len(*i) != Some(0));
    let kept: Vec<_> = kept.collect();
    assert_eq!(packed.len(), kept.len() as u64);
    for (new, old) in (0..packed.len()).map(SampleIndex::new).zip(kept) {
        assert_eq!(packed.read(new).unwrap()[..], loose.read(old).unwrap()[..]);
        assert_eq!(packed.label(new), loose.label(old));
    }
    // The index that is made on the way is the one that is made from the tar.
    for shard in &report.shards {
        let side = side_file(Path::new(shard));
        let made = fs::read(&side).unwrap();
        index(Path::new(shard)).unwrap();
        assert_eq!(fs::read(&side).unwrap(), made, "{shard}");
    }
    // Packed again it is the same.
    let again = tempfile::tempdir().unwrap();
    pack(out.path(), again.path(), PackSpec { samples_per_shard: 7, shrink: None, threads: 2 }).unwrap();
    let again = Dataset::open(again.path()).unwrap();
    assert_eq!((again.len(), again.classes()), (packed.len(), packed.classes()));
}

#[test]
fn a_pack_that_stopped_goes_on_to_the_same_bytes() {
    let dir = pictures();
    let whole = tempfile::tempdir().unwrap();
    let undisturbed = pack(dir.path(), whole.path(), spec(1)).unwrap();
    for stop in [0, 4, 5, 17, 36] {
        let out = tempfile::tempdir().unwrap();
        assert!(pack_until(dir.path(), out.path(), spec(1), stop).is_err(), "{stop}");
        // No shard is there by halves, and nobody takes it for all of the data.
        for (path, bytes) in content(out.path()) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.ends_with(".tar") {
                assert_eq!(bytes, fs::read(whole.path().join(&path)).unwrap(), "{name}");
            }
        }
        let error = Dataset::open(out.path()).unwrap_err();
        assert!(matches!(error, DatasetError::Unfinished { .. }), "{error}");
        let report = pack(dir.path(), out.path(), spec(2)).unwrap();
        assert_eq!(report.kept, stop / 5, "stopped after {stop}");
        assert_eq!(without_places(report), without_places(undisturbed.clone()));
        assert_eq!(content(out.path()), content(whole.path()), "stopped after {stop}");
    }
}

#[test]
fn shards_of_an_earlier_try_that_are_not_what_they_were_are_packed_again() {
    let dir = pictures();
    let whole = tempfile::tempdir().unwrap();
    pack(dir.path(), whole.path(), spec(1)).unwrap();
    let out = tempfile::tempdir().unwrap();
    assert!(pack_until(dir.path(), out.path(), spec(1), 27).is_err());
    let shard = |n: u32| out.path().join(format!("shard-00000{n}.tar"));
    let mut bytes = fs::read(shard(0)).unwrap();
    bytes[600] ^= 1;
    fs::write(shard(0), bytes).unwrap();
    fs::remove_file(shard(1)).unwrap();
    fs::write(side_file(&shard(2)), "{}").unwrap();
    fs::write(out.path().join("pack-in-progress/000003.json"), "{").unwrap();
    let report = pack(dir.path(), out.path(), spec(2)).unwrap();
    assert_eq!(report.kept, 1);
    assert_eq!(content(out.path()), content(whole.path()));
}

#[test]
fn a_place_with_something_else_in_it_is_refused() {
    let dir = pictures();
    let out = tempfile::tempdir().unwrap();
    assert!(pack_until(dir.path(), out.path(), spec(1), 12).is_err());
    let refused = |source: &Path, spec: PackSpec, words: &[&str]| {
        let said = pack(source, out.path(), spec).unwrap_err().to_string();
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    };
    refused(
        dir.path(),
        PackSpec { samples_per_shard: 6, ..spec(1) },
        &["not finished", "5 pictures a shard, and not 6"],
    );
    refused(
        dir.path(),
        PackSpec { shrink: None, ..spec(1) },
        &["a shorter side of 24", "pictures as they are"],
    );
    let other = pictures();
    fs::write(other.path().join("a/none.jpg"), "no picture").unwrap();
    refused(other.path(), spec(1), &["another source", "37 pictures and not 38"]);
    // Which of two it is that packs is decided by a lock.
    let lock = fs::File::create(out.path().join("pack-in-progress/lock")).unwrap();
    lock.lock().unwrap();
    assert!(matches!(pack(dir.path(), out.path(), spec(1)), Err(PackError::Busy { .. })));
    drop(lock);
    pack(dir.path(), out.path(), spec(1)).unwrap();
    refused(dir.path(), PackSpec { samples_per_shard: 6, ..spec(1) }, &["a pack that is finished"]);
    assert!(!out.path().join("pack-in-progress").exists(), "it was left as it was");
    let foreign = tempfile::tempdir().unwrap();
    fs::write(foreign.path().join("a.TAR"), "").unwrap();
    let error = pack(dir.path(), foreign.path(), spec(1)).unwrap_err();
    assert!(matches!(error, PackError::NotEmpty { .. }), "{error}");
    // Labels are part of the source.
    let renamed = tempfile::tempdir().unwrap();
    assert!(pack_until(dir.path(), renamed.path(), spec(1), 12).is_err());
    fs::write(dir.path().join("loose.jpg"), "no picture").unwrap();
    fs::remove_file(dir.path().join("b/none.jpg")).unwrap();
    assert!(matches!(pack(dir.path(), renamed.path(), spec(1)), Err(PackError::OtherPlan { .. })));
}

/// Times of files as well as their bytes: nothing was even written again.
fn times(folder: &Path) -> Vec<(PathBuf, std::time::SystemTime)> {
    let time = |path: PathBuf| {
        let time = fs::metadata(folder.join(&path)).unwrap().modified().unwrap();
        (path, time)
    };
    content(folder).into_keys().map(time).collect()
}

#[test]
fn a_pack_that_ended_is_found_ended_and_mended_where_it_is_not_what_it_was() {
    let dir = pictures();
    let out = tempfile::tempdir().unwrap();
    let first = pack(dir.path(), out.path(), spec(2)).unwrap();
    let (whole, written) = (content(out.path()), times(out.path()));
    let again = pack(dir.path(), out.path(), spec(3)).unwrap();
    assert_eq!((again.kept, without_places(again)), (8, without_places(first)));
    assert_eq!(times(out.path()), written);
    // Killed after all was written and before the last note of it went.
    let plan =
        serde_json::from_slice::<serde_json::Value>(&whole[Path::new("pack.json")]).unwrap()["plan"].clone();
    fs::create_dir(out.path().join("pack-in-progress")).unwrap();
    fs::write(out.path().join("pack-in-progress/plan.json"), plan.to_string()).unwrap();
    assert!(matches!(Dataset::open(out.path()), Err(DatasetError::Unfinished { .. })));
    assert_eq!(pack(dir.path(), out.path(), spec(1)).unwrap().kept, 8);
    assert_eq!(content(out.path()), whole);
    // Killed while it is mended, the rest counts as done all the same.
    fs::write(out.path().join("shard-000002.tar"), "x").unwrap();
    fs::remove_file(out.path().join("shard-000005.tar.index.json")).unwrap();
    assert!(pack_until(dir.path(), out.path(), spec(1), 7).is_err());
    assert!(matches!(Dataset::open(out.path()), Err(DatasetError::Unfinished { .. })));
    assert_eq!(pack(dir.path(), out.path(), spec(1)).unwrap().kept, 7);
    assert_eq!(content(out.path()), whole);
}

#[test]
fn a_source_that_was_written_to_is_another_source() {
    let dir = pictures();
    let tars = tempfile::tempdir().unwrap();
    pack(dir.path(), tars.path(), PackSpec { shrink: None, ..spec(1) }).unwrap();
    let list = dir.path().join("list.txt");
    fs::write(&list, "a/images/00003.png\nb/none.jpg\n").unwrap();
    let sources = [
        (dir.path(), dir.path().join("b/none.jpg")),
        (tars.path(), tars.path().join("shard-000001.tar")),
        (&list, dir.path().join("b/none.jpg")),
    ];
    for (source, file) in sources {
        let one_a_shard = PackSpec { samples_per_shard: 1, shrink: None, threads: 1 };
        let out = tempfile::tempdir().unwrap();
        assert!(pack_until(source, out.path(), one_a_shard, 1).is_err());
        // As long as it was, and with the same content.
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes).unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(5);
        fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
        let said = pack(source, out.path(), one_a_shard).unwrap_err().to_string();
        assert!(said.contains("one that has changed"), "{said}");
    }
}

#[test]
fn a_full_disk_says_how_to_go_on_and_leaves_nothing_by_halves() {
    let dir = pictures();
    let out = tempfile::tempdir().unwrap();
    assert!(pack_until(dir.path(), out.path(), spec(1), 12).is_err());
    // A device that is always full stands where the next shard is written.
    symlink("/dev/full", out.path().join("shard-000002.tar.partial")).unwrap();
    let error = pack(dir.path(), out.path(), spec(1)).unwrap_err();
    let said = error.to_string();
    assert!(
        said.contains("shard-000002.tar.partial") && said.contains("make room and give the same command"),
        "{said}"
    );
    let names: Vec<_> =
        content(out.path()).into_keys().filter(|name| name.to_str().unwrap().contains("000002")).collect();
    assert_eq!(names, [PathBuf::from("shard-000002.tar.index.json")]);
    // There is room again.
    assert_eq!(pack(dir.path(), out.path(), spec(1)).unwrap().kept, 2);
    assert_eq!(Dataset::open(out.path()).unwrap().len(), 36);
}

#[test]
fn progress_is_told_to_the_end_and_says_what_was_kept() {
    let dir = pictures();
    let out = tempfile::tempdir().unwrap();
    assert!(pack_until(dir.path(), out.path(), spec(1), 12).is_err());
    let intake = Intake::open(&dir.path().into(), None, None, &RemoteSpec::default()).unwrap();
    assert_eq!(intake.len(), PICTURES);
    let told: Mutex<Vec<PackProgress>> = Mutex::default();
    let heard = |at| told.lock().unwrap().push(at);
    let report = pack_intake(&intake, &out.path().into(), spec(2), &RemoteSpec::default(), &heard).unwrap();
    let told = told.into_inner().unwrap();
    let last = told.iter().max_by_key(|at| at.done).unwrap();
    assert_eq!((last.done, last.kept, last.all), (PICTURES, 10, PICTURES));
    assert!(last.bytes > 0 && last.bytes < report.bytes);
}

#[test]
fn a_range_of_pictures_that_cannot_be_read_makes_no_shard() {
    let dir = tempfile::tempdir().unwrap();
    for (number, text) in ["x", "x", "", "", "x"].iter().enumerate() {
        fs::write(dir.path().join(format!("{number}.jpg")), text).unwrap();
    }
    let out = tempfile::tempdir().unwrap();
    let report =
        pack(dir.path(), out.path(), PackSpec { samples_per_shard: 2, shrink: None, threads: 1 }).unwrap();
    assert_eq!((report.samples, report.shards.len(), report.skipped_count), (3, 2, 2));
    let files: Vec<_> =
        content(out.path()).into_keys().filter(|path| path.extension().unwrap() == "tar").collect();
    assert_eq!(files, ["shard-000000.tar", "shard-000002.tar"].map(PathBuf::from));
    assert_eq!(Dataset::open(out.path()).unwrap().len(), 3);
}

#[test]
fn names_that_would_leave_the_folder_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    for name in ["../../out.jpg", "/root.jpg", "in/./side.jpg"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, &b"x"[..]).unwrap();
    }
    tar.finish().unwrap();
    let out = tempfile::tempdir().unwrap();
    let remote = RemoteSpec { cache_dir: dir.path().join("cache"), ..RemoteSpec::default() };
    let intake = Intake::open(&path.as_path().into(), None, None, &remote).unwrap();
    let report = pack_intake(&intake, &out.path().into(), PackSpec::default(), &remote, &|_| ()).unwrap();
    assert_eq!((report.samples, report.skipped_count), (1, 2));
    for (id, reason) in &report.skipped {
        assert!(reason.contains("leaves the folder"), "{id}: {reason}");
    }
    let packed = Dataset::open(out.path()).unwrap();
    assert_eq!(packed.id(SampleIndex::new(0)).unwrap(), "shard-000000.tar/in/side.jpg");
}

#[test]
fn what_another_pack_left_behind_without_its_plan_is_not_believed() {
    let dir = pictures();
    let out = tempfile::tempdir().unwrap();
    let nothing = r#"{"count":0,"listed":[]}"#;
    let record = format!(
        r#"{{"made":null,"samples":0,"bytes":0,"shrunk":0,"skipped":{nothing},"ill_formed":{nothing}}}"#
    );
    fs::create_dir(out.path().join("pack-in-progress")).unwrap();
    fs::write(out.path().join("pack-in-progress/000000.json"), record).unwrap();
    let whole = tempfile::tempdir().unwrap();
    let expected = pack(dir.path(), whole.path(), spec(2)).unwrap();
    let report = pack(dir.path(), out.path(), spec(2)).unwrap();
    assert_eq!((report.samples, report.kept), (expected.samples, 0));
    assert!(content(out.path()) == content(whole.path()));
}
