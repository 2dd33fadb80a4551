//! `mcl data pack` as a person meets it: killed in the middle and given again, from and to anywhere, and what is said where it
//! does not go.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::{Sandbox, error_of};
use mcl_testkit::{Fault, S3Server};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

const PACK: [&str; 8] =
    ["data", "pack", "objects", "--samples-per-shard", "4", "--short-side", "32", "--json"];

/// Every file below a folder.
fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// Shards under their final names.
fn shards(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries.flatten().filter(|entry| entry.path().extension().is_some_and(|e| e == "tar")).count()
}

fn pack(out: &str) -> Vec<&str> {
    [&PACK[..], &["--out", out]].concat()
}

/// Packs, and kills the process (SIGKILL) as soon as so many shards are there.
fn kill_at(sandbox: &Sandbox, arguments: &[&str], out: &Path, count: usize) {
    let mut child = sandbox.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    assert!(shards(out) < count, "{} shards were there before", shards(out));
    while shards(out) < count {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was killed");
        assert!(begun.elapsed() < Duration::from_secs(120), "{} shards came", shards(out));
        std::thread::sleep(Duration::from_micros(200));
    }
    child.kill().unwrap();
    assert!(!child.wait().unwrap().success(), "it ended before it was killed");
}

#[test]
fn a_pack_that_is_killed_again_and_again_ends_with_the_bytes_of_an_undisturbed_one() {
    let sandbox = Sandbox::new();
    let undisturbed = sandbox.json(&pack("whole"));
    let whole = content(&sandbox.path("whole"));
    assert_eq!(undisturbed["samples"], 160);
    let out = sandbox.path("out");
    for (threads, count) in [("1", 1), ("2", 5), ("2", 16), ("1", 30)] {
        let arguments = [&pack("out")[..], &["--threads", threads]].concat();
        kill_at(&sandbox, &arguments, &out, count);
        // What has its final name is whole.
        for (path, bytes) in content(&out) {
            if path.extension().is_some_and(|e| e == "tar") {
                assert!(bytes == whole[&path], "{} is there by halves", path.display());
            }
        }
    }
    // Neither another way of packing nor another source goes on with it.
    let other = ["data", "pack", "objects", "out", "--samples-per-shard", "5", "--short-side", "32"];
    sandbox.fails(1, &["not finished", "4 pictures a shard, and not 5"], &other);
    // Nobody takes a part for the whole.
    sandbox.fails(2, &["not packed to the end", "mcl data pack"], &["data", "inspect", "out"]);
    sandbox.fails(2, &["not packed to the end"], &["validate", "job.toml", "--set", "data.source=out"]);
    let found = shards(&out) as u64;
    let report = sandbox.json(&pack("out"));
    // A shard counts as done when that is noted, which the last kill may have prevented for one of each thread.
    assert!(report["kept"].as_u64().unwrap() + 2 >= found, "{report}, {found} were there");
    for key in ["samples", "bytes", "shrunk", "skipped", "ill_formed"] {
        assert_eq!(report[key], undisturbed[key], "{key}");
    }
    assert!(content(&out) == whole, "the bytes are others");
    // There is nothing left to do, and nothing is done.
    assert_eq!(sandbox.json(&pack("out"))["kept"], 40);
    assert!(content(&out) == whole, "the bytes are others");
    std::fs::write(sandbox.path("objects/images/00001.jpg"), "changed").unwrap();
    sandbox.fails(1, &["a pack that is finished", "one that has changed"], &pack("out"));
}

#[test]
fn a_pack_into_a_bucket_that_is_killed_goes_on() {
    let server = S3Server::start();
    let sandbox = Sandbox::new().with_environment(server.environment());
    sandbox.ok(&pack("whole"));
    let (place, out) = (server.url("out"), server.file("out"));
    // A thread's newest shard is there before it is noted.
    kill_at(&sandbox, &[&pack(&place)[..], &["--threads", "2"]].concat(), &out, 7);
    let left = content(&out);
    let whole = content(&sandbox.path("whole"));
    let tars = left.iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "tar"));
    tars.for_each(|(path, bytes)| assert!(*bytes == whole[path], "{} is there by halves", path.display()));
    server.meet([Fault::Refuse, Fault::None, Fault::DropAnswer]);
    let report = sandbox.json(&pack(&place));
    assert!(report["kept"].as_u64().unwrap() >= 5, "{report}");
    // What is noted of the pack has the store's own word for each shard.
    let data = |mut files: BTreeMap<PathBuf, Vec<u8>>| {
        assert!(files.remove(Path::new("pack.json")).is_some());
        files
    };
    assert!(data(content(&out)) == data(whole), "the bytes are others");
    // And back: shards there are a source as here.
    sandbox.ok(&["data", "pack", &place, "back", "--samples-per-shard", "4"]);
    let tars = |folder: &str| {
        let mut files = content(&sandbox.path(folder));
        files.retain(|path, _| path.extension().is_some_and(|e| e == "tar"));
        files
    };
    assert!(tars("back") == tars("whole"), "packed again they are others");
}

#[test]
fn lists_plain_tars_and_names_in_braces_train_and_what_does_not_says_what_to_type() {
    let sandbox = Sandbox::new();
    let caches = sandbox.path("caches").display().to_string();
    let sandbox = sandbox.with_environment(vec![("XDG_CACHE_HOME", caches)]);
    let names = std::fs::read_dir(sandbox.path("objects/images")).unwrap();
    let mut names: Vec<String> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let rows: String =
        names.iter().enumerate().map(|(i, name)| format!("objects/images/{name},c{}\n", i % 3)).collect();
    std::fs::write(sandbox.path("list.csv"), rows).unwrap();
    sandbox.ok(&["data", "pack", "list.csv", "packed", "--samples-per-shard", "40"]);
    assert_eq!(std::fs::read_to_string(sandbox.path("packed/classes.txt")).unwrap(), "c0\nc1\nc2\n");
    for source in ["data.source=list.csv", "data.source=packed/shard-{000000..000003}.tar"] {
        let valid = sandbox.json(&["validate", "job.toml", "--json", "--set", source]);
        assert_eq!(valid["pictures"], 160, "{valid}");
    }
    sandbox.train("listed", 1, &["data.source=list.csv", "train.steps=4"]);
    sandbox.exact_ledger("listed");
    let indexed = sandbox.json(&["data", "index", "packed/shard-{000000..000003}.tar", "--json"]);
    assert_eq!(indexed["shards"].as_array().unwrap().len(), 4, "{indexed}");
    sandbox.fails(2, &["read as list has no index"], &["data", "index", "list.csv", "--kind", "list"]);
    let inspected = sandbox.json(&["data", "inspect", "list.csv", "--json"]);
    assert_eq!((&inspected["count"], &inspected["classes"]), (&160.into(), &3.into()));

    // What is not read one by one, what can be read in two ways, what is not there.
    let parquet = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/data/tests/foreign/holes.parquet");
    std::fs::create_dir(sandbox.path("hf")).unwrap();
    std::fs::copy(parquet, sandbox.path("hf/a.parquet")).unwrap();
    let command = format!("mcl data pack {} --out SHARDS", sandbox.path("hf").display());
    sandbox.fails(2, &[&command], &["run", "job.toml", "--set", &format!("data.source={}", "hf")]);
    let inspected = sandbox.json(&["data", "inspect", "hf", "--column", "image", "--json"]);
    assert_eq!((&inspected["count"], &inspected["undecodable_count"]), (&3.into(), &2.into()), "{inspected}");
    assert_eq!(inspected["undecodable"][1]["id"], "a.parquet row 2");
    let report = sandbox.json(&["data", "pack", "hf", "from-hf", "--json"]);
    assert_eq!((&report["samples"], &report["skipped_count"]), (&1.into(), &2.into()));
    let said = sandbox.ok(&["data", "pack", "hf/a.parquet", "--out", "again", "--threads", "3"]);
    assert!(said.contains("1 pictures in 1 shards") && said.contains("left out a.parquet row 2"), "{said}");
    std::fs::copy(sandbox.path("packed/shard-000000.tar"), sandbox.path("objects/x.tar")).unwrap();
    sandbox.fails(2, &["as folder", "as webdataset", "--kind"], &["data", "pack", "objects", "mixed"]);
    sandbox.ok(&["data", "pack", "objects", "mixed", "--kind", "folder"]);
    sandbox.fails(2, &["another place"], &["data", "pack", "objects", "--out", "./objects/"]);
    sandbox.fails(
        2,
        &["`zip`", "folder, webdataset, tar"],
        &["validate", "job.toml", "--set", "data.kind=zip"],
    );
    sandbox.fails(2, &["`zip`", "folder, webdataset, tar"], &["data", "pack", "hf", "no", "--kind", "zip"]);
    let output = sandbox.run(&["data", "pack", "objects"]);
    assert_eq!(output.status.code(), Some(2), "{}", error_of(&output));
}
